"""One connection: login over exact receives, then the hot full-feature state in shared memory.

Until the login is over nothing is read ahead, so the byte after its last PDU is the pump's first.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from host import mover, pump
from host.channel import Channel
from host.errors import EndOfStream, HostError
from host.memory import Buffer
from iscsi.session import doors, jobs
from iscsi.session.errors import ConnectionLost
from iscsi.session.memory import aligned_zeros
from iscsi.session.steps import Connect, Receive, Send, Steps
from iscsi.session.worker import SPARE_TASKS, Worker
from iscsi.wire.bhs import BHS_LENGTH, Opcode, encode
from iscsi.wire.initiator import InitiatorConnection
from iscsi.wire.initiator_task import InitiatorLimits, initiator_at
from iscsi.wire.login import InitiatorLogin
from iscsi.wire.login_common import MAX_LOGIN_SEGMENT, LoginResult
from iscsi.wire.mover import VECTORS_MAX
from iscsi.wire.mover_spec import INITIATOR, MoverSpec
from iscsi.wire.names import Portal
from iscsi.wire.port import PortLimits, port_at, round_up
from shm.view import address_of

if TYPE_CHECKING:
    from iscsi.session.rdma import RdmaConnection

STAGING_SIZE: Final = 256 << 10
CONTROL_DATA_LENGTH: Final = 8192
LINE: Final = 64
MOVER_WORDS_SIZE: Final = 64  # where an engine that frames PDUs counts them
LENT_COUNT: Final = 4  # buffers for PDUs that are the session's to see
LENT_SIZE: Final = 8448  # BHS and CONTROL_DATA_LENGTH


class Memory(Protocol):
    """What a connection needs of an engine handle."""

    def alloc(self, size: int) -> Buffer:
        """A buffer the engine may touch."""

    def enable_mover(
        self, channel: Any, endpoint: int, message: dict[str, Any], **place: Any
    ) -> None:
        """Have the engine take over a connection (`iscsi.wire.mover_spec`)."""


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A connection whose login is over: where it is, and what was agreed."""

    endpoint: int
    portal: Portal
    login: LoginResult
    sent: int  # bytes the transport has taken
    rdma: "RdmaConnection | None" = None  # None: it is a byte stream


def log_in(memory: Memory, portal: Portal, login: InitiatorLogin) -> Steps[LoggedIn]:
    """Connect to a portal and log in.

    Raises OSError, ConnectionLost, and what the login machine raises (LoginRejected,
    LoginRedirected, RemoteProtocolError); the endpoint is then left to the channel's owner.
    """
    endpoint = yield Connect(portal.host, portal.port)
    login.start()
    sent = 0
    with memory.alloc(BHS_LENGTH + MAX_LOGIN_SEGMENT) as buffer, _ends_named(portal):
        while not login.done:
            out = login.data_to_send()
            if out:
                buffer.array[: len(out)] = np.frombuffer(out, np.uint8)
                yield Send(endpoint, buffer.array[: len(out)])
                sent += len(out)
            yield from _receive_one(endpoint, buffer, login)
    assert login.result is not None, "done means that there is a result"
    return LoggedIn(endpoint, portal, login.result, sent)


@contextlib.contextmanager
def _ends_named(portal: Portal) -> Iterator[None]:
    """Have what ends the connection under a login say whose it was."""
    try:
        yield
    except EndOfStream as error:
        raise ConnectionLost(
            f"the target at {portal.address} closed the connection during the login"
        ) from error
    except ConnectionError as error:
        if isinstance(error, HostError):  # The engine's death is none of the target's.
            raise
        reason = os.strerror(error.errno or 0)
        raise ConnectionLost(
            f"the target at {portal.address} ended the connection during the login: {reason}"
        ) from error


def _receive_one(endpoint: int, buffer: Buffer, login: InitiatorLogin) -> Steps[None]:
    """Read exactly one PDU and give it to the login."""
    yield Receive(endpoint, buffer.array[:BHS_LENGTH])
    header = buffer.array[:BHS_LENGTH].tobytes()
    length = login.segment_length(header)
    if length:
        yield Receive(endpoint, buffer.array[:length])
    login.receive_pdu(header, buffer.array[:length].tobytes())


def sends_of(depth: int) -> int:
    """PDUs that may be made and not sent, with so many commands open."""
    return max(64, min(256, round_up(2 * depth)))


def _vectors(state: LoggedIn, mode: int) -> int:
    """Entries of a gather list: a datamover's, but a tag opens one piece of memory."""
    if state.rdma is not None:
        return 1
    return VECTORS_MAX if mode == pump.MOVER else 0


