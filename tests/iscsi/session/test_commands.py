"""The named commands: what each sends, how a unit's limits cut it, and what comes back; against a
scripted target for the bytes and against tgt for the sense of it.
"""

import asyncio

import pytest

import iscsi
from iscsi.session import cdb
from iscsi.session.commands import split_extents
from iscsi.session.options import NEVER
from iscsi.wire import scsi_data
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import LocalProtocolError
from iscsi.wire.scsi_data import BlockLimits
from iscsi.wire.sense import SenseKey
from tests.iscsi.session.disk import BLOCK, Disk
from tests.iscsi.session.mock_target import mock_target
from tests.iscsi.session.tgt import tgt_target

LIMITS = BlockLimits(
    max_unmap_length=100,
    max_unmap_descriptors=3,
    max_write_same_length=1000,
    max_compare_and_write_length=2,
)


class Recorder(Disk):
    """Keeps every command it gets, and answers those it is told to answer with data."""

    def __init__(self, limits=LIMITS):
        super().__init__()
        self.limits, self.commands, self.answers = limits, [], {}
        self.before = self._record

    def _record(self, peer, header, data):
        self.commands.append((header.cdb_bytes, data, peer.ahs))
        answer = self.answers.get(header.cdb_bytes[0])
        if answer is not None:
            peer.send_data(header, answer)
        elif header.cdb_bytes[0] not in (0x12, 0x00, 0x9E, 0x28, 0x2A):
            peer.send(Opcode.SCSI_RESPONSE, to=header)
        else:
            return False
        return True

    def _inquiry(self, asked):
        if not asked[1] & 1:
            return super()._inquiry(asked)
        pages = {
            0x00: bytes((0x00, 0x80, 0xB0)),
            0x80: self.serial,
            0xB0: scsi_data.build_block_limits(self.limits),
        }
        return scsi_data.build_vpd(asked[2], pages[asked[2]])

    def of(self, opcode):
        return [(sent, data) for sent, data, _ in self.commands if sent[0] == opcode]


@pytest.fixture
def opened(engine):
    disk = Recorder()
    with mock_target(disk.serve) as url, iscsi.open(url, engine, recovery=NEVER) as device:
        yield device, disk


def test_unmap_is_cut_by_both_limits_of_the_unit(opened):
    device, disk = opened
    device.unmap([(0, 250), (1000, 10), (2000, 10), (3000, 10), (3500, 95)])
    batches = []
    for sent, data in disk.of(0x42):
        assert int.from_bytes(sent[7:9], "big") == len(data)
        assert int.from_bytes(data[:2], "big") == len(data) - 2
        assert int.from_bytes(data[2:4], "big") == len(data) - 8
        batch = [
            (
                int.from_bytes(data[at : at + 8], "big"),
                int.from_bytes(data[at + 8 : at + 12], "big"),
            )
            for at in range(8, len(data), 16)
        ]
        assert len(batch) <= 3
        assert sum(blocks for _, blocks in batch) <= 100
        batches += batch
    covered = [lba for start, blocks in batches for lba in range(start, start + blocks)]
    wanted = [(0, 250), (1000, 10), (2000, 10), (3000, 10), (3500, 95)]
    assert covered == [lba for start, blocks in wanted for lba in range(start, start + blocks)]


def test_extents_are_split_without_loss_or_empty_batches():
    assert list(split_extents([], 10, 10)) == []
    assert list(split_extents([(5, 0)], 10, 10)) == []
    assert list(split_extents([(0, 10), (20, 10)], 10, 10)) == [[(0, 10)], [(20, 10)]]
    assert list(split_extents([(0, 25)], 10, 2)) == [[(0, 10)], [(10, 10)], [(20, 5)]]


def test_write_same_is_cut_by_the_units_limit(opened):
    device, disk = opened
    device.write_same(10, 2500, b"x" * BLOCK, unmap=True)
    sent = disk.of(0x93)
    assert [(int.from_bytes(c[2:10], "big"), int.from_bytes(c[10:14], "big")) for c, _ in sent] == [
        (10, 1000),
        (1010, 1000),
        (2010, 500),
    ]
    assert {(c[1], data) for c, data in sent} == {(0x08, b"x" * BLOCK)}
    device.write_same(0, 1)
    assert disk.of(0x93)[-1] == (cdb.write_same(0, 1), bytes(BLOCK))
    device.write_same(0, 1, no_data=True)
    assert disk.of(0x93)[-1] == (cdb.write_same(0, 1, no_data=True), b"")
    with pytest.raises(ValueError, match="no_data"):
        device.write_same(0, 1, b"x" * BLOCK, no_data=True)


def test_compare_and_write_sends_both_halves_and_minds_the_limit(opened):
    device, disk = opened
    device.compare_and_write(9, b"c" * 2 * BLOCK, b"w" * 2 * BLOCK)
    ((sent, data),) = disk.of(0x89)
    assert sent == cdb.compare_and_write(9, 2)
    assert data == b"c" * 2 * BLOCK + b"w" * 2 * BLOCK
    with pytest.raises(ValueError, match="at once"):
        device.compare_and_write(0, bytes(3 * BLOCK), bytes(3 * BLOCK))
    with pytest.raises(ValueError, match="as many each"):
        device.compare_and_write(0, bytes(BLOCK), bytes(2 * BLOCK))
    with pytest.raises(ValueError, match="whole blocks"):
        device.compare_and_write(0, bytes(100), bytes(100))
    assert len(disk.of(0x89)) == 1


