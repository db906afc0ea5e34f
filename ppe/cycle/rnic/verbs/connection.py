"""Connections of verbs devices through the connection manager (librdmacm), with pyverbs.

Nothing here waits inside pyverbs, which would hold every other Python thread: an event is fetched
only when the channel's descriptor is readable, copied, and acknowledged at once (rdma_destroy_id
waits for that). Queue pairs are made apart from the manager, in a domain of the caller's choice,
and are taken through their states as the manager says.
"""

import contextlib
import socket
import time
from dataclasses import dataclass
from typing import Any, Final

from ppe.cycle.rnic.verbs import layouts, libc, pointers, records
from ppe.cycle.rnic.verbs.device import VerbsError, asking, is_readable
from ppe.cycle.rnic.verbs.library import part
from ppe.cycle.rnic.verbs.queues import QueuePair
from shm.operations import pack_socket_address
from shm.view import window

# enum rdma_cm_event_type
ADDR_RESOLVED: Final = 0
ADDR_ERROR: Final = 1
ROUTE_RESOLVED: Final = 2
ROUTE_ERROR: Final = 3
CONNECT_REQUEST: Final = 4
CONNECT_RESPONSE: Final = 5
CONNECT_ERROR: Final = 6
UNREACHABLE: Final = 7
REJECTED: Final = 8
ESTABLISHED: Final = 9
DISCONNECTED: Final = 10
DEVICE_REMOVAL: Final = 11
TIMEWAIT_EXIT: Final = 15
_NAMES: Final = {
    ADDR_ERROR: "the address leads to no RDMA device",
    ROUTE_ERROR: "there is no route",
    CONNECT_ERROR: "the connection failed",
    UNREACHABLE: "the peer does not answer",
    REJECTED: "the peer rejected the connection",
    DISCONNECTED: "the peer disconnected",
    DEVICE_REMOVAL: "the device was removed",
}
PS_TCP: Final = 0x106  # enum rdma_port_space
QPS_INIT, QPS_RTR, QPS_RTS = 1, 2, 3
RETRIES: Final = 7  # of lost packets, on RoCE and InfiniBand
RNR_RETRIES: Final = 7  # without end; iWARP has no such thing
RESOLVE_MS: Final = 2000
PRIVATE_DATA_MAX: Final = 255  # one byte counts it; devices take less, iWARP 252 on siw
DEPTH_MAX: Final = 255  # IRD and ORD are bytes here


class ConnectionFailedError(VerbsError):
    """No connection; `event` is the connection manager's, `private_data` the peer's word on it."""

    def __init__(self, event: "CmEvent") -> None:
        said = _NAMES.get(event.kind, f"event {event.kind}")
        super().__init__(f"{said} (status {event.status})")
        self.event = event
        self.private_data = event.private_data


@dataclass(frozen=True, slots=True)
class CmEvent:
    """A copy of an event. `ird` and `ord` are what the peer offers, as this side would use them:
    how many of our reads it serves, and how many it will have under way to us.
    """

    kind: int
    status: int
    cm_id: int
    private_data: bytes = b""
    ird: int = 0
    ord: int = 0
    request: Any = None  # of CONNECT_REQUEST: its CMID


