"""tgt's iSER target on siw, in a guest, as the target of our initiator. What its settings have to
be, and what it does wrong by itself, is in docs/INTEROP.md.
"""

import contextlib
import hashlib

import numpy as np
import pytest

import host.inline  # noqa: F401 - compiles while tests are collected
import iscsi
import ppe.cycle.services.iser
import ppe.cycle.services.rdma  # noqa: F401 - the same
from iscsi.session.discovery import discover
from iscsi.session.errors import ConnectionLost, LoginTimeout
from iscsi.session.options import Options
from iscsi.session.perf import Load, LoadPlan
from tests.guest.iser import ADDRESS
from tests.guest.machine import QEMU_TOOLS
from tests.interop.test_guest_target import fill_and_check

pytestmark = [
    pytest.mark.rdma_guest,
    pytest.mark.slow,
    pytest.mark.interop(*QEMU_TOOLS, "gcc", "make", "tgtd", "tgtadm"),
    pytest.mark.timeout(400),
]

IQN = "iqn.2026-01.org.example:tgt"
SIZE = 32 << 20
BIG = 4 << 20
ATTEMPTS = 5
# Its iSER listens on 3260, where on siw TCP would be as well, so that goes elsewhere. It would pin
# 1 GiB. A target is there only for initiators whose name it was told.
START = f"""
set -e
ulimit -l unlimited
iscsi="--iscsi portal={ADDRESS}:3270 --iser pool_sz_mb=128"
chroot /host /usr/sbin/tgtd --foreground $iscsi >/run/tgtd.log 2>&1 &
echo $! >/run/tgtd.pid
adm="chroot /host /usr/sbin/tgtadm --lld iser --tid 1"
until $adm --mode target --op new --targetname {IQN} 2>/dev/null; do sleep 0.2; done
truncate -s {SIZE} /host/tgt.img
$adm --mode logicalunit --op new --lun 1 --backing-store /tgt.img
$adm --mode target --op bind --initiator-address ALL
$adm --mode target --op bind --initiator-name {{initiator}}
"""


@pytest.fixture(scope="module")
def tgt(iser_guest):
    """Where it listens, as host and port of this machine."""
    iser_guest.run(START.format(initiator=Options().initiator_name), timeout=30)
    try:
        yield f"127.0.0.1:{iser_guest.tgt_port}"
    finally:
        iser_guest.run("kill -KILL $(cat /run/tgtd.pid)")  # it takes no notice of SIGTERM


def opened(tgt, **options):
    """Its unit. It now and then loses count in a login, and says nothing more or hangs up."""
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(ConnectionLost, LoginTimeout):
            return iscsi.open(f"iser://{tgt}/{IQN}/1", login_timeout_s=3, **options)
    return iscsi.open(f"iser://{tgt}/{IQN}/1", **options)


def test_tgt_tells_what_it_is(tgt):
    with opened(tgt) as device:
        assert device.inquiry.vendor.strip() == "IET"
        assert (device.block_size, device.size) == (512, SIZE)
        assert not device.session.session_params.immediate_data


def test_discovery_over_rdma_finds_tgt(tgt):
    found = []
    for _ in range(ATTEMPTS):
        with contextlib.suppress(ConnectionLost, LoginTimeout):
            found = found or discover(f"iser://{tgt}", login_timeout_s=3)
    assert [one.name for one in found] == [IQN]


def test_what_is_written_to_tgt_is_read_back(tgt):
    with opened(tgt) as device:
        fill_and_check(device, 11)


def test_a_big_transfer_lies_in_tgts_file_as_it_was_sent(iser_guest, tgt):
    data = np.random.default_rng(7).integers(0, 256, BIG, np.uint8)
    with opened(tgt) as device, device.alloc(BIG) as buffer:
        buffer.array[:] = data
        assert device.write(0, buffer) == BIG
        device.flush()
        buffer.array[:] = 0
        assert device.readinto(0, buffer) == BIG
        assert (buffer.array == data).all()
    seen = iser_guest.output(f"head -c {BIG} /host/tgt.img | sha256sum").split()[0]
    assert seen == hashlib.sha256(data.tobytes()).hexdigest()


def test_a_queue_of_random_blocks_is_verified_by_tgt(tgt):
    plan = LoadPlan(seconds=1.0, random=True, write_percent=50, verify=True, span_blocks=4096)
    with (
        opened(tgt, queue_depth=32) as device,
        contextlib.closing(Load(device, plan)) as load,
    ):
        result = load.run()
    assert result.writes > 0
    assert result.verified_blocks == 8 * result.reads > 0


def test_logging_in_again_finds_what_was_written(tgt):
    data = bytes(range(256)) * 64
    for number in range(4):
        with opened(tgt) as device:
            if number:
                assert device.read(100, 32) == data
            device.write(100, data)
