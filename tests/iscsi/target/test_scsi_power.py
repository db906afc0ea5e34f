"""Media that come and go, sense that is asked for, and power conditions."""

import pytest

from iscsi.target.nexus import Nexus
from iscsi.target.scsi import dispatch
from iscsi.wire import scsi as cdbs
from iscsi.wire.sense import Asc, ScsiStatus, Sense, SenseKey, decode_sense, progress
from tests.iscsi.target.medium import Bench, Faulty, cdb_10, fault, is_good, ram

EJECT, LOAD, STOP, START, NO_FLUSH = 2, 3, 0, 1, 4
PREVENTED = (SenseKey.ILLEGAL_REQUEST, Asc.MEDIUM_REMOVAL_PREVENTED)
NO_MEDIUM = (SenseKey.NOT_READY, Asc.MEDIUM_NOT_PRESENT)


@pytest.fixture
def bench():
    return Bench(ram(removable=True))


def start_stop(bench, bits, power=0, **options):
    return bench.send(bytes((0x1B, 0, 0, 0, power << 4 | bits, 0)), expected=0, **options)


def prevent(bench, value, **options):
    return bench.send(bytes((0x1E, 0, 0, 0, value, 0)), expected=0, **options)


def request_sense(bench, *, descriptor=False, allocation=252):
    cdb = bytes((0x03, descriptor, 0, 0, allocation, 0))
    answer = bench.send(cdb, expected=allocation)
    assert is_good(answer)
    return answer.data


def other_nexus(bench):
    nexus = Nexus("iqn.2026-01.org.example:other", 2)
    nexus.attach(bench.target, None)
    return nexus


def test_an_ejected_medium_is_missed_by_what_needs_it_and_by_nothing_else(bench):
    assert is_good(start_stop(bench, EJECT))
    assert not bench.units[0].is_normal
    for (operation, action), row in dispatch.ROWS.items():
        cdb = bytes((operation, action or 0)).ljust(16, b"\0")
        if row.needs_medium and row.is_offered(bench.units[0]):
            assert fault(bench.send(cdb, expected=512)) == NO_MEDIUM, hex(operation)
    assert is_good(bench.send(cdbs.inquiry(), expected=255))
    assert is_good(bench.send(cdbs.mode_sense_6(0x3F), expected=255))
    assert is_good(start_stop(bench, LOAD))
    assert is_good(bench.send(cdbs.test_unit_ready(), expected=0))
    assert bench.units[0].is_normal


def test_a_medium_that_came_back_is_news_for_the_others(bench):
    other = other_nexus(bench)
    start_stop(bench, EJECT)
    start_stop(bench, LOAD)
    assert other.pending(0) == Asc.NOT_READY_TO_READY_CHANGE
    assert bench.nexus.pending(0) is None


def test_removal_is_prevented_until_every_initiator_allows_it(bench):
    other = other_nexus(bench)
    assert is_good(prevent(bench, 1))
    assert is_good(prevent(bench, 1, nexus=other))
    assert fault(start_stop(bench, EJECT)) == PREVENTED
    assert is_good(prevent(bench, 0))
    assert fault(start_stop(bench, EJECT)) == PREVENTED
    assert is_good(prevent(bench, 0, nexus=other))
    assert is_good(start_stop(bench, EJECT))


@pytest.mark.parametrize("end", ["logout", "reset"])
def test_what_prevented_removal_ends_with_its_session_or_a_reset(bench, end):
    other = other_nexus(bench)
    prevent(bench, 1, nexus=other)
    if end == "logout":
        other.detach()
    else:
        bench.units[0].reset()
    assert is_good(start_stop(bench, EJECT))


def test_a_fixed_medium_can_neither_be_taken_out_nor_held_in():
    bench = Bench(ram())
    for answer in (start_stop(bench, EJECT), start_stop(bench, LOAD), prevent(bench, 1)):
        assert fault(answer) == (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
    assert is_good(prevent(bench, 0))


@pytest.mark.parametrize("power", range(16))
def test_every_power_condition_is_taken_and_changes_nothing(bench, power):
    assert is_good(start_stop(bench, START, power))
    assert is_good(bench.send(cdbs.test_unit_ready(), expected=0))


@pytest.mark.parametrize(("bits", "flushes"), [(STOP, 1), (START, 0), (NO_FLUSH, 0)])
def test_a_unit_that_is_stopped_writes_down_what_it_holds(bench, bits, flushes):
    unit = bench.units[0]
    unit.backend = Faulty(unit.backend, 0, on=())
    assert is_good(start_stop(bench, bits))
    assert unit.backend.calls.count("flush") == flushes
    assert is_good(bench.send(cdbs.test_unit_ready(), expected=0))


# --- REQUEST SENSE -------------------------------------------------------------------------------


@pytest.mark.parametrize("descriptor", [False, True])
def test_sense_can_be_asked_for_in_either_format(bench, descriptor):
    raw = request_sense(bench, descriptor=descriptor)
    assert raw[0] == (0x72 if descriptor else 0x70)
    assert decode_sense(raw) == Sense(SenseKey.NO_SENSE)
    start_stop(bench, EJECT)
    found = decode_sense(request_sense(bench, descriptor=descriptor))
    assert (found.key, found.code) == NO_MEDIUM


def test_asking_for_sense_takes_a_unit_attention_once(bench):
    bench.nexus.raise_attention(0, Asc.CAPACITY_DATA_CHANGED)
    assert decode_sense(request_sense(bench)).code == Asc.CAPACITY_DATA_CHANGED
    assert decode_sense(request_sense(bench)).key == SenseKey.NO_SENSE


def test_a_unit_that_is_busy_with_itself_says_how_far_it_is(bench):
    unit = bench.units[0]
    unit.condition = lambda: Sense(SenseKey.NOT_READY, 0x04, 0x1B, specific=progress(0.5))
    unit.refresh_gate()
    assert not unit.is_normal
    found = decode_sense(request_sense(bench))
    assert (found.key, found.code) == (SenseKey.NOT_READY, Asc.SANITIZE_IN_PROGRESS)
    assert found.specific == b"\x80\x80\x00"
    answer = bench.send(cdb_10(0x28, 0, 1), expected=512)
    assert answer.status == ScsiStatus.CHECK_CONDITION
    assert answer.sense == found
    unit.condition = None
    unit.refresh_gate()
    assert is_good(bench.send(cdb_10(0x28, 0, 1), expected=512))
