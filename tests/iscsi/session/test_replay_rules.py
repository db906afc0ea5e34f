"""Which commands may be repeated and which must wait for each other: every operation code the
standards have for block devices is on one side or the other on purpose.
"""

import random

import pytest

from iscsi.session import cdb
from iscsi.session.options import NEVER, Options, Recovery, Timeouts
from iscsi.session.replay import END, Extent, Ordering, changes, extent_of, is_replayable
from iscsi.wire import scsi

NEVER_TWICE = {
    "COMPARE AND WRITE": cdb.compare_and_write(0, 1),
    "EXTENDED COPY": cdb.build(0x83, 16),
    "PERSISTENT RESERVE OUT": cdb.persistent_reserve_out(1, 2)[0],
    "RESERVE(6)": cdb.build(0x16, 6),
    "RELEASE(6)": cdb.build(0x17, 6),
    "RESERVE(10)": cdb.build(0x56, 10),
    "MODE SELECT(6)": cdb.build(0x15, 6),
    "MODE SELECT(10)": cdb.mode_select(8),
    "START STOP UNIT": cdb.start_stop(start=True),
    "SANITIZE": cdb.sanitize(2),
    "ORWRITE(16)": cdb.build(0x8B, 16),
    "FORMAT UNIT": cdb.build(0x04, 6),
    "XDWRITEREAD(10)": cdb.build(0x53, 10),
    "XPWRITE(10)": cdb.build(0x51, 10),
    "LOG SELECT": cdb.build(0x4C, 10),
    "WRITE BUFFER": cdb.build(0x3B, 10),
    "MAINTENANCE OUT": cdb.build(0xA4, 12),
    "SERVICE ACTION OUT": cdb.build(0x9F, 16),
    "REASSIGN BLOCKS": cdb.build(0x07, 6),
    "a vendor's command": cdb.build(0xC1, 10),
    "ORWRITE(32)": cdb.build(0x7F, 32, (8, 2, 0x000E)),
}
TWICE_IS_ONCE = {
    "WRITE(6)": cdb.build(0x0A, 6),
    "WRITE(10)": scsi.write_10(0, 1),
    "WRITE(12)": cdb.build(0xAA, 12),
    "WRITE(16)": scsi.write_16(0, 1),
    "WRITE AND VERIFY(10)": cdb.build(0x2E, 10),
    "WRITE ATOMIC(16)": cdb.write_atomic(0, 1),
    "WRITE SAME(10)": cdb.build(0x41, 10),
    "WRITE SAME(16)": cdb.write_same(0, 1),
    "UNMAP": cdb.unmap([(0, 1)])[0],
    "SYNCHRONIZE CACHE(10)": cdb.synchronize_cache(0, 0),
    "WRITE(32)": cdb.build(0x7F, 32, (8, 2, 0x000B)),
}
CHANGES_NOTHING = {
    "READ(10)": scsi.read_10(0, 1),
    "READ(16)": scsi.read_16(0, 1),
    "INQUIRY": scsi.inquiry(),
    "TEST UNIT READY": scsi.test_unit_ready(),
    "READ CAPACITY(16)": scsi.read_capacity_16(),
    "GET LBA STATUS": cdb.get_lba_status(0, 64),
    "VERIFY(16)": cdb.verify(0, 1),
    "REPORT LUNS": scsi.report_luns(),
    "REPORT SUPPORTED OPERATION CODES": cdb.report_supported_opcodes(64),
    "PERSISTENT RESERVE IN": cdb.persistent_reserve_in(0, 64),
    "MODE SENSE(10)": cdb.mode_sense(0x3F),
    "READ(32)": cdb.build(0x7F, 32, (8, 2, 0x0009)),
}


def padded(command):
    return command.ljust(16, b"\0")


@pytest.mark.parametrize("command", NEVER_TWICE.values(), ids=NEVER_TWICE)
def test_what_has_a_lasting_effect_is_never_repeated(command):
    assert not is_replayable(padded(command))
    assert changes(padded(command))


