"""MODE SENSE and MODE SELECT: what a unit says of its mode, what can be changed, who is told."""

import pytest

from iscsi.target.nexus import Nexus
from iscsi.target.scsi import Access, dispatch
from iscsi.wire import scsi as cdbs
from iscsi.wire import scsi_data
from iscsi.wire.sense import Asc, SenseKey, decode_sense
from tests.iscsi.target.medium import Bench, Faulty, cdb_10, fault, is_good, ram

RECOVERY, CACHING, CONTROL, EXCEPTIONS, ALL = 0x01, 0x08, 0x0A, 0x1C, 0x3F
CURRENT, CHANGEABLE, DEFAULT, SAVED = range(4)
D_SENSE, SWP, WCE = 0x04, 0x08, 0x04


@pytest.fixture
def bench():
    return Bench()


def sense_10(bench, page, control=CURRENT, *, subpage=0, dbd=True, llbaa=False, **options):
    cdb = bytearray(cdbs.mode_sense_10(page, subpage))
    cdb[1] = 0x08 * dbd | 0x10 * llbaa
    cdb[2] |= control << 6
    answer = bench.send(cdb, expected=255, **options)
    assert is_good(answer), answer
    assert int.from_bytes(answer.data[:2], "big") == len(answer.data) - 2
    return answer.data


def page_of(bench, page, control=CURRENT, **options):
    return sense_10(bench, page, control, **options)[8:]


def select(bench, page, *, ten=True, pf=0x10, length=None, **options):
    data = bytes(8 if ten else 4) + page
    length = len(data) if length is None else length
    cdb = bytes((0x55, pf, 0, 0, 0, 0, 0, *length.to_bytes(2, "big"), 0))
    if not ten:
        cdb = bytes((0x15, pf, 0, 0, length, 0))
    return bench.send(cdb, data, **options)


def changed(bench, page, at, bits):
    found = bytearray(page_of(bench, page))
    found[at] |= bits
    return bytes(found)


def test_all_pages_come_in_order_of_their_codes(bench):
    pages, codes = page_of(bench, ALL), []
    while pages:
        codes.append(pages[0])
        pages = pages[2 + pages[1] :]
    assert codes == [RECOVERY, CACHING, CONTROL, EXCEPTIONS]


@pytest.mark.parametrize("page", [RECOVERY, CACHING, CONTROL, EXCEPTIONS])
def test_changeable_values_are_a_mask_as_long_as_the_page(bench, page):
    current, mask = page_of(bench, page), page_of(bench, page, CHANGEABLE)
    assert len(mask) == len(current)
    assert mask[:2] == current[:2]


def test_a_unit_tells_its_blocks_unless_it_shall_not(bench):
    short = sense_10(bench, CONTROL, dbd=False)
    assert int.from_bytes(short[6:8], "big") == 8
    assert int.from_bytes(short[8:12], "big") == bench.units[0].blocks
    assert int.from_bytes(short[13:16], "big") == bench.units[0].block_size
    long = sense_10(bench, CONTROL, dbd=False, llbaa=True)
    assert long[4] & 1
    assert int.from_bytes(long[6:8], "big") == 16
    assert int.from_bytes(long[8:16], "big") == bench.units[0].blocks
    assert int.from_bytes(sense_10(bench, CONTROL)[6:8], "big") == 0


@pytest.mark.parametrize("ten", [False, True])
def test_descriptor_sense_is_what_a_unit_gives_when_it_is_told_to(bench, ten):
    assert is_good(select(bench, changed(bench, CONTROL, 2, D_SENSE), ten=ten))
    answer = bench.send(b"\xff", expected=0)
    assert decode_sense(answer.encoded_sense(descriptor=bench.units[0].descriptor_sense)).code == (
        Asc.INVALID_OPERATION_CODE
    )
    assert page_of(bench, CONTROL)[2] & D_SENSE
    assert not page_of(bench, CONTROL, DEFAULT)[2] & D_SENSE


def test_a_unit_that_is_told_to_protect_itself_refuses_to_be_written(bench):
    write = cdb_10(0x2A, 0, 1)
    assert is_good(select(bench, changed(bench, CONTROL, 4, SWP)))
    assert bench.units[0].record.read_only
    assert fault(bench.send(write, bytes(512))) == (
        SenseKey.DATA_PROTECT,
        Asc.SOFTWARE_WRITE_PROTECTED,
    )
    assert scsi_data.is_write_protected(sense_10(bench, CONTROL), ten=True)
    cleared = bytearray(page_of(bench, CONTROL))
    cleared[4] &= ~SWP
    assert is_good(select(bench, bytes(cleared)))
    assert is_good(bench.send(write, bytes(512)))
    assert not bench.units[0].record.read_only


def test_every_command_that_writes_is_refused_by_a_protected_unit():
    bench = Bench(ram(read_only=True))
    writers = [key for key, row in dispatch.ROWS.items() if row.access is Access.WRITE]
    assert len(writers) > 12
    for operation, action in writers:
        answer = bench.send(bytes((operation, action or 0)).ljust(16, b"\0"), bytes(512))
        assert fault(answer) == (SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED), hex(operation)


