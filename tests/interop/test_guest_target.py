"""LIO, Linux's kernel target, in a guest, as the target of our initiator on this machine."""

import contextlib
import hashlib

import numpy as np
import pytest

import host.inline  # noqa: F401 - compiles while tests are collected, where no timeout runs
import iscsi
from iscsi.session.errors import AuthError, ConnectionLost
from iscsi.session.perf import Load, LoadPlan
from iscsi.wire.keys import Proposal, SessionParams
from tests.guest.lio import UNIT_BYTES
from tests.guest.machine import QEMU_TOOLS
from tests.iscsi.session.test_transfers import stamped

pytestmark = [
    pytest.mark.guest,
    pytest.mark.slow,
    pytest.mark.interop(*QEMU_TOOLS),
    pytest.mark.timeout(240),
]

IQN = "iqn.2026-01.org.example:lio"
BLOCK = 512
COUNTS = (1, 2, 7, 129, 1000, 2049)
BIG = 16 << 20
BOTH_DIGESTS = "?header_digest=crc32c&data_digest=crc32c"


@pytest.fixture(scope="module")
def unit(kernel_target):
    """A target without authentication; the path of its unit's file in the guest."""
    return kernel_target.add(IQN)


def url_of(guest, iqn=IQN, user="", options=""):
    return f"iscsi://{user}127.0.0.1:{guest.lio_port}/{iqn}/0{options}"


def fill_and_check(device, salt):
    """Write runs of all sizes, and read each back."""
    lba = 1
    for number, count in enumerate(COUNTS):
        data = stamped(lba, count, salt + number)
        assert device.write(lba, data) == data.nbytes
        assert device.read(lba, count) == data.tobytes(), f"{count} blocks at {lba}"
        lba += count + 1
    device.flush()


def test_the_kernel_target_tells_what_it_is(guest, unit):
    with iscsi.open(url_of(guest)) as device:
        assert device.inquiry.vendor.strip() == "LIO-ORG"
        assert (device.block_size, device.size) == (BLOCK, UNIT_BYTES)


@pytest.mark.parametrize(
    "options",
    ["", "?header_digest=crc32c", "?data_digest=crc32c", BOTH_DIGESTS],
)
def test_what_is_written_to_the_kernel_target_is_read_back(guest, unit, options):
    with iscsi.open(url_of(guest, options=options)) as device:
        agreed = device.session.connection_params
        assert agreed.header_digest is ("header" in options)
        assert agreed.data_digest is ("data_" in options)
        fill_and_check(device, len(options))


@pytest.mark.parametrize("digests", ["", BOTH_DIGESTS])
def test_a_big_transfer_lies_in_the_kernel_targets_file_as_it_was_sent(guest, unit, digests):
    data = np.random.default_rng(len(digests)).integers(0, 256, BIG, np.uint8)
    url = url_of(guest, options=digests)
    with iscsi.open(url, command_bytes=4 << 20) as device, device.alloc(BIG) as buffer:
        buffer.array[:] = data
        assert device.write(0, buffer) == BIG
        device.flush()
        buffer.array[:] = 0
        assert device.readinto(0, buffer) == BIG
        assert (buffer.array == data).all()
    seen = guest.output(f"head -c {BIG} {unit} | sha256sum").split()[0]
    assert seen == hashlib.sha256(data.tobytes()).hexdigest()


@pytest.mark.parametrize("immediate_data", ["Yes", "No"])
@pytest.mark.parametrize("initial_r2t", ["Yes", "No"])
def test_each_way_of_the_first_burst_works(guest, kernel_target, immediate_data, initial_r2t):
    iqn = f"{IQN}-first-{immediate_data}-{initial_r2t}".lower()
    lengths = {"FirstBurstLength": 16384, "MaxBurstLength": 65536}
    kernel_target.add(iqn, ImmediateData=immediate_data, InitialR2T=initial_r2t, **lengths)
    wanted = SessionParams(initial_r2t=False, immediate_data=True)
    with iscsi.open(url_of(guest, iqn), proposal=Proposal(wanted)) as device:
        agreed = device.session.session_params
        assert agreed.immediate_data is (immediate_data == "Yes")
        assert agreed.initial_r2t is (initial_r2t == "Yes")
        assert agreed.max_burst_length == 65536
        fill_and_check(device, 3)


def test_a_deep_queue_of_random_blocks_is_verified(guest, unit):
    plan = LoadPlan(seconds=2.0, random=True, write_percent=50, verify=True, span_blocks=16384)
    with (
        iscsi.open(url_of(guest), queue_depth=32) as device,
        contextlib.closing(Load(device, plan)) as load,
    ):
        result = load.run()
    assert result.writes > 0
    assert result.verified_blocks == 8 * result.reads > 0


def test_chap_is_proved_to_the_kernel_target(guest, kernel_target):
    iqn = f"{IQN}-chap"
    kernel_target.add(iqn, user="alice", password="secret-of-alice")
    for algorithm in ("md5", "sha1", "sha-256", "sha3-256"):
        options = f"?auth={algorithm}"
        with iscsi.open(url_of(guest, iqn, "alice%secret-of-alice@", options)) as device:
            fill_and_check(device, 5)
    for user in ("alice%not-her-secret@", "bob%secret-of-alice@"):
        with pytest.raises(AuthError, match="0x0201"):
            iscsi.open(url_of(guest, iqn, user))
    # To those who offer no CHAP at all LIO says nothing and hangs up.
    with pytest.raises((AuthError, ConnectionLost)):
        iscsi.open(url_of(guest, iqn))


def test_the_kernel_target_proves_itself_too(guest, kernel_target):
    iqn = f"{IQN}-mutual"
    accounts = {"user": "alice", "password": "secret-of-alice"}
    own = {"own_user": "lio", "own_password": "secret-of-lio-"}
    kernel_target.add(iqn, **accounts, **own)
    mutual = "?target_user=lio&target_password="
    with iscsi.open(url_of(guest, iqn, "alice%secret-of-alice@", f"{mutual}secret-of-lio-")) as one:
        fill_and_check(one, 7)
    with pytest.raises(AuthError, match="not to be trusted"):
        iscsi.open(url_of(guest, iqn, "alice%secret-of-alice@", f"{mutual}another-secret"))


def test_sessions_end_in_order_and_leave_none_behind(guest, unit):
    sessions = "cat /sys/kernel/config/target/iscsi/*/fabric_statistics/iscsi_instance/sessions"
    for _ in range(5):
        with iscsi.open(url_of(guest)) as device:
            device.read(0, 1)
            assert sum(map(int, guest.output(sessions).split())) == 1
    guest.wait_for(f"[ $({sessions} | sort -n | tail -1) = 0 ]", timeout=10)
