"""COMPARE AND WRITE, WRITE SAME, ORWRITE, WRITE ATOMIC: all or nothing, and what they refuse."""

import errno
import threading

import pytest

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

MISCOMPARE = (SenseKey.MISCOMPARE, Asc.MISCOMPARE_DURING_VERIFY)
OUT_OF_RANGE = (SenseKey.ILLEGAL_REQUEST, Asc.LBA_OUT_OF_RANGE)
INVALID = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
NO_OPCODE = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_OPERATION_CODE)
PROTECTED = (SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)
FUA, UNMAP, ANCHOR, NDOB = 0x08, 0x08, 0x10, 0x01


def extents(unit):
    return list(unit.backend.extents(0, unit.backend.size))


# --- COMPARE AND WRITE ---------------------------------------------------------------------------


def compare_and_write(lba, count, option=0):
    return cdb_16(0x89, lba, count, option)


def test_compare_and_write_writes_what_stands_behind_what_it_compares():
    bench = Bench()
    old, new = pattern(3, 1), pattern(3, 2)
    bench.fill(20, old)
    answer = bench.send(compare_and_write(20, 3), old + new)
    assert is_good(answer)
    assert answer.moved == 6 * BLOCK
    assert bench.blocks(20, 3) == new


def test_a_miscompare_writes_nothing_and_says_where():
    bench = Bench()
    old, new = bytearray(pattern(3, 1)), pattern(3, 2)
    bench.fill(20, bytes(old))
    old[700] ^= 0xFF
    answer = bench.send(compare_and_write(20, 3), bytes(old) + new)
    assert fault(answer) == MISCOMPARE
    assert answer.sense.information == 700
    assert bench.blocks(20, 3) == pattern(3, 1)


@pytest.mark.parametrize("blocks_sent", [1, 2, 3, 5, 8])
def test_an_amount_of_data_that_is_not_twice_the_blocks_fails(blocks_sent):
    bench = Bench()
    answer = bench.send(compare_and_write(0, 2), bytes(blocks_sent * BLOCK))
    assert fault(answer) == INVALID


def test_no_blocks_compare_and_write_nothing():
    assert is_good(Bench().send(compare_and_write(0, 0)))


def test_compare_and_write_keeps_the_limit_it_reports():
    unit = ram()
    most = unit.limits.compare_and_write
    bench = Bench(unit)
    assert is_good(bench.send(compare_and_write(0, most), bytes(2 * most * BLOCK)))
    unit.limits = type(unit.limits)(**{**vars_of(unit.limits), "compare_and_write": 2})
    assert fault(bench.send(compare_and_write(0, 3), bytes(6 * BLOCK))) == INVALID


def vars_of(limits):
    return {name: getattr(limits, name) for name in limits.__slots__}


def test_compare_and_write_is_durable_when_asked():
    unit = ram()
    unit.backend = Faulty(unit.backend, 0, on=())
    bench = Bench(unit)
    assert is_good(bench.send(compare_and_write(0, 1, FUA), bytes(2 * BLOCK)))
    assert unit.backend.calls == ["read", "write durably"]


@pytest.mark.parametrize("operation", [0x89, 0x8B, 0x9C])
def test_beyond_the_end_is_out_of_range(operation):
    bench = Bench()
    for lba in (BLOCKS, BLOCKS + 1, 1 << 63, (1 << 64) - 2):
        answer = bench.send(cdb_16(operation, lba, 2), bytes(4 * BLOCK))
        assert fault(answer) == OUT_OF_RANGE


@pytest.mark.parametrize("operation", [0x89, 0x8B, 0x9C, 0x93])
def test_protection_information_and_write_protection_refuse(operation):
    for option in range(0x20, 0x100, 0x20):
        assert fault(Bench().send(cdb_16(operation, 0, 2, option), bytes(4 * BLOCK))) == INVALID
    bench = Bench(ram(read_only=True))
    assert fault(bench.send(cdb_16(operation, 0, 2), bytes(4 * BLOCK))) == PROTECTED


# --- ORWRITE ------------------------------------------------------------------------------------


def test_orwrite_sets_bits_and_clears_none():
    bench = Bench()
    bench.fill(3, b"\x0f" * BLOCK + b"\x30" * BLOCK)
    answer = bench.send(cdb_16(0x8B, 3, 2), b"\xf0" * BLOCK + b"\x01" * BLOCK)
    assert is_good(answer)
    assert answer.moved == 2 * BLOCK
    assert bench.blocks(3, 2) == b"\xff" * BLOCK + b"\x31" * BLOCK


