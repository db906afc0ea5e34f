"""UNMAP, GET LBA STATUS, PRE-FETCH, SYNCHRONIZE CACHE and READ DEFECT DATA."""

import errno
import struct

import numpy as np
import pytest

from host.memory import Buffer
from iscsi.target.backends import FileBackend, RamBackend
from iscsi.target.units import LogicalUnit
from iscsi.wire.sense import Asc, ScsiStatus, SenseKey
from tests.iscsi.target.medium import (
    BLOCK,
    BLOCKS,
    GRAIN,
    Bench,
    Faulty,
    cdb_10,
    cdb_16,
    fault,
    is_good,
    pattern,
    ram,
)

OUT_OF_RANGE = (SenseKey.ILLEGAL_REQUEST, Asc.LBA_OUT_OF_RANGE)
INVALID = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
WRONG_LENGTH = (SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
WRONG_LIST = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_PARAMETER_LIST)


def unmap_list(*spans, length=None):
    body = b"".join(struct.pack(">QII", first, count, 0) for first, count in spans)
    length = len(body) if length is None else length
    return struct.pack(">HHI", 6 + length, length, 0) + body


def unmap(bench, *spans, option=0, data=None, length=None):
    data = unmap_list(*spans) if data is None else data
    length = len(data) if length is None else length
    cdb = bytes((0x42, option, 0, 0, 0, 0, 0, *length.to_bytes(2, "big"), 0))
    return bench.send(cdb, data)


def statuses(bench, lba, allocation=1 << 16):
    """The descriptors of GET LBA STATUS as (lba, count, status)."""
    answer = bench.send(cdb_16(0x9E, lba, allocation, 0x12), expected=allocation)
    assert is_good(answer), answer
    assert len(answer.data) <= allocation
    return [
        struct.unpack_from(">QIB", answer.data, at) for at in range(8, len(answer.data) - 15, 16)
    ]


def written(blocks=BLOCKS):
    bench = Bench()
    bench.fill(0, pattern(blocks))
    return bench


def test_unmapped_blocks_read_as_zeros_and_say_so():
    bench = written()
    answer = unmap(bench, (GRAIN, GRAIN), (4 * GRAIN, 2 * GRAIN))
    assert is_good(answer)
    assert answer.moved == 8 + 32
    assert bench.blocks(GRAIN, GRAIN) == bytes(GRAIN * BLOCK)
    assert statuses(bench, 0) == [
        (0, GRAIN, 0),
        (GRAIN, GRAIN, 1),
        (2 * GRAIN, 2 * GRAIN, 0),
        (4 * GRAIN, 2 * GRAIN, 1),
        (6 * GRAIN, BLOCKS - 6 * GRAIN, 0),
    ]


def test_a_status_begins_at_the_block_asked_for():
    bench = written()
    unmap(bench, (GRAIN, 2 * GRAIN))
    assert statuses(bench, GRAIN + 3)[0] == (GRAIN + 3, 2 * GRAIN - 3, 1)
    assert statuses(bench, BLOCKS - 1) == [(BLOCKS - 1, 1, 0)]


def test_blocks_of_a_grain_that_is_only_partly_unmapped_are_zeros_but_mapped():
    bench = written()
    assert is_good(unmap(bench, (1, GRAIN - 2)))
    assert bench.blocks(1, GRAIN - 2) == bytes((GRAIN - 2) * BLOCK)
    assert bench.blocks(0, 1) + bench.blocks(GRAIN - 1, 1) == (
        pattern(BLOCKS)[:BLOCK] + pattern(BLOCKS)[(GRAIN - 1) * BLOCK : GRAIN * BLOCK]
    )
    assert statuses(bench, 0) == [(0, BLOCKS, 0)]


