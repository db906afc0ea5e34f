"""Connections of one channel's queue pairs on verbs devices, through the connection manager.

Nothing here waits: a step is begun when the host asks for it, and what came of it is found by
`look`, whoever asks for that. The host is told that there is something to look for by the engine,
which watches the manager's descriptors.
"""

import contextlib
import errno
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from ppe.cycle.control_port import ControlPort
from ppe.cycle.device_objects import Objects, refusal, watch
from ppe.cycle.rnic.verbs import connection as cm
from ppe.cycle.rnic.verbs.device import VerbsError
from shm.verbs import EVENT_DISCONNECTED, ORDER_CLOSE, ORDER_READY, ORDER_TELL

CONNECTIONS_MAX: Final = 4096  # of one channel, those that are being made among them

_FAILURES: Final = (
    cm.ADDR_ERROR,
    cm.ROUTE_ERROR,
    cm.CONNECT_ERROR,
    cm.UNREACHABLE,
    cm.REJECTED,
    cm.DEVICE_REMOVAL,
)


@dataclass(slots=True, eq=False)
class Watched:
    """A channel of the connection manager, and the endpoint by which the engine watches it.
    `listener`: its listener while it has one; `users`: connections whose events come here.
    """

    channel: cm.CmChannel
    endpoint: int
    listener: cm.Listener | None = None
    number: int = 0  # what the host calls the listener
    users: set["Link"] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Link:
    """A connection, from its first step on. `endpoint`: its queue pair's, 0 before there is one."""

    number: int
    connection: cm.Connection
    watched: Watched
    is_active: bool
    is_resolved: bool  # before that the manager knows no device of it
    endpoint: int = 0
    is_ready: bool = False
    is_over: bool = False


