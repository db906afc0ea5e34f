"""Cold SCSI commands over a server: what an initiator sees where compiled code stands back."""

import pytest

from iscsi.wire import bhs, scsi
from iscsi.wire.sense import Asc, SenseKey, decode_sense, split_sense
from shm.jit import JIT_DISABLED
from tests.iscsi.target.serving import BLOCK, BLOCKS, EVERYWHERE, NAME, Serving

PLACEMENTS = EVERYWHERE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(JIT_DISABLED, reason="the server's loop is compiled"),
]


@pytest.fixture
def serving():
    with Serving() as found:
        yield found
        found.wait_idle()


@pytest.fixture
def raw(serving):
    with serving.log_in() as initiator:
        yield initiator.clear_attention()


def unit_of(serving):
    return next(unit for unit in _units(serving) if unit.buffer is serving.disk)


def _units(serving):
    for target in serving.server.config.targets:
        yield from target.units.values()


def status(raw):
    """Sense key and code of the next response, or its status if it has no sense."""
    header, data = raw.take()
    found = decode_sense(split_sense(data))
    return header.status if found is None else (found.key, found.code)


def mode_select(raw, at, bits, on):
    """Set or clear bits of the control page."""
    raw.command(scsi.mode_sense_10(0x0A), length=255, read=1)
    _, data = raw.take()
    page = bytearray(data[-12:])
    page[at] = page[at] | bits if on else page[at] & ~bits
    parameters = bytes(8) + page
    cdb = bytes((0x55, 0x10, 0, 0, 0, 0, 0, 0, len(parameters), 0)).ljust(16, b"\0")
    raw.command(cdb, parameters, length=len(parameters), write=1)
    assert status(raw) == 0


def test_a_read_behind_a_pending_attention_is_served_by_cold_code(serving):
    with serving.log_in() as raw:
        raw.command(scsi.test_unit_ready())
        for lba in (0, 5, 40):
            raw.command(scsi.read_16(lba, 64), length=64 * BLOCK, read=1)
        assert status(raw) == (SenseKey.UNIT_ATTENTION, Asc.POWER_ON_RESET)
        for lba in (0, 5, 40):
            expected = serving.disk.array[lba * BLOCK : (lba + 64) * BLOCK].tobytes()
            assert raw.data_in() == expected
        raw.log_out()


