"""The golden copy of every shared layout: a change here needs a new VERSION in the same commit."""

import pytest

from shm import channel, counters, error_log, pool, records
from shm.layout import CACHE_LINE, WRITER_SPAN, Field, describe, layout_hash, offset, record
from shm.records import CHANNEL, CQE, SEGMENT_HEADER, SLOT, WQE

GOLDEN_VERSION = 2
GOLDEN_HASH = 3327622044626904184
GOLDEN = {
    "SLOT": """
        0 sequence int64
        8 word0 int64
        16 word1 int64
        24 word2 int64
        32 word3 int64
        40 word4 int64
        48 word5 int64
        56 word6 int64
        64 end
    """,
    "WQE": """
        0 sequence int64
        8 opcode uint8
        9 slots uint8
        10 flags uint16
        12 endpoint uint32
        16 user_data int64
        24 region uint32
        28 length uint32
        32 offset int64
        40 arg0 int64
        48 arg1 int64
        56 arg2 uint32
        60 ticket uint32
        64 end
    """,
    "CQE": """
        0 sequence int64
        8 opcode uint8
        9 reserved uint8
        10 flags uint16
        12 endpoint uint32
        16 user_data int64
        24 status int32
        28 length uint32
        32 released uint32
        36 ticket uint32
        40 arg0 int64
        48 arg1 int64
        56 arg2 int64
        64 end
    """,
    "SEGMENT_HEADER": """
        0 version int64
        8 magic int64
        16 layout int64
        24 size int64
        32 pid int64
        40 start_time int64
        48 boot_id int64
        56 kind int64
        128 end
    """,
}
GOLDEN_CHANNEL = {
    "header": 0,
    "work_capacity": 128,
    "event_capacity": 136,
    "work_head": 256,
    "need_doorbell": 264,
    "event_head": 384,
    "wake_at": 392,
    "wake_kind": 400,
    "enough_at": 408,
    "enough_position": 416,
    "wake_seq": 512,
    "state": 520,
}
PRIVATE = [
    records.PRODUCER,
    records.CONSUMER,
    records.WAKER,
    records.WAITER,
    records.RINGER,
    channel.HOST_CHANNEL,
    channel.ENGINE_CHANNEL,
    channel.LEDGER,
    pool.POOL,
    error_log.ERROR,
]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_shared_layout_is_the_golden_one(name):
    golden = "\n".join(line.strip() for line in GOLDEN[name].strip().splitlines())
    assert describe(getattr(records, name)) == golden


def test_the_channels_words_are_where_the_golden_copy_has_them():
    assert {name: offset(CHANNEL, name) for name in CHANNEL.names} == GOLDEN_CHANNEL
    assert CHANNEL.itemsize == 640
    assert (CHANNEL["wake_seq"].itemsize, CHANNEL["state"].itemsize) == (4, 8)


def test_a_change_of_layout_comes_with_a_new_version():
    assert (records.VERSION, records.LAYOUT_HASH) == (GOLDEN_VERSION, GOLDEN_HASH)


@pytest.mark.parametrize("entry", [SLOT, WQE, CQE], ids=["SLOT", "WQE", "CQE"])
def test_an_entry_is_one_cache_line_that_begins_with_its_publication(entry):
    assert entry.itemsize == CACHE_LINE
    assert offset(entry, "sequence") == records.SEQUENCE == 0


def test_words_of_different_writers_lie_on_different_line_pairs():
    engine, host, wakers = (
        ("work_head", "need_doorbell"),
        ("event_head", "enough_position"),
        ("wake_seq",),
    )
    pairs = [
        {offset(CHANNEL, name) // WRITER_SPAN for name in side} for side in (engine, host, wakers)
    ]
    assert all(len(pair) == 1 for pair in pairs)
    assert len(set.union(*pairs)) == 3
    assert CHANNEL.itemsize % WRITER_SPAN == 0


@pytest.mark.parametrize("dtype", [*PRIVATE, SEGMENT_HEADER, CHANNEL])
def test_every_record_is_aligned_and_a_multiple_of_a_word(dtype):
    assert dtype.itemsize % 8 == 0
    for name in dtype.names:
        assert offset(dtype, name) % dtype[name].alignment == 0


def test_text_layouts_have_no_alignment_to_lose():
    assert counters.LABEL.itemsize == counters.NAME_SIZE + counters.LABEL_SIZE


def test_fields_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="16 bytes; 8 was declared"):
        record(Field("a", "<i8"), Field("b", "<i8"), size=8)
    with pytest.raises(ValueError, match="12 was declared"):
        record(Field("a", "<i8"), size=12)


def test_fields_are_aligned_and_an_own_span_starts_a_line_pair():
    dtype = record(Field("a", "<u1"), Field("b", "<i8"), Field("c", "<u1", own_span=True), size=256)
    assert [offset(dtype, name) for name in "abc"] == [0, 8, 128]


def test_any_change_of_a_layout_changes_the_hash():
    base = record(Field("a", "<i8"), size=16)
    others = [
        record(Field("b", "<i8"), size=16),
        record(Field("a", "<u8"), size=16),
        record(Field("a", "<i8"), size=24),
        record(Field("x", "<i8"), Field("a", "<i8"), size=16),
    ]
    hashes = {layout_hash([dtype]) for dtype in [base, *others]}
    assert len(hashes) == 5
    assert layout_hash([base]) == layout_hash([base])
    assert all(0 <= value < 2**63 for value in hashes)
