"""Units that come, go and grow while initiators use them, and what those are told of it."""

import contextlib

import numpy as np
import pytest

from host.memory import Buffer
from iscsi.target.backends import FileBackend, RamBackend
from iscsi.target.nexus import Nexus, transport_id
from iscsi.target.scsi import Command, dispatch
from iscsi.target.units import LogicalUnit, Target
from iscsi.wire import scsi as cdbs
from iscsi.wire import scsi_data
from iscsi.wire.lun import GATE_CLOSED, GATE_READS_ONLY, LUN_SIZE, lun_at
from iscsi.wire.sense import Asc, ScsiStatus, SenseKey
from shm.view import address_of
from tests.iscsi.target.medium import BLOCK, BLOCKS, NAME, Bench, cdb_10, fault, is_good, ram

ATTENTION = SenseKey.UNIT_ATTENTION
READY = cdbs.test_unit_ready()


@pytest.fixture
def bench():
    return Bench(ram(), ram())


def entry(target, lun):
    return lun_at(address_of(target.table) + LUN_SIZE * lun)[0]


def growing(capacity=2 * BLOCKS):
    buffer = Buffer(np.zeros(capacity * BLOCK, np.uint8), None)
    return LogicalUnit(RamBackend(buffer, size=BLOCKS * BLOCK, thin=True))


class Words:
    """What compiled code would see of a nexus: a word per unit."""

    def __init__(self, target):
        self.words = {}
        self.nexus = Nexus("iqn.2026-01.org.example:w", 3)
        self.nexus.attach(target, self.words.__setitem__)

    def __getitem__(self, lun):
        return self.words[lun]


# --- unit attentions -----------------------------------------------------------------------------


def test_a_unit_attention_is_told_once_in_the_order_of_events(bench):
    nexus = bench.nexus
    nexus.raise_attention(0, Asc.MODE_PARAMETERS_CHANGED)
    nexus.raise_attention(0, Asc.CAPACITY_DATA_CHANGED)
    nexus.raise_attention(0, Asc.MODE_PARAMETERS_CHANGED)
    assert fault(bench.send(READY, expected=0)) == (ATTENTION, Asc.MODE_PARAMETERS_CHANGED)
    assert fault(bench.send(READY, expected=0)) == (ATTENTION, Asc.CAPACITY_DATA_CHANGED)
    assert is_good(bench.send(READY, expected=0))


def test_a_reset_says_all_that_was_to_be_said(bench):
    bench.nexus.raise_attention(0, Asc.CAPACITY_DATA_CHANGED)
    bench.nexus.raise_attention(0, Asc.DEVICE_RESET_OCCURRED)
    bench.nexus.raise_attention(0, Asc.MODE_PARAMETERS_CHANGED)
    assert fault(bench.send(READY, expected=0)) == (ATTENTION, Asc.DEVICE_RESET_OCCURRED)
    assert fault(bench.send(READY, expected=0)) == (ATTENTION, Asc.MODE_PARAMETERS_CHANGED)
    assert is_good(bench.send(READY, expected=0))


def test_an_attention_is_about_one_unit_and_one_nexus(bench):
    other = Words(bench.target)
    bench.nexus.raise_attention(1, Asc.CAPACITY_DATA_CHANGED)
    assert is_good(bench.send(READY, expected=0))
    assert is_good(bench.send(READY, expected=0, lun=1, nexus=other.nexus))
    assert fault(bench.send(READY, expected=0, lun=1)) == (ATTENTION, Asc.CAPACITY_DATA_CHANGED)


@pytest.mark.parametrize("cdb", [cdbs.inquiry(), cdbs.report_luns()])
def test_who_is_there_can_be_asked_past_an_attention_which_stays(bench, cdb):
    bench.nexus.raise_attention(0, Asc.POWER_ON_RESET)
    assert is_good(bench.send(cdb, expected=255))
    assert bench.nexus.pending(0) == Asc.POWER_ON_RESET


