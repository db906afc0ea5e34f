"""The target against a scripted initiator: READ, WRITE, residuals, sense, and the cold code."""

import pytest

from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode, encode, encode_pdu
from iscsi.wire.errors import LocalProtocolError
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.lun import LUN, LUN_SIZE, Unit, write_lun
from iscsi.wire.port import PortLimits
from iscsi.wire.sense import Asc, ScsiStatus, SenseKey, decode_sense, encode_sense, split_sense
from iscsi.wire.target import TargetConnection
from iscsi.wire.target_block import TargetLimits
from iscsi.wire.target_task import target_at, task_of
from shm.memory import store_64
from tests.iscsi.wire.full_feature import (
    BLOCK,
    CONNECTION,
    SESSION,
    Joined,
    login_result,
    memory,
    pattern,
    pdus_of,
)

NO_TAG = bhs.RESERVED_TAG
OPEN = SessionParams(initial_r2t=False, first_burst_length=2048, max_burst_length=4096)


class Scripted:
    """A target whose initiator is this test. LUN 0 and 300 are there, 2 is read-only."""

    def __init__(self, session=SESSION, connection=CONNECTION, window_size=8, cmd_sn=50):
        self.ram = pattern(64 * BLOCK)
        self.luns = memory(301 * LUN_SIZE).view(LUN)
        for number in (0, 2, 300):
            unit = Unit(self.ram.ctypes.data, BLOCK, 64, read_only=number == 2)
            write_lun(self.luns.ctypes.data + number * LUN_SIZE, unit)
        limits = TargetLimits(
            window=window_size,
            port=PortLimits(control_slots=window_size + 8, control_data_length=512),
        )
        self.memory = memory(TargetConnection.size(301, limits))
        self.connection = TargetConnection(
            self.memory.ctypes.data,
            login_result(session, connection, cmd_sn, 7, window_size),
            self.luns.ctypes.data,
            301,
            limits,
        )
        self.cmd_sn, self.itt = cmd_sn, 0x1000

    def command(self, cdb, data=b"", **fields):
        """Send a SCSI Command with the next CmdSN and a new tag; return the tag."""
        fields = {"itt": self.itt, "cmd_sn": self.cmd_sn & 0xFFFFFFFF, **fields}
        self.itt += 1
        self.cmd_sn += not fields.get("immediate", 0)
        number = int.from_bytes(cdb, "big")
        self.give(Opcode.SCSI_COMMAND, data, cdb=number, **fields)
        return fields["itt"]

    def read(self, lba, blocks, length=None, **fields):
        length = blocks * BLOCK if length is None else length
        return self.command(
            scsi.read_10(lba, blocks), read=1, expected_data_transfer_length=length, **fields
        )

    def write(self, lba, blocks, length=None, data=b"", **fields):
        length = blocks * BLOCK if length is None else length
        return self.command(
            scsi.write_10(lba, blocks),
            data,
            write=1,
            expected_data_transfer_length=length,
            **fields,
        )

    def give(self, opcode, data=b"", **fields):
        self.connection.receive(encode_pdu(opcode, data, **fields))

    def request(self, opcode, data=b"", **fields):
        """Send a request other than a command, with the next CmdSN."""
        self.give(opcode, data, **{"cmd_sn": self.cmd_sn & 0xFFFFFFFF, **fields})
        self.cmd_sn += not fields.get("immediate", 0)

    def sent(self):
        return pdus_of(self.connection.data_to_send())

    def answer(self):
        ((header, data),) = self.sent()
        return header, data

    def answer_sense(self):
        header, data = self.answer()
        assert header.opcode is Opcode.SCSI_RESPONSE
        assert header.status == ScsiStatus.CHECK_CONDITION
        return decode_sense(split_sense(data))


def test_a_read_is_answered_with_data_and_status_in_one_pdu():
    end = Scripted()
    itt = end.read(3, 4)
    header, data = end.answer()
    assert header.opcode is Opcode.DATA_IN
    assert (header.final, header.has_status, header.status) == (1, 1, 0)
    assert (header.itt, header.ttt, header.lun) == (itt, NO_TAG, 0)
    assert (header.stat_sn, header.exp_cmd_sn, header.max_cmd_sn) == (7, 51, 58)
    assert (header.data_sn, header.buffer_offset, header.residual_count) == (0, 0, 0)
    assert data == end.ram[3 * BLOCK : 7 * BLOCK].tobytes()