class CmChannel:
    """Where events of many connections arrive."""

    def __init__(self) -> None:
        with asking("there is no connection manager (modprobe rdma_ucm)"):
            self.channel = part("cmid").CMEventChannel()
        self.pointer = pointers.event_channel_pointer(self.channel)
        self.descriptor = pointers.event_channel_descriptor(self.channel)
        self.ids: list[Any] = []

    def next_event(self, timeout_s: float, listener: Any = None) -> CmEvent | None:
        """The next event, or None when none comes in time. A request needs its listening CMID."""
        if not is_readable(self.descriptor, timeout_s):
            return None
        event = part("cmid").CMEvent(self.channel)
        try:
            return self._copy(event, listener)
        finally:
            event.ack_cm_event()

    def expect(self, kinds: tuple[int, ...], timeout_s: float) -> CmEvent:
        """Wait for one of these. Raises ConnectionFailedError for another, VerbsError for none."""
        end = time.monotonic() + timeout_s
        event = self.next_event(end - time.monotonic())
        if event is None:
            raise VerbsError(f"the connection manager said nothing in {timeout_s:g} s")
        if event.kind not in kinds:
            raise ConnectionFailedError(event)
        return event

    def _copy(self, event: Any, listener: Any) -> CmEvent:
        found = window(pointers.cm_event_pointer(event), 1, layouts.CM_EVENT)[0]
        length, data = int(found["private_data_len"]), int(found["private_data"])
        request = None
        if int(found["event"]) == CONNECT_REQUEST and listener is not None:
            request = self.identifier(creator=event, listen_id=listener)
        return CmEvent(
            kind=int(found["event"]),
            status=int(found["status"]),
            cm_id=int(found["id"]),
            private_data=pointers.read_memory(data, length) if length and data else b"",
            ird=int(found["responder_resources"]),
            ord=int(found["initiator_depth"]),
            request=request,
        )

    def identifier(self, **options: Any) -> Any:
        """A new identifier whose events come here."""
        made = part("cmid").CMID(port_space=PS_TCP, **options)
        self.ids.append(made)
        return made

    def forget(self, cm: Any) -> None:
        """Give an identifier back."""
        if cm in self.ids:
            self.ids.remove(cm)
            cm.close()

    def __del__(self) -> None:
        # Left to itself, librdmacm would give identifiers back to a channel that is gone.
        with contextlib.suppress(Exception):
            self.close()

    def close(self) -> None:
        """Give back the identifiers that are left, and the channel."""
        while self.ids:
            self.forget(self.ids[-1])
        self.channel.close()


def _parameters(qp: QueuePair, private_data: bytes, ird: int, ord: int) -> Any:
    if len(private_data) > PRIVATE_DATA_MAX:
        raise ValueError(f"private data of {len(private_data)} bytes; {PRIVATE_DATA_MAX} fit")
    if not (0 <= ird <= DEPTH_MAX and 0 <= ord <= DEPTH_MAX):
        raise ValueError(f"IRD {ird} and ORD {ord} must be from 0 to {DEPTH_MAX}")
    made = part("cmid").ConnParam(
        resources=ird,
        depth=ord,
        retry=RETRIES,
        rnr_retry=RNR_RETRIES,
        srq=1 if qp.srq else 0,
        qp_num=qp.qp_num,
        data_len=len(private_data),
    )
    if private_data:
        made.set_private_data(private_data)
    return made


class Connection:
    """One side of a connection, on an identifier of the connection manager."""

    def __init__(self, channel: CmChannel, cm: Any) -> None:
        self.channel, self.cm = channel, cm
        self.qp: QueuePair | None = None
        self.accepted_data = b""

    @property
    def device_name(self) -> str:
        """The device that the address leads to; its queue pair must be of that one."""
        name = self.cm.dev_name
        return name.decode() if isinstance(name, bytes) else str(name)

    def connect(
        self,
        qp: QueuePair,
        *,
        private_data: bytes = b"",
        ird: int = 1,
        ord: int = 1,
        timeout_s: float = 10.0,
    ) -> CmEvent:
        """Connect; the peer's answer, with its private data. Raises ConnectionFailedError."""
        self.take(qp)
        self.ask(private_data, ird, ord)
        answer = self.channel.expect((CONNECT_RESPONSE, ESTABLISHED), timeout_s)
        if answer.kind == CONNECT_RESPONSE:
            self.complete()
        self._ready(qp)
        return answer

    def accept(
        self,
        qp: QueuePair,
        *,
        private_data: bytes = b"",
        ird: int = 1,
        ord: int = 1,
        timeout_s: float = 10.0,
    ) -> CmEvent:
        """Accept the request that this identifier came with. Raises ConnectionFailedError."""
        self.take(qp)
        self.grant(private_data, ird, ord)
        answer = self.channel.expect((ESTABLISHED,), timeout_s)
        self._ready(qp)
        return answer

    # The steps of these, for whoever may not wait.

    def take(self, qp: QueuePair) -> None:
        """This queue pair is to be connected; receives may be posted to it from now on."""
        if qp.device.name != self.device_name:
            raise VerbsError(
                f"the address is on device {self.device_name}, the queue pair on {qp.device.name}"
            )
        self.qp = qp
        self._step(QPS_INIT)

    def ask(self, private_data: bytes, ird: int, ord: int) -> None:
        """Ask for the connection; CONNECT_RESPONSE (then `complete`) or ESTABLISHED answers."""
        parameters = _parameters(self._taken, private_data, ird, ord)
        with asking("the connection failed"):
            self.cm.connect(parameters)

    def complete(self) -> None:
        """InfiniBand and RoCE leave the last steps to whoever made the queue pair."""
        self._step(QPS_RTR)
        self._step(QPS_RTS)
        with asking("the connection failed"):
            self.cm.establish()

    def grant(self, private_data: bytes, ird: int, ord: int) -> None:
        """Accept the request; ESTABLISHED follows."""
        parameters = _parameters(self._taken, private_data, ird, ord)
        self._step(QPS_RTR)
        self._step(QPS_RTS)
        with asking("the connection cannot be accepted"):
            self.cm.accept(parameters)

    def route(self) -> None:
        """The address was resolved: look for the way there; ROUTE_RESOLVED answers."""
        with asking("there is no route"):
            self.cm.resolve_route(RESOLVE_MS)

    @property
    def _taken(self) -> QueuePair:
        if self.qp is None:
            raise VerbsError("this connection has no queue pair yet")
        return self.qp

    @property
    def pointer(self) -> int:
        """What events call it (`CmEvent.cm_id`)."""
        return pointers.cm_pointer(self.cm, self.channel.pointer)

    def reject(self, private_data: bytes = b"") -> None:
        """Reject the request that this identifier came with, and say why."""
        if len(private_data) > PRIVATE_DATA_MAX:
            raise ValueError(f"private data of {len(private_data)} bytes; {PRIVATE_DATA_MAX} fit")
        libc.reject(self.pointer, private_data, "the connection cannot be rejected")

    def disconnect(self) -> None:
        """Close the connection in order: what was sent arrives, what is posted is flushed."""
        with asking("the connection cannot be closed"):
            self.cm.disconnect()

    def close(self) -> None:
        """Give the identifier back; the queue pair stays."""
        self.channel.forget(self.cm)

    def _step(self, state: int) -> None:
        with asking(f"the connection manager has no way to state {state}"):
            attributes, mask = self.cm.init_qp_attr(state)
        self._taken.modify(attributes, mask)

    def _ready(self, qp: QueuePair) -> None:
        window(qp.address, 1, records.QP)[0]["state"] = records.QP_READY


