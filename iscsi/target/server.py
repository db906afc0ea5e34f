"""The target server: one channel, its portals, and many connections. Python accepts, logs in and
serves what is rare; it sleeps in the compiled loop, which moves the data.
"""

import errno
import logging
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from time import monotonic_ns
from typing import Any, Final

import numpy as np

from host.channel import TICK_NS, Completion
from host.errors import EngineDied, HostError
from iscsi.target import control, portals
from iscsi.target.config import ServerConfig
from iscsi.target.connection import NO_DEADLINE, Connection, Phase, warm_up
from iscsi.target.pump import ATTENTION, PARTING, SERVER, push_out, serve, touch
from iscsi.target.units import by_name
from iscsi.wire import violations
from iscsi.wire.errors import LoginStatus, ProtocolError, RejectReason, RemoteProtocolError
from iscsi.wire.login import LoginIdentity, TargetLogin, TargetPolicy, refusal
from iscsi.wire.sense import Asc
from iscsi.wire.violations import Violation
from shm.records import CQE, NEVER
from shm.segment import SegmentError
from shm.view import address_of
from shm.wait import PEER

log: Final = logging.getLogger(__name__)

COLD_MAX: Final = 256
CHANNEL_WORK: Final = 1024
# The low bits of a user_data of Python's own operations; the rest is a slot.
_KIND_BITS: Final = 4
ACCEPT, LOGIN_HEADER, LOGIN_DATA, LOGIN_SEND, SHUTDOWN, CLOSE = range(1, 7)
_NO_MEMORY: Final = (MemoryError, SegmentError, HostError, OSError)


