"""What is written is what is read: every receive mode, depth and odd size, on tgt."""

import numpy as np
import pytest

import iscsi
from iscsi.session.errors import OutOfRange, SessionClosed
from iscsi.session.perf import Load, LoadPlan, WrongData
from iscsi.wire.keys import Proposal, SessionParams

pytestmark = [pytest.mark.interop("tgtd", "tgtadm"), pytest.mark.slow]

BLOCK = 512
MODES = [("staged", 8), ("staged", 1), ("exact", 8), ("exact", 1), ("coalesced", 1), ("auto", 32)]
COUNTS = [1, 2, 3, 7, 16, 127, 511, 512, 513, 1023, 2500]


def stamped(lba, blocks, salt):
    """Blocks that each say where they belong."""
    words = np.zeros((blocks, BLOCK // 8), np.int64)
    words[:] = (np.arange(lba, lba + blocks, dtype=np.int64) * 1_000_003 + salt)[:, None]
    words += np.arange(BLOCK // 8)
    return words.view(np.uint8).reshape(-1)


@pytest.mark.parametrize(("receive", "depth"), MODES)
def test_every_size_comes_back_as_it_was_written(tgt, engine_name, receive, depth):
    with iscsi.open(tgt.url, engine_name, receive=receive, queue_depth=depth) as device:
        assert (device.block_size, device.size) == (BLOCK, 64 << 20)
        lba = 1
        for salt, count in enumerate(COUNTS):
            data = stamped(lba, count, salt)
            assert device.write(lba, data) == data.nbytes
            assert device.read(lba, count) == data.tobytes(), f"{count} blocks at {lba}"
            lba += count + 1
        device.flush()
        # The gaps between them were never written.
        assert not any(device.read(0, 1))


@pytest.mark.parametrize("command_bytes", [BLOCK, 4096, 1 << 20])
def test_a_transfer_is_cut_into_commands_of_the_size_asked_for(tgt, engine_name, command_bytes):
    """One MiB is beyond tgt's MaxBurstLength, so it takes several bursts each way."""
    with iscsi.open(tgt.url, engine_name, command_bytes=command_bytes) as device:
        data = stamped(5000, 3000, command_bytes)
        before = device.session.core.connection.hot("completions")
        device.write(5000, data)
        per_command = command_bytes // BLOCK
        commands = device.session.core.connection.hot("completions") - before
        assert commands == -(-3000 // per_command)
        assert device.read(5000, 3000) == data.tobytes()


@pytest.mark.parametrize("initial_r2t", [True, False])
@pytest.mark.parametrize("immediate_data", [True, False])
def test_writes_work_however_their_first_burst_may_be_sent(tgt, initial_r2t, immediate_data):
    tgt.set_param("InitialR2T", "Yes" if initial_r2t else "No")
    session = SessionParams(
        initial_r2t=initial_r2t,
        immediate_data=immediate_data,
        first_burst_length=16384,
        max_burst_length=65536,
    )
    try:
        with iscsi.open(tgt.url, proposal=Proposal(session)) as device:
            agreed = device.session.session_params
            assert (agreed.initial_r2t, agreed.immediate_data) == (initial_r2t, immediate_data)
            assert agreed.max_burst_length == 65536
            data = stamped(9000, 700, initial_r2t)
            device.write(9000, data)
            assert device.read(9000, 700) == data.tobytes()
    finally:
        tgt.set_param("InitialR2T", "Yes")


@pytest.mark.parametrize("digest", ["header_digest=crc32c", "data_digest=crc32c"])
@pytest.mark.parametrize(("receive", "depth"), [("staged", 4), ("exact", 4), ("coalesced", 1)])
def test_digests_are_asked_for_by_the_url_and_kept(tgt, digest, receive, depth):
    name = "HeaderDigest" if digest.startswith("header") else "DataDigest"
    tgt.set_param(name, "CRC32C,None")
    try:
        url = f"{tgt.url}?{digest}"
        with iscsi.open(url, receive=receive, queue_depth=depth) as device:
            agreed = device.session.connection_params
            assert agreed.header_digest is digest.startswith("header")
            assert agreed.data_digest is digest.startswith("data")
            data = stamped(200, 65, 3)
            device.write(200, data)
            assert device.read(200, 65) == data.tobytes()
    finally:
        tgt.set_param(name, "None")


def test_memory_of_the_engine_is_used_in_place_and_other_memory_is_copied_once(tgt, engine_name):
    with iscsi.open(tgt.url, engine_name) as device, device.alloc(64 * BLOCK) as buffer:
        buffer.array[:] = stamped(300, 64, 9)
        device.write(300, buffer)
        with device.alloc(64 * BLOCK) as back:
            assert device.readinto(300, back) == 64 * BLOCK
            assert (back.array == buffer.array).all()
            assert device.readinto(310, back.array[: 2 * BLOCK]) == 2 * BLOCK
            assert (back.array[: 2 * BLOCK] == stamped(310, 2, 9)).all()
        assert device.copied_bytes == 0
        own = bytearray(64 * BLOCK)
        device.readinto(300, own)
        assert own == buffer.array.tobytes()
        assert device.copied_bytes == 64 * BLOCK


@pytest.mark.parametrize(("receive", "depth"), MODES)
def test_a_random_verified_load_finds_every_block_right(tgt, engine_name, receive, depth):
    plan = LoadPlan(
        blocks=8, seconds=0.3, warm_up_s=0, random=True, write_percent=40, verify=True,
        first_lba=20_000, span_blocks=4096,
    )  # fmt: skip
    with iscsi.open(tgt.url, engine_name, receive=receive, queue_depth=depth) as device:
        load = Load(device, plan)
        try:
            result = load.run()
        finally:
            load.close()
    assert result.reads > 0
    assert result.writes > 0
    assert result.verified_blocks == 8 * result.reads
    assert result.read_latency.summary().count == result.reads


def test_a_verified_load_notices_a_block_that_changed(tgt):
    plan = LoadPlan(
        blocks=4, seconds=0.2, warm_up_s=0, verify=True, first_lba=30_000, span_blocks=64
    )
    with iscsi.open(tgt.url, queue_depth=4) as device:
        load = Load(device, plan)
        try:
            load.run()
            device.write(30_017, bytes(BLOCK))
            load._fill(write_percent=0, is_random=False, limit=16)
            with pytest.raises(WrongData, match="block 30017"):
                load._go(10**9)
        finally:
            load.close()
        assert device.read(30_017, 1) == bytes(BLOCK)


def test_depth_one_wakes_once_for_header_and_data(tgt, daemon):
    """The coalesced wait: one `wait_n(2)` a command, where header then data takes two."""
    counts = {}
    for receive in ("coalesced", "exact"):
        plan = LoadPlan(blocks=8, seconds=0.3, warm_up_s=0, random=True)
        with iscsi.open(tgt.url, daemon, receive=receive, queue_depth=1) as device:
            load = Load(device, plan)
            try:
                result = load.run()
            finally:
                load.close()
        counts[receive] = result.waits / result.reads
    assert counts["coalesced"] < counts["exact"]


def test_what_cannot_be_asked_for_is_refused_before_anything_is_sent(tgt):
    with iscsi.open(tgt.url) as device:
        last = device.block_count - 1
        before = device.session.core.connection.hot("completions")
        for lba, blocks in ((last + 1, 1), (last, 2), (-1, 1), (0, 0)):
            with pytest.raises(OutOfRange):
                device.read(lba, blocks)
        with pytest.raises(ValueError, match="multiple of 512"):
            device.write(0, b"x" * 100)
        with pytest.raises(ValueError, match="multiple of 512"):
            device.readinto(0, bytearray(513))
        with pytest.raises(ValueError, match="read-only"):
            device.readinto(0, bytes(512))
        with pytest.raises(TypeError):
            device.readinto(0, np.zeros((4, 1024), np.uint8)[:, :512])
        assert device.session.core.connection.hot("completions") == before
        assert len(device.read(last, 1)) == BLOCK


def test_a_closed_device_says_so(tgt):
    device = iscsi.open(tgt.url)
    device.close()
    device.close()
    for use in (lambda: device.read(0, 1), lambda: device.write(0, bytes(512)), device.flush):
        with pytest.raises(SessionClosed):
            use()


@pytest.mark.parametrize(
    "wrong",
    [
        {"queue_depth": 0},
        {"queue_depth": 100_000},
        {"receive": "sideways"},
        {"receive": "coalesced", "queue_depth": 2},
        {"command_bytes": 1},
    ],
)
def test_options_out_of_range_are_refused(tgt, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        iscsi.open(tgt.url, **wrong)
