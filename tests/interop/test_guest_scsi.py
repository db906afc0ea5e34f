"""The judges of the SCSI layer that a Linux system has: sg3-utils, multipath-tools, the kernel's
own discard and resize, and open-iscsi's CHAP, in a guest, on a thin unit of our target.
"""

import re

import pytest

from iscsi.target.access import AccessPolicy, Grant, TargetAccess
from iscsi.target.backends import RamBackend
from iscsi.target.units import LogicalUnit, Target
from iscsi.wire.chap import ChapAccount
from shm.jit import JIT_DISABLED
from tests.guest.machine import QEMU_TOOLS
from tests.guest.our_target import OurTarget

pytestmark = [
    pytest.mark.guest,
    pytest.mark.slow,
    pytest.mark.interop(*QEMU_TOOLS),
    pytest.mark.timeout(240),
    pytest.mark.skipif(JIT_DISABLED, reason="the server's loop is compiled"),
]

IQN = "iqn.2026-01.org.example:scsi"
CHAP = f"{IQN}-chap"
MUTUAL = f"{IQN}-mutual"
TWO_WAYS = f"{IQN}-two-ways"
SIZE = 64 << 20
BLOCKS = SIZE // 512
ALICE = ChapAccount("alice", b"secret-of-alice")
OURSELVES = ChapAccount("target", b"secret-of-target")
MULTIPATH = """
defaults {
    find_multipaths no
    user_friendly_names no
    path_checker tur
    path_grouping_policy group_by_prio
}
"""


def make(engine):
    thin = RamBackend.create(engine, SIZE, capacity=2 * SIZE, thin=True)
    yield Target(IQN, {0: LogicalUnit(thin, product="thin disk")})
    for name in (CHAP, MUTUAL, TWO_WAYS):
        yield Target(name, {0: LogicalUnit(RamBackend.create(engine, 8 << 20))})


@pytest.fixture(scope="module")
def target():
    access = AccessPolicy(
        {
            CHAP: TargetAccess((Grant(accounts=(ALICE,)),)),
            MUTUAL: TargetAccess((Grant(accounts=(ALICE,), own=OURSELVES),)),
        }
    )
    with OurTarget(make, portals=2, access=access) as running:
        yield running


@pytest.fixture(scope="module")
def disk(target, open_iscsi):
    """The device of the thin unit, logged in once for the tools that change nothing for long."""
    with open_iscsi.session(IQN, target.ports[0]) as disks:
        (name,) = disks[0]
        yield f"/dev/{name}"


def test_discovery_tells_each_target_by_both_portals(target, open_iscsi):
    found = open_iscsi.discover(target.ports[0])
    assert set(found) == {IQN, CHAP, MUTUAL, TWO_WAYS}
    assert all(len(set(portals)) == 2 for portals in found.values())


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("sg_inq {}", ["type: disk", r"Vendor identification: PPE", "thin disk", r"TPGS=1", "3PC"]),
        ("sg_vpd {}", [r"\[sn\]", r"\[di\]", r"\[ei\]", r"\[bl\]", r"\[bdc\]", r"\[lbpv\]"]),
        ("sg_vpd --page=sn {}", [r"Unit serial number: \w+"]),
        (
            "sg_vpd --page=di {}",
            [r"NAA", r"Relative target port: 0x\d", r"Target port group: 0x\d", IQN + ",t,0x0001"],
        ),
        ("sg_vpd --page=ei {}", [r"ORDSUP=1", r"SIMPSUP=1", r"LUICLR"]),
        ("sg_vpd --page=bl {}", [r"Maximum unmap LBA count: [1-9]", r"Maximum transfer length"]),
        ("sg_vpd --page=lbpv {}", [r"LBPU\): 1", r"LBPWS\): 1", r"Provisioning type: 2"]),
        ("sg_luns {}", [r"imples 1 lun entry", "0000000000000000"]),
        ("sg_readcap --long {}", [r"lbpme=1, lbprz=1", rf"Number of logical blocks={BLOCKS}"]),
        ("sg_readcap {}", [rf"Number of logical blocks={BLOCKS}"]),
        ("sg_rtpg --decode {}", [r"access state : 0x00 \(active/optimized\)", r"target port id"]),
        ("sg_opcodes {}", ["Compare and write", "Unmap", "Write same", "Persistent reserve out"]),
        ("sg_opcodes --opcode=0x8a {}", [r"Write\(16\)", r"supported"]),
        ("sg_persist --in --report-capabilities {}", [r"Persist Through Power Loss", "TMV"]),
        ("sg_persist --in --read-keys {}", ["NO registered reservation keys"]),
        ("sg_modes --all {}", ["Caching", "Control"]),
        ("sg_turs --num=3 {}", []),
        ("sg_requests {}", []),
        ("sg_sync {}", []),
        ("sg_verify --lba=0 --count=128 {}", []),
        ("sg_get_lba_status --lba=0 {}", [r"LBA: 0x0*0"]),
        ("sg_start --start {}", []),
        ("sg_prevent --allow {}", []),
    ],
)
def test_the_tools_understand_the_unit(guest, disk, command, wanted):
    said = guest.output(command.format(disk))
    for pattern in wanted:
        assert re.search(pattern, said), f"no {pattern!r} in: {said}"