def test_unmapping_from_the_middle_of_a_grain_gives_back_all_whole_ones():
    blocks = 10000
    bench = Bench(ram(blocks))
    bench.fill(0, pattern(blocks))
    assert is_good(unmap(bench, (1, 9000)))
    assert statuses(bench, 0) == [(0, 8, 0), (8, 8992, 1), (9000, 1000, 0)]


def test_nothing_to_unmap_is_no_error():
    bench = written()
    assert is_good(unmap(bench))
    assert is_good(unmap(bench, (0, 0), (BLOCKS, 0)))
    assert is_good(unmap(bench, data=b""))
    assert statuses(bench, 0) == [(0, BLOCKS, 0)]


def test_one_wrong_descriptor_leaves_all_blocks_mapped():
    bench = written()
    for wrong in ((BLOCKS, 1), (BLOCKS - 1, 2), (BLOCKS + 1, 0), ((1 << 64) - 1, 1)):
        assert fault(unmap(bench, (0, GRAIN), wrong)) == OUT_OF_RANGE
    assert statuses(bench, 0) == [(0, BLOCKS, 0)]


@pytest.mark.parametrize("length", range(1, 8))
def test_a_list_shorter_than_its_head_is_refused(length):
    answer = unmap(written(), data=unmap_list((0, 1))[:length])
    assert fault(answer) == WRONG_LENGTH


def test_a_list_that_says_more_than_it_holds_is_refused():
    data = unmap_list((0, GRAIN), length=32)
    assert fault(unmap(written(), data=data)) == WRONG_LENGTH
    assert fault(unmap(written(), (0, GRAIN), length=48)) == WRONG_LENGTH


def test_a_descriptor_that_is_cut_off_is_left_out():
    bench = written()
    data = unmap_list((0, GRAIN), (2 * GRAIN, GRAIN), length=24)
    assert is_good(unmap(bench, data=data))
    assert statuses(bench, 0) == [(0, GRAIN, 1), (GRAIN, BLOCKS - GRAIN, 0)]


def test_unmap_keeps_the_limits_it_reports():
    bench = written()
    limits = bench.units[0].limits
    most = [(0, 0)] * limits.unmap_descriptors
    assert is_good(unmap(bench, *most))
    assert fault(unmap(bench, *most, (0, 0))) == WRONG_LIST
    too_many = [(0, limits.unmap), (0, 1)]
    assert fault(unmap(bench, *too_many)) == WRONG_LIST


def test_only_thin_units_unmap_and_none_anchors():
    assert fault(unmap(written(), (0, 1), option=1)) == INVALID
    answer = unmap(Bench(ram(thin=False)), (0, 1))
    assert fault(answer) == (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_OPERATION_CODE)


def test_a_status_beyond_the_end_is_out_of_range():
    bench = Bench()
    for lba in (BLOCKS, BLOCKS + 1, 1 << 63):
        assert fault(bench.send(cdb_16(0x9E, lba, 24, 0x12))) == OUT_OF_RANGE


def test_a_short_allocation_cuts_the_list_but_not_its_first_descriptor():
    bench = written()
    for first in range(0, 64 * GRAIN, 2 * GRAIN):
        unmap(bench, (first, GRAIN))
    assert statuses(bench, 0, 24) == [(0, GRAIN, 1)]
    assert len(statuses(bench, 0, 8 + 16 * 5)) == 5
    assert len(statuses(bench, 0)) == 64


