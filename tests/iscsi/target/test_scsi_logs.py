"""LOG SENSE and LOG SELECT: which pages there are, what they count, and what can be reset."""

import pytest

from iscsi.target.backends import FileBackend
from iscsi.target.nexus import Nexus
from iscsi.target.units import LogicalUnit
from iscsi.wire.sense import Asc, SenseKey
from tests.iscsi.target.medium import BLOCK, Bench, cdb_10, cdb_16, fault, is_good, ram

SUPPORTED, PROVISIONING, PERFORMANCE, SUBPAGES = 0x00, 0x0C, 0x19, 0xFF
THRESHOLDS, CUMULATIVE, DEFAULT_THRESHOLDS, DEFAULTS = range(4)
MIB = 1 << 20
BLOCKS = 16 * MIB // BLOCK
READ, WRITE, WRITE_AND_VERIFY, UNMAP = 0x28, 0x2A, 0x2E, 0x42


@pytest.fixture
def bench():
    return Bench(ram(BLOCKS), ram(64, thin=False))


def log_sense(bench, page, subpage=0, *, control=CUMULATIVE, first=0, sp=0, length=1024, **options):
    cdb = bytes((0x4D, sp, control << 6 | page, subpage, 0))
    cdb += first.to_bytes(2, "big") + length.to_bytes(2, "big") + b"\0"
    return bench.send(cdb, expected=length, **options)


def page_of(bench, page, subpage=0, **options):
    """The body of a page, after a look at its header."""
    answer = log_sense(bench, page, subpage, **options)
    assert is_good(answer), answer
    data = bytes(answer.data)
    assert data[0] & 0x3F == page
    assert bool(data[0] & 0x40) is bool(subpage)
    assert data[1] == subpage
    assert int.from_bytes(data[2:4], "big") == len(data) - 4
    return data[4:]


def parameters(bench, page, **options):
    body, found = page_of(bench, page, **options), {}
    while body:
        code, length = int.from_bytes(body[:2], "big"), body[3]
        found[code] = body[2], body[4 : 4 + length]
        body = body[4 + length :]
    return found


def performed(bench, **options):
    """Reads, writes, blocks written, blocks read."""
    _, value = parameters(bench, PERFORMANCE, **options)[1]
    assert len(value) == 64
    numbers = [int.from_bytes(value[at : at + 8], "big") for at in range(0, 64, 8)]
    assert not any(numbers[4:])
    return numbers[:4]


def provisioned(bench, **options):
    """Available and used threshold sets."""
    found = parameters(bench, PROVISIONING, **options)
    return [int.from_bytes(found[code][1][:4], "big") for code in (1, 2)]


def log_select(bench, page=0, subpage=0, *, control=CUMULATIVE, flags=0, data=b"", **options):
    head = bytes((0x4C, flags, control << 6 | page, subpage, 0, 0, 0))
    return bench.send(head + len(data).to_bytes(2, "big") + b"\0", data, **options)


def test_the_pages_a_unit_has_are_listed_and_answered(bench):
    assert list(page_of(bench, SUPPORTED)) == [SUPPORTED, PROVISIONING, PERFORMANCE]
    assert list(page_of(bench, SUPPORTED, lun=1)) == [SUPPORTED, PERFORMANCE]
    pairs = page_of(bench, SUPPORTED, SUBPAGES)
    listed = [tuple(pairs[at : at + 2]) for at in range(0, len(pairs), 2)]
    assert listed == sorted(listed)
    assert {page for page, _ in listed} == set(page_of(bench, SUPPORTED))
    for page, subpage in listed:
        page_of(bench, page, subpage)


def test_each_page_lists_its_own_subpages(bench):
    assert page_of(bench, PERFORMANCE, SUBPAGES) == bytes((0x19, 0, 0x19, 0xFF))


def test_no_page_promises_to_save_anything(bench):
    for page in (PROVISIONING, PERFORMANCE):
        assert log_sense(bench, page).data[0] & 0x80
        assert all(control & 0x20 for control, _ in parameters(bench, page).values())