@pytest.mark.parametrize(
    ("cdb", "lba", "blocks"),
    [
        (bytes((0x08, 0, 0, 9, 2)) + bytes(11), 9, 2),
        (scsi.read_10(9, 2), 9, 2),
        (bytes((0xA8, 0, 0, 0, 0, 9, 0, 0, 0, 2)) + bytes(6), 9, 2),
        (scsi.read_16(9, 2), 9, 2),
    ],
)
def test_every_form_of_read_is_served(cdb, lba, blocks):
    end = Scripted()
    end.command(cdb, read=1, expected_data_transfer_length=blocks * BLOCK)
    assert end.answer()[1] == end.ram[lba * BLOCK :][: blocks * BLOCK].tobytes()


@pytest.mark.parametrize(
    "cdb",
    [
        bytes((0x0A, 0, 0, 9, 2)) + bytes(11),
        scsi.write_10(9, 2),
        bytes((0xAA, 0, 0, 0, 0, 9, 0, 0, 0, 2)) + bytes(6),
        scsi.write_16(9, 2),
    ],
)
def test_every_form_of_write_is_served(cdb):
    end = Scripted()
    data = pattern(2 * BLOCK, 1)
    end.command(cdb, data.tobytes(), write=1, expected_data_transfer_length=2 * BLOCK)
    header, _ = end.answer()
    assert (header.opcode, header.status, header.stat_sn) == (Opcode.SCSI_RESPONSE, 0, 7)
    assert (end.ram[9 * BLOCK : 11 * BLOCK] == data).all()


def test_zero_length_in_a_six_byte_cdb_means_256_blocks():
    end = Scripted()
    end.command(bytes((0x08,)) + bytes(15), read=1, expected_data_transfer_length=256 * BLOCK)
    assert end.answer_sense().code == Asc.LBA_OUT_OF_RANGE  # the unit has 64


@pytest.mark.parametrize(
    ("lba", "blocks", "is_good"),
    [
        (63, 1, True),
        (63, 2, False),
        (64, 1, False),
        (64, 0, True),
        (65, 0, False),
        (0, 65, False),
        (2**32, 1, False),
        (2**63, 1, False),
        (2**64 - 1, 1, False),
        (2**64 - 1, 2**32 - 1, False),
        (2**63 - 1, 2**32 - 1, False),
    ],
)
def test_blocks_outside_the_unit_are_refused(lba, blocks, is_good):
    for cdb, direction in ((scsi.read_16(lba, blocks), "read"), (scsi.write_16(lba, blocks), "")):
        end = Scripted()
        before = end.ram.copy()
        flags = {direction: 1} if direction else {}
        end.command(cdb, expected_data_transfer_length=BLOCK if direction else 0, **flags)
        if is_good:
            assert end.answer()[0].status == 0
        else:
            sense = end.answer_sense()
            assert (sense.key, sense.code) == (SenseKey.ILLEGAL_REQUEST, Asc.LBA_OUT_OF_RANGE)
        assert (end.ram == before).all()


def test_a_refused_write_takes_its_data_and_leaves_the_disk_alone():
    end = Scripted(OPEN)
    before = end.ram.copy()
    itt = end.write(63, 4, data=bytes(512), final=0)
    end.give(Opcode.DATA_OUT, bytes(1536), itt=itt, buffer_offset=512)
    assert end.answer_sense().code == Asc.LBA_OUT_OF_RANGE
    end.write(0, 1, data=bytes(512), lun=2 << 48)
    sense = end.answer_sense()
    assert (sense.key, sense.code) == (SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)
    assert (end.ram == before).all()


def test_protection_information_is_an_invalid_field():
    end = Scripted()
    cdb = bytearray(scsi.read_10(0, 1))
    cdb[1] = 0x20
    end.command(bytes(cdb), read=1, expected_data_transfer_length=BLOCK)
    assert end.answer_sense().code == Asc.INVALID_FIELD_IN_CDB


@pytest.mark.parametrize(
    ("expected", "overflow", "underflow", "residual", "moved"),
    [
        (1024, 0, 0, 0, 1024),
        (0, 1, 0, 1024, 0),
        (200, 1, 0, 824, 200),
        (512, 1, 0, 512, 512),
        (10_000, 0, 1, 8976, 1024),
    ],
)
def test_a_read_reports_its_residual_and_is_good(expected, overflow, underflow, residual, moved):
    end = Scripted()
    end.read(0, 2, length=expected)
    header, data = end.answer()
    assert header.status == 0
    assert (header.overflow, header.underflow) == (overflow, underflow)
    assert (header.residual_count, len(data)) == (residual, moved)


