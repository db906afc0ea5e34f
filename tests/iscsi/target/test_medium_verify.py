"""VERIFY and WRITE AND VERIFY: what is compared, what is found, and where."""

import errno

import pytest

from iscsi.wire.sense import Asc, SenseKey
from tests.iscsi.target.medium import (
    BLOCK,
    BLOCKS,
    Bench,
    Faulty,
    cdb_10,
    cdb_12,
    cdb_16,
    fault,
    is_good,
    pattern,
    ram,
)

COMPARE, COMPARE_ONE, RESERVED = 2, 6, 4
FUA, PROTECT = 0x08, 0x20
VERIFY = [(cdb_10, 0x2F), (cdb_12, 0xAF), (cdb_16, 0x8F)]
WRITE = [(cdb_10, 0x2E), (cdb_12, 0xAE), (cdb_16, 0x8E)]
MISCOMPARE = (SenseKey.MISCOMPARE, Asc.MISCOMPARE_DURING_VERIFY)
OUT_OF_RANGE = (SenseKey.ILLEGAL_REQUEST, Asc.LBA_OUT_OF_RANGE)
INVALID = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)

both = pytest.mark.parametrize(("build", "operation"), VERIFY + WRITE)
verifies = pytest.mark.parametrize(("build", "operation"), VERIFY)
writes = pytest.mark.parametrize(("build", "operation"), WRITE)


@verifies
def test_verify_compares_all_blocks_with_what_is_sent(build, operation):
    bench = Bench()
    data = pattern(5)
    bench.fill(7, data)
    answer = bench.send(build(operation, 7, 5, COMPARE), data)
    assert is_good(answer)
    assert answer.moved == len(data)


@verifies
def test_a_difference_is_told_with_its_offset(build, operation):
    bench = Bench()
    data = bytearray(pattern(5))
    bench.fill(7, bytes(data))
    data[3 * BLOCK + 11] ^= 1
    answer = bench.send(build(operation, 7, 5, COMPARE), bytes(data))
    assert fault(answer) == MISCOMPARE
    assert answer.sense.information == 3 * BLOCK + 11


def test_a_difference_behind_the_first_piece_has_its_offset_too():
    bench = Bench(ram(8192))
    data = bytearray(8192 * BLOCK)
    data[-1] = 1
    answer = bench.send(cdb_16(0x8F, 0, 8192, COMPARE), bytes(data))
    assert answer.sense.information == len(data) - 1


@verifies
def test_one_block_is_compared_with_each(build, operation):
    bench = Bench()
    one = pattern(1)
    bench.fill(100, one * 4)
    assert is_good(bench.send(build(operation, 100, 4, COMPARE_ONE), one))
    assert bench.send(build(operation, 100, 4, COMPARE_ONE), one).moved == BLOCK
    bench.fill(102, one[:-1] + b"\0")
    answer = bench.send(build(operation, 100, 4, COMPARE_ONE), one)
    assert fault(answer) == MISCOMPARE
    assert answer.sense.information == BLOCK - 1


@verifies
def test_without_data_the_medium_is_read(build, operation):
    unit = ram()
    bench = Bench(unit)
    assert is_good(bench.send(build(operation, 0, 8)))
    unit.backend = Faulty(FileLike(unit.backend), errno.EIO, 4 * BLOCK)
    assert is_good(bench.send(build(operation, 0, 4)))
    assert fault(bench.send(build(operation, 4, 1))) == (
        SenseKey.MEDIUM_ERROR,
        Asc.UNRECOVERED_READ_ERROR,
    )


class FileLike:
    """A backend whose bytes compiled code cannot see, as those of a file."""

    memory = 0

    def __init__(self, backend):
        self._backend = backend

    def __getattr__(self, name):
        return getattr(self._backend, name)


@both
def test_the_end_of_the_medium_is_kept(build, operation):
    bench = Bench()
    assert fault(bench.send(build(operation, BLOCKS, 1), bytes(BLOCK))) == OUT_OF_RANGE
    assert fault(bench.send(build(operation, BLOCKS - 1, 2), bytes(2 * BLOCK))) == OUT_OF_RANGE
    assert fault(bench.send(build(operation, BLOCKS + 1, 0))) == OUT_OF_RANGE
    assert is_good(bench.send(build(operation, BLOCKS, 0)))


def test_addresses_near_the_last_number_do_not_wrap():
    bench = Bench()
    for lba in (1 << 63, (1 << 64) - 1):
        for operation in (0x8E, 0x8F):
            assert fault(bench.send(cdb_16(operation, lba, 1), bytes(BLOCK))) == OUT_OF_RANGE


@both
def test_protection_information_is_refused(build, operation):
    for option in range(PROTECT, 0x100, PROTECT):
        assert fault(Bench().send(build(operation, 0, 1, option), bytes(BLOCK))) == INVALID


@both
def test_a_reserved_way_of_comparing_is_refused(build, operation):
    assert fault(Bench().send(build(operation, 0, 1, RESERVED), bytes(BLOCK))) == INVALID


@verifies
def test_too_little_to_compare_with_is_refused(build, operation):
    assert fault(Bench().send(build(operation, 0, 2, COMPARE), bytes(BLOCK))) == INVALID


@writes
def test_write_and_verify_writes_durably(build, operation):
    unit = ram()
    unit.backend = Faulty(unit.backend, 0, on=())
    bench = Bench(unit)
    data = pattern(3)
    for option in (0, COMPARE):
        answer = bench.send(build(operation, 9, 3, option), data)
        assert is_good(answer)
        assert answer.moved == len(data)
    assert bench.blocks(9, 3) == data
    assert "write durably" in unit.backend.calls
    assert "write" not in unit.backend.calls


@writes
def test_less_than_the_cdb_names_is_written_as_far_as_it_goes(build, operation):
    bench = Bench()
    data = pattern(1)
    answer = bench.send(build(operation, 9, 2), data)
    assert is_good(answer)
    assert answer.moved == 2 * BLOCK
    assert bench.blocks(9, 2) == data + bytes(BLOCK)


@writes
def test_more_than_the_cdb_names_is_left_out(build, operation):
    bench = Bench()
    data = pattern(2)
    assert is_good(bench.send(build(operation, 9, 1), data))
    assert bench.blocks(9, 2) == data[:BLOCK] + bytes(BLOCK)


@writes
def test_data_that_did_not_come_is_not_taken_for_written(build, operation):
    """The server keeps nothing of what is larger than its buffers: then there is no data."""
    bench = Bench()
    answer = bench.send(build(operation, 9, 2), b"", expected=2 * BLOCK)
    assert fault(answer) == INVALID


@writes
def test_a_write_protected_unit_is_not_written(build, operation):
    bench = Bench(ram(read_only=True))
    answer = bench.send(build(operation, 0, 1), bytes(BLOCK))
    assert fault(answer) == (SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)


@pytest.mark.parametrize(
    ("code", "sense"),
    [
        (errno.EIO, (SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR)),
        (errno.ENOSPC, (SenseKey.DATA_PROTECT, Asc.SPACE_ALLOCATION_FAILED)),
        (errno.EROFS, (SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)),
    ],
)
def test_what_fails_below_is_told(code, sense):
    unit = ram()
    unit.backend = Faulty(unit.backend, code, on=("write durably",))
    answer = Bench(unit).send(cdb_10(0x2E, 5, 1), bytes(BLOCK))
    assert fault(answer) == sense
    assert answer.sense.information in (5, None)
