"""A session without its waiting: the connection, how it is made and lost, and what is asked over
it, as procedures of steps. `iscsi.session.initiator` performs them by blocking, `iscsi.session.aio`
in an event loop. A lost connection leaves the jobs in the `Worker`; `recovery` makes the next one.
"""

import errno
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from time import monotonic_ns
from typing import Any, Final, Protocol

from host import pump
from host.channel import Channel
from host.errors import EngineDied
from host.memory import Buffer
from iscsi.session import doors, jobs, procedures
from iscsi.session.connection import Connection, LoggedIn, log_in, sends_of
from iscsi.session.controls import Controls
from iscsi.session.credentials import auth_errors, credentials_of, security_of
from iscsi.session.errors import (
    CommandTimeout,
    ConnectionLost,
    SessionClosed,
    TooManyRedirects,
)
from iscsi.session.guard import Guard
from iscsi.session.options import AUTO_REGISTRATION, DEFAULT_INITIATOR, DEPTH_MAX, Options
from iscsi.session.outcome import error_of_connection
from iscsi.session.patience import Patience
from iscsi.session.replay import Ordering
from iscsi.session.steps import Steps
from iscsi.session.worker import SPARE_TASKS, Worker
from iscsi.wire import scsi
from iscsi.wire.errors import LoginRedirected, RemoteProtocolError
from iscsi.wire.keys import IserParams, Proposal
from iscsi.wire.login import InitiatorLogin
from iscsi.wire.names import Portal, parse_address
from iscsi.wire.scsi_data import BlockLimits, Capacity
from iscsi.wire.url import IscsiUrl, parse_url

RING: Final = 512
REDIRECTS_MAX: Final = 4
FULL_RING_S: Final = 0.01
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

    def enable_mover(
        self, channel: Channel, endpoint: int, message: dict[str, Any], **place: Any
    ) -> None:
        """Have the engine take over a connection (`iscsi.wire.mover_spec`)."""

    @property
    def is_running(self) -> bool:
        """Whether the engine is there."""

    def reopen(self) -> None:
        """Connect to the successor of an engine that died."""


