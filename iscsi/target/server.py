"""The target server: a channel to each engine, its portals, and many connections. Python accepts,
logs in and serves what is rare; it sleeps in the compiled loop, which moves the data.
"""

import errno
import logging
from time import monotonic_ns
from typing import Any, Final

from host.channel import TICK_NS, Completion
from host.errors import EngineDied
from iscsi.target import announce, control, portals
from iscsi.target.config import ServerConfig
from iscsi.target.connection import Connection, Phase, warm_up
from iscsi.target.keepalive import Step
from iscsi.target.lanes import Lane
from iscsi.target.live import LiveChanges
from iscsi.target.pump import ATTENTION, serve
from iscsi.target.scsi import sanitize
from iscsi.target.server_core import (
    ACCEPT,
    CLOSE,
    FENCE,
    KIND_BITS,
    LISTEN,
    LOGIN_MEMORY,
    SHUTDOWN,
    UNIT,
)
from iscsi.wire import violations
from iscsi.wire.errors import RejectReason, RemoteProtocolError
from iscsi.wire.violations import Violation
from shm.records import NEVER
from shm.view import address_of
from shm.wait import PEER

log: Final = logging.getLogger(__name__)

# While commands wait for others, compiled code is asked this often whether those are over.
WAITING_TICK_NS: Final = 1_000_000