@pytest.mark.parametrize("command", TWICE_IS_ONCE.values(), ids=TWICE_IS_ONCE)
def test_what_leaves_the_same_behind_is_repeated(command):
    assert is_replayable(padded(command))
    assert changes(padded(command))


@pytest.mark.parametrize("command", CHANGES_NOTHING.values(), ids=CHANGES_NOTHING)
def test_what_changes_nothing_is_repeated_and_waits_for_nobody(command):
    assert is_replayable(padded(command))
    assert extent_of(0, padded(command)) is None


def test_the_blocks_of_a_change_are_read_off_its_cdb():
    assert extent_of(3, padded(scsi.write_10(7, 5))) == Extent(3, 7, 12)
    assert extent_of(0, padded(cdb.write_same(7, 5))) == Extent(0, 7, 12)
    assert extent_of(0, padded(cdb.compare_and_write(7, 2))) == Extent(0, 7, 9)
    assert extent_of(0, padded(cdb.write_atomic(7, 5))) == Extent(0, 7, 12)
    assert extent_of(0, padded(cdb.sanitize(2))) == Extent(0, 0, END)
    asked, data = cdb.unmap([(10, 5), (2, 1)])
    assert extent_of(0, padded(asked), data) == Extent(0, 2, 15)
    whole = cdb.build(0x93, 16, (2, 8, 9))
    assert extent_of(0, whole) == Extent(0, 9, END), "a count of zero reaches to the end"


def test_changes_of_the_same_blocks_go_one_after_the_other():
    order, freed = Ordering(), []
    first = order.enter(Extent(0, 0, 10))
    second = order.enter(Extent(0, 5, 15))
    third = order.enter(Extent(0, 12, 20))
    other_unit = order.enter(Extent(1, 0, 10))
    beside = order.enter(Extent(0, 20, 30))
    assert [turn.is_blocked for turn in (first, second, third)] == [False, True, True]
    assert not other_unit.is_blocked
    assert not beside.is_blocked
    second.on_free = lambda: freed.append(2)
    third.on_free = lambda: freed.append(3)
    order.leave(first)
    assert freed == [2]
    order.leave(second)
    assert freed == [2, 3]
    order.leave(third)
    order.leave(third)
    assert not order.enter(Extent(0, 0, 20)).is_blocked


def test_a_change_that_is_given_up_sets_those_behind_it_free():
    order = Ordering()
    order.enter(Extent(0, 0, 10))
    second = order.enter(Extent(0, 5, 15))
    third = order.enter(Extent(0, 12, 20))
    order.leave(second)
    assert not third.is_blocked


def test_pauses_grow_to_their_limit_and_end_with_the_tries():
    pauses = list(Recovery(1, 5, jitter=0, tries=5).pauses(random.Random(1)))
    assert pauses == [1, 2, 4, 5, 5]
    varied = list(Recovery(1, 5, jitter=0.5, tries=200).pauses(random.Random(1)))
    assert all(0.5 <= pause <= 7.5 for pause in varied)
    assert len(set(varied)) > 100
    assert not NEVER.is_on


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Recovery(initial_s=-1),
        lambda: Recovery(initial_s=2, maximum_s=1),
        lambda: Recovery(jitter=2),
        lambda: Recovery(tries=-1),
        lambda: Timeouts(command_s=0),
        lambda: Timeouts(ping_count=0),
        lambda: Options(timeout_s=-1),
    ],
)
def test_limits_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=r"recovery|timeouts|ping"):
        wrong()


def test_a_short_timeout_option_is_one_of_the_timeouts():
    timeouts = Options(timeout_s=2, login_timeout_s=3).first_timeouts
    assert (timeouts.command_s, timeouts.login_s) == (2, 3)
    assert Options(timeouts=Timeouts(command_s=9)).first_timeouts.command_s == 9
