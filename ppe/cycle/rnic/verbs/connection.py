"""Connections of verbs devices through the connection manager (librdmacm), with pyverbs.

Nothing here waits inside pyverbs, which would hold every other Python thread: an event is fetched
only when the channel's descriptor is readable, copied, and acknowledged at once (rdma_destroy_id
waits for that). Queue pairs are made apart from the manager, in a domain of the caller's choice,
and are taken through their states as the manager says.
"""

import contextlib
import time
from dataclasses import dataclass
from typing import Any, Final

from ppe.cycle.rnic.verbs import layouts, pointers, records
from ppe.cycle.rnic.verbs.device import VerbsError, asking, is_readable
from ppe.cycle.rnic.verbs.library import part
from ppe.cycle.rnic.verbs.queues import QueuePair
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
RAI_PASSIVE: Final = 1
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
        self._take(qp)
        parameters = _parameters(qp, private_data, ird, ord)
        with asking("the connection failed"):
            self.cm.connect(parameters)
        answer = self.channel.expect((CONNECT_RESPONSE, ESTABLISHED), timeout_s)
        if answer.kind == CONNECT_RESPONSE:
            # InfiniBand and RoCE leave the last steps to whoever made the queue pair.
            self._step(qp, QPS_RTR)
            self._step(qp, QPS_RTS)
            with asking("the connection failed"):
                self.cm.establish()
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
        self._take(qp)
        self._step(qp, QPS_RTR)
        self._step(qp, QPS_RTS)
        with asking("the connection cannot be accepted"):
            self.cm.accept(_parameters(qp, private_data, ird, ord))
        answer = self.channel.expect((ESTABLISHED,), timeout_s)
        self._ready(qp)
        return answer

    def reject(self) -> None:
        """Reject the request that this identifier came with. pyverbs can say no word with it."""
        with asking("the connection cannot be rejected"):
            self.cm.reject()

    def disconnect(self) -> None:
        """Close the connection in order: what was sent arrives, what is posted is flushed."""
        with asking("the connection cannot be closed"):
            self.cm.disconnect()

    def close(self) -> None:
        """Give the identifier back; the queue pair stays."""
        self.channel.forget(self.cm)

    def _take(self, qp: QueuePair) -> None:
        if qp.device.name != self.device_name:
            raise VerbsError(
                f"the address is on device {self.device_name}, the queue pair on {qp.device.name}"
            )
        self.qp = qp
        self._step(qp, QPS_INIT)

    def _step(self, qp: QueuePair, state: int) -> None:
        with asking(f"the connection manager has no way to state {state}"):
            attributes, mask = self.cm.init_qp_attr(state)
        qp.modify(attributes, mask)

    def _ready(self, qp: QueuePair) -> None:
        window(qp.address, 1, records.QP)[0]["state"] = records.QP_READY


def resolve(
    channel: CmChannel, address: str, port: int, *, source: str | None = None
) -> Connection:
    """An identifier for a connection to this address. Raises ConnectionFailedError."""
    cmid = part("cmid")
    with asking(f"{address} port {port} leads nowhere"):
        info = cmid.AddrInfo(src=source, dst=address, dst_service=str(port), port_space=PS_TCP)
        cm = channel.identifier(creator=channel.channel)
    try:
        with asking(f"{address} leads to no RDMA device"):
            cm.resolve_addr(info, RESOLVE_MS)
        channel.expect((ADDR_RESOLVED,), RESOLVE_MS / 1000 + 1)
        with asking(f"there is no route to {address}"):
            cm.resolve_route(RESOLVE_MS)
        channel.expect((ROUTE_RESOLVED,), RESOLVE_MS / 1000 + 1)
    except BaseException:
        channel.forget(cm)
        raise
    return Connection(channel, cm)


class Listener:
    """Waits for connections at an address of one device."""

    def __init__(self, address: str, port: int, *, backlog: int = 16) -> None:
        cmid = part("cmid")
        self.channel = CmChannel()
        self.cm = self.channel.identifier(creator=self.channel.channel)
        try:
            with asking(f"nobody can listen at {address} port {port} of an RDMA device"):
                info = cmid.AddrInfo(
                    src=address, src_service=str(port), port_space=PS_TCP, flags=RAI_PASSIVE
                )
                self.cm.bind_addr(info)
                self.cm.listen(backlog)
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

    def close(self) -> None:
        """Stop listening; connections that came of it end, too."""
        self.channel.close()
