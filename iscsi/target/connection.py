"""One connection of the server: its phase, and the engine's memory it holds. Memory is given back
only when the engine has completed the endpoint's close: until then it may still be written.
"""

import errno
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from host.memory import Buffer
from host.mover import SCRATCH_SIZE
from host.pump import MOVER, PUMP, PUMP_SIZE, STAGED
from iscsi.target.buffers import DataBuffers
from iscsi.target.keepalive import Keepalive
from iscsi.target.lanes import Lane
from iscsi.target.mirror_doors import ask_tasks, set_gate, tasks_answer, unsettled
from iscsi.target.nexus import Nexus
from iscsi.target.overdue import Overdue, waiting_for_data, waiting_to_be_read
from iscsi.target.text_exchange import TextExchange
from iscsi.target.units import Target
from iscsi.wire import bhs
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.login import LoginResult, TargetLogin
from iscsi.wire.login_common import MAX_LOGIN_SEGMENT
from iscsi.wire.lun import LUN
from iscsi.wire.mover import OLDEST
from iscsi.wire.mover_spec import TARGET as TARGET_ROLE
from iscsi.wire.mover_spec import MoverSpec
from iscsi.wire.port import PORT, TX, copies_size, lend_copies
from iscsi.wire.target import TargetConnection
from iscsi.wire.target_block import TargetLimits
from iscsi.wire.target_mirror import build_mirror, mirror_size
from iscsi.wire.target_task import TARGET
from shm.view import address_of, window

if TYPE_CHECKING:
    from iscsi.target.rdma import RdmaLogin
    from iscsi.target.task_management import Asking, LateAnswer, Managed

# A login PDU in, and the response to it out.
LOGIN_PDU_MAX: Final = bhs.BHS_LENGTH + MAX_LOGIN_SEGMENT
NO_DEADLINE: Final = 2**63 - 1
COPY_MIN: Final = 4096
COPY_MAX: Final = 64 * 1024
COPIES_MIN: Final = 8
LINE: Final = 64
# What a datamover says of a connection, in this order (`ppe.cycle`, MOVER_WORDS).
WORDS_SIZE: Final = 64
RX_PDUS, TX_PDUS, DATA_BYTES, UNSENT, COMMANDS, REJECTS = range(6)
_ANY: Final = -1
_IN_ENGINE: Final = 1 << 48  # above every id of a task of this process
# Has the engine take a connection over: (its MoverSpec, its block, the offset of its words).
HandOver = Callable[[MoverSpec, Buffer, int], None]


def warm_up() -> None:
    """Use everything of a connection once, in private memory, so that nothing compiles later."""
    limits = TargetLimits()
    memory = np.zeros(TargetConnection.size(1, limits) + 64, np.uint8)
    result = LoginResult(
        session=SessionParams(),
        connection=ConnectionParams(),
        initiator_name="",
        target_name=None,
        isid=0,
        tsih=1,
        cid=0,
        cmd_sn=1,
        max_cmd_sn=limits.window,
        stat_sn=1,
    )
    table = np.zeros(1, LUN)
    start = address_of(memory) + -address_of(memory) % 64
    protocol = TargetConnection(start, result, address_of(table), 1, limits)
    protocol.receive(bhs.encode_pdu(bhs.Opcode.TEXT_REQUEST, itt=1, cmd_sn=1))
    protocol.receive(bhs.encode_pdu(bhs.Opcode.SCSI_COMMAND, itt=2, cmd_sn=2))
    for command in protocol.cold_commands():
        protocol.pin(command)
        protocol.unpin(command)
        protocol.respond(command.task_id)
    for pdu in protocol.controls():
        protocol.send_control(bhs.encode(bhs.Opcode.TEXT_RESPONSE, itt=pdu.header.itt))
    protocol.data_to_send()
    protocol.drop_buffers()