def test_compiled_code_stands_back_while_an_attention_waits(bench):
    seen = Words(bench.target)
    assert seen[0] == 0
    seen.nexus.raise_attention(0, Asc.CAPACITY_DATA_CHANGED)
    seen.nexus.raise_attention(0, Asc.MODE_PARAMETERS_CHANGED)
    assert (seen[0], seen[1]) == (1, 0)
    seen.nexus.take_attention(0)
    assert seen[0] == 1
    seen.nexus.take_attention(0)
    assert seen[0] == 0


# --- units that change ---------------------------------------------------------------------------


def test_a_unit_that_grew_says_so_and_has_the_room():
    bench = Bench(growing())
    bench.units[0].resize(2 * BLOCKS * BLOCK)
    assert entry(bench.target, 0)["block_count"] == 2 * BLOCKS
    answer = bench.send(cdb_10(0x28, 2 * BLOCKS - 1, 1), expected=BLOCK)
    assert fault(answer) == (ATTENTION, Asc.CAPACITY_DATA_CHANGED)
    assert is_good(bench.send(cdb_10(0x28, 2 * BLOCKS - 1, 1), expected=BLOCK))
    capacity = scsi_data.parse_capacity_16(bench.send(cdbs.read_capacity_16(), expected=32).data)
    assert capacity.blocks == 2 * BLOCKS


def test_a_unit_that_shrank_has_no_blocks_behind_its_end():
    bench = Bench(growing())
    bench.units[0].resize(BLOCK * 8)
    bench.nexus.take_attention(0)
    assert fault(bench.send(cdb_10(0x28, 8, 1), expected=BLOCK))[1] == Asc.LBA_OUT_OF_RANGE


@pytest.mark.parametrize(
    ("size", "error"), [(0, ValueError), (100, ValueError), (1 << 40, OSError)]
)
def test_a_size_that_cannot_be_changes_nothing(size, error):
    bench = Bench(growing())
    with pytest.raises(error):
        bench.units[0].resize(size)
    assert bench.units[0].blocks == BLOCKS
    assert bench.nexus.pending(0) is None


def test_a_unit_that_comes_is_served_and_the_others_tell_of_it(bench):
    seen = Words(bench.target)
    bench.target.add_unit(300, ram())
    bench.target.add_unit(7, ram())
    assert entry(bench.target, 7)["memory"] == bench.target.units[7].backend.memory
    assert fault(bench.send(READY, expected=0)) == (ATTENTION, Asc.REPORTED_LUNS_CHANGED)
    assert fault(bench.send(READY, expected=0, lun=7)) == (ATTENTION, Asc.POWER_ON_RESET)
    assert is_good(bench.send(READY, expected=0, lun=7))
    assert fault(bench.send(READY, expected=0, lun=300)) == (ATTENTION, Asc.POWER_ON_RESET)
    assert seen[7] == 1
    listed, _ = scsi_data.parse_luns(bench.send(cdbs.report_luns(), expected=255).data)
    assert listed == [0, 1, 7, 300]


def test_reading_the_list_of_units_is_the_answer_to_its_change(bench):
    bench.target.add_unit(7, ram())
    assert is_good(bench.send(cdbs.report_luns(), expected=255, lun=1))
    for lun in (0, 1):
        assert is_good(bench.send(READY, expected=0, lun=lun))


def test_a_unit_that_goes_is_not_there_any_more(bench):
    seen = Words(bench.target)
    bench.nexus.raise_attention(1, Asc.CAPACITY_DATA_CHANGED)
    gone = bench.target.remove_unit(1)
    assert gone is bench.units[1]
    assert entry(bench.target, 1)["memory"] == 0
    assert not gone.places
    assert fault(bench.send(READY, expected=0, lun=1))[1] == Asc.LUN_NOT_SUPPORTED
    assert fault(bench.send(READY, expected=0)) == (ATTENTION, Asc.REPORTED_LUNS_CHANGED)
    assert seen[1] == 0
    with pytest.raises(KeyError):
        bench.target.remove_unit(1)


@pytest.mark.parametrize("lun", [0, 1 << 14, -1])
def test_a_number_that_is_taken_or_none_is_refused(bench, lun):
    with pytest.raises(ValueError, match="LUN"):
        bench.target.add_unit(lun, ram())