class Connections:
    """All connections and listeners of one channel."""

    def __init__(self, port: ControlPort, objects: Objects) -> None:
        self._port, self._objects = port, objects
        self._numbers = count(1)
        self._links: dict[int, Link] = {}
        self._by_pointer: dict[int, Link] = {}
        self._by_endpoint: dict[int, Link] = {}
        self._listeners: dict[int, Watched] = {}
        self._watched: list[Watched] = []
        self._active: Watched | None = None  # where active connections have their events
        self._news: deque[dict[str, Any]] = deque()

    # --- what the host asks for -----------------------------------------------------------------

    def resolve(self, host: str, port: int) -> int:
        """Look for the way to an address; the number of the connection."""
        self._check_room()
        if self._active is None:
            self._active = self._watch(cm.CmChannel(), None)
        made = cm.begin(self._active.channel, host, port)
        return self._add(made, self._active, is_active=True).number

    def prepare(self, number: int, domain: int, srq: int, sends: int, receives: int) -> int:
        """Make the queue pair of a connection: its endpoint, to which receives may be posted."""
        link = self._link(number)
        if link.endpoint or link.is_over or not link.is_resolved:
            raise refusal(
                errno.EISCONN, "this connection has a queue pair, is over, or not resolved"
            )
        if link.connection.device_name != self._objects.opened.device.name:
            raise refusal(
                errno.ENODEV,
                f"the address is on device {link.connection.device_name}, not on "
                f"{self._objects.opened.device.name}",
            )
        endpoint = self._objects.make_qp(domain, srq, sends, receives)
        link.endpoint, self._by_endpoint[endpoint] = endpoint, link
        link.connection.take(self._objects.qps[endpoint].qp)
        return endpoint

    def connect(self, number: int, private_data: bytes, ird: int, ord: int) -> None:
        """Ask the peer."""
        self._open(number, is_active=True).connection.ask(private_data, ird, ord)

    def accept(self, number: int, private_data: bytes, ird: int, ord: int) -> None:
        """Say yes to a request."""
        self._open(number, is_active=False).connection.grant(private_data, ird, ord)

    def reject(self, number: int, private_data: bytes) -> None:
        """Say no to a request, and why."""
        link = self._open(number, is_active=False)
        try:
            link.connection.reject(private_data)
        finally:
            self.drop(number)

    def listen(self, host: str, port: int, backlog: int) -> tuple[int, int]:
        """Number and port of a listener."""
        self._check_room()
        made = cm.Listener(host, port, backlog=backlog)
        watched = self._watch(made.channel, made)
        watched.number = next(self._numbers)
        self._listeners[watched.number] = watched
        return watched.number, made.port

    def unlisten(self, number: int) -> None:
        """Listen no more; connections that came of it go on."""
        watched = self._listeners.pop(number, None)
        if watched is None or watched.listener is None:
            raise refusal(errno.EBADF, f"there is no listener {number}")
        watched.listener.stop()
        watched.listener = None
        self._close_unused(watched)

    def disconnect(self, endpoint: int) -> None:
        """End a queue pair's connection in order."""
        link = self._by_endpoint.get(endpoint)
        if link is not None and link.is_ready and not link.is_over:
            link.connection.disconnect()

    def drop(self, number: int) -> None:
        """Forget a connection, wherever it is. One that has a queue pair ends."""
        link = self._links.pop(number, None)
        if link is None:
            return
        if link.is_ready and not link.is_over:
            with contextlib.suppress(VerbsError):
                link.connection.disconnect()
        link.is_over = True
        self._by_endpoint.pop(link.endpoint, None)
        self._by_pointer = {at: each for at, each in self._by_pointer.items() if each is not link}
        link.connection.close()
        link.watched.users.discard(link)
        self._close_unused(link.watched)

    def forget(self, endpoint: int) -> None:
        """A queue pair is about to go."""
        link = self._by_endpoint.get(endpoint)
        if link is not None:
            self.drop(link.number)

    def take_news(self) -> list[dict[str, Any]]:
        """What the host does not know yet."""
        found = list(self._news)
        self._news.clear()
        return found

    def close(self) -> None:
        """Forget everything; the endpoints by which it was watched go with the channel."""
        for number in list(self._links):
            self.drop(number)
        for watched in list(self._watched):
            watched.channel.close()
        self._watched.clear()
        self._listeners.clear()

    # --- what comes -----------------------------------------------------------------------------

    def look(self) -> None:
        """Take every event there is, and do what it asks for."""
        for watched in list(self._watched):
            while True:
                listener = watched.listener.cm if watched.listener is not None else None
                event = watched.channel.next_event(0, listener)
                if event is None:
                    break
                self._on_event(watched, event)

    def _on_event(self, watched: Watched, event: cm.CmEvent) -> None:
        if event.request is not None:
            self._on_request(watched, event)
            return
        link = self._by_pointer.get(event.cm_id)
        if link is None or link.is_over:
            return
        try:
            self._advance(link, event)
        except (VerbsError, OSError) as error:
            self._fail(link, str(error), event)

    def _advance(self, link: Link, event: cm.CmEvent) -> None:
        if event.kind == cm.ADDR_RESOLVED:
            link.connection.route()
        elif event.kind == cm.ROUTE_RESOLVED:
            link.is_resolved = True
            self._news.append({"id": link.number, "what": "resolved"})
        elif event.kind in (cm.CONNECT_RESPONSE, cm.ESTABLISHED):
            if event.kind == cm.CONNECT_RESPONSE:
                link.connection.complete()
            self._establish(link, event)
        elif event.kind == cm.DISCONNECTED and link.is_ready:
            self.end(link.endpoint, EVENT_DISCONNECTED)
        elif event.kind in _FAILURES or event.kind == cm.DISCONNECTED:
            self._fail(link, str(cm.ConnectionFailedError(event)), event)

    def _on_request(self, watched: Watched, event: cm.CmEvent) -> None:
        connection = cm.Connection(watched.channel, event.request)
        if len(self._links) >= CONNECTIONS_MAX:
            with contextlib.suppress(VerbsError):
                connection.reject()
            connection.close()
            return
        link = self._add(connection, watched, is_active=False)
        self._news.append(
            {
                "id": link.number,
                "what": "request",
                "listener": watched.number,
                "private": event.private_data.hex(),
                "ird": event.ird,
                "ord": event.ord,
            }
        )

    def _establish(self, link: Link, event: cm.CmEvent) -> None:
        if link.is_ready:
            return
        self._port.order_verbs(ORDER_READY, self._objects.channel, endpoint=link.endpoint)
        link.is_ready = True
        self._news.append(
            {
                "id": link.number,
                "what": "established",
                "private": event.private_data.hex(),
                "ird": event.ird,
                "ord": event.ord,
            }
        )

    def _fail(self, link: Link, why: str, event: cm.CmEvent) -> None:
        link.is_over = True
        self._news.append(
            {
                "id": link.number,
                "what": "failed",
                "why": why,
                "rejected": event.kind == cm.REJECTED,
                "private": event.private_data.hex(),
            }
        )

    def end(self, endpoint: int, event: int) -> None:
        """A connection is over: the host is told why, and what is posted comes back flushed."""
        self._port.order_verbs(ORDER_TELL, self._objects.channel, endpoint=endpoint, arg0=event)
        link = self._by_endpoint.get(endpoint)
        if link is not None:
            link.is_over = True
            with contextlib.suppress(VerbsError):
                link.connection.disconnect()  # The manager waits for our word, too.
        with contextlib.suppress(VerbsError):
            self._objects.qps[endpoint].qp.flush()

    # --- keeping --------------------------------------------------------------------------------

    def _watch(self, channel: cm.CmChannel, listener: cm.Listener | None) -> Watched:
        try:
            endpoint = watch(self._port, channel.descriptor, self._objects.channel)
        except OSError:
            channel.close()
            raise
        made = Watched(channel, endpoint, listener)
        self._watched.append(made)
        return made

    def _close_unused(self, watched: Watched) -> None:
        """Give a manager's channel back that nothing comes by any more."""
        if watched.users or watched.listener is not None or watched is self._active:
            return
        if watched not in self._watched:
            return
        self._watched.remove(watched)
        with contextlib.suppress(OSError):  # Its owner may have closed the endpoint.
            self._port.order_verbs(ORDER_CLOSE, self._objects.channel, endpoint=watched.endpoint)
        watched.channel.close()

    def _add(self, connection: cm.Connection, watched: Watched, *, is_active: bool) -> Link:
        link = Link(next(self._numbers), connection, watched, is_active, not is_active)
        self._links[link.number] = link
        self._by_pointer[connection.pointer] = link
        watched.users.add(link)
        return link

    def _link(self, number: int) -> Link:
        link = self._links.get(number)
        if link is None:
            raise refusal(errno.EBADF, f"there is no connection {number}")
        return link

    def _open(self, number: int, *, is_active: bool) -> Link:
        link = self._link(number)
        if link.is_over or link.is_ready or link.is_active != is_active:
            raise refusal(
                errno.ENOTCONN, "this connection was made already, is over, or the other way round"
            )
        return link

    def _check_room(self) -> None:
        if len(self._links) + len(self._listeners) >= CONNECTIONS_MAX:
            raise refusal(
                errno.ENOBUFS, f"a channel has at most {CONNECTIONS_MAX} connections and listeners"
            )