def test_blocks_written_the_same_are_all_alike_and_unmapped_ones_are_zero(guest, disk):
    guest.run("head -c 512 /dev/urandom >/run/block && head -c 32768 /dev/zero >/run/zeros")
    guest.run(f"sg_write_same --16 --lba=4096 --num=64 --in=/run/block --xferlen=512 {disk}")
    read = f"dd if={disk} iflag=direct bs=512 skip=4096 count=64 2>/dev/null"
    guest.run(f"for i in $(seq 64); do cat /run/block; done >/run/all && {read} | cmp - /run/all")
    assert "mapped" in guest.output(f"sg_get_lba_status --lba=4096 {disk}")
    guest.run(f"sg_unmap --force --lba=4096 --num=64 {disk} && {read} | cmp - /run/zeros")
    assert "deallocated" in guest.output(f"sg_get_lba_status --lba=4096 {disk}")


def test_compare_and_write_writes_only_where_the_old_data_is_right(guest, disk):
    guest.run("head -c 512 /dev/zero >/run/old && head -c 512 /dev/urandom >/run/new")
    guest.run(f"dd if=/run/old of={disk} oflag=direct bs=512 seek=100 2>/dev/null")
    guest.run("cat /run/old /run/new >/run/both")
    command = f"sg_compare_and_write --lba=100 --num=1 --xferlen=1024 --in=/run/both {disk}"
    guest.run(command)
    guest.run(f"dd if={disk} iflag=direct bs=512 skip=100 count=1 2>/dev/null | cmp - /run/new")
    ran = guest.run(command, check=False)
    assert ran.status == 14, ran.output  # SG_LIB_CAT_MISCOMPARE


def test_a_reservation_is_registered_taken_and_given_back(guest, disk):
    out = f"sg_persist --out {disk}"
    guest.run(f"{out} --register --param-sark=0xabc")
    assert "0xabc" in guest.output(f"sg_persist --in --read-keys {disk}")
    guest.run(f"{out} --reserve --param-rk=0xabc --prout-type=1")
    assert "Write Exclusive" in guest.output(f"sg_persist --in --read-reservation {disk}")
    guest.run(f"{out} --release --param-rk=0xabc --prout-type=1")
    guest.run(f"{out} --register --param-rk=0xabc --param-sark=0")
    assert "NO registered" in guest.output(f"sg_persist --in --read-keys {disk}")


def test_the_kernel_discards_and_trims(guest, disk):
    name = disk.rpartition("/")[2]
    assert int(guest.output(f"cat /sys/block/{name}/queue/discard_max_bytes")) > 0
    guest.run(f"dd if=/dev/urandom of={disk} bs=1M count=8 oflag=direct 2>/dev/null")
    guest.run(f"/sbin/blkdiscard --offset 1048576 --length 4194304 {disk}")
    guest.run("head -c 4194304 /dev/zero >/run/zeros")
    guest.run(f"dd if={disk} bs=1M skip=1 count=4 iflag=direct 2>/dev/null | cmp - /run/zeros")
    guest.run(f"/sbin/blkdiscard --zeroout --offset 0 --length 1048576 {disk}")
    guest.run(f"mkfs.ext4 -q -F {disk} && mount {disk} /mnt")
    guest.run("head -c 20000000 /dev/urandom >/mnt/gone && sync && rm /mnt/gone && sync")
    trimmed = re.search(r"\((\d+) bytes\)", guest.output("/sbin/fstrim -v /mnt"))
    assert int(trimmed[1]) > 20000000
    guest.run(f"umount /mnt && fsck.ext4 -fn {disk}")