@pytest.mark.parametrize(
    ("expected", "overflow", "underflow", "residual", "moved"),
    [(0, 1, 0, 1024, 0), (200, 1, 0, 824, 200), (2000, 0, 1, 976, 1024)],
)
def test_a_write_reports_its_residual_and_writes_no_more(
    expected, overflow, underflow, residual, moved
):
    end = Scripted()
    before = end.ram.copy()
    end.write(0, 2, length=expected, data=b"w" * expected)
    header, _ = end.answer()
    assert (header.opcode, header.status) == (Opcode.SCSI_RESPONSE, 0)
    assert (header.overflow, header.underflow) == (overflow, underflow)
    assert header.residual_count == residual
    assert end.ram[:moved].tobytes() == b"w" * moved
    assert (end.ram[moved:] == before[moved:]).all()


def test_data_in_the_wrong_direction_is_not_moved():
    end = Scripted()
    before = end.ram.copy()
    end.command(scsi.read_10(0, 1), b"w" * BLOCK, write=1, expected_data_transfer_length=BLOCK)
    header, _ = end.answer()
    assert (header.opcode, header.status) == (Opcode.SCSI_RESPONSE, 0)
    end.command(scsi.write_10(0, 1), read=1, expected_data_transfer_length=BLOCK)
    header, _ = end.answer()
    assert (header.opcode, header.status) == (Opcode.SCSI_RESPONSE, 0)
    assert (end.ram == before).all()


def test_a_large_write_is_asked_for_in_bursts():
    end = Scripted(SessionParams(immediate_data=False, max_burst_length=1024))
    itt = end.write(0, 5)
    offsets = []
    for number in range(3):
        r2t, _ = end.answer()
        assert (r2t.opcode, r2t.itt, r2t.r2t_sn, r2t.final) == (Opcode.R2T, itt, number, 1)
        assert (r2t.stat_sn, r2t.lun) == (7, 0)  # the next StatSN, not taken
        offsets.append(r2t.buffer_offset)
        length = r2t.desired_data_transfer_length
        half = length // 2
        common = {"itt": itt, "ttt": r2t.ttt}
        end.give(Opcode.DATA_OUT, b"a" * half, buffer_offset=offsets[-1], final=0, **common)
        assert end.sent() == []
        end.give(
            Opcode.DATA_OUT, b"b" * half, buffer_offset=offsets[-1] + half, data_sn=1, **common
        )
    header, _ = end.answer()
    assert (header.opcode, header.status, header.stat_sn) == (Opcode.SCSI_RESPONSE, 0, 7)
    assert header.exp_data_sn == 3
    assert offsets == [0, 1024, 2048]
    assert end.ram[:1024].tobytes() == b"a" * 512 + b"b" * 512


def test_several_r2ts_are_outstanding_when_that_was_agreed():
    end = Scripted(SessionParams(immediate_data=False, max_burst_length=512, max_outstanding_r2t=3))
    end.write(0, 5)
    r2ts = [header for header, _ in end.sent()]
    assert [r2t.r2t_sn for r2t in r2ts] == [0, 1, 2]
    assert len({r2t.ttt for r2t in r2ts}) == 3


def test_flat_luns_are_found_and_other_forms_are_for_the_cold_code():
    end = Scripted()
    end.read(0, 1, lun=scsi.encode_lun(300))
    assert len(end.answer()[1]) == BLOCK
    for field in (1 << 48, 0x4001 << 48, 0x8000 << 48, 0xFFFF << 48, 1, 0x0100 << 48, 301 << 48):
        end.read(0, 1, lun=field)
        assert end.sent() == []
        (cold,) = end.connection.cold_commands()
        assert cold.lun in (None, 1)
        end.connection.respond(cold.task_id, ScsiStatus.CHECK_CONDITION, sense=b"s")
        assert end.answer()[0].status == ScsiStatus.CHECK_CONDITION


# --- the cold code ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "given", "overflow", "underflow", "residual"),
    [(96, 96, 0, 0, 0), (255, 96, 0, 1, 159), (36, 96, 1, 0, 60), (255, 0, 0, 1, 255)],
)
def test_cold_data_is_cut_to_what_is_expected(expected, given, overflow, underflow, residual):
    end = Scripted()
    cdb = scsi.inquiry()
    itt = end.command(cdb, read=1, expected_data_transfer_length=expected)
    (cold,) = end.connection.cold_commands()
    assert (cold.itt, cold.lun, cold.cdb, cold.data) == (itt, 0, cdb, b"")
    assert cold.expected_length == expected
    assert end.sent() == []
    answer = bytes(range(96))[:given]
    assert end.connection.respond(cold.task_id, data=answer)
    header, data = end.answer()
    assert data == answer[:expected]
    assert (header.overflow, header.underflow, header.residual_count) == (
        overflow,
        underflow,
        residual,
    )
    assert (header.status, header.stat_sn, header.max_cmd_sn) == (0, 7, 58)


