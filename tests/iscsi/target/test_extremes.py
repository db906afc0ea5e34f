"""Addresses, counts and lengths at the ends of their fields: nothing is computed past an end, and
the residual says what did not move.
"""

import pytest

from iscsi.wire import scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.sense import Asc, SenseKey, decode_sense, split_sense
from tests.iscsi.target.medium import cdb_10, cdb_12, cdb_16
from tests.iscsi.target.serving import BLOCK, BLOCKS, TWO, Serving

PLACEMENTS = TWO

READ_16, WRITE_16 = 0x88, 0x8A
ALL_32, ALL_64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
SIZES = {0: (BLOCK, BLOCKS), 300: (4096, 64)}


@pytest.fixture(scope="module")
def serving(placement):
    with Serving() as serving:
        yield serving


@pytest.fixture
def raw(serving):
    with serving.log_in() as raw:
        raw.clear_attention().clear_attention(300)
        before = serving.disk.array.tobytes()
        yield raw
        assert serving.disk.array.tobytes() == before
        assert len(raw.read(0, 1)) == BLOCK


def refusal(raw):
    header, data = raw.take()
    assert (header.opcode, header.status) == (Opcode.SCSI_RESPONSE, 2)
    sense = decode_sense(split_sense(data))
    return sense.key, sense.code


def ranges(blocks):
    for lba in (blocks, blocks + 1, 1 << 31, ALL_32, 1 << 32, 1 << 54, 1 << 55, 1 << 62):
        yield lba, 1
    for lba in ((1 << 63) - 1, 1 << 63, ALL_64 - 1, ALL_64):
        for count in (0, 1, 2, ALL_32):
            yield lba, count
    yield from ((blocks + 1, 0), (0, blocks + 1), (blocks - 1, 2), (1, ALL_32), (0, 1 << 31))


@pytest.mark.parametrize("lun", SIZES)
def test_blocks_that_are_not_there_are_out_of_range(raw, lun):
    block, blocks = SIZES[lun]
    for lba, count in ranges(blocks):
        for expected in (0, block, ALL_32):
            raw.command(cdb_16(READ_16, lba, count), lun=lun, length=expected, read=1)
            assert refusal(raw) == (SenseKey.ILLEGAL_REQUEST, Asc.LBA_OUT_OF_RANGE), (lba, count)
        raw.command(cdb_16(WRITE_16, lba, count), bytes(block), lun=lun, length=block, write=1)
        assert refusal(raw) == (SenseKey.ILLEGAL_REQUEST, Asc.LBA_OUT_OF_RANGE), (lba, count)


@pytest.mark.parametrize("cdb", [cdb_10(0x28, ALL_32, 0xFFFF), cdb_12(0xA8, ALL_32, ALL_32)])
def test_the_largest_short_forms_are_out_of_range(raw, cdb):
    raw.command(cdb.ljust(16, b"\0"), length=ALL_32, read=1)
    assert refusal(raw) == (SenseKey.ILLEGAL_REQUEST, Asc.LBA_OUT_OF_RANGE)


@pytest.mark.parametrize("lun", SIZES)
def test_no_blocks_move_nothing_even_right_behind_the_last(raw, lun):
    block, blocks = SIZES[lun]
    for lba in (0, blocks):
        for operation, way in ((READ_16, "read"), (WRITE_16, "write")):
            raw.command(cdb_16(operation, lba, 0), lun=lun, length=block, **{way: 1})
            header, _ = raw.take()
            assert (header.opcode, header.status) == (Opcode.SCSI_RESPONSE, 0)
            assert (header.underflow, header.residual_count) == (1, block)


def test_the_longest_expected_length_leaves_a_residual_of_32_bits(raw):
    raw.command(scsi.read_16(0, 1), length=ALL_32, read=1)
    header, data = raw.take()
    assert len(data) == BLOCK
    assert (header.underflow, header.residual_count) == (1, ALL_32 - BLOCK)
    raw.command(scsi.test_unit_ready(), length=ALL_32, read=1)
    header, _ = raw.take()
    assert (header.underflow, header.residual_count) == (1, ALL_32)


def test_a_write_that_expects_to_send_all_there_is_is_asked_for_its_blocks_only(serving, raw):
    old = serving.disk.array[:BLOCK].tobytes()
    tag = raw.command(cdb_16(WRITE_16, 0, 1), length=ALL_32, write=1)
    r2t, _ = raw.take()
    assert (r2t.opcode, r2t.buffer_offset) == (Opcode.R2T, 0)
    assert r2t.desired_data_transfer_length == BLOCK
    raw.give(Opcode.DATA_OUT, old, itt=tag, ttt=r2t.ttt, buffer_offset=0, data_sn=0, final=1)
    header, _ = raw.take()
    assert (header.status, header.underflow) == (0, 1)
    assert header.residual_count == ALL_32 - BLOCK


def test_more_than_any_buffer_holds_is_refused_before_it_is_sent(raw):
    raw.command(bytes((0x15, 0x10, 0, 0, 16, 0)).ljust(16, b"\0"), length=ALL_32, write=1)
    assert refusal(raw) == (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)


def test_an_overflow_of_all_blocks_is_counted(raw):
    raw.command(cdb_16(READ_16, 0, BLOCKS), length=BLOCK, read=1)
    header, data = raw.take()
    assert (len(data), header.overflow) == (BLOCK, 1)
    assert header.residual_count == (BLOCKS - 1) * BLOCK
