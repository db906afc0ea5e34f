"""The kernel's initiator, in a guest, makes a file system on our target and puts it to work: what a
person would do first with a LUN, over an inline engine and a daemon's, with and without digests.
"""

import contextlib

import pytest

import iscsi.target.server  # noqa: F401 - compiles while tests are collected
from shm.jit import JIT_DISABLED
from tests.guest.machine import HOST, QEMU_TOOLS
from tests.interop.serve import IQN, Served, engine
from tests.iscsi.session.tgt import free_port

pytestmark = [
    pytest.mark.guest,
    pytest.mark.slow,
    pytest.mark.interop(*QEMU_TOOLS),
    pytest.mark.timeout(240),
    pytest.mark.skipif(JIT_DISABLED, reason="the server's loop is compiled"),
]

SIZE = 96 << 20
DIGESTS = {
    "node__conn[0]__iscsi__HeaderDigest": "CRC32C",
    "node__conn[0]__iscsi__DataDigest": "CRC32C",
}
# Each job writes its own files and then reads all of it back; a wrong check sum ends fio with 1.
FIO = """
[global]
directory=/mnt
ioengine=libaio
direct=1
verify=crc32c
verify_fatal=1
size=4M
[small-and-random]
rw=randrw
bs=4k
iodepth=16
numjobs=2
[large-and-random]
rw=randwrite
bs=64k
iodepth=8
[sequential]
rw=write
bs=1M
iodepth=2
"""
# Without a file system: odd sizes and places, and commands beyond one burst. Places overlap, and
# SIMPLE commands that are under way together have no order, so fio has one wait for the other.
FIO_RAW = """
[global]
filename=/dev/{disk}
ioengine=libaio
direct=1
verify=crc32c
verify_fatal=1
randrepeat=1
[odd]
offset=1M
size=4M
rw=randwrite
blockalign=512
bs=7k
iodepth=8
serialize_overlap=1
[beyond-a-burst]
offset=16M
size=16M
rw=write
bs=2M
iodepth=3
"""

SUMS = "find /mnt -type f -exec sha256sum {} + | sort"


@contextlib.contextmanager
def serving(kind, tmp_path_factory):
    """`ppe target serve` as a person starts it; the port the guest reaches it by."""
    port = free_port()
    flags = ("--ram", str(SIZE), "--portal", f"127.0.0.1:{port}", "--advertise", f"{HOST}:{port}")
    if kind == "inline":
        with Served(*flags):
            yield port
        return
    runtime = tmp_path_factory.mktemp("runtime")
    with engine(runtime, "guest") as name, Served(*flags, "--engine", name, runtime=runtime):
        yield port


@pytest.fixture(scope="module", params=["inline", "daemon"])
def port(request, tmp_path_factory):
    with serving(request.param, tmp_path_factory) as found:
        yield found


def assert_digests(guest, wanted):
    """What the kernel says that it negotiated."""
    said = guest.output("cat /sys/class/iscsi_connection/*/header_digest").split()
    said += guest.output("cat /sys/class/iscsi_connection/*/data_digest").split()
    assert said == ["1" if wanted else "0"] * 2


@pytest.mark.parametrize("digests", [{}, DIGESTS], ids=["plain", "digests"])
def test_a_file_system_keeps_its_files_over_a_new_login(guest, open_iscsi, port, digests):
    assert open_iscsi.discover(port) == {IQN: [f"{HOST}:{port}"]}
    guest.write("/run/jobs", FIO)
    with open_iscsi.session(IQN, port, **digests) as disks:
        (disk,) = disks[0]
        assert_digests(guest, bool(digests))
        assert guest.output(f"lsblk -bdno SIZE /dev/{disk}").strip() == str(SIZE)
        guest.run(f"mkfs.ext4 -q -F /dev/{disk} && mount /dev/{disk} /mnt")
        guest.run("fio /run/jobs", timeout=90)
        guest.run("head -c 5000000 /dev/urandom >/mnt/kept && sync")
        sums = guest.output(SUMS)
        guest.run(f"umount /mnt && fsck.ext4 -fn /dev/{disk}")
    with open_iscsi.session(IQN, port, **digests) as disks:
        (disk,) = disks[0]
        guest.run(f"fsck.ext4 -fn /dev/{disk} && mount -o ro /dev/{disk} /mnt")
        assert guest.output(SUMS) == sums
        assert sums.count("\n") == 5
        guest.run("umount /mnt")


@pytest.mark.parametrize("digests", [{}, DIGESTS], ids=["plain", "digests"])
def test_a_bare_disk_takes_odd_sizes_and_long_commands(guest, open_iscsi, port, digests):
    with open_iscsi.session(IQN, port, **digests) as disks:
        (disk,) = disks[0]
        guest.write("/run/jobs", FIO_RAW.format(disk=disk))
        # Several bursts, and so several R2Ts, in one command.
        guest.run(f"echo 2048 >/sys/block/{disk}/queue/max_sectors_kb")
        guest.run("fio /run/jobs", timeout=90)


def test_writes_without_unsolicited_data_arrive(guest, open_iscsi, port):
    settings = {
        "node__session__iscsi__InitialR2T": "Yes",
        "node__session__iscsi__ImmediateData": "No",
        "node__session__iscsi__MaxBurstLength": 32768,
        "node__conn[0]__iscsi__MaxRecvDataSegmentLength": 4096,
    }
    with open_iscsi.session(IQN, port, **settings) as disks:
        (disk,) = disks[0]
        said = guest.output("cd /sys/class/iscsi_session/session*; cat initial_r2t immediate_data")
        assert said.split() == ["1", "0"]
        guest.write("/run/jobs", FIO_RAW.format(disk=disk))
        guest.run("fio /run/jobs", timeout=90)
