"""An initiator and a target joined in memory: no socket, no clock, every byte kept to look at."""

import ctypes
from dataclasses import dataclass, field, replace

import numpy as np

from iscsi.wire import bhs, scsi
from iscsi.wire import initiator as initiator_doors
from iscsi.wire import target as target_doors
from iscsi.wire.initiator import InitiatorConnection, InitiatorLimits
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.login_common import LoginResult
from iscsi.wire.lun import LUN, LUN_SIZE, Unit, write_lun
from iscsi.wire.port import PortLimits, port_at
from iscsi.wire.target import TargetConnection
from iscsi.wire.target_block import TargetLimits
from shm.jit import JIT_DISABLED
from shm.view import address_of, window

BLOCK = 512
BLOCKS = 512
TURNS_MAX = 20_000
SESSION = SessionParams()
CONNECTION = ConnectionParams()
READ = bhs.FLAG_READ | bhs.TaskAttribute.SIMPLE
WRITE = bhs.FLAG_WRITE | bhs.TaskAttribute.SIMPLE


def examples(count):
    """Fewer examples where every byte is handled by plain Python."""
    return max(3, count // 8) if JIT_DISABLED else count


def memory(size):
    """Zeroed bytes that start on a cache line, as an array."""
    raw = np.zeros(size + 64, np.uint8)
    start = -address_of(raw) % 64
    return raw[start : start + size]


def login_result(session, connection, cmd_sn=1, stat_sn=1, window_size=32):
    return LoginResult(
        session=session,
        connection=connection,
        initiator_name="iqn.2026-01.org.example:i",
        target_name="iqn.2026-01.org.example:t",
        isid=1,
        tsih=1,
        cid=0,
        cmd_sn=cmd_sn,
        max_cmd_sn=(cmd_sn + window_size - 1) & 0xFFFFFFFF,
        stat_sn=stat_sn,
    )


def pdus_of(stream, connection=CONNECTION):
    """Take a byte stream apart with the Python codec alone: `(header, data)` of each PDU."""
    found, at = [], 0
    while at < len(stream):
        header = stream[at : at + bhs.BHS_LENGTH]
        length = bhs.data_segment_length(header)
        at += bhs.BHS_LENGTH + bhs.total_ahs_length(header) + 4 * connection.header_digest
        data = stream[at : at + length]
        assert len(data) == length, "the stream ends within a PDU"
        at += bhs.padded(length) + (4 if connection.data_digest and length else 0)
        found.append((bhs.decode(header), bytes(data)))
    return found


def feed(connection, pieces):
    for piece in pieces:
        connection.receive(piece)


def feed_placed(rx_bytes, address, data):
    """Put the bytes where they are wanted first, as a posted receive would."""
    at = 0
    while at < len(data):
        port = port_at(address)[0]
        piece = bytes(data[at : at + int(port["want_length"])])
        target = int(port["want_address"])
        ctypes.memmove(target, piece, len(piece))
        result = rx_bytes(address, target, len(piece))
        if result < 0:
            return result
        at += len(piece)
    return 0


@dataclass
class Joined:
    """Both ends of one connection, a RAM disk behind the target, and what went over the wire."""

    session: SessionParams = SESSION
    connection: ConnectionParams = CONNECTION
    target_max_recv: int = 0  # what the target takes in one PDU; 0: the same as the initiator
    window_size: int = 32
    cmd_sn: int = 1
    stat_sn: int = 1
    tx_entries: int = 64
    control_data_length: int = 2048
    blocks: int = BLOCKS
    read_only: bool = False
    to_target: bytearray = field(default_factory=bytearray)
    to_initiator: bytearray = field(default_factory=bytearray)
    kept: list[object] = field(default_factory=list)

    def __post_init__(self):
        self.ram = memory(self.blocks * BLOCK)
        self.luns = memory(2 * LUN_SIZE).view(LUN)
        unit = Unit(address_of(self.ram), BLOCK, self.blocks, self.read_only)
        write_lun(address_of(self.luns), unit)
        ours = self.connection
        takes = self.target_max_recv or ours.max_recv_data_segment_length
        initiator_side = replace(ours, peer_max_recv_data_segment_length=takes)
        target_side = replace(
            ours,
            max_recv_data_segment_length=takes,
            peer_max_recv_data_segment_length=ours.max_recv_data_segment_length,
        )
        numbers = (self.cmd_sn, self.stat_sn, self.window_size)
        port = PortLimits(
            tx_entries=self.tx_entries,
            control_slots=self.window_size + 8,
            control_data_length=self.control_data_length,
        )
        login = login_result(self.session, initiator_side, *numbers)
        limits = InitiatorLimits(task_count=64, port=port)
        self.initiator_memory = memory(InitiatorConnection.size(login, limits))
        self.initiator = InitiatorConnection(address_of(self.initiator_memory), login, limits)
        login = login_result(self.session, target_side, *numbers)
        limits = TargetLimits(window=self.window_size, port=port)
        self.target_memory = memory(TargetConnection.size(2, limits))
        self.target = TargetConnection(
            address_of(self.target_memory), login, address_of(self.luns), 2, limits
        )

    # --- moving bytes ---

    def run(self, cut=None):
        """Move bytes both ways until both are silent; `cut` splits each batch into pieces."""
        for _ in range(TURNS_MAX):
            moved = self.move(self.initiator, self.target, self.to_target, cut)
            moved += self.move(self.target, self.initiator, self.to_initiator, cut)
            if not moved:
                return
        raise AssertionError("too many turns: the two ends never fall silent")

    def move(self, sender, receiver, log, cut=None):
        data = sender.data_to_send()
        log += data
        feed(receiver, cut(data) if cut else [data])
        return len(data)

    def run_placed(self):
        """`run`, with each byte lying where it is wanted before it is announced."""
        ends = (
            (self.initiator, self.target, self.to_target, target_doors.rx_bytes),
            (self.target, self.initiator, self.to_initiator, initiator_doors.rx_bytes),
        )
        for _ in range(TURNS_MAX):
            moved = 0
            for sender, receiver, log, rx_bytes in ends:
                data = sender.data_to_send()
                log.extend(data)
                moved += len(data)
                assert feed_placed(rx_bytes, receiver.address, data) == 0
            if not moved:
                return
        raise AssertionError("too many turns: the two ends never fall silent")

    # --- commands ---

    def read(self, lba, blocks, buffer, **options):
        return self.submit(scsi.read_16(lba, blocks), READ, buffer, **options)

    def write(self, lba, blocks, buffer, **options):
        return self.submit(scsi.write_16(lba, blocks), WRITE, buffer, **options)

    def submit(self, cdb, flags=0, buffer=None, *, lun=0, length=None, user_data=0):
        if length is None:
            length = 0 if buffer is None else buffer.size
        address = 0 if buffer is None else address_of(buffer)
        field = scsi.encode_lun(lun)
        self.kept.append(buffer)  # the target writes to it whether the test still has it or not
        return self.initiator.submit(field, cdb, flags, length, address, user_data)

    def finish(self, cut=None):
        """Run and return the completions by their user data."""
        self.run(cut)
        return {done.user_data: done for done in self.initiator.completions()}

    def one(self, cut=None):
        """Run and return the only completion."""
        (done,) = self.finish(cut).values()
        return done

    def sent_by_initiator(self):
        return pdus_of(self.to_target, self.connection)

    def sent_by_target(self):
        return pdus_of(self.to_initiator, self.connection)


def pattern(length, seed=0):
    """Bytes that differ from block to block and between seeds."""
    return np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8)


def bytes_at(address, length):
    return window(address, length, np.uint8).tobytes()