def test_cold_sense_goes_in_a_response():
    end = Scripted()
    end.command(scsi.inquiry(), read=1, expected_data_transfer_length=255)
    (cold,) = end.connection.cold_commands()
    sense = encode_sense(SenseKey.UNIT_ATTENTION, Asc.POWER_ON_RESET)
    end.connection.respond(cold.task_id, ScsiStatus.CHECK_CONDITION, sense=sense)
    header, data = end.answer()
    assert (header.status, header.underflow, header.residual_count) == (2, 1, 255)
    assert split_sense(data) == sense


@pytest.mark.parametrize("length", [24, 600, 4096, 5000])
def test_data_written_with_a_cold_command_waits_in_its_area(length):
    end = Scripted()
    data = pattern(length).tobytes()
    cdb = bytes((0x55,)) + bytes(15)  # MODE SELECT(10)
    itt = end.command(cdb, data[:512], write=1, expected_data_transfer_length=length)
    for header, _ in end.sent():
        assert list(end.connection.cold_commands()) == []
        end.give(Opcode.DATA_OUT, data[512:], itt=itt, ttt=header.ttt, buffer_offset=512)
    (cold,) = end.connection.cold_commands()
    assert cold.data == (data if length <= 4096 else b"")
    assert end.connection.respond(cold.task_id)
    assert end.answer()[0].residual_count == (0 if length <= 4096 else length)


def test_a_state_word_sends_block_commands_to_the_cold_code():
    end = Scripted()
    nexus = int(target_at(end.connection.address)[0]["nexus"])
    for word in (end.luns.ctypes.data + LUN.fields["state"][1], nexus):
        store_64(word, 1)
        end.read(0, 1)
        assert end.sent() == []
        (cold,) = end.connection.cold_commands()
        end.connection.respond(cold.task_id, ScsiStatus.BUSY)
        assert end.answer()[0].status == ScsiStatus.BUSY
        store_64(word, 0)
        end.read(0, 1)
        assert end.answer()[0].opcode is Opcode.DATA_IN


def test_an_answer_for_an_aborted_command_is_refused():
    end = Scripted(window_size=1)
    itt = end.command(scsi.inquiry(), read=1, expected_data_transfer_length=255)
    (cold,) = end.connection.cold_commands()
    assert end.connection.abort_task(itt)
    assert not end.connection.abort_task(itt)
    assert not end.connection.respond(cold.task_id)
    end.read(0, 1)  # the window is open again
    assert end.answer()[0].opcode is Opcode.DATA_IN


def test_a_command_aborted_before_the_cold_code_took_it_never_reaches_it():
    end = Scripted()
    end.command(scsi.inquiry(), read=1, expected_data_transfer_length=255)
    end.command(scsi.inquiry(), read=1, expected_data_transfer_length=255, lun=2 << 48)
    assert end.connection.abort_lun(0) == 1
    kept = end.command(scsi.inquiry(), read=1, expected_data_transfer_length=255)
    colds = list(end.connection.cold_commands())
    assert {cold.lun for cold in colds} == {0, 2}
    assert kept in {cold.itt for cold in colds}
    assert len(colds) == 2
    assert end.connection.abort_lun() == 2


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_tags_that_share_a_bucket_are_told_apart_in_any_order(order):
    end = Scripted()
    mine = target_at(end.connection.address)[0]
    mine["bucket_mask"] = 0  # every tag in one chain
    tags = [
        end.command(scsi.inquiry(), read=1, expected_data_transfer_length=255) for _ in range(3)
    ]
    for position, index in enumerate(order):
        assert end.connection.abort_task(tags[index])
        left = [tags[other] for other in order[position + 1 :]]
        assert [task_of(end.connection.address, tag) != 0 for tag in left] == [True] * len(left)
        assert task_of(end.connection.address, tags[index]) == 0


def test_data_for_an_aborted_write_is_thrown_away():
    end = Scripted(SessionParams(immediate_data=False))
    itt = end.write(0, 4)
    r2t, _ = end.answer()
    data = encode_pdu(Opcode.DATA_OUT, b"w" * 2048, itt=itt, ttt=r2t.ttt)
    end.connection.receive(data[:100])
    assert end.connection.abort_task(itt)
    end.connection.receive(data[100:])
    end.connection.receive(data)
    assert end.sent() == []
    end.read(0, 1)
    assert end.answer()[0].opcode is Opcode.DATA_IN


