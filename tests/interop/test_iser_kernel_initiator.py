"""The kernel's initiator over iSER (ib_iser) on siw, in a guest, with our target, whose software
RNIC is a process of this machine: what a person would do with a LUN, and the judges of SCSI.
"""

import contextlib

import pytest

import iscsi.target.server  # noqa: F401 - compiles while tests are collected
import ppe.cycle.services.iser
import ppe.cycle.services.rdma  # noqa: F401 - the same
from shm.jit import JIT_DISABLED
from tests.guest.machine import QEMU_TOOLS
from tests.interop import testcu
from tests.interop.serve import IQN, Served, engine
from tests.interop.test_guest_file_system import FIO, FIO_RAW, SIZE, SUMS
from tests.iscsi.session.relay import DOWN, Relay
from tests.iscsi.session.tgt import free_port

pytestmark = [
    pytest.mark.rdma_guest,
    pytest.mark.slow,
    pytest.mark.interop(*QEMU_TOOLS, "gcc", "make"),
    pytest.mark.timeout(400),
    pytest.mark.skipif(JIT_DISABLED, reason="the server's loop is compiled"),
]

# As small as it gets: as many unsolicited Data-Outs as there can be, were they allowed.
SMALL_SEGMENTS = {"node__conn[0]__iscsi__MaxXmitDataSegmentLength": 512}
WRITES = """
[large]
filename=/dev/{disk}
ioengine=libaio
direct=1
verify=crc32c
verify_fatal=1
size=16M
rw=write
bs=256k
iodepth=32
"""
# Slow enough to be in the midst of it when the connection is cut, and read back at the end.
THROUGH_CUTS = """
[through-cuts]
filename=/dev/{disk}
ioengine=libaio
direct=1
rw=randwrite
bs=16k
size=12M
iodepth=8
rate_iops=150
verify=crc32c
verify_fatal=1
"""
CUTS = 2
FAMILIES = (
    "Inquiry",
    "ReadCapacity16",
    "Read10",
    "Read16",
    "Write10",
    "Write16",
    "CompareAndWrite.Miscompare",
    "Verify10.BeyondEol",
    "WriteSame10.BeyondEol",
    "ModeSense6",
    "ReportSupportedOpcodes",
)


@contextlib.contextmanager
def serving(kind, tmp_path_factory):
    """`ppe target serve --iser` as a person starts it; the port the guest reaches it by."""
    port = free_port()
    flags = ("--ram", str(SIZE), "--iser", f"127.0.0.1:{port}", "--placement")
    if kind == "inline":
        with Served(*flags, "engine"):
            yield port
        return
    runtime = tmp_path_factory.mktemp("runtime")
    with (
        engine(runtime, "guest") as name,
        Served(*flags, "datamover", "--engine", name, runtime=runtime),
    ):
        yield port


@pytest.fixture(scope="module", params=["inline", "daemon"])
def port(request, tmp_path_factory):
    with serving(request.param, tmp_path_factory) as found:
        yield found


@pytest.fixture(scope="module")
def one_port(tmp_path_factory):
    """A port, where how the target is placed does not matter."""
    with serving("inline", tmp_path_factory) as found:
        yield found


def test_a_file_system_keeps_its_files_over_a_new_login_over_iser(
    iser_guest, iser_open_iscsi, port
):
    guest = iser_guest
    guest.write("/run/jobs", FIO)
    with iser_open_iscsi.session(IQN, port) as disks:
        (disk,) = disks[0]
        assert "iser" in guest.output("cat /sys/class/scsi_host/host*/proc_name")
        assert guest.output(f"lsblk -bdno SIZE /dev/{disk}").strip() == str(SIZE)
        guest.run(f"mkfs.ext4 -q -F /dev/{disk} && mount /dev/{disk} /mnt")
        guest.run("fio /run/jobs", timeout=90)
        guest.run("head -c 5000000 /dev/urandom >/mnt/kept && sync")
        sums = guest.output(SUMS)
        guest.run(f"umount /mnt && fsck.ext4 -fn /dev/{disk}")
    with iser_open_iscsi.session(IQN, port) as disks:
        (disk,) = disks[0]
        guest.run(f"fsck.ext4 -fn /dev/{disk} && mount -o ro /dev/{disk} /mnt")
        assert guest.output(SUMS) == sums
        assert sums.count("\n") == 5
        guest.run("umount /mnt")


