"""Provisioning thresholds: when one is reached, who hears of it and how, and how they are set."""

import pytest

from iscsi.target.backends import FileBackend, Usage
from iscsi.target.nexus import Nexus
from iscsi.target.room import RoomWatch
from iscsi.target.thresholds import (
    AVAILABLE,
    COUNT_MAX,
    HEADER_LENGTH,
    USED,
    Threshold,
    Thresholds,
    exponent,
    warning,
)
from iscsi.target.units import LogicalUnit
from iscsi.wire import scsi as cdbs
from iscsi.wire.sense import Asc, SenseKey
from tests.iscsi.target.medium import BLOCK, Bench, fault, is_good, ram
from tests.iscsi.target.test_scsi_mode import page_of, select

MIB = 1 << 20
SIZE = 16 * MIB
REACHED = Asc.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED
EXCEPTIONS, RECOVERY = 0x1C, 0x01
SUBPAGE = 0x02


@pytest.fixture
def bench():
    return Bench(ram(SIZE // BLOCK))


def used(size):
    return Usage(size, SIZE - size)


def offsets(thresholds, size):
    """Of the descriptors that are reached when this much is used."""
    return [found.offset for found in thresholds.look(used(size), MIB, SIZE)]


def on(resource, count):
    return Threshold(resource, count, enabled=True)


# --- when ----------------------------------------------------------------------------------------


def test_one_that_watches_use_is_reached_half_a_set_above_its_count():
    thresholds = Thresholds([on(USED, 4)])
    at = 4 * MIB + MIB // 2
    assert offsets(thresholds, at - 1) == []
    assert offsets(thresholds, at) == [HEADER_LENGTH]
    assert offsets(thresholds, SIZE) == []  # said once


def test_it_is_armed_again_half_a_set_below():
    thresholds = Thresholds([on(USED, 4)])
    assert offsets(thresholds, 5 * MIB)
    low = 4 * MIB - MIB // 2
    assert offsets(thresholds, low) == []
    assert offsets(thresholds, 5 * MIB) == []
    assert offsets(thresholds, low - 1) == []
    assert offsets(thresholds, 5 * MIB) == [HEADER_LENGTH]


def test_one_that_watches_what_is_left_works_the_other_way_round():
    thresholds = Thresholds([Threshold(), on(AVAILABLE, 4)])
    low, high = SIZE - (4 * MIB - MIB // 2), SIZE - (4 * MIB + MIB // 2)
    assert offsets(thresholds, low - 1) == []
    assert offsets(thresholds, low) == [HEADER_LENGTH + 8]
    assert offsets(thresholds, high) == []
    assert offsets(thresholds, low) == []
    assert offsets(thresholds, high - 1) == []
    assert offsets(thresholds, low) == [HEADER_LENGTH + 8]


@pytest.mark.parametrize("threshold", [on(USED, 16), on(AVAILABLE, 0)])
def test_one_at_the_very_end_is_reached_there(threshold):
    thresholds = Thresholds([threshold])
    assert offsets(thresholds, SIZE - 1) == []
    assert offsets(thresholds, SIZE) == [HEADER_LENGTH]


def test_those_that_are_off_are_never_reached_and_not_watched():
    thresholds = Thresholds([Threshold(USED, 4)])
    assert not thresholds.is_watching
    assert offsets(thresholds, SIZE) == []
    thresholds.set([on(USED, 4)])
    assert thresholds.is_watching
    thresholds.notifies = False
    assert not thresholds.is_watching
    assert offsets(thresholds, SIZE) == []


def test_setting_others_leaves_the_rest_as_they_were():
    thresholds = Thresholds([on(USED, 4)])
    assert offsets(thresholds, 5 * MIB)
    thresholds.set([on(USED, 4), on(USED, 2)])
    assert offsets(thresholds, 5 * MIB) == [HEADER_LENGTH + 8]
    thresholds.reset()
    assert thresholds.descriptors[1] == Threshold()
    assert offsets(thresholds, 5 * MIB) == [HEADER_LENGTH]


@pytest.mark.parametrize("threshold", [on(USED, 7), on(AVAILABLE, 1), Threshold(), Threshold(USED)])
def test_a_descriptor_survives_its_encoding(threshold):
    assert Threshold.decode(threshold.encode()) == threshold


@pytest.mark.parametrize(
    "head", ["8002", "8101", "8103", "8803", "9002", "8901", "8000", "8203", "0003"]
)
def test_reserved_combinations_are_none(head):
    assert Threshold.decode(bytes.fromhex(head) + bytes(6)) is None


def test_a_set_is_a_mebibyte_until_there_are_too_many_of_them():
    assert exponent(512, 1) == 11
    assert exponent(4096, 1 << 30) == 8
    for blocks in (1 << 43, (1 << 43) - 1, (1 << 53) - 1, 1 << 53):
        assert blocks >> exponent(512, blocks) <= COUNT_MAX
    assert warning(USED, 10, MIB).count == 1


# --- who hears of it -----------------------------------------------------------------------------


def test_every_nexus_gets_a_unit_attention_that_names_the_descriptor(bench):
    other = Nexus("iqn.2026-01.org.example:other", 2)
    other.attach(bench.target, None)
    unit = bench.units[0]
    unit.thresholds.set_defaults([on(USED, 12), on(USED, 4)])
    watch = RoomWatch(lambda run, done: pytest.fail("memory is asked at once"))
    told = []
    watch.reached = lambda unit, reached: told.append((unit, reached.threshold))
    watch.look([bench.target])
    bench.fill(0, bytes(5 * MIB))
    watch.look([bench.target, bench.target])
    assert told == [(unit, on(USED, 4))]
    for nexus in (bench.nexus, other):
        answer = bench.send(cdbs.test_unit_ready(), expected=0, nexus=nexus)
        assert fault(answer) == (SenseKey.UNIT_ATTENTION, REACHED)
        assert answer.sense.information == HEADER_LENGTH + 8
        assert is_good(bench.send(cdbs.test_unit_ready(), expected=0, nexus=nexus))


def test_two_that_are_reached_at_once_are_both_told(bench):
    unit = bench.units[0]
    unit.thresholds.set_defaults([on(USED, 2), on(AVAILABLE, 14)])
    bench.fill(0, bytes(5 * MIB))
    unit.notice(unit.backend.usage())
    found = [bench.send(cdbs.test_unit_ready(), expected=0).sense for _ in range(2)]
    assert [(sense.code, sense.information) for sense in found] == [(REACHED, 16), (REACHED, 24)]


def test_request_sense_tells_it_with_its_descriptor_too(bench):
    unit = bench.units[0]
    unit.thresholds.set_defaults([on(USED, 2)])
    bench.fill(0, bytes(5 * MIB))
    unit.notice(unit.backend.usage())
    sense = bench.send(cdbs.request_sense(), expected=252).data
    assert sense[0] == 0xF0
    assert int.from_bytes(sense[3:7], "big") == HEADER_LENGTH
    assert int.from_bytes(sense[12:14], "big") == REACHED


def test_unmapping_arms_it_again(bench):
    unit = bench.units[0]
    unit.thresholds.set_defaults([on(USED, 4)])
    for _ in range(2):
        bench.fill(0, bytes(5 * MIB))
        assert len(unit.notice(unit.backend.usage())) == 1
        assert fault(bench.send(cdbs.test_unit_ready(), expected=0))[1] == REACHED
        descriptor = bytes(8) + (SIZE // BLOCK).to_bytes(4, "big") + bytes(4)
        data = bytes((0, 22, 0, 16, 0, 0, 0, 0)) + descriptor
        assert is_good(bench.send(bytes((0x42, 0, 0, 0, 0, 0, 0, 0, len(data), 0)), data))
        assert unit.notice(unit.backend.usage()) == []


def test_a_file_is_asked_in_a_worker_and_once_at_a_time(tmp_path):
    backend = FileBackend(tmp_path / "disk", size=SIZE, thin=True)
    try:
        unit = LogicalUnit(backend)
        bench = Bench(unit)
        unit.thresholds.set_defaults([on(USED, 4)])
        backend.write(0, b"\x11" * 6 * MIB)
        backend.flush()
        asked = []
        watch = RoomWatch(lambda run, done: asked.append((run, done)))
        told = []
        watch.reached = lambda unit, reached: told.append(reached.usage.used)
        watch.look([bench.target])
        watch.look([bench.target])
        ((run, done),) = asked
        done(Answered(run))
        assert len(told) == 1
        assert told[0] >= 6 * MIB
        assert bench.nexus.pending(0) == REACHED
        watch.look([bench.target])
        assert len(asked) == 2
        asked[1][1](Answered(lambda: (_ for _ in ()).throw(OSError(9, "closed"))))
        watch.look([bench.target])
        assert len(asked) == 3
    finally:
        backend.close()


class Answered:
    """A future that has run."""

    def __init__(self, run):
        try:
            self._result, self._error = run(), None
        except OSError as error:
            self._result, self._error = None, error

    def cancelled(self):
        return False

    def exception(self):
        return self._error

    def result(self):
        return self._result


# --- how they are set ----------------------------------------------------------------------------


def provisioning(bench, control=0, **options):
    page = page_of(bench, EXCEPTIONS, control, subpage=SUBPAGE, **options)
    assert page[:2] == bytes((0x5C, 0x02))
    assert int.from_bytes(page[2:4], "big") == len(page) - 4
    return page


def with_descriptor(page, number, raw):
    at = HEADER_LENGTH + 8 * number
    return page[:at] + raw + page[at + 8 :]


def test_an_initiator_sets_a_threshold_and_the_others_hear_of_it(bench):
    other = Nexus("iqn.2026-01.org.example:other", 2)
    other.attach(bench.target, None)
    page = with_descriptor(provisioning(bench), 2, on(USED, 3).encode())
    assert is_good(select(bench, page))
    assert provisioning(bench) == page
    assert bench.units[0].thresholds.descriptors[2] == on(USED, 3)
    assert other.pending(0) == Asc.MODE_PARAMETERS_CHANGED
    assert provisioning(bench, control=2) != page
    bench.units[0].reset()
    assert provisioning(bench) == provisioning(bench, control=2)


def test_a_default_of_the_operator_is_the_default_of_the_page(bench):
    bench.units[0].thresholds.set_defaults([on(USED, 3)])
    assert provisioning(bench, control=2) == provisioning(bench)
    assert provisioning(bench)[16:24] == on(USED, 3).encode()


@pytest.mark.parametrize("raw", ["8003000000000001", "8801000000000001", "8102010000000001"])
def test_a_reserved_combination_is_refused(bench, raw):
    before = provisioning(bench)
    page = with_descriptor(before, 0, bytes.fromhex(raw))
    assert fault(select(bench, page))[1] == Asc.INVALID_FIELD_IN_PARAMETER_LIST
    assert provisioning(bench) == before


def test_a_single_nexus_cannot_be_asked_for(bench):
    page = bytearray(provisioning(bench))
    page[4] |= 1  # SITUA
    assert fault(select(bench, bytes(page)))[1] == Asc.INVALID_FIELD_IN_PARAMETER_LIST


def test_reporting_can_be_switched_off(bench):
    page = bytearray(page_of(bench, RECOVERY))
    assert page[7] == 0x80
    assert page_of(bench, RECOVERY, 1)[2:] == bytes(5) + b"\x80" + bytes(4)
    page[7] = 0
    assert is_good(select(bench, bytes(page)))
    assert not bench.units[0].thresholds.notifies
    assert page_of(bench, RECOVERY)[7] == 0


def test_a_unit_that_is_not_thin_has_no_such_pages():
    bench = Bench(ram(64, thin=False))
    for page, subpage in ((RECOVERY, 0), (EXCEPTIONS, SUBPAGE)):
        cdb = cdbs.mode_sense_10(page, subpage)
        assert fault(bench.send(cdb, expected=255))[1] == Asc.INVALID_FIELD_IN_CDB
    assert bench.send(cdbs.inquiry(0xB2), expected=255).data[4] == 0


def test_a_thin_unit_tells_how_large_a_set_is(bench):
    assert bench.send(cdbs.inquiry(0xB2), expected=255).data[4] == 11
    large = Bench(ram(4096, block_size=4096))
    assert large.send(cdbs.inquiry(0xB2), expected=255).data[4] == 8


def test_subpages_come_only_when_they_are_asked_for(bench):
    plain = page_of(bench, 0x3F)
    everything = page_of(bench, 0x3F, subpage=0xFF)
    assert everything == plain + provisioning(bench)
    exceptions = page_of(bench, EXCEPTIONS)
    assert page_of(bench, EXCEPTIONS, subpage=0xFF) == exceptions + provisioning(bench)