@pytest.mark.parametrize("written", [(0,), (7,), (8,), (15,), (3, 12), (7, 8)])
def test_a_block_is_mapped_if_any_part_of_it_is(written):
    backend = RamBackend(Buffer(np.zeros(1 << 20, np.uint8), None), thin=True, granularity=512)
    bench = Bench(LogicalUnit(backend, block_size=4096))
    for piece in written:
        backend.write(512 * piece, b"x" * 512)
    mapped = []
    for lba, count, status in statuses(bench, 0):
        mapped += range(lba, lba + count) if status == 0 else ()
    assert mapped == sorted({piece // 8 for piece in written})


def test_a_thick_unit_is_mapped_everywhere():
    bench = Bench(ram(thin=False))
    assert statuses(bench, 5) == [(5, BLOCKS - 5, 0)]


def test_a_thin_file_gives_its_room_back(tmp_path):
    backend = FileBackend(tmp_path / "thin", size=1 << 20, thin=True)
    try:
        bench = Bench(LogicalUnit(backend))
        assert statuses(bench, 0) == [(0, 2048, 1)]
        bench.fill(0, pattern(2048))
        assert statuses(bench, 0) == [(0, 2048, 0)]
        grain = backend.granularity // BLOCK
        assert is_good(unmap(bench, (grain, grain)))
        assert statuses(bench, 0)[1] == (grain, grain, 1)
        assert bench.blocks(grain, grain) == bytes(grain * BLOCK)
    finally:
        backend.close()


# --- PRE-FETCH, SYNCHRONIZE CACHE ----------------------------------------------------------------


@pytest.mark.parametrize(("build", "operation"), [(cdb_10, 0x34), (cdb_16, 0x90)])
def test_prefetch_of_memory_is_met_and_of_a_file_is_good(build, operation, tmp_path):
    assert Bench().send(build(operation, 0, 0)).status == ScsiStatus.CONDITION_MET
    assert Bench().send(build(operation, 5, 5, 2)).status == ScsiStatus.CONDITION_MET
    assert fault(Bench().send(build(operation, BLOCKS, 1))) == OUT_OF_RANGE
    assert fault(Bench().send(build(operation, BLOCKS + 1, 0))) == OUT_OF_RANGE
    backend = FileBackend(tmp_path / "disk", size=1 << 20)
    try:
        assert is_good(Bench(LogicalUnit(backend)).send(build(operation, 0, 0)))
    finally:
        backend.close()


@pytest.mark.parametrize(("build", "operation"), [(cdb_10, 0x35), (cdb_16, 0x91)])
def test_synchronize_cache_flushes_and_tells_when_it_cannot(build, operation):
    unit = ram()
    unit.backend = Faulty(unit.backend, errno.EIO, on=())
    bench = Bench(unit)
    for option in (0, 2):
        unit.backend.calls.clear()
        assert is_good(bench.send(build(operation, 0, 0, option)))
        assert unit.backend.calls == ["flush"]
    assert fault(bench.send(build(operation, BLOCKS + 1, 0))) == OUT_OF_RANGE
    assert fault(bench.send(build(operation, BLOCKS, 1))) == OUT_OF_RANGE
    unit.backend = Faulty(unit.backend, errno.EIO)
    answer = bench.send(build(operation, 0, 0))
    assert fault(answer) == (SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR)


def test_a_write_protected_unit_is_flushed_all_the_same():
    assert is_good(Bench(ram(read_only=True)).send(cdb_10(0x35)))


# --- READ DEFECT DATA ----------------------------------------------------------------------------


def test_the_lists_of_defects_are_empty():
    bench = Bench()
    for asked in (0x00, 0x08, 0x10, 0x18, 0x1D):
        ten = bytes((0x37, 0, asked, 0, 0, 0, 0, 0, 255, 0))
        twelve = bytes((0xB7, asked, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0))
        assert bench.send(ten, expected=255).data == bytes((0, asked, 0, 0))
        assert bench.send(twelve, expected=255).data == bytes((0, asked, 0, 0, 0, 0, 0, 0))


def test_a_format_that_nobody_knows_is_refused():
    bench = Bench()
    for unknown in (1, 2, 6, 7):
        ten = bytes((0x37, 0, 0x18 | unknown, 0, 0, 0, 0, 0, 255, 0))
        assert fault(bench.send(ten, expected=255)) == INVALID
        twelve = bytes((0xB7, 0x18 | unknown, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0))
        assert fault(bench.send(twelve, expected=255)) == INVALID
