"""What a session does, as procedures that wait for nothing themselves: login with redirections,
SCSI commands, discovery, logout. `iscsi.session.initiator` performs their steps by blocking,
`iscsi.session.aio` in an event loop.
"""

import errno
import secrets
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from host import pump
from host.channel import Channel
from host.memory import Buffer
from iscsi.session import doors, jobs
from iscsi.session.connection import Connection, LoggedIn, log_in
from iscsi.session.errors import ConnectionLost, NotSupported, SessionClosed, TooManyRedirects
from iscsi.session.memory import aligned_zeros
from iscsi.session.outcome import (
    CommandResult,
    error_of_connection,
    error_of_job,
    residual_of,
)
from iscsi.session.steps import AwaitControl, Finish, Steps
from iscsi.wire import bhs, discovery, scsi
from iscsi.wire.bhs import AsyncEvent, Opcode
from iscsi.wire.errors import LoginRedirected, RejectReason, RemoteProtocolError
from iscsi.wire.keys import Proposal
from iscsi.wire.login import InitiatorLogin
from iscsi.wire.names import Portal, parse_address
from iscsi.wire.port import ControlPdu
from iscsi.wire.url import IscsiUrl, parse_url
from shm.view import address_of

DEFAULT_INITIATOR: Final = "iqn.2026-01.org.ppe-runtime:initiator"
RING: Final = 512
DEPTH_MAX: Final = 256
REDIRECTS_MAX: Final = 4
TEXT_EXCHANGES_MAX: Final = 4096
RECEIVE_MODES: Final = ("auto", *pump.MODE_NAMES)
_DIGESTS: Final = {
    "none": ("None",),
    "crc32c": ("CRC32C",),
    "none_crc32c": ("None", "CRC32C"),
    "crc32c_none": ("CRC32C", "None"),
}


class Engine(Protocol):
    """What a session needs of `host.connect`'s handle."""

    def alloc(self, size: int) -> Buffer:
        """A buffer the engine may touch."""

    def channel(self, work: int = 256, events: int = 256) -> Channel:
        """Open a channel for this thread."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a session works. `receive` chooses how bytes come in (`host.pump`); `command_bytes` is
    the most one SCSI command moves; timeouts are without progress, the login's for all of it.
    """

    initiator_name: str = DEFAULT_INITIATOR
    queue_depth: int = 32
    receive: str = "auto"
    command_bytes: int = 256 << 10
    timeout_s: float = 30.0
    login_timeout_s: float = 10.0
    proposal: Proposal = field(default_factory=Proposal)

    def __post_init__(self) -> None:
        if not 1 <= self.queue_depth <= DEPTH_MAX:
            raise ValueError(f"queue_depth {self.queue_depth} is outside 1..{DEPTH_MAX}")
        if self.receive not in RECEIVE_MODES:
            raise ValueError(f"receive={self.receive!r}: choose from {', '.join(RECEIVE_MODES)}")
        if self.receive == "coalesced" and self.queue_depth != 1:
            raise ValueError("receive='coalesced' is for queue_depth=1")
        if not 512 <= self.command_bytes <= 64 << 20:
            raise ValueError(f"command_bytes {self.command_bytes} is outside 512..64 MiB")

    @property
    def mode(self) -> int:
        """The pump's mode. Above depth 1 `auto` is staged: docs/decisions/0002."""
        if self.receive != "auto":
            return pump.MODE_NAMES.index(self.receive)
        return pump.COALESCED if self.queue_depth == 1 else pump.STAGED


def _checked_url(url: str | IscsiUrl) -> IscsiUrl:
    parsed = parse_url(url) if isinstance(url, str) else url
    if parsed.is_iser:
        raise NotSupported("iSER is not supported yet: use iscsi://")
    if parsed.user is not None or parsed.options.get("auth", "none") != "none":
        raise NotSupported("authentication is not supported yet: use a URL without user@")
    return parsed