def test_a_bare_disk_takes_odd_sizes_over_iser(iser_guest, iser_open_iscsi, port):
    with iser_open_iscsi.session(IQN, port) as disks:
        (disk,) = disks[0]
        iser_guest.write("/run/jobs", FIO_RAW.format(disk=disk))
        iser_guest.run("fio /run/jobs", timeout=90)


@pytest.mark.parametrize(
    "settings",
    [
        SMALL_SEGMENTS,
        {"node__session__iscsi__ImmediateData": "No"},
        {"node__session__iscsi__FirstBurstLength": 512},
    ],
    ids=["small segments", "no immediate data", "short first burst"],
)
def test_writes_arrive_whatever_ib_iser_was_told(iser_guest, iser_open_iscsi, one_port, settings):
    with iser_open_iscsi.session(IQN, one_port, **settings) as disks:
        (disk,) = disks[0]
        said = iser_guest.output("cat /sys/class/iscsi_session/session*/initial_r2t")
        assert said.split() == ["1"], "it may send data unasked that we have no receives for"
        iser_guest.complaints()
        iser_guest.write("/run/jobs", WRITES.format(disk=disk))
        iser_guest.run("fio /run/jobs", timeout=90)
        assert iser_guest.complaints() == ""


def test_a_cut_connection_comes_back_and_nothing_is_lost(iser_guest, iser_open_iscsi, one_port):
    guest = iser_guest
    with Relay(("127.0.0.1", one_port), finishing=DOWN) as between:
        settings = {"node__session__timeo__replacement_timeout": 120}
        with iser_open_iscsi.session(IQN, between.port, **settings) as disks:
            (disk,) = disks[0]
            guest.write("/run/jobs", THROUGH_CUTS.format(disk=disk))
            guest.run("rm -f /run/status; (fio /run/jobs >/run/log 2>&1; echo $? >/run/status) &")
            for _ in range(CUTS):
                guest.run("sleep 1; ! [ -e /run/status ]")
                before = between.accepted
                between.drop()
                guest.wait_for("grep -q FAILED /sys/class/iscsi_session/session*/state")
                guest.wait_for("grep -q LOGGED_IN /sys/class/iscsi_session/session*/state")
                assert between.accepted == before + 1
            guest.wait_for("[ -s /run/status ]", timeout=100)
            assert guest.output("cat /run/status").strip() == "0", guest.output("cat /run/log")


@pytest.fixture(scope="module")
def disk(iser_open_iscsi, one_port):
    """A disk, logged in once for the judges that leave it as it is."""
    with iser_open_iscsi.session(IQN, one_port) as disks:
        (name,) = disks[0]
        yield name


@pytest.mark.interop("iscsi-test-cu")
@pytest.mark.parametrize("family", FAMILIES)
def test_scsi_through_ib_iser_satisfies_libiscsis_suite(iser_guest, disk, family):
    (generic,) = iser_guest.output(f"ls /sys/block/{disk}/device/scsi_generic").split()
    command = f"chroot /host iscsi-test-cu -d -t SCSI.{family} /dev/{generic}"
    verdict = testcu.read(iser_guest.output(command, timeout=150))
    assert not verdict.failed, verdict.text
    assert verdict.passed, f"nothing of {family} ran: {verdict.text}"


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("sg_inq {}", "Vendor identification: PPE"),
        ("sg_readcap --16 {}", f"Last LBA={SIZE // 512 - 1}"),
        ("sg_vpd --page=di {}", "Target port"),
        ("sg_luns {}", "Lun list length = 8"),
        ("sg_persist --in --report-capabilities {}", "Compatible Reservation Handling"),
        ("sg_verify --lba=0 --count=8 {}", ""),
        ("sg_turs {}", ""),
    ],
)
def test_sg3_utils_agree_through_ib_iser(iser_guest, disk, command, wanted):
    assert wanted in iser_guest.output(command.replace("{}", f"/dev/{disk}"))


def test_a_read_beyond_the_end_is_told_with_sense_data(iser_guest, disk):
    """Through the response's data segment, within what ib_iser has room for."""
    command = f"sg_raw --request=512 /dev/{disk} 28 00 7f ff ff ff 00 00 01 00"
    ran = iser_guest.run(command, check=False)
    assert "Logical block address out of range" in ran.output