class TargetServer(LiveChanges):
    """Serves `config.targets` through an engine, in the thread that made it.

    Raises OSError when a portal cannot be listened on. Close it before the engine handle.
    """

    def __init__(self, engine: Any, config: ServerConfig) -> None:
        warm_up()
        super().__init__(engine, config)
        try:
            self._listen()
        except BaseException:
            self.close()
            raise
        self._around = control.Surroundings(
            targets=self._targets.values(),
            portals=lambda connection: portals.advertised(
                self.config,
                self._listening.values(),
                connection.peer[0],
                rdma=connection.is_rdma,
            ),
            may_see=self._may_see,
            sessions=lambda: list(self._sessions.values()),
            end=self._leave,
            data_max=self._limits.port.control_data_length,
            cold_max=max(self._limits.cold_length, self.buffers.largest),
            submit=self._slow.submit,
            alone=self._exclusive.run,
            run_when=self._exclusive.run_when,
            look_at=self._touch,
        )

    def _listen(self) -> None:
        for place, served in enumerate(self.config.served):
            self._make_ready_for(served)
            listener, port = portals.listen(self._lanes.first.channel, served.portal)
            self._listening[place] = portals.Listening(served, listener, port, self.config)
        for place in self._listening:
            self._accept(place)

    # --- the loop --------------------------------------------------------------------------

    def serve_forever(self) -> None:
        """Serve until `stop` is called, by a signal handler or a thread. Raises EngineDied."""
        while not self.stopping:
            self.step()

    def step(self) -> None:
        """Serve until Python was needed, at most one tick. Raises EngineDied."""
        tick = monotonic_ns() + (WAITING_TICK_NS if self._exclusive.is_waiting else TICK_NS)
        reason = serve(address_of(self._record), NEVER, tick)
        mine = self._record[0]
        attention = self._attention[: int(mine["attention_count"])].tolist()
        cold = self._cold[: int(mine["cold_count"])].tolist()
        mine["attention_count"] = mine["cold_count"] = 0
        if reason == PEER:
            raise EngineDied("the engine of this target went away: start it and serve again")
        found = [self._pumps[address] for address in attention if address in self._pumps]
        # What a lost nexus held is free for commands that came after the loss.
        for connection in sorted(found, key=lambda each: int(each.pump["error"]) == 0):
            self._guard(connection, self._attend)
        for row in cold:
            self._complete(self._lanes.all[row[2]], _completion(row))
        if self._files.is_at_rest() or self._exclusive.is_waiting:
            self._exclusive.look()
        if mine["kicked"]:
            self._answer_calls()
        self._retry()
        self._expire()
        self._finish_closed()
        self._watch()

    def _retry(self) -> None:
        for lane in self._lanes.all:
            lane.retry()
        for connection in list(self._pumps.values()):
            self._guard(connection, self._try_again)

    def _try_again(self, connection: Connection) -> None:
        """What waits for a slot, for room, or for work on what was aborted."""
        if connection.managed and connection.phase is Phase.FULL:
            self._settle(connection)
        if connection.unsent and connection.phase is Phase.FULL:
            control.send_waiting(connection)
            self._touch(connection)
        elif connection.phase is Phase.LEAVING:
            self._leave(connection)

    def _settle(self, connection: Connection) -> None:
        """Answer task management that waited for work on aborted tasks."""
        if control.settle(connection, self._around):
            self._leave(connection)
        self._touch(connection)

    def _expire(self) -> None:
        now = monotonic_ns()
        for connection in self.connections:
            if now >= connection.deadline_ns:
                what = connection.phase.name.lower()
                self.counts[f"timeouts in {what}"] += 1
                log.info("%s: time is up in phase %s", connection, what)
                self._close(connection)
            elif connection.phase is Phase.FULL:
                self._keep_alive(connection, now)
                self._guard(connection, lambda each: self._want_data(each, now))

    def _keep_alive(self, connection: Connection, now_ns: int) -> None:
        step = control.keep_alive(connection, now_ns)
        if step is Step.GIVE_UP:
            self.counts["initiators silent"] += 1
            log.info("%s: no sign of life, also when asked", connection)
            self._close(connection)
        elif step is Step.ASK:
            self._touch(connection)

    def _want_data(self, connection: Connection, now_ns: int) -> None:
        """End a connection whose initiator owes data for too long, or does not take any.

        Its command could not be answered instead: a response must not come before the data that was
        asked for (RFC 7143 §7.8), and at error recovery level 0 there is no other way to give up an
        R2T. The initiator logs in again and repeats what it wants.
        """
        late = connection.overdue_task(now_ns) if connection.phase is Phase.FULL else None
        if late is None:
            return
        self.counts["data overdue"] += 1
        what = "owes data" if late >= 0 else "has not taken data that it asked for"
        log.warning("%s: %s for more than %s s", connection, what, self.config.data_timeout_s)
        assert connection.result is not None, "it logged in"
        session = connection.result.session
        times = (session.default_time2wait, session.default_time2retain)
        control.announce(connection, announce.connection_dropped(connection.result.cid, *times))
        self._leave(connection)

    def _complete(self, lane: Lane, done: Completion) -> None:
        if done.unsolicited:
            connection = self._endpoints.get((lane, done.endpoint))
            if connection is not None:
                self._disconnected(connection, done.status)
            return
        kind, slot = done.user_data & (1 << KIND_BITS) - 1, done.user_data >> KIND_BITS
        if kind == ACCEPT:
            self._accepted(slot, done)
            return
        if kind == LISTEN:
            self._listened(slot, done)
            return
        if kind == UNIT:
            self._units_changed(done)
            return
        if kind == FENCE:
            self._fences.complete(done)
            return
        connection = self._slots[slot]
        if kind == LOGIN_MEMORY and connection is not None and connection.lane is lane:
            self._guard(connection, lambda each: self._memory_ready(each, done))
            return
        if connection is None or (connection.lane, connection.endpoint) != (lane, done.endpoint):
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
            self._guard(connection, lambda each: self._login_step(each, kind, done))

    def _disconnected(self, connection: Connection, status: int) -> None:
        """A stream is over that nobody was receiving from: a datamover's, above all."""
        if not violations.is_violation(status) or connection.phase is Phase.CLOSING:
            self._close(connection)
            return
        self.counts["violations"] += 1
        log.info("%s: %s", connection, violations.describe(status))
        self._linger(connection, status)

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
            self._touch(connection)

    def _failed(self, connection: Connection, error: int) -> None:
        """The stream ended, or the peer broke the protocol."""
        if connection.moves and error != -errno.EPROTO:
            self._disconnected(connection, error)
            return
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
        if self._push_out(connection) or not self._record[0]["parting"]:
            self._shut(connection)
        else:
            self._leave(connection)  # when the other engines know what it has to say

    # --- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """End every connection and listener, and give all memory back. Idempotent."""
        self._lanes.close()
        for target in self._targets.values():
            for unit in target.units.values():
                sanitize.stop(unit)
        for connection in self.connections:
            connection.phase = Phase.CLOSING  # so that no worker goes on with its command
        self._exclusive.stop()
        self._slow.stop()
        if self._files.stop():
            for connection in self.connections:
                connection.free()
                self._slots[connection.slot] = None
            self._release()
        self._pumps.clear()

    def __enter__(self) -> "TargetServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _completion(row: tuple[Any, ...]) -> Completion:
    # The order of shm.records.CQE's fields; the third is the lane's place (`target.pump`).
    _, opcode, _, flags, endpoint, user_data, status, length, _, _, arg0, arg1, arg2 = row
    return Completion(opcode, endpoint, user_data, status, length, flags, arg0, arg1, arg2)
