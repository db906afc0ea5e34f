"""How connections end: behind everything posted or at once, and their memory, which comes back only
when the engine and the workers are done with it.
"""

import errno
import logging
from collections.abc import Callable
from time import monotonic_ns
from typing import Final

from host.errors import EngineDied
from iscsi.target import control
from iscsi.target.connection import NO_DEADLINE, Connection, Phase
from iscsi.target.pump import PARTING, push_out
from iscsi.target.server_core import CLOSE, KIND_BITS, SHUTDOWN, ServerCore
from shm.view import address_of

log: Final = logging.getLogger(__name__)


class Endings(ServerCore):
    """The part of the server that ends connections."""

    def _guard(self, connection: Connection, serve: Callable[[Connection], None]) -> None:
        """Do something for a connection: an error of this program ends it, and nothing else."""
        try:
            serve(connection)
        except EngineDied:
            raise
        except Exception:
            self.counts["errors"] += 1
            log.exception("%s: ended by an error of this program", connection)
            self._close(connection)

    def _leave(self, connection: Connection) -> None:
        """End a connection once all that was made is posted."""
        connection.phase = Phase.LEAVING
        if connection.deadline_ns == NO_DEADLINE:
            connection.deadline_ns = monotonic_ns() + int(self.config.linger_s * 1e9)
        control.send_waiting(connection)
        if self._push_out(connection) and not connection.unsent:
            connection.pump["error"] = -errno.ESHUTDOWN
            self._shut(connection)

    def _push_out(self, connection: Connection) -> bool:
        """Post what a connection has to send; whether that is all of it."""
        return push_out(address_of(self._record), connection.pump_address)

    def _shut(self, connection: Connection) -> None:
        """End the stream behind everything posted; then wait a moment for the peer."""
        connection.phase = Phase.SHUTTING
        if connection.pump_address:
            connection.pump["busy"] |= PARTING
        connection.deadline_ns = monotonic_ns() + int(self.config.linger_s * 1e9)
        data = connection.slot << KIND_BITS | SHUTDOWN
        lane, endpoint = connection.lane, connection.endpoint
        lane.post(lambda: bool(lane.channel.post_shutdown(endpoint, data)))

    def _linger(self, connection: Connection, error: int) -> None:
        """The engine has said why it ends a connection: let the peer read that."""
        connection.phase = Phase.LINGERING
        connection.pump["busy"] |= PARTING
        connection.pump["error"] = error
        connection.deadline_ns = monotonic_ns() + int(self.config.linger_s * 1e9)

    def _close(self, connection: Connection) -> None:
        """End an endpoint now. Its memory comes back with the completion."""
        if connection.phase is Phase.CLOSING:
            return
        connection.phase, connection.deadline_ns = Phase.CLOSING, NO_DEADLINE
        # The nexus is lost now, however long a worker still needs our memory.
        connection.nexus.detach()
        self._logins.pop(connection, None)
        if connection.pump_address and connection.pump["error"] == 0:
            connection.pump["error"] = -errno.ESHUTDOWN
        data = connection.slot << KIND_BITS | CLOSE
        lane, endpoint = connection.lane, connection.endpoint
        # Who is let in because this one is gone is let in behind its end.
        lane.post_first(lambda: bool(lane.channel.post_close(endpoint, data)))

    def _finish_closed(self) -> None:
        """Connections that waited for a worker."""
        for connection in [found for found in self._unfinished if not found.jobs]:
            self._unfinished.remove(connection)
            self._closed(connection)

    def _closed(self, connection: Connection) -> None:
        if connection.jobs:
            self._unfinished.append(connection)
            return
        self.counts["closed"] += 1
        key = connection.session_key or _key_of(connection)
        if key is not None and self._sessions.get(key) is connection:
            del self._sessions[key]
        self._pumps.pop(connection.pump_address, None)
        self._endpoints.pop((connection.lane, connection.endpoint), None)
        connection.lane.connections -= 1
        self._reserved -= connection.block is not None
        if connection.lane.lending is not None and connection.pump_address:
            connection.lane.lending.forget(connection.pump_address)
        connection.free()
        self._slots[connection.slot] = None
        self._free_slots.append(connection.slot)
        for successor in connection.successors:
            self._guard(successor, self._send_login)


def _key_of(connection: Connection) -> tuple[str, int, str] | None:
    result = connection.result
    if result is None or result.target_name is None:
        return None
    return result.initiator_name, result.isid, result.target_name