def test_a_unit_in_two_targets_has_one_name_and_tells_both():
    unit = ram()
    first = Target(NAME, {0: unit})
    second = Target("iqn.2026-01.org.example:second", {5: unit})
    naa = unit.naa
    nexuses = [Words(first).nexus, Words(second).nexus]
    unit.broadcast(Asc.MODE_PARAMETERS_CHANGED, nexuses[0])
    assert nexuses[0].pending(0) is None
    assert nexuses[1].pending(5) == Asc.MODE_PARAMETERS_CHANGED
    assert Target(NAME, {0: ram()}).units[0].naa == naa
    unit.software_write_protect = True
    unit.refresh_gate()
    assert entry(first, 0)["read_only"]
    assert entry(second, 5)["read_only"]


def test_a_serial_number_that_is_given_is_kept():
    unit = ram(serial="SN-1", naa=0x6000000000000001)
    target = Target(NAME, {0: unit})
    assert (target.units[0].serial, target.units[0].naa) == ("SN-1", 0x6000000000000001)


def test_a_session_that_ended_is_told_nothing(bench):
    seen = Words(bench.target)
    seen.nexus.detach()
    seen.nexus.detach()
    assert seen.nexus not in bench.target.nexuses
    bench.units[0].broadcast(Asc.CAPACITY_DATA_CHANGED)
    assert seen.nexus.pending(0) is None
    assert seen[0] == 0


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["iqn.2026-01.org.example:i", "iqn." + "x" * 219])
def test_a_transport_id_is_name_and_isid_to_a_multiple_of_four(name):
    raw = transport_id(name, 0x23D000001)
    assert raw[0] == 0x45
    length = int.from_bytes(raw[2:4], "big")
    assert len(raw) == 4 + length
    assert length % 4 == 0
    assert length >= 20
    assert raw[4:].rstrip(b"\0").decode() == f"{name},i,0x00023d000001"
    assert raw[-1] == 0


def test_the_target_port_groups_agree_with_the_identifiers(bench):
    nexus = Nexus("iqn.2026-01.org.example:p", 9, portal_group_tag=2)
    nexus.attach(bench.target, None)
    standard = bench.send(cdbs.inquiry(), expected=255, nexus=nexus).data
    assert standard[5] >> 4 & 3 == 1
    body = scsi_data.parse_vpd(0x83, bench.send(cdbs.inquiry(0x83), expected=255, nexus=nexus).data)
    designators = {
        (item.association, item.kind): item.value for item in scsi_data.parse_designators(body)
    }
    group = int.from_bytes(designators[1, 5], "big")
    port = int.from_bytes(designators[1, 4], "big")
    for form, start in ((0, 4), (1, 8)):
        cdb = bytes((0xA3, form << 5 | 0x0A, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0))
        found = bench.send(cdb, expected=255, nexus=nexus).data
        assert int.from_bytes(found[:4], "big") == len(found) - 4
        assert found[start] & 0x0F == 0
        assert int.from_bytes(found[start + 2 : start + 4], "big") == group == 2
        assert found[start + 7] == 1
        assert int.from_bytes(found[start + 10 : start + 12], "big") == port
    assert port == 2
    assert designators[2, 8].rstrip(b"\0").decode() == NAME


# --- rules that all commands share ---------------------------------------------------------------


def test_nothing_is_done_with_an_auto_contingent_allegiance_asked_for(bench):
    for cdb, at in ((READY, 5), (cdbs.read_10(0, 1), 9), (cdbs.read_16(0, 1), 15)):
        asked = bytearray(cdb)
        asked[at] |= 0x04
        assert fault(bench.send(asked, expected=512))[1] == Asc.INVALID_FIELD_IN_CDB