class TargetServer:
    """Serves `config.targets` through an engine, in the thread that made it.

    Raises OSError when a portal cannot be listened on. Close it before the engine handle.
    """

    def __init__(self, engine: Any, config: ServerConfig) -> None:
        self.config = config
        self._engine = engine
        warm_up()
        self._targets = by_name(config.targets)
        self._limits = config.limits
        self._slots: list[Connection | None] = [None] * (config.max_connections + config.max_logins)
        self._free_slots = list(range(len(self._slots) - 1, -1, -1))
        self._pumps: dict[int, Connection] = {}
        self._endpoints: dict[int, Connection] = {}
        self._sessions: dict[tuple[str, int, str], Connection] = {}
        self._logins: dict[Connection, None] = {}  # oldest first
        self._reserved = 0
        self._tsih = 0
        self._unposted: deque[Callable[[], bool]] = deque()
        self.counts: Counter[str] = Counter()
        self.stopping = False
        self._channel = engine.channel(work=CHANNEL_WORK, events=config.ring_capacity)
        try:
            self._lay_out()
            self._listen()
        except BaseException:
            self._channel.close()
            raise
        self._around = control.Surroundings(
            targets=self._targets.values(),
            portals=lambda connection: portals.advertised(
                self.config, self.bound, connection.peer[0]
            ),
            sessions=lambda: list(self._sessions.values()),
            data_max=self._limits.port.control_data_length,
            cold_max=self._limits.cold_length,
        )

    def _lay_out(self) -> None:
        """The compiled loop's record and lists."""
        self._touched = np.zeros(len(self._slots), np.int64)
        self._attention = np.zeros(len(self._slots), np.int64)
        self._cold = np.zeros(COLD_MAX, CQE)
        self._record = np.zeros(1, SERVER)
        mine = self._record[0]
        mine["context"] = self._channel.context
        mine["touched"] = address_of(self._touched)
        mine["attention"] = address_of(self._attention)
        mine["cold"], mine["cold_capacity"] = address_of(self._cold), COLD_MAX

    def _listen(self) -> None:
        self._listeners: list[int] = []
        self.bound: list[tuple[str, int]] = []
        for portal in self.config.portals:
            listener, port = portals.listen(self._channel, portal)
            self._listeners.append(listener)
            self.bound.append((portal.host, port))
        for place in range(len(self._listeners)):
            self._accept(place)

    # --- the loop --------------------------------------------------------------------------

    @property
    def connections(self) -> list[Connection]:
        """The connections there are, in any phase."""
        return [connection for connection in self._slots if connection is not None]

    def serve_forever(self) -> None:
        """Serve until `stop` is called, by a signal handler or a thread. Raises EngineDied."""
        while not self.stopping:
            self.step()

    def stop(self) -> None:
        """Have `serve_forever` return within a tick."""
        self.stopping = True

    def step(self) -> None:
        """Serve until Python was needed, at most one tick. Raises EngineDied."""
        tick = monotonic_ns() + TICK_NS
        reason = serve(address_of(self._record), NEVER, tick)
        mine = self._record[0]
        attention = self._attention[: int(mine["attention_count"])].tolist()
        cold = self._cold[: int(mine["cold_count"])].tolist()
        mine["attention_count"] = mine["cold_count"] = 0
        if reason == PEER:
            raise EngineDied("the engine of this target went away: start it and serve again")
        for address in attention:
            if (connection := self._pumps.get(address)) is not None:
                self._attend(connection)
        for row in cold:
            self._complete(_completion(row))
        self._retry()
        self._expire()

    def _post(self, post: Callable[[], bool]) -> None:
        """Post now, or when there is room again."""
        if self._unposted or not post():
            self._unposted.append(post)

    def _retry(self) -> None:
        while self._unposted and self._unposted[0]():
            self._unposted.popleft()
        for connection in self._pumps.values():
            if connection.unsent and connection.phase is Phase.FULL:
                control.send_waiting(connection)
                touch(address_of(self._record), connection.pump_address)
            elif connection.phase is Phase.LEAVING:
                self._leave(connection)

    def _expire(self) -> None:
        now = monotonic_ns()
        for connection in self.connections:
            if now >= connection.deadline_ns:
                what = connection.phase.name.lower()
                self.counts[f"timeouts in {what}"] += 1
                log.info("%s: time is up in phase %s", connection, what)
                self._close(connection)

    def _complete(self, done: Completion) -> None:
        if done.unsolicited:
            connection = self._endpoints.get(done.endpoint)
            if connection is not None:
                self._close(connection)
            return
        kind, slot = done.user_data & (1 << _KIND_BITS) - 1, done.user_data >> _KIND_BITS
        if kind == ACCEPT:
            self._accepted(slot, done)
            return
        connection = self._slots[slot]
        if connection is None or connection.endpoint != done.endpoint:
            return
        if kind == CLOSE:
            self._closed(connection)
        elif connection.phase is Phase.CLOSING:
            return
        elif done.status < 0:
            self._close(connection)
        elif kind == SHUTDOWN:
            connection.phase = Phase.LINGERING
            if connection.pump_address == 0:
                self._close(connection)
        else:
            self._login_step(connection, kind, done)

    # --- connections come ----------------------------------------------------------------------

    def _accept(self, place: int) -> None:
        data = place << _KIND_BITS | ACCEPT
        self._post(lambda: bool(self._channel.post_accept(self._listeners[place], data)))

    def _accepted(self, place: int, done: Completion) -> None:
        self._accept(place)
        if done.status < 0:
            self.counts["accepts failed"] += 1
            return
        self.counts["accepted"] += 1
        if len(self._logins) >= self.config.max_logins:
            self.counts["logins crowded out"] += 1
            self._close(next(iter(self._logins)))
        if not self._free_slots:
            # The slots of closing connections come back in a moment; this peer tries again.
            self._post(lambda: bool(self._channel.post_close(done.endpoint, 0)))
            return
        slot = self._free_slots.pop()
        deadline = monotonic_ns() + int(self.config.login_timeout_s * 1e9)
        connection = Connection(slot, done.endpoint, done.peer, deadline)
        self._slots[slot] = connection
        self._endpoints[done.endpoint] = connection
        try:
            connection.begin_login(
                self._engine,
                TargetLogin(
                    self._policy(connection),
                    proposal=self.config.proposal,
                    command_window=self.config.window,
                ),
            )
        except _NO_MEMORY as error:
            log.warning("%s: no memory for its login: %s", connection, error)
            self._close(connection)
            return
        self._logins[connection] = None
        self._receive_login(connection, LOGIN_HEADER, connection.login_header)

    def _policy(self, connection: Connection) -> TargetPolicy:
        return TargetPolicy(
            self._targets.keys(),
            portal_group_tag=self.config.portal_group_tag,
            admit=partial(self._admit, connection),
            new_tsih=self._new_tsih,
        )

    def _admit(self, connection: Connection, identity: LoginIdentity) -> None:
        """Reserve what the session will need, or refuse the login (RFC 7143 §11.13.5)."""
        name = identity.target_name
        target = None if name is None else self._targets[name]
        replaces = name is not None and (
            (identity.initiator_name, identity.isid, name) in self._sessions
        )
        if self._reserved >= self.config.max_connections and not replaces:
            self.counts["refused"] += 1
            raise refusal(LoginStatus.OUT_OF_RESOURCES, "too many connections")
        try:
            connection.reserve(self._engine, target, self._limits)
        except _NO_MEMORY as error:
            self.counts["refused"] += 1
            raise refusal(LoginStatus.OUT_OF_RESOURCES, str(error)) from error
        self._reserved += 1

    def _new_tsih(self, identity: LoginIdentity) -> int:
        used = {found.result.tsih for found in self._sessions.values() if found.result}
        while True:
            self._tsih = self._tsih % 0xFFFF + 1
            if self._tsih not in used:
                return self._tsih

    # --- login -------------------------------------------------------------------------------

    def _receive_login(self, connection: Connection, kind: int, into: Any) -> None:
        data = connection.slot << _KIND_BITS | kind
        endpoint = connection.endpoint
        self._post(lambda: bool(self._channel.post_recv(endpoint, into, data, exact=True)))

    def _login_step(self, connection: Connection, kind: int, done: Completion) -> None:
        login = connection.login
        if login is None:
            return
        if kind == LOGIN_SEND:
            self._login_sent(connection, login, done)
            return
        try:
            header = connection.login_header.tobytes()
            length = login.segment_length(header) if kind == LOGIN_HEADER else done.length
            if kind == LOGIN_HEADER and length:
                self._receive_login(connection, LOGIN_DATA, connection.login_data(length))
                return
            login.receive_pdu(header, connection.login_data(length).tobytes())
        except ProtocolError as error:
            self.counts["logins failed"] += 1
            log.info("%s: %s", connection, error)
        self._send_login(connection)

    def _send_login(self, connection: Connection) -> None:
        """Send the response; the last one only when the session it replaces is gone."""
        login = connection.login
        if login is None or connection.phase is not Phase.LOGIN:
            return
        key = connection.session_key
        if key is not None:
            before = self._sessions.get(key)
            if before is not None and before is not connection:
                self.counts["sessions reinstated"] += 1
                before.successors.append(connection)
                self._close(before)
                return
            self._sessions[key] = connection
        out = login.data_to_send()
        if not out:
            self._close(connection)
            return
        place = connection.login_output(out)
        data = connection.slot << _KIND_BITS | LOGIN_SEND
        self._post(lambda: bool(self._channel.post_send(connection.endpoint, place, data)))

    def _login_sent(self, connection: Connection, login: TargetLogin, done: Completion) -> None:
        if login.failed:
            self._shut(connection)
        elif not login.done:
            self._receive_login(connection, LOGIN_HEADER, connection.login_header)
        else:
            self._enter(connection, done.arg0)

    def _enter(self, connection: Connection, base: int) -> None:
        """From login to the full feature phase."""
        staging = self.config.staging(len(self._pumps))
        try:
            connection.enter(self._engine, self._channel.context, self._limits, staging, base)
        except _NO_MEMORY as error:
            log.warning("%s: no memory for its session: %s", connection, error)
            self._close(connection)
            return
        self.counts["logged in"] += 1
        self._logins.pop(connection, None)
        self._pumps[connection.pump_address] = connection
        for lun in connection.target.units if connection.target else ():
            connection.raise_attention(lun, Asc.POWER_ON_RESET)
        touch(address_of(self._record), connection.pump_address)

    # --- full feature phase ----------------------------------------------------------------------

    def _attend(self, connection: Connection) -> None:
        pump = connection.pump
        pump["busy"] &= ~ATTENTION
        error = int(pump["error"])
        if connection.phase in (Phase.SHUTTING, Phase.LINGERING):
            self._close(connection)  # The peer has closed its side: nobody reads any more.
        elif connection.phase is not Phase.FULL:
            return
        elif error:
            self._failed(connection, error)
        else:
            try:
                if control.attend(connection, self._around):
                    self._leave(connection)
            except RemoteProtocolError as broken:
                self._reject(connection, str(broken), broken.reject_reason)
            touch(address_of(self._record), connection.pump_address)

    def _failed(self, connection: Connection, error: int) -> None:
        """The stream ended, or the peer broke the protocol."""
        if not violations.is_violation(error):
            self._close(connection)
            return
        reason = RejectReason.PROTOCOL_ERROR
        if error == Violation.DATA_DIGEST:
            reason = RejectReason.DATA_DIGEST_ERROR
        self._reject(connection, violations.describe(error), reason, error)

    def _reject(
        self, connection: Connection, why: str, reason: RejectReason, error: int = -errno.EPROTO
    ) -> None:
        """Reject what was received last, and end the connection behind it."""
        self.counts["violations"] += 1
        log.info("%s: %s", connection, why)
        if error != Violation.HEADER_DIGEST:  # Then not even the header is known.
            control.reject(connection, reason)
        connection.pump["error"] = error
        push_out(connection.pump_address)
        self._shut(connection)

    def _leave(self, connection: Connection) -> None:
        """End a connection once all that was made is posted."""
        connection.phase = Phase.LEAVING
        if connection.deadline_ns == NO_DEADLINE:
            connection.deadline_ns = monotonic_ns() + int(self.config.linger_s * 1e9)
        control.send_waiting(connection)
        if push_out(connection.pump_address) and not connection.unsent:
            connection.pump["error"] = -errno.ESHUTDOWN
            self._shut(connection)

    # --- connections go -----------------------------------------------------------------------

    def _shut(self, connection: Connection) -> None:
        """End the stream behind everything posted; then wait a moment for the peer."""
        connection.phase = Phase.SHUTTING
        if connection.pump_address:
            connection.pump["busy"] |= PARTING
        connection.deadline_ns = monotonic_ns() + int(self.config.linger_s * 1e9)
        data = connection.slot << _KIND_BITS | SHUTDOWN
        self._post(lambda: bool(self._channel.post_shutdown(connection.endpoint, data)))

    def _close(self, connection: Connection) -> None:
        """End an endpoint now. Its memory comes back with the completion."""
        if connection.phase is Phase.CLOSING:
            return
        connection.phase, connection.deadline_ns = Phase.CLOSING, NO_DEADLINE
        self._logins.pop(connection, None)
        if connection.pump_address and connection.pump["error"] == 0:
            connection.pump["error"] = -errno.ESHUTDOWN
        data = connection.slot << _KIND_BITS | CLOSE
        self._post(lambda: bool(self._channel.post_close(connection.endpoint, data)))

    def _closed(self, connection: Connection) -> None:
        self.counts["closed"] += 1
        key = connection.session_key or _key_of(connection)
        if key is not None and self._sessions.get(key) is connection:
            del self._sessions[key]
        self._pumps.pop(connection.pump_address, None)
        self._endpoints.pop(connection.endpoint, None)
        self._reserved -= connection.block is not None
        connection.free()
        self._slots[connection.slot] = None
        self._free_slots.append(connection.slot)
        for successor in connection.successors:
            self._send_login(successor)

    def close(self) -> None:
        """End every connection and listener, and give all memory back. Idempotent."""
        self._channel.close()
        for connection in self.connections:
            connection.free()
            self._slots[connection.slot] = None
        self._pumps.clear()

    def __enter__(self) -> "TargetServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _key_of(connection: Connection) -> tuple[str, int, str] | None:
    result = connection.result
    if result is None or result.target_name is None:
        return None
    return result.initiator_name, result.isid, result.target_name


def _completion(row: tuple[Any, ...]) -> Completion:
    # The order of shm.records.CQE's fields.
    _, opcode, _, flags, endpoint, user_data, status, length, _, _, arg0, arg1, arg2 = row
    return Completion(opcode, endpoint, user_data, status, length, flags, arg0, arg1, arg2)