def _whole(size: int) -> int:
    return -(-size // LINE) * LINE


def _copies(staging_size: int, limits: TargetLimits) -> tuple[int, int]:
    """Size and count of the copies that a connection with a data digest sends from.

    Large PDUs cost less (docs/decisions/0012), and eight keep a stream busy: 2 MiB beside large
    staging areas, 256 KiB beside small ones.
    """
    size = min(COPY_MAX, max(COPY_MIN, staging_size & -COPY_MIN))
    count = max(COPIES_MIN, COPIES_MIN * staging_size // size)
    return size, min(limits.port.tx_entries, 1 << (count.bit_length() - 1))


class Memory(Protocol):
    """What buffers come from: an engine handle."""

    def alloc(self, size: int) -> Buffer:
        """A buffer the engine may touch."""


class Phase(Enum):
    """Where a connection is in its life."""

    LOGIN = auto()
    FULL = auto()
    LEAVING = auto()  # its last PDU is made, but not all is posted
    SHUTTING = auto()  # everything is posted, and the end of the stream behind it
    LINGERING = auto()  # the peer may still read what was sent
    CLOSING = auto()


class Connection:
    """One accepted connection, of one lane. `slot` names it in completions while it lives."""

    def __init__(
        self, slot: int, lane: Lane, endpoint: int, peer: tuple[str, int], deadline_ns: int
    ) -> None:
        self.slot, self.lane, self.endpoint, self.peer = slot, lane, endpoint, peer
        self.phase = Phase.LOGIN
        self.deadline_ns = deadline_ns
        self.login: TargetLogin | None = None
        self.login_buffer: Buffer | None = None
        self.is_rdma = False
        self.rdma: RdmaLogin | None = None  # of such a connection, until its login is over
        self.block: Buffer | None = None
        self.staging: Buffer | None = None
        self.target: Target | None = None
        self.read_only = False  # for this initiator, whatever the units allow
        self.result: LoginResult | None = None
        self.protocol: TargetConnection | None = None
        self.successors: list[Connection] = []  # logins that wait for this session's end
        self.nexus = Nexus()
        self.portal_group_tag = 1
        self.unsent: deque[tuple[bytes, bytes]] = deque()  # control PDUs that found no slot
        self.managed: deque[Managed | Asking | LateAnswer] = (
            deque()
        )  # what is done but not answered yet
        self.texts = TextExchange(MAX_LOGIN_SEGMENT)
        self.keepalive = Keepalive(0, 0)
        self.overdue = Overdue(0)
        self._words: np.ndarray[Any, Any] | None = None  # a datamover's, else None
        self._asked = 0  # number of the question which task waits longest

    def __str__(self) -> str:
        host, port = self.peer
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    # --- login -----------------------------------------------------------------------------

    def begin_login(self, memory: Memory, login: TargetLogin) -> None:
        """Take the login's memory: a PDU in and a PDU out."""
        self.login_buffer = memory.alloc(2 * LOGIN_PDU_MAX)
        self.login = login

    def _login_bytes(self, start: int, length: int) -> np.ndarray[Any, Any]:
        assert self.login_buffer is not None, "a login has its buffer"
        return self.login_buffer.array[start : start + length]

    @property
    def login_header(self) -> np.ndarray[Any, Any]:
        """Where the header of a login PDU is received."""
        return self._login_bytes(0, bhs.BHS_LENGTH)

    def login_data(self, length: int) -> np.ndarray[Any, Any]:
        """Where `length` bytes of a login PDU's data are received."""
        return self._login_bytes(bhs.BHS_LENGTH, length)

    def login_output(self, data: bytes) -> np.ndarray[Any, Any]:
        """`data` copied to where it is sent from."""
        place = self._login_bytes(LOGIN_PDU_MAX, len(data))
        place[:] = np.frombuffer(data, np.uint8)
        return place

    @property
    def session_key(self) -> tuple[str, int, str] | None:
        """What two logins of the same session have in common; None for a discovery session."""
        result = self.login.result if self.login else None
        if result is None or result.target_name is None:
            return None
        return result.initiator_name, result.isid, result.target_name

    # --- full feature phase ------------------------------------------------------------------

    def reserve(
        self, memory: Memory, target: Target | None, limits: TargetLimits, *, moves: bool = False
    ) -> None:
        """Take the memory of the full feature phase; MemoryError and such when there is none.
        `moves`: for a datamover's connection.
        """
        self.target = target
        size = PUMP_SIZE + TargetConnection.size(self._lun_count, limits)
        if moves:
            size = _whole(size) + mirror_size(limits, self._lun_count) + WORDS_SIZE + SCRATCH_SIZE
        self.block = memory.alloc(size)

    @property
    def _lun_count(self) -> int:
        return 0 if self.target is None else int(self.target.table.size)

    def enter(
        self,
        memory: Memory,
        limits: TargetLimits,
        staging_size: int,
        base: int,
        buffers: DataBuffers,
    ) -> None:
        """Go from login to the full feature phase. `base`: bytes the transport took so far."""
        result = self._build(limits, buffers)
        assert self.protocol is not None, "it was just built"
        copies = _copies(staging_size, limits) if result.connection.data_digest else (0, 0)
        self.staging = memory.alloc(2 * staging_size + copies_size(*copies))
        if result.connection.data_digest:
            lend_copies(self.protocol.address, self.staging.address + 2 * staging_size, *copies)
        pump = self.pump
        pump["mode"], pump["tx_base"] = STAGED, base
        pump["staging"], pump["staging_size"] = self.staging.address, staging_size
        self._join(result)

    def enter_mover(
        self,
        limits: TargetLimits,
        engine_limits: TargetLimits,
        buffers: DataBuffers,
        hand_over: HandOver,
        *,
        serves_units: bool,
    ) -> None:
        """The same for a connection whose PDUs the engine makes and takes from here on.

        Raises what `hand_over` raises. `serves_units`: the engine serves units by itself.
        """
        result = self._build(limits, buffers)
        assert self.block is not None, "it was just filled"
        assert self.protocol is not None, "it was just built"
        conn, home = self.protocol.address, self.block.address
        mirror = _whole(conn + TargetConnection.size(self._lun_count, limits))
        words = mirror + mirror_size(limits, self._lun_count)
        is_engine = serves_units and self.target is not None
        build_mirror(conn, mirror, limits, home, serves_units=is_engine)
        pump = self.pump
        pump["mode"], pump["home"], pump["scratch"] = MOVER, home, words + WORDS_SIZE
        counts = (limits.window, engine_limits.cold_length, self._lun_count if is_engine else 0)
        stat_sn, iser = result.stat_sn, None
        if self.rdma is not None and result.iser is not None:
            stat_sn = (stat_sn - 1) & 0xFFFFFFFF  # The login's last PDU is still to be sent.
            longest = result.connection.max_recv_data_segment_length
            iser = self.rdma.limits(result.iser, longest)
        spec = MoverSpec(
            TARGET_ROLE,
            result.session,
            result.connection,
            limits.port,
            counts,
            (result.cmd_sn, stat_sn),
            iser,
        )
        hand_over(spec, self.block, words - home)
        self._words = window(words, WORDS_SIZE // 8, np.int64)
        self._join(result)

    def _build(self, limits: TargetLimits, buffers: DataBuffers) -> LoginResult:
        """Fill in the block."""
        assert self.login is not None, "the login succeeded"
        assert self.login.result is not None, "the login succeeded"
        assert self.block is not None, "memory was reserved during the login"
        result = self.login.result
        self.block.array[:] = 0
        table = None if self.target is None else self.target.table
        self.protocol = TargetConnection(
            self.block.address + PUMP_SIZE,
            result,
            0 if table is None else address_of(table),
            self._lun_count,
            limits,
            buffers=buffers.address,
            buffer_quota=buffers.quota,
        )
        pump = self.pump
        pump["context"], pump["endpoint"] = self.lane.channel.context, self.endpoint
        pump["lane"] = self.lane.address
        pump["conn"], pump["owner"] = self.protocol.address, self.slot
        return result

    def _join(self, result: LoginResult) -> None:
        """The login is over, and the target knows of this nexus."""
        self.result = result
        self.drop_login()
        if self.target is not None:
            self.nexus = Nexus(
                result.initiator_name,
                result.isid,
                self.portal_group_tag,
                read_only=self.read_only,
                protocol_level=result.session.iscsi_protocol_level,
            )
            if self.moves:
                self.nexus.settled = self._is_settled
            self.nexus.attach(self.target, self._write_word)
            self.nexus.tasks = self.protocol
        self.phase, self.deadline_ns = Phase.FULL, NO_DEADLINE

    def drop_login(self) -> None:
        """Give the login's memory back; nothing of it may be under way."""
        if self.login_buffer is not None:
            self.login_buffer.free()
        if self.rdma is not None and self.rdma.free():
            self.rdma = None
        self.login_buffer = self.login = None

    @property
    def pump_address(self) -> int:
        """Address of the PUMP, 0 before the full feature phase."""
        return 0 if self.protocol is None or self.block is None else self.block.address

    @property
    def pump(self) -> Any:
        """The PUMP record."""
        assert self.block is not None, "a pump needs the full feature phase's memory"
        return window(self.block.address, 1, PUMP)[0]

    @property
    def port(self) -> Any:
        """The PORT record of the protocol."""
        assert self.protocol is not None, "only the full feature phase has a port"
        return window(self.protocol.address, 1, PORT)[0]

    def last_header(self) -> bytes:
        """The header that was received last."""
        return window(int(self.port["rx_header"]), bhs.BHS_LENGTH, np.uint8).tobytes()

    def _write_word(self, lun: int, value: int) -> None:
        """Tell compiled code whether it may serve this nexus at a unit (0) or not."""
        assert self.protocol is not None, "only the full feature phase has units"
        record = window(self.protocol.address, 1, TARGET)[0]
        if lun < int(record["lun_count"]):
            set_gate(self.protocol.address, lun, value)
            if self.moves and self.nexus.wake is not None:
                self.nexus.wake()

    def _is_settled(self) -> bool:
        """Whether the engine has ended and shut all that it was told to."""
        return self.protocol is None or unsettled(self.protocol.address) == 0

    @property
    def moves(self) -> bool:
        """Whether the engine makes and takes its PDUs."""
        return self._words is not None

    @property
    def signs(self) -> Any:
        """What shows that its initiator lives: of a PORT, or what the engine says of its own."""
        if self._words is None:
            return self.port
        words = self._words
        return {
            "rx_pdus": int(words[RX_PDUS]),
            "rx_phase": 0,
            "want_address": 0,
            "want_length": int(words[DATA_BYTES]),
            "tx_made": int(words[TX_PDUS]),
            "tx_sent": int(words[TX_PDUS] - words[UNSENT]),
        }

    @property
    def made(self) -> int:
        """How many PDUs were made for it so far, by an engine; 0 without one."""
        return 0 if self._words is None else int(self._words[TX_PDUS])

    def sends_from(self, start: int, end: int, made: int | None = None) -> bool:
        """Whether data that lies between two addresses may still be on its way out of them. Of what
        an engine sends nobody knows from where it comes: of the first `made` PDUs, or all.
        """
        if self.protocol is None:
            return False
        if self._words is not None:
            sent = int(self._words[TX_PDUS]) - int(self._words[UNSENT])
            return sent < (self.made if made is None else made)
        port = self.port
        mask = int(port["tx_capacity"]) - 1
        entries = window(int(port["tx_entries"]), mask + 1, TX)
        return any(
            start <= int(entries[position & mask]["data_address"]) < end
            for position in range(int(port["tx_sent"]), int(port["tx_made"]))
        )

    def overdue_task(self, now_ns: int) -> int | None:
        """The id of a command whose initiator owes it data for too long, or a number below 0 if it
        does not take what it asked for; None if all is well, or it is not time to look.
        """
        if self.protocol is None or not self.overdue.is_due(now_ns):
            return None
        held = int(window(self.protocol.address, 1, TARGET)[0]["buffer_held"])
        waiting = waiting_for_data(self.protocol) + waiting_to_be_read(self.signs, held)
        came = int(window(self.protocol.address, 1, TARGET)[0]["data_bytes"])
        if self._words is not None:
            came = int(self._words[DATA_BYTES])
            waiting += self._waiting_in_engine()
        return self.overdue.step(waiting, came, now_ns)

    def _waiting_in_engine(self) -> list[int]:
        """What stands for the task that has waited longest for data among those that the engine
        serves by itself, as it said when it was asked the last time; and ask again.
        """
        if self.target is None or self.target.engine is None or self.protocol is None:
            return []
        conn, found = self.protocol.address, -1
        if self._asked:
            found = tasks_answer(conn, self._asked)
            if found == -errno.EAGAIN:
                return []
        self._asked = ask_tasks(conn, _ANY, _ANY, OLDEST)
        if self.nexus.wake is not None:
            self.nexus.wake()
        return [_IN_ENGINE | found] if found > 0 else []

    @property
    def counts(self) -> dict[str, int]:
        """What went over it in the full feature phase."""
        assert self.protocol is not None, "only the full feature phase has numbers"
        mine = window(self.protocol.address, 1, TARGET)[0]
        if self._words is None:
            port = mine["port"]
            found = mine["commands"], mine["rejects"], port["rx_pdus"], port["tx_pdus"]
        else:
            words = self._words
            found = words[COMMANDS], words[REJECTS], words[RX_PDUS], words[TX_PDUS]
        names = ("commands", "rejects", "pdus_received", "pdus_sent")
        return {name: int(number) for name, number in zip(names, found, strict=True)}

    @property
    def jobs(self) -> int:
        """Commands that a worker is busy with, aborted ones included: they use our memory."""
        return 0 if self.protocol is None else self.protocol.jobs

    def free(self) -> None:
        """Give all memory back. The endpoint's close has completed, and `jobs` is 0."""
        self.nexus.end()
        self.drop_login()
        if self.protocol is not None:
            self.protocol.drop_buffers()
        for buffer in (self.block, self.staging):
            if buffer is not None:
                buffer.free()
        self.block = self.staging = self.protocol = self._words = None