@pytest.mark.parametrize(
    ("page", "subpage", "options"),
    [
        (0x0D, 0, {}),
        (0x2F, 0, {}),
        (PERFORMANCE, 1, {}),
        (SUPPORTED, 1, {}),
        (PERFORMANCE, 0, {"sp": 1}),
        (PERFORMANCE, 0, {"first": 4}),
        (SUPPORTED, 0, {"first": 1}),
        (PROVISIONING, 0, {"lun": 1}),
    ],
)
def test_what_there_is_not_is_refused(bench, page, subpage, options):
    answer = log_sense(bench, page, subpage, **options)
    assert fault(answer) == (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)


def test_parameters_begin_with_the_one_that_is_asked_for(bench):
    assert list(parameters(bench, PERFORMANCE)) == [1, 2, 3]
    assert list(parameters(bench, PERFORMANCE, first=2)) == [2, 3]
    assert list(parameters(bench, PROVISIONING, first=2)) == [2]


def test_a_page_is_cut_to_the_allocation_length(bench):
    whole = log_sense(bench, PERFORMANCE).data
    assert log_sense(bench, PERFORMANCE, length=7).data == whole[:7]


def test_reads_and_writes_are_counted_with_their_blocks(bench):
    assert is_good(bench.send(cdb_10(READ, 0, 8), expected=8 * BLOCK))
    assert is_good(bench.send(cdb_16(0x88, 5, 2), expected=2 * BLOCK))
    assert is_good(bench.send(cdb_10(WRITE, 3, 4), bytes(4 * BLOCK)))
    assert is_good(bench.send(cdb_10(WRITE_AND_VERIFY, 0, 1), bytes(BLOCK)))
    assert is_good(bench.send(cdb_10(UNMAP, 0, 0), expected=0))
    assert performed(bench) == [2, 3, 5, 10]


def test_what_is_refused_is_not_counted(bench):
    assert fault(bench.send(cdb_10(READ, BLOCKS, 8), expected=8 * BLOCK))
    bench.units[0].software_write_protect = True
    assert fault(bench.send(cdb_10(WRITE, 0, 1), bytes(BLOCK)))
    assert performed(bench) == [0, 0, 0, 0]


def test_only_current_values_are_counts(bench):
    bench.send(cdb_10(READ, 0, 8), expected=8 * BLOCK)
    for control in (THRESHOLDS, DEFAULT_THRESHOLDS, DEFAULTS):
        assert performed(bench, control=control) == [0, 0, 0, 0]
    assert performed(bench)[0] == 1


def test_counts_of_compiled_code_and_of_places_that_are_gone_belong_to_the_unit(bench):
    unit = bench.units[0]
    entry = bench.target.entry(0)
    entry["reads"], entry["read_bytes"] = 3, 3 * BLOCK
    bench.target.add_unit(5, unit)
    bench.nexus.take_attention(5)
    assert is_good(bench.send(cdb_10(WRITE, 0, 2), bytes(2 * BLOCK), lun=5))
    assert performed(bench, lun=5) == [3, 1, 2, 3]
    bench.target.remove_unit(5)
    bench.nexus.take_attention(0)
    assert performed(bench) == [3, 1, 2, 3]


def test_a_unit_that_takes_anothers_place_begins_at_zero(bench):
    bench.send(cdb_10(READ, 0, 8), expected=8 * BLOCK, lun=1)
    bench.target.remove_unit(1)
    bench.target.add_unit(1, ram(64))
    assert not bench.target.entry(1)["reads"]


def test_a_lun_beyond_the_table_is_counted_too(bench):
    unit = ram(64)
    bench.target.add_unit(700, unit)
    bench.nexus.take_attention(700)
    assert is_good(bench.send(cdb_10(READ, 0, 8), expected=8 * BLOCK, lun=700))
    assert performed(bench, lun=700) == [1, 0, 0, 8]


def test_a_thin_unit_tells_what_it_takes_in_threshold_sets(bench):
    assert provisioned(bench) == [16, 0]
    bench.fill(0, bytes(3 * MIB))
    assert provisioned(bench) == [13, 3]
    assert provisioned(bench, control=DEFAULTS) == [13, 3]
    scopes = [value[4] for _, value in parameters(bench, PROVISIONING).values()]
    assert scopes == [1, 1]


