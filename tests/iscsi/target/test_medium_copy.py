"""EXTENDED COPY and RECEIVE COPY RESULTS: what is copied, what is refused, and what stays out of
reach.
"""

import errno
import struct

import pytest

from iscsi.target import scsi
from iscsi.target.nexus import Nexus
from iscsi.target.scsi import copy_parameters
from iscsi.target.scsi.inquiry import unit_designators
from iscsi.target.units import Target
from iscsi.wire import scsi_data
from iscsi.wire.scsi_data import Designator
from iscsi.wire.sense import Asc, SenseKey, decode_sense
from tests.iscsi.target.medium import BLOCK, BLOCKS, Bench, Faulty, fault, is_good, pattern, ram

INVALID = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
WRONG_LIST = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_PARAMETER_LIST)
WRONG_LENGTH = (SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
NOT_THERE = (SenseKey.COPY_ABORTED, Asc.COPY_TARGET_DEVICE_NOT_REACHABLE)
UNREACHABLE = (SenseKey.COPY_ABORTED, Asc.UNREACHABLE_COPY_TARGET)
BEYOND = (SenseKey.COPY_ABORTED, Asc.NO_ADDITIONAL_SENSE)
HOLD, DISCARD, DISABLED = 0, 2, 3
T10, NAA = 0, 1


def target_descriptor(unit, which=NAA, *, code=0xE4, device_type=0, block_size=None):
    name = unit if isinstance(unit, Designator) else unit_designators(unit)[which]
    size = block_size or (BLOCK if isinstance(unit, Designator) else unit.block_size)
    head = bytes((code, device_type, 0, 0, name.code_set))
    head += bytes((name.association << 4 | name.kind, 0, len(name.value))) + name.value
    return head.ljust(28, b"\0") + size.to_bytes(4, "big")


def segment(count, source_lba, destination_lba, source=0, destination=0, *, dc=0, code=2):
    return struct.pack(
        ">BBHHHHHQQ", code, dc << 1, 24, source, destination, 0, count, source_lba, destination_lba
    )


def copy_list(targets, segments, *, list_id=1, usage=HOLD, inline=0):
    first, second = b"".join(targets), b"".join(segments)
    head = struct.pack(">BBHIII", list_id, usage << 3, len(first), 0, len(second), inline)
    return head + first + second


def extended_copy(bench, data, *, length=None, nexus=None, lun=0):
    length = len(data) if length is None else length
    cdb = bytes((0x83, *bytes(9))) + length.to_bytes(4, "big") + bytes(2)
    return bench.send(cdb, data, nexus=nexus, lun=lun)


def receive(bench, action, list_id=0, allocation=1024, nexus=None):
    cdb = bytes((0x84, action, list_id, *bytes(7))) + allocation.to_bytes(4, "big") + bytes(2)
    return bench.send(cdb, expected=allocation, nexus=nexus)


def copy(bench, *segments, targets=None, **options):
    targets = [target_descriptor(unit) for unit in bench.units] if targets is None else targets
    return extended_copy(bench, copy_list(targets, segments, **options))


def test_blocks_are_copied_within_a_unit():
    bench = Bench()
    data = pattern(100)
    bench.fill(5, data)
    answer = copy(bench, segment(100, 5, 2000), targets=[target_descriptor(bench.units[0])])
    assert is_good(answer)
    assert answer.moved == 16 + 32 + 28
    assert bench.blocks(1999, 102) == bytes(BLOCK) + data + bytes(BLOCK)
    assert bench.blocks(5, 100) == data


def test_blocks_are_copied_between_units_in_the_order_of_the_segments():
    bench = Bench(ram(), ram(thin=False))
    one, two = pattern(8, 1), pattern(8, 2)
    bench.fill(0, one)
    bench.fill(8, two)
    assert is_good(copy(bench, segment(8, 0, 50, 0, 1), segment(4, 8, 54, 0, 1)))
    assert bench.blocks(50, 8, 1) == one[: 4 * BLOCK] + two[: 4 * BLOCK]


@pytest.mark.parametrize(("source", "destination"), [(0, 1000), (1000, 0), (7, 7)])
def test_what_overlaps_is_copied_as_it_was(source, destination):
    bench = Bench(ram(8192))
    data = pattern(5000)
    bench.fill(source, data)
    assert is_good(copy(bench, segment(5000, source, destination)))
    assert bench.blocks(destination, 5000) == data


@pytest.mark.parametrize("dc", [0, 1])
def test_blocks_of_two_sizes_are_counted_by_the_unit_that_is_named(dc):
    bench = Bench(ram(), ram(512, block_size=4096))
    data = pattern(16)
    bench.fill(0, data)
    count = 2 if dc else 16
    assert is_good(copy(bench, segment(count, 0, 3, 0, 1, dc=dc)))
    assert bench.blocks(3, 2, 1) == data
    assert fault(copy(bench, segment(7, 0, 3, 0, 1))) == BEYOND


def test_nothing_is_copied_unless_every_segment_is_possible():
    bench = Bench()
    bench.fill(0, pattern(8))
    good = segment(8, 0, 100)
    for wrong in (segment(8, 0, BLOCKS - 7), segment(8, BLOCKS - 7, 0), segment(1, 1 << 63, 0)):
        assert fault(copy(bench, good, wrong)) == BEYOND
    for wrong in (segment(8, 0, 0, 1, 0), segment(8, 0, 0, 0, 0xFFFF)):
        assert fault(copy(bench, good, wrong)) == UNREACHABLE
    assert bench.blocks(100, 8) == bytes(8 * BLOCK)


def test_a_copy_of_nothing_is_no_error():
    bench = Bench()
    assert is_good(extended_copy(bench, b""))
    assert is_good(copy(bench))
    assert is_good(copy(bench, segment(0, 0, 0)))
    assert is_good(extended_copy(bench, copy_list([], [])))


def test_a_list_that_is_cut_off_is_refused():
    bench = Bench()
    data = copy_list([target_descriptor(bench.units[0])], [segment(1, 0, 1)])
    for length in (1, 15, 16 + 31, len(data) - 1):
        assert fault(extended_copy(bench, data[:length])) == WRONG_LENGTH
    assert fault(extended_copy(bench, data, length=len(data) + 4)) == WRONG_LENGTH


def test_descriptors_are_counted():
    bench = Bench()
    one, some = target_descriptor(bench.units[0]), segment(1, 0, 1)
    most_targets, most_segments = copy_parameters.MAX_TARGETS, copy_parameters.MAX_SEGMENTS
    assert is_good(copy(bench, *[some] * most_segments, targets=[one] * most_targets))
    answer = copy(bench, some, targets=[one] * (most_targets + 1))
    assert fault(answer) == (SenseKey.ILLEGAL_REQUEST, Asc.TOO_MANY_TARGET_DESCRIPTORS)
    answer = copy(bench, *[some] * (most_segments + 1), targets=[one])
    assert fault(answer) == (SenseKey.ILLEGAL_REQUEST, Asc.TOO_MANY_SEGMENT_DESCRIPTORS)
    answer = copy(bench, *[some] * (most_segments + 1), targets=[one] * (most_targets + 1))
    assert fault(answer) == WRONG_LENGTH


def test_kinds_of_descriptors_that_are_not_served_are_refused():
    bench = Bench()
    unit = bench.units[0]
    other = copy(bench, segment(1, 0, 1), targets=[target_descriptor(unit, code=0xE0)])
    assert fault(other) == (SenseKey.ILLEGAL_REQUEST, Asc.UNSUPPORTED_TARGET_DESCRIPTOR)
    stream = copy(bench, segment(1, 0, 1, code=3))
    assert fault(stream) == (SenseKey.ILLEGAL_REQUEST, Asc.UNSUPPORTED_SEGMENT_DESCRIPTOR)
    tape = copy(bench, segment(1, 0, 1), targets=[target_descriptor(unit, device_type=1)])
    assert fault(tape) == WRONG_LIST
    long = copy(bench, segment(1, 0, 1), targets=[target_descriptor(unit, T10)])
    assert fault(long) == WRONG_LIST


def test_inline_data_and_a_list_without_identifier_that_has_one_are_refused():
    bench = Bench()
    one = target_descriptor(bench.units[0])
    assert fault(copy(bench, segment(1, 0, 1), list_id=1, usage=1)) == WRONG_LIST
    assert fault(copy(bench, segment(1, 0, 1), list_id=1, usage=DISABLED)) == WRONG_LIST
    data = copy_list([one], [], inline=4) + bytes(4)
    assert fault(extended_copy(bench, data)) == WRONG_LIST


# --- whose units ---------------------------------------------------------------------------------


def test_a_unit_of_another_target_is_out_of_reach():
    """CVE-2020-28374: knowing a unit's name is no right to read or write it."""
    hidden = ram()
    Target("iqn.2026-01.org.example:hidden", {0: hidden})
    hidden.backend.write(0, pattern(8))
    bench = Bench()
    targets = [target_descriptor(bench.units[0]), target_descriptor(hidden)]
    assert fault(copy(bench, segment(8, 0, 0, 1, 0), targets=targets)) == NOT_THERE
    assert fault(copy(bench, segment(8, 0, 0, 0, 1), targets=targets)) == NOT_THERE
    assert bench.blocks(0, 8) == bytes(8 * BLOCK)
    assert bytes(hidden.backend.read(0, 8 * BLOCK)) == pattern(8)


def test_a_name_that_nobody_has_and_a_wrong_block_size_are_not_there():
    bench = Bench()
    nobody = Designator(3, bytes(8))
    for wrong in (
        target_descriptor(nobody),
        target_descriptor(Designator(3, b"")),
        target_descriptor(bench.units[0], block_size=4096),
    ):
        assert fault(copy(bench, segment(1, 0, 1), targets=[wrong])) == NOT_THERE


def test_a_write_protected_unit_is_read_but_not_written():
    bench = Bench(ram(read_only=True), ram())
    bench.fill(0, pattern(1))
    assert is_good(copy(bench, segment(1, 0, 9, 0, 1)))
    assert bench.blocks(9, 1, 1) == pattern(1)
    answer = copy(bench, segment(1, 9, 1, 1, 0))
    assert fault(answer) == (SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)


def test_an_initiator_that_may_only_read_copies_nothing():
    bench = Bench()
    bench.nexus.read_only = True
    assert not is_good(copy(bench, segment(1, 0, 1)))
    assert bench.blocks(1, 1) == bytes(BLOCK)


class ReservedForOthers:
    """Reservations that keep one kind of command away."""

    def __init__(self, kind):
        self.kind = kind

    def conflicts(self, command, kind):
        return kind is self.kind

    def restricts(self, nexus):
        return True

    def nexus_lost(self, nexus):
        pass


@pytest.mark.parametrize("kind", [scsi.Reservation.READ_LIKE, scsi.Reservation.WRITE_LIKE])
def test_a_reservation_on_the_other_unit_is_kept(kind):
    bench = Bench(ram(), ram())
    bench.units[1].reservations = ReservedForOthers(kind)
    into = copy(bench, segment(1, 0, 0, 0, 1))
    out = copy(bench, segment(1, 0, 0, 1, 0))
    is_read = kind is scsi.Reservation.READ_LIKE
    assert is_good(into) is is_read
    assert is_good(out) is not is_read


def test_a_unit_without_medium_is_not_there():
    bench = Bench(ram(), ram(removable=True))
    bench.units[1].medium_present = False
    assert fault(copy(bench, segment(1, 0, 0, 0, 1))) == NOT_THERE


# --- results -------------------------------------------------------------------------------------


def status_of(answer):
    assert is_good(answer), answer
    length, status, segments, units, count = struct.unpack(">IBHBI", answer.data)
    assert length == 8
    assert units == 1
    return status, segments, count


def test_a_copy_is_told_by_its_list_identifier_once():
    bench = Bench()
    assert fault(receive(bench, 0, 7)) == INVALID
    assert is_good(copy(bench, segment(64, 0, 100), segment(64, 0, 300), list_id=7))
    assert status_of(receive(bench, 0, 7)) == (1, 2, 64)
    assert fault(receive(bench, 0, 7)) == INVALID


def test_another_nexus_does_not_see_it():
    bench = Bench()
    copy(bench, segment(64, 0, 100), list_id=7)
    other = Nexus("iqn.2026-01.org.example:other", 2)
    assert fault(receive(bench, 0, 7, nexus=other)) == INVALID


@pytest.mark.parametrize(("usage", "list_id"), [(DISCARD, 7), (DISABLED, 0)])
def test_a_copy_that_is_not_to_be_kept_is_not(usage, list_id):
    bench = Bench()
    assert is_good(copy(bench, segment(64, 0, 100), list_id=list_id, usage=usage))
    assert fault(receive(bench, 0, list_id)) == INVALID


def test_a_failed_copy_tells_why():
    unit = ram()
    unit.backend = Faulty(unit.backend, errno.ENOSPC, 1000 * BLOCK, on=("write",))
    bench = Bench(unit)
    answer = copy(bench, segment(4, 0, 100), segment(4, 0, 2000), list_id=7)
    assert fault(answer) == (SenseKey.DATA_PROTECT, Asc.SPACE_ALLOCATION_FAILED)
    assert status_of(receive(bench, 0, 7)) == (2, 1, 2)
    details = receive(bench, 4, 7)
    assert is_good(details)
    assert details.data[56] == 2
    sense = decode_sense(details.data[60:])
    assert sense.code == Asc.SPACE_ALLOCATION_FAILED
    assert int.from_bytes(details.data[:4], "big") == len(details.data) - 4
    assert fault(receive(bench, 4, 7)) == INVALID


def test_results_nobody_asks_for_do_not_pile_up():
    bench = Bench()
    for number in range(256):
        assert is_good(copy(bench, segment(1, 0, 1), list_id=number))
    found = [number for number in range(256) if is_good(receive(bench, 0, number))]
    assert found == list(range(224, 256))


def test_the_copy_manager_tells_its_limits():
    data = receive(Bench(), 3).data
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert struct.unpack_from(">HHI", data, 8) == (
        copy_parameters.MAX_TARGETS,
        copy_parameters.MAX_SEGMENTS,
        copy_parameters.MAX_LIST,
    )
    assert data[43:] == bytes((2, 0x02, 0xE4))


def test_page_8f_lists_the_commands():
    cdb = bytes((0x12, 1, 0x8F, 4, 0, 0))
    body = scsi_data.parse_vpd(0x8F, Bench().send(cdb, expected=1024).data)
    found, at = {}, 0
    while at < len(body):
        kind, length = struct.unpack_from(">HH", body, at)
        assert length % 4 == 0
        found[kind] = body[at + 4 : at + 4 + length]
        at += 4 + length
    assert sorted(found) == [0x0001, 0x0004, 0x0008, 0x000C, 0x8001]
    commands = found[0x0001]
    assert commands[1 : 1 + commands[0]] == bytes((0x83, 1, 0, 0x84, 3, 0, 3, 4))