class Connection:
    """The hot state of a connection in the full feature phase: PORT and PUMP, and the session's
    WORKER attached to them.

    `wire` is its protocol, in shared memory because headers are sent from there; the caller closes
    the endpoint before `free`.
    """

    def __init__(
        self, memory: Memory, channel: Channel, state: LoggedIn, mode: int, worker: Worker
    ) -> None:
        depth = worker.hot("replay_count") - SPARE_TASKS
        limits = InitiatorLimits(
            task_count=depth + SPARE_TASKS,
            port=PortLimits(
                tx_entries=sends_of(depth),
                control_data_length=CONTROL_DATA_LENGTH,
            ),
            vectors=_vectors(state, mode),
        )
        self.endpoint, self.portal, self.login = state.endpoint, state.portal, state.login
        self._rdma = state.rdma
        size = -(-InitiatorConnection.size(state.login, limits) // LINE) * LINE
        self._buffers = [memory.alloc(size + MOVER_WORDS_SIZE)]
        self._buffers[0].array[:] = 0
        self._words = self._buffers[0].array[size:].view(np.int64)
        self.wire = InitiatorConnection(self._buffers[0].address, state.login, limits)
        self._private = aligned_zeros(pump.PUMP_SIZE)
        self._ping_memory = aligned_zeros(jobs.JOB_SIZE)
        self._ping = address_of(self._ping_memory)
        self.pump = address_of(self._private)
        self._worker, self.worker = worker, worker.address
        self._scratch = aligned_zeros(mover.SCRATCH_SIZE)
        self._fill_pump(memory, channel, state, mode)
        if mode == pump.MOVER:
            self._hand_over(memory, channel, state, limits, size)
        worker.attach(channel.context, self.endpoint, self.wire.address, self.pump)

    def _fill_pump(self, memory: Memory, channel: Channel, state: LoggedIn, mode: int) -> None:
        mine = pump.pump_at(self.pump)[0]
        mine["context"], mine["endpoint"] = channel.context, state.endpoint
        mine["conn"], mine["mode"], mine["tx_base"] = self.wire.address, mode, state.sent
        if mode == pump.STAGED:
            staging = memory.alloc(2 * STAGING_SIZE)
            self._buffers.append(staging)
            mine["staging"], mine["staging_size"] = staging.address, STAGING_SIZE
        elif mode == pump.MOVER:
            staging = memory.alloc(LENT_COUNT * LENT_SIZE)
            self._buffers.append(staging)
            mine["staging"], mine["staging_size"] = staging.address, LENT_SIZE
            mine["lent_free"] = (1 << LENT_COUNT) - 1
            mine["home"], mine["scratch"] = self.wire.address, address_of(self._scratch)

    def _hand_over(
        self,
        memory: Memory,
        channel: Channel,
        state: LoggedIn,
        limits: InitiatorLimits,
        words: int,
    ) -> None:
        """Have the engine make and take this connection's PDUs from here on."""
        login = state.login
        sns = (login.cmd_sn, login.max_cmd_sn, login.stat_sn)
        spec = MoverSpec(
            INITIATOR,
            login.session,
            login.connection,
            limits.port,
            (limits.task_count,),
            sns,
            None if state.rdma is None else state.rdma.limits,
        )
        initiator_at(self.wire.address)[0]["is_mirror"] = 1
        block = self._buffers[0]
        region, offset = channel.name_memory(block.address, len(block))
        home = [region, offset, len(block)]
        memory.enable_mover(
            channel, state.endpoint, spec.to_message(), home=home, words=words, pool=0
        )

    @property
    def is_rdma(self) -> bool:
        """Whether it is a queue pair."""
        return self._rdma is not None

    @property
    def error(self) -> int:
        """Why the connection is over: -errno or a Violation; 0 while it is not."""
        return int(pump.pump_at(self.pump)[0]["error"])

    def hot(self, name: str) -> int:
        """One word of the WORKER record."""
        return self._worker.hot(name)

    @property
    def pdus(self) -> int:
        """PDUs that came: while this grows the target lives."""
        # A datamover counts in the words: of a long transfer nothing else is seen here.
        return int(port_at(self.wire.address)[0]["rx_pdus"]) + int(self._words[0])

    @property
    def unsent(self) -> bool:
        """Whether PDUs were made whose sending is not known yet."""
        mine: Any = port_at(self.wire.address)[0]
        return bool(mine["tx_made"] != mine["tx_sent"])

    @property
    def has_ping(self) -> bool:
        """Whether a ping of our own is under way."""
        return bool(jobs.job_at(self._ping)[0]["state"] == jobs.ACTIVE)

    def ping(self) -> None:
        """Send a NOP-Out whose answer nobody waits for, if there is room."""
        jobs.job_at(self._ping)[0]["state"] = jobs.FREE
        header = encode(Opcode.NOP_OUT, immediate=1)
        if self.wire.send_control(header, user_data=self._ping) is not None:
            doors.adopt_task(self.worker, self._ping)

    def free(self) -> None:
        """Give the shared memory back. The engine must have let go of the endpoint."""
        for buffer in self._buffers:
            buffer.free()
        self._buffers.clear()
        if self._rdma is not None:
            self._rdma.free()
            self._rdma = None
