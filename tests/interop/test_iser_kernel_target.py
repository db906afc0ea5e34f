"""LIO's iSER target (isert) on the kernel's siw, in a guest, as the target of our initiator, whose
software RNIC is a process of this machine.
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
from iscsi.session.errors import AuthError, ConnectionLost
from iscsi.session.options import NEVER
from iscsi.session.perf import Load, LoadPlan
from iscsi.wire.errors import LoginRejected
from tests.guest.iser import ADDRESS
from tests.guest.lio import ISER_PORT, UNIT_BYTES
from tests.guest.machine import QEMU_TOOLS
from tests.interop.test_guest_target import fill_and_check
from tests.iscsi.session.relay import UP, Relay

pytestmark = [
    pytest.mark.rdma_guest,
    pytest.mark.slow,
    pytest.mark.interop(*QEMU_TOOLS, "gcc", "make"),
    pytest.mark.timeout(400),
]

IQN = "iqn.2026-01.org.example:isert"
BLOCK = 512
BIG = 8 << 20


@pytest.fixture(scope="module")
def unit(iser_kernel_target):
    """A target without authentication; the path of its unit's file in the guest."""
    return iser_kernel_target.add(IQN)


def url_of(guest, iqn=IQN, user="", options=""):
    return f"iser://{user}127.0.0.1:{guest.lio_port}/{iqn}/0{options}"


def test_isert_tells_what_it_is(iser_guest, unit):
    with iscsi.open(url_of(iser_guest)) as device:
        assert device.inquiry.vendor.strip() == "LIO-ORG"
        assert (device.block_size, device.size) == (BLOCK, UNIT_BYTES)
        assert device.session.session_params.rdma_extensions


def test_discovery_over_rdma_finds_isert(iser_guest, unit):
    found = {one.name: one for one in discover(f"iser://127.0.0.1:{iser_guest.lio_port}")}
    (portal,) = found[IQN].portals
    assert (portal.host, portal.port) == (ADDRESS, ISER_PORT)


@pytest.mark.parametrize("immediate_data", ["Yes", "No"])
def test_what_is_written_to_isert_is_read_back(iser_guest, iser_kernel_target, immediate_data):
    iqn = f"{IQN}-immediate-{immediate_data}".lower()
    iser_kernel_target.add(iqn, ImmediateData=immediate_data, InitialR2T="No")
    with iscsi.open(url_of(iser_guest, iqn), recovery=NEVER) as device:
        agreed = device.session.session_params
        assert agreed.immediate_data is (immediate_data == "Yes")
        assert agreed.initial_r2t, "isert declares no receives for unsolicited data"
        fill_and_check(device, 3)


def test_a_big_transfer_lies_in_iserts_file_as_it_was_sent(iser_guest, unit):
    data = np.random.default_rng(5).integers(0, 256, BIG, np.uint8)
    with (
        iscsi.open(url_of(iser_guest), command_bytes=4 << 20, recovery=NEVER) as device,
        device.alloc(BIG) as buffer,
    ):
        buffer.array[:] = data
        assert device.write(0, buffer) == BIG
        device.flush()
        buffer.array[:] = 0
        assert device.readinto(0, buffer) == BIG
        assert (buffer.array == data).all()
    seen = iser_guest.output(f"head -c {BIG} {unit} | sha256sum").split()[0]
    assert seen == hashlib.sha256(data.tobytes()).hexdigest()


@pytest.mark.parametrize(("depth", "blocks"), [(1, 8), (8, 128), (32, 8), (128, 24)])
def test_a_queue_of_random_blocks_is_verified_by_isert(iser_guest, unit, depth, blocks):
    plan = LoadPlan(
        blocks=blocks, seconds=1.0, random=True, write_percent=50, verify=True, span_blocks=4096
    )
    with (
        iscsi.open(url_of(iser_guest), queue_depth=depth, recovery=NEVER) as device,
        contextlib.closing(Load(device, plan)) as load,
    ):
        result = load.run()
    assert result.writes > 0
    assert result.verified_blocks == blocks * result.reads > 0


def test_chap_is_proved_to_isert(iser_guest, iser_kernel_target):
    iqn = f"{IQN}-chap"
    own = {"own_user": "lio", "own_password": "secret-of-lio-"}
    iser_kernel_target.add(iqn, user="alice", password="secret-of-alice", **own)
    mutual = "?target_user=lio&target_password=secret-of-lio-"
    with iscsi.open(url_of(iser_guest, iqn, "alice%secret-of-alice@", mutual)) as device:
        fill_and_check(device, 5)
    # isert closes the connection at once, and siw then does not send the Login Response any more.
    with pytest.raises((AuthError, ConnectionLost)):
        iscsi.open(url_of(iser_guest, iqn, "alice%not-her-secret@"))


def test_isert_refuses_a_name_that_it_does_not_have(iser_guest, unit):
    with pytest.raises((LoginRejected, ConnectionLost)):
        iscsi.open(url_of(iser_guest, f"{IQN}-nobody"), recovery=NEVER)


def test_sessions_with_isert_end_in_order_and_the_kernel_has_nothing_to_say(iser_guest, unit):
    sessions = "cat /sys/kernel/config/target/iscsi/*/fabric_statistics/iscsi_instance/sessions"
    iser_guest.complaints()
    for number in range(12):
        with iscsi.open(url_of(iser_guest), recovery=NEVER) as device:
            device.read(number, 1)
            assert sum(map(int, iser_guest.output(sessions).split())) == 1
    iser_guest.wait_for(f"[ $({sessions} | sort -n | tail -1) = 0 ]", timeout=10)
    assert iser_guest.complaints() == ""


def test_a_session_that_is_made_again_goes_on(iser_guest, unit):
    with iscsi.open(url_of(iser_guest)) as device:
        data = np.arange(BLOCK * 64, dtype=np.uint32).astype(np.uint8)[: BLOCK * 64].tobytes()
        device.write(0, data)
        for _ in range(3):
            device.session.reconnect()
            assert device.read(0, 64) == data
        assert device.session.core.recoveries == 3


def test_a_cut_in_the_midst_of_writes_loses_nothing(iser_guest, unit):
    with Relay(("127.0.0.1", iser_guest.lio_port), finishing=UP) as between:
        url = url_of(iser_guest).replace(f":{iser_guest.lio_port}/", f":{between.port}/")
        data = np.random.default_rng(9).integers(0, 256, BIG, np.uint8)
        with iscsi.open(url, queue_depth=8) as device, device.alloc(BIG) as buffer:
            buffer.array[:] = data
            between.cut_after(up=BIG // 3)
            assert device.write(0, buffer) == BIG
            buffer.array[:] = 0
            between.cut_after(down=BIG // 2)
            assert device.readinto(0, buffer) == BIG
            assert (buffer.array == data).all()
            assert device.session.core.recoveries == 2