def test_a_thin_file_shares_what_its_file_system_has_left(tmp_path):
    backend = FileBackend(tmp_path / "disk", size=16 * MIB, thin=True)
    try:
        bench = Bench(LogicalUnit(backend))
        backend.write(0, b"\x11" * 4 * MIB)
        backend.flush()
        available, used = provisioned(bench)
        assert used == 4
        assert available <= 12
        scopes = [value[4] for _, value in parameters(bench, PROVISIONING).values()]
        assert scopes == [2, 1]
    finally:
        backend.close()


# --- LOG SELECT ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "options"),
    [
        (0, {"flags": 0x02}),
        (PERFORMANCE, {"flags": 0x02}),
        (PERFORMANCE, {"subpage": SUBPAGES, "flags": 0x02}),
        (0, {"control": DEFAULTS}),
        (0, {"flags": 0x03, "control": DEFAULTS}),
    ],
)
def test_counts_begin_at_zero_again_and_the_others_hear_of_it(bench, page, options):
    other = Nexus("iqn.2026-01.org.example:other", 2)
    other.attach(bench.target, None)
    bench.send(cdb_10(READ, 0, 8), expected=8 * BLOCK)
    assert is_good(log_select(bench, page, **options))
    assert performed(bench) == [0, 0, 0, 0]
    assert other.pending(0) == Asc.LOG_PARAMETERS_CHANGED
    assert bench.nexus.pending(0) is None
    bench.send(cdb_10(READ, 0, 8), expected=8 * BLOCK)
    assert performed(bench) == [1, 0, 0, 8]
    assert bench.target.entry(0)["reads"] == 2  # what the operator sees goes on


@pytest.mark.parametrize(
    ("page", "options"),
    [
        (0, {}),
        (0, {"control": DEFAULT_THRESHOLDS}),
        (PERFORMANCE, {"control": THRESHOLDS}),
        (PROVISIONING, {"flags": 0x02}),
    ],
)
def test_what_asks_for_nothing_that_can_be_reset_changes_nothing(bench, page, options):
    other = Nexus("iqn.2026-01.org.example:other", 2)
    other.attach(bench.target, None)
    bench.send(cdb_10(READ, 0, 8), expected=8 * BLOCK)
    assert is_good(log_select(bench, page, **options))
    assert performed(bench) == [1, 0, 0, 8]
    assert other.pending(0) is None


@pytest.mark.parametrize(
    ("page", "options"),
    [
        (0, {"flags": 0x01}),
        (0, {"flags": 0x03, "control": THRESHOLDS}),
        (0x0D, {"flags": 0x02}),
        (PERFORMANCE, {"subpage": 1, "flags": 0x02}),
        (0, {"flags": 0x02, "data": bytes(4)}),
        (PERFORMANCE, {"data": bytes(4)}),
    ],
)
def test_a_wrong_wish_is_refused(bench, page, options):
    bench.send(cdb_10(READ, 0, 8), expected=8 * BLOCK)
    answer = log_select(bench, page, **options)
    assert fault(answer) == (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
    assert performed(bench)[0] == 1


def test_a_list_that_says_what_is_changes_nothing_and_any_other_is_refused(bench):
    bench.send(cdb_10(READ, 0, 8), expected=8 * BLOCK)
    page = bytes(log_sense(bench, PERFORMANCE).data)
    assert is_good(log_select(bench, data=page))
    other = bytearray(page)
    other[15] += 1
    room = bytes(log_sense(bench, PROVISIONING).data)
    for wrong in (bytes(other), room, page + page, page[:-1], page[:9], b"\x19\0\xff\xff"):
        answer = log_select(bench, data=wrong)
        assert fault(answer)[1] == Asc.INVALID_FIELD_IN_PARAMETER_LIST, wrong
    cdb = bytes((0x4C, 0, 0x40, 0, 0, 0, 0)) + (len(page) + 1).to_bytes(2, "big") + b"\0"
    assert fault(bench.send(cdb, page))[1] == Asc.PARAMETER_LIST_LENGTH_ERROR
    assert performed(bench) == [1, 0, 0, 8]


def test_who_may_only_read_resets_nothing(bench):
    bench.nexus.read_only = True
    assert fault(log_select(bench, flags=0x02))[1] == Asc.ACCESS_DENIED
    assert performed(bench) == [0, 0, 0, 0]