def test_an_initiator_that_may_only_read_sees_a_protected_unit(bench):
    reader = Nexus("iqn.2026-01.org.example:reader", read_only=True)
    reader.attach(bench.target, None)
    assert scsi_data.is_write_protected(sense_10(bench, CONTROL, nexus=reader), ten=True)
    answer = bench.send(cdb_10(0x2A, 0, 1), bytes(512), nexus=reader)
    assert fault(answer) == (SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)
    assert is_good(bench.send(cdb_10(0x2A, 0, 1), bytes(512)))


def test_the_other_initiators_hear_of_a_change_and_of_nothing_else(bench):
    other = Nexus("iqn.2026-01.org.example:other", 2)
    other.attach(bench.target, None)
    assert is_good(select(bench, page_of(bench, CONTROL)))
    assert other.pending(0) is None
    assert is_good(select(bench, changed(bench, CONTROL, 2, D_SENSE)))
    assert other.pending(0) == Asc.MODE_PARAMETERS_CHANGED
    assert bench.nexus.pending(0) is None


class Cached(Faulty):
    """A backend whose write cache can be switched."""

    write_cache, write_cache_changeable = True, True

    def set_write_cache(self, enabled):
        self.write_cache = enabled


def test_the_write_cache_can_be_switched_where_there_is_one():
    bench = Bench(ram())
    assert not page_of(bench, CACHING)[2] & WCE
    assert not page_of(bench, CACHING, CHANGEABLE)[2] & WCE
    assert fault(select(bench, changed(bench, CACHING, 2, WCE)))[1] == (
        Asc.INVALID_FIELD_IN_PARAMETER_LIST
    )
    unit = bench.units[0]
    unit.backend = Cached(unit.backend, 0, on=())
    page = bytearray(page_of(bench, CACHING))
    assert page[2] & WCE
    page[2] &= ~WCE
    assert is_good(select(bench, bytes(page)))
    assert unit.backend.write_cache is False
    assert not page_of(bench, CACHING)[2] & WCE


@pytest.mark.parametrize(
    ("page", "options", "code"),
    [
        (b"", {"length": 3}, Asc.PARAMETER_LIST_LENGTH_ERROR),
        (b"\x0a\x0a", {}, Asc.PARAMETER_LIST_LENGTH_ERROR),
        (b"\x0a", {}, Asc.PARAMETER_LIST_LENGTH_ERROR),
        (b"\x5c\x02\x00", {}, Asc.PARAMETER_LIST_LENGTH_ERROR),
        (b"\x5c\x02\xff\xff" + bytes(44), {}, Asc.PARAMETER_LIST_LENGTH_ERROR),
        (b"\x5c\x03\x00\x00", {}, Asc.INVALID_FIELD_IN_PARAMETER_LIST),
        (b"\x5c\x02\x00\x00", {}, Asc.INVALID_FIELD_IN_PARAMETER_LIST),
        (b"\x0a\x02\0\0", {}, Asc.INVALID_FIELD_IN_PARAMETER_LIST),
        (b"\x1a\x0a" + bytes(10), {}, Asc.INVALID_FIELD_IN_PARAMETER_LIST),
        (b"\x0a\x0a" + b"\xff" * 10, {}, Asc.INVALID_FIELD_IN_PARAMETER_LIST),
        (b"", {"pf": 0x11}, Asc.INVALID_FIELD_IN_CDB),
        (b"", {"pf": 0x00}, Asc.INVALID_FIELD_IN_CDB),
    ],
)
def test_a_parameter_list_that_is_wrong_changes_nothing(bench, page, options, code):
    before = page_of(bench, ALL)
    assert fault(select(bench, page, **options)) == (SenseKey.ILLEGAL_REQUEST, code)
    assert page_of(bench, ALL) == before


def test_one_wrong_page_keeps_the_right_one_before_it_from_being_set(bench):
    right = changed(bench, CONTROL, 2, D_SENSE)
    wrong = changed(bench, CACHING, 2, WCE)
    assert fault(select(bench, right + wrong))[1] == Asc.INVALID_FIELD_IN_PARAMETER_LIST
    assert not bench.units[0].descriptor_sense


def test_no_parameters_are_no_error(bench):
    assert is_good(bench.send(bytes((0x15, 0x10, 0, 0, 0, 0)), expected=0))


def test_values_cannot_be_saved_or_read_as_saved(bench):
    cdb = bytearray(cdbs.mode_sense_10(CONTROL))
    cdb[2] |= SAVED << 6
    assert fault(bench.send(cdb, expected=255))[1] == Asc.SAVING_NOT_SUPPORTED


def test_a_block_descriptor_may_repeat_what_is_and_nothing_else(bench):
    unit = bench.units[0]
    page = page_of(bench, CONTROL)
    for blocks, size, ok in (
        (unit.blocks, unit.block_size, True),
        (0, unit.block_size, True),
        (0xFFFFFFFF, unit.block_size, True),
        (unit.blocks - 1, unit.block_size, False),
        (unit.blocks, 4096, False),
    ):
        head = bytes((0, 0, 0, 8)) + blocks.to_bytes(4, "big") + size.to_bytes(4, "big")
        data = head + page
        answer = bench.send(bytes((0x15, 0x10, 0, 0, len(data), 0)), data)
        assert is_good(answer) is ok
