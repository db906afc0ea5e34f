"""The target's side of the simulator: its sessions, commands and task management as the server has
them, over links in memory. What a worker thread would do is done when the schedule says so.
"""

from collections import deque
from concurrent.futures import Future
from types import SimpleNamespace

from iscsi.target import control
from iscsi.target.buffers import DataBuffers
from iscsi.target.config import ServerConfig
from iscsi.target.connection import Connection, Phase
from iscsi.target.exclusive import Exclusive
from iscsi.target.keepalive import Keepalive, Step
from iscsi.wire import bhs, violations
from iscsi.wire import target as doors
from iscsi.wire.errors import ProtocolError, RejectReason, RemoteProtocolError
from iscsi.wire.login import TargetLogin, TargetPolicy
from iscsi.wire.sense import Asc
from iscsi.wire.violations import Violation
from tests.robustness.links import Transmitter

BUFFERS = ((16 << 10, 16), (256 << 10, 4))
STAGING = 64


# What a server has at an engine; here there is none, and nothing is posted.
NO_LANE = SimpleNamespace(channel=SimpleNamespace(context=0), address=0)


class Session:
    """A connection and the link it came over."""

    def __init__(self, slot, link, deadline_ns):
        self.link = link
        self.connection = Connection(slot, NO_LANE, slot, ("127.0.0.1", slot), deadline_ns)
        self.input = bytearray()
        self.transmitter = None
        self.is_over = False  # send what there is, then hang up
        self.waits = False  # its login waits for the session that it replaces

    @property
    def is_full(self):
        return self.connection.phase is Phase.FULL


class SimTarget:
    """One target. `memory` is what an engine would give it."""

    def __init__(self, target, memory, *, proposal, window=16, nop_interval_s=0.0):
        self.target, self.memory = target, memory
        self.config = ServerConfig((target,), window=window, proposal=proposal)
        self.limits = self.config.limits
        self.buffers = DataBuffers(memory, BUFFERS)
        self.nop_ns = int(nop_interval_s * 1e9)
        self.sessions, self.dying, self.jobs = [], [], deque()
        self.waiting = Exclusive()
        self._count = 0
        self.around = control.Surroundings(
            targets=(target,),
            portals=lambda connection: [],
            may_see=lambda connection, name: True,
            sessions=lambda: [each.connection for each in self.sessions if each.is_full],
            end=self._end,
            data_max=self.limits.port.control_data_length,
            cold_max=self.buffers.largest,
            submit=lambda work, done: self.jobs.append((work, done)),
            look_at=lambda connection: None,
            alone=self.waiting.run,
            run_when=self.waiting.run_when,
        )

    # --- connections -----------------------------------------------------------------------

    def accept(self, link, now_ns):
        """A connection came; 15 seconds for its login."""
        self._count += 1
        session = Session(self._count, link, now_ns + 15 * 10**9)
        policy = TargetPolicy(
            {self.target.name},
            admit=lambda identity: session.connection.reserve(
                self.memory, self.target, self.limits
            ),
            new_tsih=lambda identity: session.connection.slot % 0xFFFF + 1,
        )
        session.connection.begin_login(
            self.memory,
            TargetLogin(policy, proposal=self.config.proposal, command_window=self.config.window),
        )
        self.sessions.append(session)

    def _end(self, connection):
        for session in self.sessions:
            if session.connection is connection:
                session.is_over = True

    def close(self, session):
        """Hang up. The nexus is lost at once, the memory goes when no worker needs it."""
        if session in self.sessions:
            self.sessions.remove(session)
            session.connection.phase = Phase.CLOSING
            session.connection.nexus.detach()
            session.link.cut(near=False)
            self.dying.append(session)
        self._bury()

    def _bury(self):
        self.waiting.look()
        for session in [each for each in self.dying if not each.connection.jobs]:
            self.dying.remove(session)
            session.connection.free()

    # --- one turn --------------------------------------------------------------------------

    def receive(self, session, data):
        """Bytes from the link."""
        if session.connection.phase is Phase.LOGIN:
            session.input += data
            self._log_in(session)
        elif session.is_full and not session.is_over:
            try:
                session.connection.protocol.receive(data)
            except RemoteProtocolError:
                self._reject(session)

    def _reject(self, session):
        error = int(session.connection.port["error"])
        reason = RejectReason.PROTOCOL_ERROR
        if error == Violation.DATA_DIGEST:
            reason = RejectReason.DATA_DIGEST_ERROR
        assert violations.is_violation(error), error
        if error != Violation.HEADER_DIGEST:
            control.reject(session.connection, reason)
        session.is_over = True

    def _log_in(self, session):
        login, given = session.connection.login, session.input
        if session.waits or login is None or len(given) < bhs.BHS_LENGTH:
            return
        try:
            header = bytes(given[: bhs.BHS_LENGTH])
            length = bhs.BHS_LENGTH + login.segment_length(header)
            if len(given) < length:
                return
            login.receive_pdu(header, bytes(given[bhs.BHS_LENGTH : length]))
            del given[:length]
        except ProtocolError:
            session.is_over = True
        self._answer_login(session)

    def _answer_login(self, session):
        """Send the response; the last one only when the session it replaces is gone."""
        key = session.connection.session_key
        if key is not None:
            for other in [each for each in self.sessions if each is not session]:
                if _key(other.connection) == key:
                    self.close(other)
            if any(_key(other.connection) == key for other in self.dying):
                session.waits = True
                return
        session.waits = False
        login = session.connection.login
        session.link.down += login.data_to_send()
        if login.done and not login.failed:
            connection = session.connection
            connection.enter(self.memory, self.limits, STAGING, 0, self.buffers)
            connection.keepalive = Keepalive(self.nop_ns, 15 * 10**9)
            session.transmitter = Transmitter(doors, connection.protocol.address)
            for lun in self.target.units:
                connection.nexus.raise_attention(lun, Asc.POWER_ON_RESET)

    def attend(self, session, now_ns):
        """What the server does between two passes of its loop."""
        connection = session.connection
        self.waiting.look()
        if not session.link.far_open:
            self.close(session)
        elif session.waits:
            self._answer_login(session)
        elif connection.phase is Phase.LOGIN:
            if session.is_over or now_ns > connection.deadline_ns:
                self.close(session)
        elif session.is_over:
            control.send_waiting(connection)
        else:
            self._serve(session, now_ns)

    def _serve(self, session, now_ns):
        connection = session.connection
        try:
            session.is_over = control.attend(connection, self.around)
        except RemoteProtocolError as broken:
            control.reject(connection, broken.reject_reason)
            session.is_over = True
        if control.keep_alive(connection, now_ns) is Step.GIVE_UP:
            self.close(session)

    def work(self):
        """What a thread for slow commands does, and what the server then does with it."""
        if self.jobs:
            job, done = self.jobs.popleft()
            future = Future()
            try:
                future.set_result(job())
            except Exception as error:
                future.set_exception(error)
            done(future)
            self._bury()

    def send(self, session, limit):
        """Move bytes to the link; hang up behind the last. How many."""
        if session.transmitter is None:
            return 0
        control.send_waiting(session.connection)
        session.transmitter.post()
        data = session.transmitter.send(limit)
        session.link.down += data
        if session.is_over and not data and not session.connection.unsent:
            self.close(session)
        return len(data)


def _key(connection):
    if connection.session_key is not None:
        return connection.session_key
    result = connection.result
    return None if result is None else (result.initiator_name, result.isid, result.target_name)