class SessionCore(procedures.Procedures):
    """One session with one connection at a time. `timeouts` may be changed while it runs.

    `lost` is why the session is over; `down` why it has no connection at the moment.
    """

    engine: Engine

    def __init__(self, engine: Engine, url: str | IscsiUrl, options: Options) -> None:
        self.url = parse_url(url) if isinstance(url, str) else url
        self.options = options
        self.credentials = options.credentials or credentials_of(self.url)
        self.timeouts = options.first_timeouts
        self.engine = engine
        self.channel = engine.channel(RING, RING)
        # Over RDMA there is no byte stream that this side could frame.
        self.mode = pump.MOVER if self.url.is_iser else options.mode(self.channel.is_inline)
        self.worker = Worker(options.queue_depth)
        if self.mode == pump.MOVER:
            # Inline there is nobody to wake, and whoever waits for more leaves the target idle.
            count = 1 if self.channel.is_inline else max(1, options.queue_depth // 2)
            self.worker.coalesce(options.coalesce or count, options.coalesce_us)
        self.reserved: set[int] = set()  # units that RESERVE holds for this session
        self.patience = Patience(self.worker, options.queue_depth, self.reserved)
        self.ordering = Ordering()
        self.controls = Controls()
        self.endpoint = 0  # of a connection under way or made; 0: none
        self.lost: Exception | None = None
        self.down: Exception | None = None
        self.is_recovering = False
        self.recoveries = 0  # connections made again
        self.recover_until_ns = 0  # when an attempt at that is given up; 0: none is under way
        self.pause_s = 0.0  # what the target wants to pass before the next login
        self.lun_field = scsi.encode_lun(self.url.lun or 0)
        # ISID of type 10b, random (RFC 7143 §11.12.5): two sessions never reinstate each other,
        # and a login after a loss reinstates this one, whose tasks the target then ends.
        chosen = options.isid
        self.isid = 0x80 << 40 | secrets.randbits(40) if chosen is None else chosen
        self.portal_group: int | None = None
        self.limits: BlockLimits | None = None  # of the unit, once they were asked for
        self.capacity: Capacity | None = None
        self.on_loss: list[Callable[[], object]] = []
        self.on_channel_change: list[Callable[[], object]] = []  # before the old one is closed
        self.is_closed = False
        self._connection: Connection | None = None
        self._guard: Guard | None = None

    # --- login -----------------------------------------------------------------------------

    @property
    def connection(self) -> Connection:
        """The connection. Raises what ended it, or SessionClosed."""
        if self.lost is not None:
            raise self.lost
        if self.is_closed:
            raise SessionClosed("this session is closed: open the device again")
        if self._connection is None:
            raise self.down or SessionClosed("this session is not open")
        return self._connection

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for anything; a ping of the session's own is nobody."""
        mine = self._connection
        return not self.worker.has_work(pings=0 if mine is None else int(mine.has_ping))

    @property
    def login_limit_s(self) -> float:
        """How long a login may take that begins now."""
        if not self.recover_until_ns:
            return self.timeouts.login_s
        left_s = (self.recover_until_ns - monotonic_ns()) / 1e9
        return min(self.timeouts.login_s, max(left_s, 0.001))

    @property
    def async_events(self) -> list[int]:
        """Codes of the asynchronous messages that came last on this connection."""
        return self.controls.events

    def opening(self) -> Steps[None]:
        """Connect and log in for the first time; commands may go.

        Raises OSError, ConnectionLost, LoginRejected, AuthError, TooManyRedirects,
        RemoteProtocolError.
        """
        yield from self.logging_in(self.url.portal)
        self.worker.open_gate()

    def logging_in(self, portal: Portal) -> Steps[None]:
        """Connect and log in at a portal, following at most four redirections; the gate is shut."""
        first = portal
        for _ in range(REDIRECTS_MAX + 1):
            try:
                with auth_errors(portal, self.credentials):
                    state: LoggedIn = yield from self._log_in(portal)
            except LoginRedirected as redirected:
                found = parse_address(redirected.address)
                assert found is not None, "the login checked the address"
                portal = found
                self.drop_endpoint()
                continue
            self._begin(state)
            return
        raise TooManyRedirects(
            f"{first.address} and those it names redirect the login again and again; "
            f"gave up after {REDIRECTS_MAX}, at {portal.address}"
        )

    def _log_in(self, portal: Portal) -> Steps[LoggedIn]:
        if not self.url.is_iser:
            return (yield from log_in(self.engine, portal, self._new_login()))
        from iscsi.session import rdma  # who has no iSER needs no verbs

        depth = self.options.queue_depth
        wishes = rdma.RdmaWishes(
            tasks=depth + SPARE_TASKS,
            sends=sends_of(depth),
            crc=self.url.switch("mpa_crc", self.options.mpa_crc),
            hello=self._says_hello,
            registration=self._registration,
        )
        login = self._new_login()
        made, result = yield from rdma.connecting(
            self.engine, self.channel, portal, login, wishes, self.drop_endpoint
        )
        return LoggedIn(made.endpoint, portal, result, 0, made)

    @property
    def _registration(self) -> str:
        wanted = self.url.options.get("registration", self.options.registration)
        return AUTO_REGISTRATION if wanted == "auto" else wanted

    @property
    def _says_hello(self) -> bool:
        return self.url.switch("iser_hello", self.options.iser_hello)

    def _begin(self, state: LoggedIn) -> None:
        mine = Connection(self.engine, self.channel, state, self.mode, self.worker)
        self._connection, self.controls, self.down = mine, Controls(), None
        self._guard = Guard(mine, self.worker, self.controls, self.reserved, monotonic_ns())
        self.pause_s = state.login.session.default_time2wait
        group, before = state.login.target_portal_group_tag, self.portal_group
        if before is not None and group != before:
            # Another nexus: the target may still be at work on what the old one sent.
            self.worker.give_up_changes()
        self.portal_group = group

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
        if self.url.is_iser:
            # Digests are the fabric's business, and unsolicited Data-Outs need receives that
            # deployed targets do not declare.
            session = replace(wanted.session, initial_r2t=True)
            iser = IserParams(iser_hello_required=self._says_hello)
            proposal = Proposal(session, iser=iser)
        name = self.options.initiator_name
        security = security_of(self.credentials)
        return InitiatorLogin(
            name, self.url.target, isid=self.isid, proposal=proposal, security=security
        )

    def revive(self) -> None:
        """Where the engine died: take its successor of the same name, and a channel of that.

        Raises EngineNotRunning while there is none.
        """
        if self.channel.is_running:
            return
        if not self.engine.is_running:
            self.engine.reopen()
        for note in self.on_channel_change:
            note()
        self.channel.close()
        self.channel = self.engine.channel(RING, RING)

    def drop_endpoint(self) -> None:
        """Close the endpoint; when this returns the engine has let go of all its memory."""
        endpoint, self.endpoint = self.endpoint, 0
        if endpoint and self.channel.is_running:
            self._close_endpoint(endpoint)
            while self.channel.poll():  # What else came of it concerns nobody.
                pass

    def _close_endpoint(self, endpoint: int) -> None:
        channel = self.channel
        while True:
            try:
                channel.close_endpoint(endpoint)
                return
            except BlockingIOError:
                # The ring is full of what was to be sent: the engine takes it in no time.
                channel.progress()
                channel.wait_n(channel.backlog + 1, timeout_s=FULL_RING_S)

    # --- losing it -------------------------------------------------------------------------

    @property
    def may_recover(self) -> bool:
        """Whether a lost connection is made again: only for sessions with a target's units."""
        return self.options.recovery.is_on and self.url.target is not None and not self.is_closed

    def lose(self, error: Exception) -> None:
        """The connection is over: its commands wait for the next one, or it was the last.

        Raises the error if there will be no other.
        """
        if self.lost is not None:
            raise self.lost
        if not self.may_recover or not isinstance(error, RECOVERABLE):
            raise self.break_off(error)
        self.down = error
        self.let_go()

    def let_go(self) -> None:
        """Close the endpoint, take the commands off the connection, give its memory back."""
        self.pause_s = max(self.pause_s, self.controls.pause_s)
        self.drop_endpoint()
        mine, self._connection, self._guard = self._connection, None, None
        self.worker.shut_gate()
        if mine is not None:
            self.worker.salvage()
            mine.free()
        for note in self.on_loss:
            note()

    def break_off(self, error: Exception) -> Exception:
        """End the session for `error`: every job ends, the memory is the session's again."""
        if self.lost is None:
            self.lost, self._guard = error, None
            doors.abort_all(self.worker.address, -errno.ECONNABORTED)
            self.drop_endpoint()
        return self.lost

    def disown(self, job: int) -> None:
        """Be sure that a job is over and that nothing refers to it, because its memory goes.

        It is over already but where its caller was torn out of the wait: then the connection is
        given up if a command of it is still open.
        """
        record, worker = jobs.job_at(job)[0], self.worker.address
        if record["state"] == jobs.ACTIVE:
            doors.cancel_rest(worker, job)
        if record["state"] == jobs.ACTIVE:
            with suppress(Exception):  # It is in `lost`, for the next call.
                self.lose(ConnectionLost("the connection was closed because a call was torn off"))
        if record["queued"]:
            doors.unqueue(worker, job)

    @contextmanager
    def holding_back(self) -> Iterator[Guard]:
        """Let no command be sent meanwhile, as long as it is the same connection."""
        guard = self._guard
        assert guard is not None, "a request is under way, so there is a connection"
        guard.hold_back()
        try:
            yield guard
        finally:
            if self._guard is guard:
                guard.go_on()

    def connection_error(self) -> Exception:
        """What the pump's error stands for."""
        mine = self.connection
        who = f"the target at {mine.portal.address}"
        return error_of_connection(mine.error, who, mine.hot("outstanding"))

    def check_usable(self) -> None:
        """Raise what ended the session, if it is over."""
        if self.lost is not None:
            raise self.lost
        if self.is_closed:
            raise SessionClosed("this session is closed: open the device again")

    # --- looking after it ------------------------------------------------------------------

    def attend(self, reason: int) -> int:
        """See to what the compiled code came back for, and to everything that is due.

        Returns when to look again at the latest (monotonic nanoseconds). Raises what ends the
        connection: the caller then says `lose`.
        """
        now = monotonic_ns()
        if self.recover_until_ns and now > self.recover_until_ns:
            raise ConnectionLost(f"the unit at {self.url.portal.address} was not ready in time")
        if reason == jobs.BROKEN and self._connection is not None:
            raise self.connection_error()
        if reason == jobs.ENGINE_GONE:
            raise EngineDied("the engine went away during a command")
        if self._connection is None or self._guard is None:
            return now
        if reason == jobs.CONTROL:
            self.controls.take(self._connection.wire)
        due = self.patience.look(now, self.timeouts)
        return min(due, self._guard.look(now, self.timeouts))

    def abort(self, job: int) -> None:
        """Have the target abort the open commands of a job that was cancelled."""
        if self._guard is not None:
            self._guard.abort(job, monotonic_ns(), self.timeouts)

    def abandon(self) -> None:
        """Forget everything in a forked child, to which nothing of it belongs. Idempotent."""
        if not self.is_closed:
            self.is_closed, self._guard = True, None
            self.channel.close()

    def free(self) -> None:
        """Close the endpoint and the channel and give the memory back. Idempotent."""
        if self.is_closed:
            return
        self.is_closed, self._guard = True, None
        try:
            self.drop_endpoint()
            if self._connection is not None:
                self._connection.free()
        finally:
            self.channel.close()


# What a new connection may put right. LoginRejected and others are judged by `recovery`.
RECOVERABLE: Final = (ConnectionLost, CommandTimeout, RemoteProtocolError, OSError)

__all__ = ["DEFAULT_INITIATOR", "DEPTH_MAX", "Engine", "Options", "Portal", "SessionCore"]