def begin(channel: CmChannel, address: str, port: int, *, source: str | None = None) -> Connection:
    """An identifier that looks for this address; ADDR_RESOLVED answers, then `route`."""
    cmid = part("cmid")
    with asking(f"{address} port {port} leads nowhere"):
        info = cmid.AddrInfo(src=source, dst=address, dst_service=str(port), port_space=PS_TCP)
        cm = channel.identifier(creator=channel.channel)
    try:
        with asking(f"{address} leads to no RDMA device"):
            cm.resolve_addr(info, RESOLVE_MS)
    except BaseException:
        channel.forget(cm)
        raise
    return Connection(channel, cm)


def resolve(
    channel: CmChannel, address: str, port: int, *, source: str | None = None
) -> Connection:
    """An identifier for a connection to this address. Raises ConnectionFailedError."""
    made = begin(channel, address, port, source=source)
    try:
        channel.expect((ADDR_RESOLVED,), RESOLVE_MS / 1000 + 1)
        made.route()
        channel.expect((ROUTE_RESOLVED,), RESOLVE_MS / 1000 + 1)
    except BaseException:
        made.close()
        raise
    return made


class Listener:
    """Waits for connections at an address of one device, or of all; port 0: one that is free."""

    def __init__(self, address: str, port: int, *, backlog: int = 16) -> None:
        name = pack_socket_address(address, port)
        self.channel = CmChannel()
        self.cm = self.channel.identifier(creator=self.channel.channel)
        try:
            found = pointers.cm_pointer(self.cm, self.channel.pointer)
            what = f"nobody can listen at {address} port {port} of an RDMA device"
            libc.bind_address(found, name, what)
            with asking(what):
                self.cm.listen(backlog)
            self.port = socket.ntohs(libc.source_port(found))
        except BaseException:
            self.close()
            raise

    def request(self, timeout_s: float) -> tuple[Connection, CmEvent]:
        """The next request, with its private data and depths. Raises VerbsError when none comes."""
        event = self.channel.next_event(timeout_s, self.cm)
        if event is None:
            raise VerbsError(f"no connection request in {timeout_s:g} s")
        if event.request is None:
            raise ConnectionFailedError(event)
        return Connection(self.channel, event.request), event

    def stop(self) -> None:
        """Stop listening; connections that came of it go on, over the channel."""
        self.channel.forget(self.cm)

    def close(self) -> None:
        """Stop listening; connections that came of it end, too."""
        self.channel.close()