def test_the_other_commands_are_what_the_standards_say(opened):
    device, disk = opened
    disk.answers = {0x5E: bytes(8), 0xA3: bytes(4), 0x5A: bytes(8)}
    device.synchronize_cache(5, 6, immediate=True)
    assert disk.of(0x35)[-1][0][:9] == bytes((0x35, 2, 0, 0, 0, 5, 0, 0, 6))
    device.synchronize_cache(1 << 33, 1)
    assert disk.of(0x91)[-1][0][2:10] == (1 << 33).to_bytes(8, "big")
    device.start_stop(start=False, load_eject=True)
    assert disk.of(0x1B)[-1][0][:6] == bytes((0x1B, 0, 0, 0, 2, 0))
    device.prevent_removal()
    assert disk.of(0x1E)[-1][0][:6] == bytes((0x1E, 0, 0, 0, 1, 0))
    device.sanitize(2, immediate=True)
    assert disk.of(0x48)[-1][0][:9] == bytes((0x48, 0x82, 0, 0, 0, 0, 0, 0, 0))
    device.persistent_reserve_out(0, 0x11, 0x22, options=1)
    sent, data = disk.of(0x5F)[-1]
    assert (sent[1], sent[5:9], len(data)) == (0, bytes((0, 0, 0, 24)), 24)
    assert data[:16] == (0x11).to_bytes(8, "big") + (0x22).to_bytes(8, "big")
    assert data[20] == 1
    assert device.read_keys() == cdb.Registrations(0, ())
    assert device.read_reservation() == cdb.Reservation(0, None, 0)
    assert device.report_supported_opcodes() == []
    device.verify(4, 2, b"v" * 2 * BLOCK)
    assert disk.of(0x8F)[-1] == (cdb.verify(4, 2, compare=True), b"v" * 2 * BLOCK)
    device.mode_select(bytes(8))
    assert disk.of(0x55)[-1][0][:9] == bytes((0x55, 0x10, 0, 0, 0, 0, 0, 0, 8))


@pytest.mark.parametrize("length", [6, 10, 12, 16, 32, 260])
def test_raw_commands_of_every_length_arrive_whole(opened, length):
    device, disk = opened
    sent = bytes((0x7F, *range(1, min(length, 250)))).ljust(length, b"\x55")
    data = b"d" * (3 * BLOCK)
    device.session.command(sent, data=data)
    came, payload, ahs = disk.commands[-1]
    whole = came + ahs[4 : 4 + int.from_bytes(ahs[:2], "big") - 1 if ahs else 0]
    assert whole == sent.ljust(16, b"\0")
    if length <= 16:
        assert payload == data


@pytest.mark.parametrize("length", [0, 5, 261])
def test_raw_commands_of_impossible_lengths_are_refused(opened, length):
    device, disk = opened
    before = len(disk.commands)
    with pytest.raises(LocalProtocolError, match="6 to 260 bytes"):
        device.session.command(bytes(length))
    assert len(disk.commands) == before


def test_residuals_are_told_both_ways(opened):
    device, disk = opened
    disk.answers = {0xC0: b"short"}
    result = device.session.command(bytes((0xC0, *bytes(9))), length=100)
    assert (result.data, result.residual) == (b"short", 95)

    def overflow(peer, header, data):
        peer.send(Opcode.DATA_IN, bytes(8), to=header, has_status=1, overflow=1, residual_count=24)
        return True

    disk.before = overflow
    result = device.session.command(bytes((0xC1, *bytes(9))), length=8)
    assert (len(result.data), result.residual) == (8, -24)


def test_in_asyncio_the_same_commands_are_awaited():
    disk = Recorder()

    async def main(url):
        async with await iscsi.aopen(url, recovery=NEVER) as device:
            await device.unmap([(0, 300)])
            await device.write_same(0, 1500, bytes(BLOCK))
            await device.compare_and_write(0, bytes(BLOCK), b"n" * BLOCK)
            await device.synchronize_cache()
            assert (await device.read_capacity()).blocks == 4096
            assert (await device.block_limits()) == LIMITS

    with mock_target(disk.serve) as url:
        asyncio.run(main(url))
    counts = {opcode: len(disk.of(opcode)) for opcode in (0x42, 0x93, 0x89, 0x35)}
    assert counts == {0x42: 3, 0x93: 2, 0x89: 1, 0x35: 1}


@pytest.mark.slow
@pytest.mark.interop("tgtd", "tgtadm")
def test_tgt_does_what_it_is_asked(tmp_path, engine):
    with tgt_target(tmp_path) as tgt, iscsi.open(tgt.url, engine) as device:
        device.write_same(0, 300, b"s" * BLOCK)
        assert device.read(0, 300) == b"s" * 300 * BLOCK
        device.write_same(100, 50)
        assert device.read(99, 52) == b"s" * BLOCK + bytes(50 * BLOCK) + b"s" * BLOCK
        device.verify(0, 8, b"s" * 8 * BLOCK)
        with pytest.raises(iscsi.SCSIError) as caught:
            device.verify(0, 8, b"t" * 8 * BLOCK)
        assert caught.value.sense.key == SenseKey.MISCOMPARE
        known = {entry.opcode for entry in device.report_supported_opcodes()}
        assert {0x28, 0x2A, 0x88, 0x8A, 0x5F} <= known
        device.persistent_reserve_out(0, 0, 0xABCD)
        device.persistent_reserve_out(1, 0xABCD, kind=1)
        assert device.read_keys().keys == (0xABCD,)
        assert device.read_reservation().key == 0xABCD
        device.persistent_reserve_out(3, 0xABCD)
        assert device.read_keys().keys == ()
        assert len(device.mode_sense(0x08)) > 8
        device.synchronize_cache(0, 300)
        device.test_unit_ready()