class SessionCore:
    """One session with one connection. `job` slots and buffers are cut by whoever drives it."""

    def __init__(self, engine: Engine, url: str | IscsiUrl, options: Options) -> None:
        self.url = _checked_url(url)
        self.options = options
        self.engine = engine
        self.channel = engine.channel(RING, RING)
        self.endpoint = 0  # of a connection under way or made; 0: none
        self.lost: Exception | None = None
        self.async_events: list[int] = []
        self.lun_field = scsi.encode_lun(self.url.lun or 0)
        self._connection: Connection | None = None
        self._answers: deque[ControlPdu] = deque()
        self.is_closed = False

    # --- login -----------------------------------------------------------------------------

    @property
    def connection(self) -> Connection:
        """The connection. Raises what ended it, or SessionClosed."""
        if self.lost is not None:
            raise self.lost
        if self._connection is None or self.is_closed:
            raise SessionClosed("this session is closed: open the device again")
        return self._connection

    def opening(self) -> Steps[None]:
        """Connect and log in, following at most four redirections.

        Raises OSError, ConnectionLost, LoginRejected, TooManyRedirects, RemoteProtocolError.
        """
        portal = self.url.portal
        for _ in range(REDIRECTS_MAX + 1):
            try:
                state: LoggedIn = yield from log_in(self.engine, portal, self._new_login())
            except LoginRedirected as redirected:
                found = parse_address(redirected.address)
                assert found is not None, "the login checked the address"
                portal = found
                self.drop_endpoint()
                continue
            mode = self.options.mode
            self._connection = Connection(
                self.engine, self.channel, state, mode, self.options.queue_depth
            )
            return
        raise TooManyRedirects(
            f"{self.url.portal.address} and those it names redirect the login again and again; "
            f"gave up after {REDIRECTS_MAX}, at {portal.address}"
        )

    def _new_login(self) -> InitiatorLogin:
        wanted = self.options.proposal
        digests = {
            name: _DIGESTS[self.url.options[name]]
            for name in ("header_digest", "data_digest")
            if name in self.url.options
        }
        longest = wanted.max_recv_data_segment_length
        if self.url.target is None:
            longest = min(longest, 8192)  # A control slot holds every text of discovery.
        proposal = Proposal(
            wanted.session,
            longest,
            digests.get("header_digest", wanted.header_digest),
            digests.get("data_digest", wanted.data_digest),
        )
        # ISID of type 10b, random (RFC 7143 §11.12.5): two sessions never reinstate each other.
        isid = 0x80 << 40 | secrets.randbits(40)
        name = self.options.initiator_name
        return InitiatorLogin(name, self.url.target, isid=isid, proposal=proposal)

    def drop_endpoint(self) -> None:
        """Close the endpoint; when this returns the engine has let go of all its memory."""
        endpoint, self.endpoint = self.endpoint, 0
        if endpoint and self.channel.is_running:
            self.channel.close_endpoint(endpoint)

    # --- losing it -------------------------------------------------------------------------

    def break_off(self, error: Exception) -> Exception:
        """End the connection for `error`: every job ends, the memory is the session's again."""
        if self.lost is None:
            self.lost = error
            if self._connection is not None:
                doors.abort_all(self._connection.worker, -errno.ECONNABORTED)
            self.drop_endpoint()
        return self.lost

    def connection_error(self) -> Exception:
        """What the pump's error stands for."""
        mine = self.connection
        who = f"the target at {mine.portal.address}"
        return error_of_connection(mine.error, who, mine.hot("outstanding"))

    # --- control PDUs ----------------------------------------------------------------------

    def take_controls(self) -> None:
        """Look at the control PDUs that came. Raises what ends the connection."""
        for pdu in self.connection.wire.controls():
            opcode = pdu.header.opcode
            if opcode is Opcode.ASYNC_MESSAGE:
                self._on_async(pdu.header.async_event)
            elif opcode is Opcode.REJECT:
                raise RemoteProtocolError(f"the target rejected a PDU of ours: {_reason(pdu)}")
            else:
                self._answers.append(pdu)

    def _on_async(self, event: int) -> None:
        """Asynchronous messages (RFC 7143 §11.9.1): 0 is news of a unit, 255 the vendor's own."""
        self.async_events.append(event)
        if event in (AsyncEvent.CONNECTION_DROPPED, AsyncEvent.SESSION_DROPPED):
            raise ConnectionLost("the target announced that it drops the connection")

    def answer(self) -> ControlPdu | None:
        """The next answer to a control request, if it has come."""
        return self._answers.popleft() if self._answers else None

    def _ask(self, header: bytearray, data: bytes = b"") -> int:
        tag = self.connection.wire.send_control(header, data)
        if tag is None:
            raise ConnectionLost("the target's command window is closed to control requests")
        return tag

    # --- commands --------------------------------------------------------------------------

    def command(
        self,
        cdb: bytes,
        *,
        length: int = 0,
        data: bytes = b"",
        lun: int | None = None,
    ) -> Steps[CommandResult]:
        """One SCSI command: reads up to `length` bytes, or writes `data`, or moves nothing.

        Raises ScsiError for every status but GOOD, and what ends the connection.
        """
        size = len(data) or length
        flags = bhs.TaskAttribute.SIMPLE | (
            bhs.FLAG_WRITE if data else bhs.FLAG_READ if length else 0
        )
        with self.engine.alloc(max(size, 1)) as buffer:
            if data:
                buffer.array[:size] = np.frombuffer(data, np.uint8)
            job, record = new_job(jobs.COMMAND, flags, self._field(lun))
            record["cdb0"], record["cdb1"] = np.frombuffer(cdb, np.int64)
            record["address"], record["expected_length"] = buffer.address, size
            record["blocks_left"] = 1
            address = address_of(job)
            doors.start(self.connection.worker, address)
            yield Finish(address)
            error = error_of_job(address, self.lost)
            if error is not None:
                raise error
            came = buffer.array[: int(record["received"])].tobytes() if length else b""
            return CommandResult(came, residual_of(address))

    def _field(self, lun: int | None) -> int:
        field = self.lun_field if lun is None else scsi.encode_lun(lun)
        return field - (1 << 64) if field >= 1 << 63 else field

    def transfer_job(
        self,
        *,
        is_write: bool,
        lba: int,
        blocks: int,
        block_size: int,
        per_command: int,
        address: int,
    ) -> NDArray[Any]:
        """A job that reads or writes `blocks` blocks at shared memory; start it with `doors`."""
        direction = bhs.FLAG_WRITE if is_write else bhs.FLAG_READ
        job, record = new_job(jobs.BLOCKS, direction | bhs.TaskAttribute.SIMPLE, self._field(None))
        record["lba"], record["blocks_left"], record["block_size"] = lba, blocks, block_size
        record["blocks_per_command"], record["address"] = per_command, address
        return job

    def ping(self) -> Steps[None]:
        """Send a NOP-Out and wait for its answer."""
        job, _ = new_job(jobs.COMMAND, 0, 0)
        address = address_of(job)
        header = bhs.encode(Opcode.NOP_OUT, immediate=1)
        mine = self.connection
        if mine.wire.send_control(header, user_data=address) is None:
            raise ConnectionLost("there is no room for a NOP-Out")
        doors.adopt_task(mine.worker, address)
        yield Finish(address)
        error = error_of_job(address, self.lost)
        if error is not None:
            raise error

    def discovery(self) -> Steps[list[discovery.DiscoveredTarget]]:
        """SendTargets=All on a discovery session (RFC 7143 appendix C)."""
        text = discovery.accumulator()
        tag, ttt, data = bhs.RESERVED_TAG, bhs.RESERVED_TAG, discovery.build_request()
        for _ in range(TEXT_EXCHANGES_MAX):
            self._ask(bhs.encode(Opcode.TEXT_REQUEST, immediate=1, itt=tag, ttt=ttt), data)
            answer: ControlPdu = yield AwaitControl()
            if answer.header.opcode is not Opcode.TEXT_RESPONSE:
                raise RemoteProtocolError(f"{answer.header.opcode.name} instead of a Text Response")
            header = answer.header
            more = bool(header.continued) or not header.final
            whole = text.add(answer.data, continued=more)
            if whole is not None:
                return discovery.parse_response(whole)
            tag, ttt, data = header.itt, header.ttt, b""
        raise RemoteProtocolError(f"no end of SendTargets after {TEXT_EXCHANGES_MAX} answers")

    def logging_out(self) -> Steps[None]:
        """Log the session out; the target closes the connection afterwards (RFC 7143 §11.14)."""
        self._ask(bhs.encode(Opcode.LOGOUT_REQUEST, immediate=1, itt=bhs.RESERVED_TAG))
        while True:
            answer: ControlPdu = yield AwaitControl()
            if answer.header.opcode is Opcode.LOGOUT_RESPONSE:
                return

    def free(self) -> None:
        """Close the endpoint and the channel and give the memory back. Idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        self.drop_endpoint()
        if self._connection is not None:
            self._connection.free()
        self.channel.close()


def new_job(kind: int, flags: int, lun: int) -> tuple[NDArray[Any], Any]:
    """Memory of a job, which the caller keeps until it is over, and its record."""
    memory = aligned_zeros(jobs.JOB_SIZE)
    record: Any = jobs.job_at(address_of(memory))[0]
    record["kind"], record["flags"], record["lun"] = kind, flags, lun
    return memory, record


def _reason(pdu: ControlPdu) -> str:
    code = pdu.header.reject_reason
    try:
        name = RejectReason(code).name.lower().replace("_", " ")
    except ValueError:
        name = "unknown reason"
    culprit = f", PDU 0x{pdu.data[0] & bhs.OPCODE_MASK:02x}" if pdu.data else ""
    return f"{name} (0x{code:02x}{culprit})"


__all__ = ["DEFAULT_INITIATOR", "Engine", "Options", "Portal", "SessionCore", "new_job"]