def test_what_does_not_fit_a_response_is_refused():
    end = Scripted()
    end.command(scsi.inquiry(), read=1, expected_data_transfer_length=255)
    (cold,) = end.connection.cold_commands()
    for wrong in (
        {"data": bytes(4097)},
        {"status": 2, "sense": bytes(4095)},
        {"data": b"d", "sense": b"s"},
        {"status": 2, "data": b"d"},
    ):
        with pytest.raises(LocalProtocolError):
            end.connection.respond(cold.task_id, **wrong)
    assert end.connection.respond(cold.task_id, data=bytes(4096))
    assert not end.connection.respond(cold.task_id, data=b"twice")


# --- requests that are not commands ----------------------------------------------------------


def test_a_ping_is_echoed_with_its_data():
    end = Scripted()
    end.request(Opcode.NOP_OUT, b"ping!", itt=9, immediate=1)
    header, data = end.answer()
    assert (header.opcode, header.itt, header.ttt, data) == (Opcode.NOP_IN, 9, NO_TAG, b"ping!")
    assert (header.stat_sn, header.exp_cmd_sn, header.max_cmd_sn) == (7, 50, 57)
    end.request(Opcode.NOP_OUT, itt=10)
    header, _ = end.answer()
    assert (header.stat_sn, header.exp_cmd_sn, header.max_cmd_sn) == (8, 51, 58)
    end.request(Opcode.NOP_OUT, b"p" * 2000, itt=11)
    assert end.answer()[1] == b"p" * 512  # what one place holds


def test_the_answer_to_our_ping_ends_there():
    end = Scripted()
    end.connection.send_control(encode(Opcode.NOP_IN, ttt=5))
    header, _ = end.answer()
    assert (header.itt, header.ttt, header.stat_sn) == (NO_TAG, 5, 7)
    end.request(Opcode.NOP_OUT, ttt=5, immediate=1)
    assert end.sent() == []
    assert list(end.connection.controls()) == []
    end.read(0, 1)
    assert end.answer()[0].stat_sn == 7  # our ping took none


def test_control_requests_wait_for_the_cold_code_and_hold_the_window():
    end = Scripted(window_size=2)
    end.request(Opcode.TEXT_REQUEST, b"SendTargets=\0", itt=1)
    end.request(Opcode.LOGOUT_REQUEST, itt=2)
    end.read(0, 1)  # CmdSN beyond the window: ignored
    assert end.sent() == []
    text, logout = end.connection.controls()
    assert (text.header.opcode, text.data) == (Opcode.TEXT_REQUEST, b"SendTargets=\0")
    assert (logout.header.opcode, logout.header.itt) == (Opcode.LOGOUT_REQUEST, 2)
    assert end.connection.send_control(encode(Opcode.TEXT_RESPONSE, itt=1), b"a=b\0")
    header, data = end.answer()
    assert (header.stat_sn, header.max_cmd_sn, data) == (7, 53, b"a=b\0")


def test_immediate_commands_do_not_take_a_number():
    end = Scripted(window_size=1)
    for _ in range(3):
        end.read(0, 1, immediate=1)
        header, _ = end.answer()
        assert (header.exp_cmd_sn, header.max_cmd_sn) == (50, 50)
    end.read(0, 1)
    assert end.answer()[0].max_cmd_sn == 51


def test_a_full_duplex_run_leaves_no_task_behind():
    pair = Joined(window_size=3)
    free = []
    for turn in range(20):
        pair.read(turn, 1, pattern(BLOCK))
        pair.write(turn, 1, pattern(BLOCK, turn))
        assert len(pair.finish()) == 1  # both have user data 0
        assert len(list(pair.initiator.completions())) == 0
        free.append(int(target_at(pair.target.address)[0]["task_pool"]["free_count"]))
    assert set(free) == {3 + 8}


def test_a_connection_needs_slots_for_its_window():
    with pytest.raises(ValueError, match="more slots"):
        TargetLimits(window=64)
    with pytest.raises(ValueError, match="power of two"):
        PortLimits(tx_entries=48)


def test_reads_use_what_the_initiator_takes_in_one_pdu():
    end = Scripted(connection=ConnectionParams(peer_max_recv_data_segment_length=600))
    end.read(0, 3)
    pdus = end.sent()
    assert [len(data) for _, data in pdus] == [600, 600, 336]
    assert [header.has_status for header, _ in pdus] == [0, 0, 1]