def test_a_write_behind_a_pending_attention_is_done(serving):
    data = bytes(range(256)) * (32 * BLOCK // 256)
    with serving.log_in() as raw:
        raw.command(scsi.test_unit_ready())
        raw.command(scsi.write_16(100, 32), data, length=len(data), write=1)
        assert status(raw) == (SenseKey.UNIT_ATTENTION, Asc.POWER_ON_RESET)
        assert status(raw) == 0
        assert raw.read(100, 32) == data
        raw.log_out()


def test_a_cold_read_says_by_how_much_the_initiator_was_wrong(serving):
    unit = unit_of(serving)
    with serving.log_in() as raw:
        raw.clear_attention()
        unit.descriptor_sense = True  # sends everything to the cold code
        serving.server.call(unit.refresh_gate)
        for blocks, length in ((4, 1000), (2, 4096)):
            raw.command(scsi.read_16(7, blocks), length=length, read=1)
            data = b""
            while True:
                header, piece = raw.take()
                data += piece
                if header.opcode is bhs.Opcode.SCSI_RESPONSE or header.has_status:
                    break
            assert data == serving.disk.array[7 * BLOCK :][: min(length, blocks * BLOCK)].tobytes()
            assert header.status == 0
            assert header.residual_count == abs(length - blocks * BLOCK)
            assert bool(header.overflow) is (length < blocks * BLOCK)
            assert bool(header.underflow) is (length > blocks * BLOCK)
        unit.descriptor_sense = False
        serving.server.call(unit.refresh_gate)
        raw.log_out()


def test_a_cold_write_that_is_expected_short_writes_what_was_sent(serving, raw):
    unit = unit_of(serving)
    unit.descriptor_sense = True
    serving.server.call(unit.refresh_gate)
    before = serving.disk.array[: 2 * BLOCK].tobytes()
    raw.command(scsi.write_16(0, 2), b"\x55" * BLOCK, length=BLOCK, write=1)
    header, _ = raw.take()
    assert (header.status, header.residual_count) == (0, BLOCK)
    assert header.overflow
    assert serving.disk.array[: 2 * BLOCK].tobytes() == b"\x55" * BLOCK + before[BLOCK:]
    raw.log_out()


def test_descriptor_sense_is_given_by_compiled_code_s_commands_too(serving, raw):
    mode_select(raw, 2, 0x04, on=True)
    raw.command(scsi.read_16(BLOCKS, 1), length=BLOCK, read=1)
    _, data = raw.take()
    sense = split_sense(data)
    assert sense[0] == 0x72
    assert decode_sense(sense).code == Asc.LBA_OUT_OF_RANGE
    mode_select(raw, 2, 0x04, on=False)
    raw.command(scsi.read_16(BLOCKS, 1), length=BLOCK, read=1)
    _, data = raw.take()
    assert split_sense(data)[0] == 0x70
    raw.log_out()


def test_a_unit_that_protects_itself_is_not_written_by_compiled_code(serving, raw):
    before = serving.disk.array[:BLOCK].tobytes()
    mode_select(raw, 4, 0x08, on=True)
    assert raw.write(0, bytes(BLOCK)).status == 2
    assert serving.disk.array[:BLOCK].tobytes() == before
    assert raw.read(0, 1) == before
    mode_select(raw, 4, 0x08, on=False)
    assert raw.write(0, bytes(BLOCK)).status == 0
    raw.log_out()


def test_the_other_session_hears_of_a_mode_change_before_its_next_read(serving, raw):
    with serving.log_in(isid=0x80AABBCC0002) as other:
        other.clear_attention()
        mode_select(raw, 4, 0x08, on=True)
        other.command(scsi.read_16(0, 1), length=BLOCK, read=1)
        assert status(other) == (SenseKey.UNIT_ATTENTION, Asc.MODE_PARAMETERS_CHANGED)
        assert other.read(0, 1) == serving.disk.array[:BLOCK].tobytes()
        other.log_out()
    raw.log_out()


def test_a_medium_that_is_out_is_read_by_nobody(serving, raw):
    unit = unit_of(serving)
    unit.removable = True
    eject, load = (bytes((0x1B, 0, 0, 0, bits, 0)).ljust(16, b"\0") for bits in (2, 3))
    raw.command(eject)
    raw.command(scsi.read_16(0, 1), length=BLOCK, read=1)
    assert status(raw) == 0
    assert status(raw) == (SenseKey.NOT_READY, Asc.MEDIUM_NOT_PRESENT)
    raw.command(load)
    assert status(raw) == 0
    assert raw.read(0, 1) == serving.disk.array[:BLOCK].tobytes()
    raw.log_out()


def test_a_flat_lun_is_reported_and_found(serving, raw):
    raw.command(scsi.report_luns(), length=4096, read=1)
    _, data = raw.take()
    fields = [data[at : at + 8] for at in range(8, len(data), 8)]
    assert fields[-1] == (0x4000 | 300).to_bytes(2, "big") + bytes(6)
    raw.clear_attention(300)
    assert len(raw.read(0, 1, 300, 4096)) == 4096
    raw.log_out()


def test_a_list_longer_than_its_allocation_is_cut_and_says_how_long_it_is(serving, raw):
    raw.command(scsi.report_luns(16), length=16, read=1)
    header, data = raw.take()
    assert (header.status, len(data)) == (0, 16)
    assert int.from_bytes(data[:4], "big") == 8 * len(serving.server.config.targets[0].units)
    assert serving.server.config.targets[0].name == NAME
    raw.log_out()