def test_reads_and_writes_of_cold_code_keep_the_rules(bench):
    data = bytes(range(256)) * 4
    for write, read in ((0x2A, 0x28), (0xAA, 0xA8), (0x8A, 0x88)):
        wide = write == 0x8A
        tail = (0, 3, 0, 0, 0, 2, 0, 0) if not wide else (0, 0, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0)
        cdb = (0, 0, 0, 3, 0, 0, 2, 0) if write == 0x2A else (0, 0, *tail)
        answer = bench.send(bytes((write, 0x18, *cdb)), data)
        assert is_good(answer), answer
        assert answer.moved == 2 * BLOCK
        assert bytes(bench.send(bytes((read, 0, *cdb)), expected=2 * BLOCK).data) == data
        short = bench.send(bytes((read, 0, *cdb)), expected=100)
        assert (len(short.data), short.moved) == (100, 2 * BLOCK)
        protected = bench.send(bytes((read, 0x20, *cdb)), expected=2 * BLOCK)
        assert fault(protected)[1] == Asc.INVALID_FIELD_IN_CDB
    six = bench.send(bytes((0x08, 0, 0, 3, 0, 0)), expected=256 * BLOCK)
    assert bytes(six.data[: len(data)]) == data
    assert six.moved == 256 * BLOCK


def test_a_transfer_longer_than_the_limit_is_refused(bench):
    unit = bench.units[0]
    count = unit.limits.transfer + 1
    unit.backend = RamBackend(Buffer(np.zeros(2 * count * BLOCK, np.uint8), None))
    cdb = bytes((0xA8, 0, 0, 0, 0, 0, *count.to_bytes(4, "big"), 0, 0))
    assert fault(bench.send(cdb, expected=count * BLOCK))[1] == Asc.INVALID_FIELD_IN_CDB


def test_the_last_block_is_the_last_that_can_be_read(bench):
    assert is_good(bench.send(cdb_10(0x28, BLOCKS - 1, 1), expected=BLOCK))
    assert is_good(bench.send(cdb_10(0x28, BLOCKS, 0), expected=0))
    for lba, count in ((BLOCKS, 1), (BLOCKS - 1, 2), (BLOCKS + 1, 0), (0xFFFFFFFF, 1)):
        answer = bench.send(cdb_10(0x28, lba, count), expected=count * BLOCK)
        assert fault(answer)[1] == Asc.LBA_OUT_OF_RANGE
    assert bench.send(READY, expected=0).status == ScsiStatus.GOOD


def test_an_error_of_this_program_ends_one_command_and_is_written_down(bench, caplog):
    bench.units[0].backend = None
    assert fault(bench.send(cdb_10(0x28, 0, 1), expected=BLOCK)) == (
        SenseKey.HARDWARE_ERROR,
        Asc.INTERNAL_TARGET_FAILURE,
    )
    assert "failed" in caplog.text
    assert is_good(bench.send(READY, expected=0))


def test_compiled_code_reads_for_an_initiator_that_may_only_read(bench):
    words = {}
    reader = Nexus("iqn.2026-01.org.example:reader", read_only=True)
    reader.attach(bench.target, words.__setitem__)
    assert words == {0: GATE_READS_ONLY, 1: GATE_READS_ONLY}
    reader.raise_attention(0, Asc.CAPACITY_DATA_CHANGED)
    assert words[0] == GATE_CLOSED
    reader.take_attention(0)
    assert words[0] == GATE_READS_ONLY


def test_every_portal_group_is_reported_with_a_port_of_its_own(bench):
    assert not bench.send(cdbs.inquiry(), expected=255).data[6] & 0x10
    bench.target.portal_groups = lambda: (1, 7, 0)
    assert bench.send(cdbs.inquiry(), expected=255).data[6] & 0x10
    cdb = bytes((0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0))
    found = bench.send(cdb, expected=255).data
    groups = [found[at : at + 12] for at in range(4, len(found), 12)]
    assert [int.from_bytes(group[2:4], "big") for group in groups] == [0, 1, 7]
    ports = [int.from_bytes(group[10:12], "big") for group in groups]
    assert len(set(ports)) == 3
    assert 0 not in ports


def test_only_a_medium_that_may_keep_one_waiting_is_read_by_a_worker(bench, tmp_path):
    file = FileBackend(tmp_path / "lun", size=BLOCKS * BLOCK)
    with contextlib.closing(file):
        bench.target.add_unit(5, LogicalUnit(file))
        for cdb in (cdb_10(0x28, 0, 1), cdb_10(0x2A, 0, 1)):
            slow = [
                dispatch.is_slow(Command(cdb, bench.target, lun, bench.nexus)) for lun in (0, 5, 6)
            ]
            assert slow == [False, True, False]
        bench.target.remove_unit(5)