def test_a_larger_unit_is_seen_by_a_rescan(guest, target, disk):
    name = disk.rpartition("/")[2]
    sectors = f"cat /sys/block/{name}/size"
    assert int(guest.output(sectors)) == BLOCKS
    unit = target.targets[0].units[0]
    try:
        target.call(lambda: unit.resize(SIZE + (16 << 20)))
        guest.run("iscsiadm -m session --rescan")
        guest.wait_for(f"[ $({sectors}) = {BLOCKS + (32 << 10)} ]", timeout=20)
        guest.run(f"dd if=/dev/zero of={disk} bs=1M seek=79 count=1 oflag=direct 2>/dev/null")
    finally:
        target.call(lambda: unit.resize(SIZE))
    guest.run("iscsiadm -m session --rescan")
    guest.wait_for(f"[ $({sectors}) = {BLOCKS} ]", timeout=20)


def test_two_portals_are_one_map_of_two_paths_and_one_may_fail(guest, target, open_iscsi):
    guest.run("load multipath")
    guest.write("/etc/multipath.conf", MULTIPATH)
    with open_iscsi.session(TWO_WAYS, *target.ports) as disks:
        assert len(disks[0]) == 2
        guest.run(f"/sbin/multipath /dev/{disks[0][0]}", timeout=30)
        said = guest.output("/sbin/multipath -ll")
        (name,) = re.findall(r"^(\S+) dm-\d", said, re.MULTILINE)
        assert "hwhandler='1 alua'" in said
        assert re.findall(r"prio=(\d+) status=(?:active|enabled)", said) == ["50"], said
        assert len(re.findall(r"sd\w+ +\d+:\d+ +active ready running", said)) == 2
        guest.write(
            "/run/jobs",
            f"[paths]\nfilename=/dev/mapper/{name}\nsize=8M\nbs=16k\n"
            "rw=randrw\ntime_based=1\nruntime=6\nioengine=libaio\ndirect=1\niodepth=8\n"
            "verify=crc32c\n",
        )
        guest.run("fio /run/jobs >/run/fio.log 2>&1; echo $? >/run/fio.status &")
        guest.run(f"sleep 2; echo offline >/sys/block/{disks[0][0]}/device/state")
        guest.wait_for("[ -s /run/fio.status ]", timeout=40)
        assert guest.output("cat /run/fio.status").strip() == "0", guest.output("cat /run/fio.log")
        assert "offline" in guest.output("/sbin/multipath -ll")
        guest.run("/sbin/multipath -F")


def test_open_iscsi_proves_itself_by_chap(target, open_iscsi):
    auth = "node__session__auth__"
    alice = {
        f"{auth}authmethod": "CHAP",
        f"{auth}username": ALICE.user,
        f"{auth}password": ALICE.secret.decode(),
    }
    port = target.ports[0]
    with open_iscsi.session(CHAP, port, **alice) as disks:
        assert disks[0]
    wrong = {**alice, f"{auth}password": "not-her-secret"}
    assert "authorization failure" in open_iscsi.login_fails(CHAP, port, **wrong)
    assert "authorization failure" in open_iscsi.login_fails(CHAP, port)


@pytest.mark.parametrize("algorithm", ["MD5", "SHA1", "SHA256", "SHA3-256"])
def test_each_chap_algorithm_proves_both_sides(guest, target, open_iscsi, algorithm):
    auth = "node__session__auth__"
    both = {
        f"{auth}authmethod": "CHAP",
        f"{auth}username": ALICE.user,
        f"{auth}password": ALICE.secret.decode(),
        f"{auth}username_in": OURSELVES.user,
        f"{auth}password_in": OURSELVES.secret.decode(),
        f"{auth}chap_algs": algorithm,
    }
    port = target.ports[0]
    with open_iscsi.session(MUTUAL, port, **both) as disks:
        assert disks[0]
    wrong = {**both, f"{auth}password_in": "another-secret"}
    assert "login failure" in open_iscsi.login_fails(MUTUAL, port, **wrong)
    assert "incorrect CHAP response" in guest.output("tail -4 /run/iscsid.log")