def test_orwrite_of_less_than_it_names_changes_nothing():
    bench = Bench()
    assert fault(bench.send(cdb_16(0x8B, 3, 2), b"\xff" * BLOCK)) == INVALID
    assert bench.blocks(3, 2) == bytes(2 * BLOCK)
    assert is_good(bench.send(cdb_16(0x8B, 3, 0)))


def test_bits_set_from_two_threads_are_all_there():
    bench = Bench()
    start = threading.Barrier(2)

    def set_bits(bits):
        start.wait(10)
        for number in range(64):
            bench.send(cdb_16(0x8B, number, 1), bytes((bits,)) * BLOCK)

    threads = [threading.Thread(target=set_bits, args=(bits,)) for bits in (0x0F, 0xF0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert bench.blocks(0, 64) == b"\xff" * (64 * BLOCK)


# --- WRITE ATOMIC --------------------------------------------------------------------------------


def write_atomic(lba, count, option=0, boundary=0):
    head = bytes((0x9C, option)) + lba.to_bytes(8, "big") + boundary.to_bytes(2, "big")
    return head + count.to_bytes(2, "big") + bytes(2)


def test_write_atomic_writes_what_is_aligned():
    bench = Bench()
    data = pattern(4)
    assert is_good(bench.send(write_atomic(6, 4), data))
    assert bench.blocks(6, 4) == data
    assert is_good(bench.send(write_atomic(6, 0)))


@pytest.mark.parametrize(
    "cdb",
    [write_atomic(1, 2), write_atomic(0, 1), write_atomic(0, 258), write_atomic(0, 2, boundary=2)],
)
def test_write_atomic_keeps_the_limits_it_reports(cdb):
    bench = Bench()
    data = pattern(258)
    assert fault(bench.send(cdb, data)) == INVALID
    assert bench.blocks(0, 258) == bytes(258 * BLOCK)


def test_half_an_atomic_write_is_none():
    bench = Bench()
    assert fault(bench.send(write_atomic(0, 4), pattern(2))) == INVALID
    assert bench.blocks(0, 4) == bytes(4 * BLOCK)


# --- WRITE SAME ----------------------------------------------------------------------------------


def write_same_10(lba, count, option=0):
    return cdb_10(0x41, lba, count, option)


def write_same_16(lba, count, option=0):
    return cdb_16(0x93, lba, count, option)


same = pytest.mark.parametrize("write_same", [write_same_10, write_same_16])


@same
def test_write_same_repeats_one_block(write_same):
    bench = Bench()
    one = pattern(1)
    answer = bench.send(write_same(10, 30), one)
    assert is_good(answer)
    assert answer.moved == BLOCK
    assert bench.blocks(9, 32) == bytes(BLOCK) + one * 30 + bytes(BLOCK)


@same
def test_no_count_goes_to_the_end(write_same):
    bench = Bench()
    one = pattern(1)
    assert is_good(bench.send(write_same(BLOCKS - 5, 0), one))
    assert bench.blocks(BLOCKS - 6, 6) == bytes(BLOCK) + one * 5


def test_write_same_longer_than_a_piece_writes_it_all():
    bench = Bench(ram(10000))
    one = pattern(1)
    assert is_good(bench.send(write_same_16(1, 9999), one))
    assert bench.blocks(0, 10000) == bytes(BLOCK) + one * 9999


@same
def test_zeros_are_unmapped_only_when_asked(write_same):
    unit = ram()
    bench = Bench(unit)
    bench.fill(0, pattern(64))
    assert is_good(bench.send(write_same(0, 32), bytes(BLOCK)))
    assert extents(unit)[0] == (64 * BLOCK, True)
    assert is_good(bench.send(write_same(0, 32, UNMAP), bytes(BLOCK)))
    assert extents(unit)[:2] == [(32 * BLOCK, False), (32 * BLOCK, True)]
    assert bench.blocks(0, 32) == bytes(32 * BLOCK)


@same
def test_unmapping_what_is_no_zeros_writes_it(write_same):
    unit = ram()
    bench = Bench(unit)
    one = pattern(1)
    assert is_good(bench.send(write_same(0, GRAIN, UNMAP), one))
    assert bench.blocks(0, GRAIN) == one * GRAIN


@same
def test_a_unit_told_so_unmaps_whatever_block_is_sent(write_same):
    unit = ram(unmaps_any_block=True)
    bench = Bench(unit)
    bench.fill(0, pattern(GRAIN))
    assert is_good(bench.send(write_same(0, GRAIN, UNMAP), pattern(1)))
    assert extents(unit) == [(BLOCKS * BLOCK, False)]
    assert is_good(bench.send(write_same(0, GRAIN), pattern(1)))
    assert bench.blocks(0, GRAIN) == pattern(1) * GRAIN


@same
def test_unmapping_parts_of_a_grain_makes_them_zeros(write_same):
    unit = ram()
    bench = Bench(unit)
    data = pattern(2 * GRAIN)
    bench.fill(0, data)
    assert is_good(bench.send(write_same(1, 2 * GRAIN - 2, UNMAP), bytes(BLOCK)))
    middle = bytes((2 * GRAIN - 2) * BLOCK)
    assert bench.blocks(0, 2 * GRAIN) == data[:BLOCK] + middle + data[-BLOCK:]


@same
def test_write_same_refuses(write_same):
    bench = Bench()
    block = bytes(BLOCK)
    assert fault(bench.send(write_same(0, 1, ANCHOR), block)) == INVALID
    assert fault(bench.send(write_same(0, 1, ANCHOR | UNMAP), block)) == INVALID
    assert fault(bench.send(write_same(0, 1), bytes(2 * BLOCK))) == INVALID
    assert fault(bench.send(write_same(0, 1), bytes(BLOCK - 1))) == INVALID
    assert fault(bench.send(write_same(0, 1))) == INVALID
    assert fault(bench.send(write_same(BLOCKS, 1), block)) == OUT_OF_RANGE
    assert fault(bench.send(write_same(BLOCKS + 1, 0), block)) == OUT_OF_RANGE
    thick = Bench(ram(thin=False))
    assert fault(thick.send(write_same(0, 1, UNMAP), block)) == INVALID
    assert is_good(thick.send(write_same(0, 1), block))


def test_without_a_block_zeros_are_written():
    unit = ram()
    bench = Bench(unit)
    data = pattern(24)
    bench.fill(0, data)
    assert is_good(bench.send(write_same_16(0, 8, NDOB)))
    assert bench.blocks(0, 9) == bytes(8 * BLOCK) + data[8 * BLOCK : 9 * BLOCK]
    assert is_good(bench.send(write_same_16(8, 8, NDOB | UNMAP)))
    assert extents(unit)[:3] == [(8 * BLOCK, True), (8 * BLOCK, False), (8 * BLOCK, True)]
    assert fault(bench.send(write_same_16(0, 8, NDOB), bytes(BLOCK))) == INVALID


def test_write_same_keeps_the_limit_it_reports():
    unit = ram()
    unit.limits = type(unit.limits)(**{**vars_of(unit.limits), "write_same": 100})
    bench = Bench(unit)
    assert is_good(bench.send(write_same_16(0, 100), bytes(BLOCK)))
    assert fault(bench.send(write_same_16(0, 101), bytes(BLOCK))) == INVALID
    assert fault(bench.send(write_same_16(0, 0), bytes(BLOCK))) == INVALID


@pytest.mark.parametrize("block", [bytes(BLOCK), b"x" * BLOCK])
def test_an_aborted_command_goes_no_further(block):
    bench = Bench(ram(10000))
    bench.fill(0, b"y" * (10000 * BLOCK))
    asked = iter((*[False] * 4, True))
    answer = bench.send(write_same_16(0, 10000), block, abandoned=lambda: next(asked))
    assert answer.status == ScsiStatus.TASK_ABORTED
    assert bench.blocks(4095, 1) == block
    assert bench.blocks(4096, 1) == b"y" * BLOCK


@pytest.mark.parametrize(("block", "call"), [(bytes(BLOCK), "zero"), (b"x" * BLOCK, "write")])
def test_a_full_medium_is_told_with_the_block(block, call):
    unit = ram(10000)
    unit.backend = Faulty(unit.backend, errno.ENOSPC, 4096 * BLOCK, on=(call,))
    answer = Bench(unit).send(write_same_16(0, 10000), block)
    assert fault(answer) == (SenseKey.DATA_PROTECT, Asc.SPACE_ALLOCATION_FAILED)
    assert answer.sense.information == 4096
