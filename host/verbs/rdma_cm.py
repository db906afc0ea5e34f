"""Connections over verbs devices: rdma_cm's steps as the control plane takes them for us. Each step
is asked for and then waited for here, while the device makes progress.
"""

from collections import deque
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from host.channel import resolve
from host.verbs.cm import ConnParam
from host.verbs.mpa import Rejected, Rtr, Startup
from shm.qp_spec import READS_MAX

if TYPE_CHECKING:
    from host.verbs.device_provider import DeviceProvider
    from host.verbs.qp import QueuePair

PRIVATE_DATA_MAX = 255  # what rdma_cm can count; a device's own protocol takes less
_IWARP_ONLY = ("revision", "crc", "markers", "rtr", "extensions", "mulpdu")


def check(param: ConnParam) -> None:
    """Raises ValueError for what a device's own connection manager does not let us choose."""
    plain = ConnParam()
    for name in _IWARP_ONLY:
        if getattr(param, name) != getattr(plain, name):
            raise ValueError(f"{name}: a verbs device makes its connections as it does, this is the"
                             " software RNIC's to choose")  # fmt: skip
    for name in ("responder_resources", "initiator_depth"):
        if not 0 <= getattr(param, name) <= READS_MAX:
            raise ValueError(f"{name} {getattr(param, name)} is outside 0..{READS_MAX}")
    _check_private(param.private_data)


def _check_private(data: bytes) -> None:
    if len(data) > PRIVATE_DATA_MAX:
        raise ValueError(f"private data of {len(data)} bytes: {PRIVATE_DATA_MAX} fit")


def connect(
    provider: "DeviceProvider", qp: "QueuePair", address: tuple[str, int], param: ConnParam
) -> Startup:
    """Connect a queue pair as the active side. The connection is closed again if anything fails."""
    check(param)
    deadline = monotonic() + param.timeout_s
    host, port = resolve(*address)[0]
    number = int(provider.ask("resolve", host=host, port=port)["id"])
    try:
        provider.await_news(number, "resolved", deadline)
        return _start(provider, qp, number, param, deadline, active=True)
    except BaseException:
        provider.drop(number)
        raise


def _start(
    provider: "DeviceProvider",
    qp: "QueuePair",
    number: int,
    param: ConnParam,
    deadline: float,
    *,
    active: bool,
) -> Startup:
    """The queue pair, its receives, and then the connection."""
    attributes = provider.attributes
    ird = min(param.responder_resources, attributes.max_qp_rd_atom)
    ord = min(param.initiator_depth, attributes.max_qp_rd_atom)
    endpoint = int(
        provider.ask(
            "prepare",
            id=number,
            domain=qp.pd.handle,
            srq=0 if qp.srq is None else qp.srq.endpoint,
            sends=qp.cap.max_send_wr,
            receives=qp.cap.max_recv_wr,
        )["endpoint"]
    )

    def establish() -> None:
        provider.ask(
            "connect" if active else "accept",
            id=number,
            private=param.private_data.hex(),
            ird=ird,
            ord=ord,
        )
        told.update(provider.await_news(number, "established", deadline))

    told: dict[str, Any] = {}
    provider.starting[endpoint] = establish
    startup = Startup(active, 0, True, False, False, ird, ord, Rtr.NONE, b"")
    try:
        qp.start(endpoint, startup, attributes.atomics)
    except BaseException:
        provider.close_quietly(endpoint)
        qp.device.lost_connection(qp)
        raise
    finally:
        provider.starting.pop(endpoint, None)
    qp.startup = startup = _agreed(startup, told)
    return startup


def _agreed(startup: Startup, told: dict[str, Any]) -> Startup:
    """What the peer answered with: its IRD bounds our ORD."""
    ord = min(startup.ord, told["ird"]) if startup.active and told["ird"] else startup.ord
    private_data = bytes.fromhex(told["private"])
    return Startup(startup.active, 0, True, False, False, startup.ird, ord, Rtr.NONE, private_data)


def failed(news: dict[str, Any]) -> Exception:
    """The error that news of a failure stand for."""
    if news.get("rejected"):
        return Rejected(bytes.fromhex(news["private"]))
    return ConnectionError(news["why"])


@dataclass(slots=True, eq=False)
class ConnectRequest:
    """A connection that asks to be accepted (RDMA_CM_EVENT_CONNECT_REQUEST). A device may pad its
    private data with zeros.
    """

    provider: "DeviceProvider"
    number: int
    private_data: bytes
    responder_resources: int
    initiator_depth: int
    answered: bool = False

    def accept(self, qp: "QueuePair", param: ConnParam | None = None) -> Startup:
        """Make a queue pair of it; what was agreed. Raises OSError."""
        param = param or ConnParam()
        check(param)
        qp._check_unconnected()
        self._answer()
        try:
            deadline = monotonic() + param.timeout_s
            return _start(self.provider, qp, self.number, param, deadline, active=False)
        except BaseException:
            self.provider.drop(self.number)
            raise

    def reject(self, private_data: bytes = b"", timeout_s: float = 0.0) -> None:
        """Say no, and why. Raises ValueError for more private data than fits."""
        _check_private(private_data)
        self._answer()
        self.provider.ask("reject", id=self.number, private=private_data.hex())

    def _answer(self) -> None:
        if self.answered:
            raise ValueError("this request was accepted or rejected already")
        self.answered = True


class Listener:
    """Waits for connections at an address of RDMA devices."""

    def __init__(self, provider: "DeviceProvider", address: tuple[str, int], backlog: int) -> None:
        self.provider = provider
        self.refused: deque[Exception] = deque(maxlen=64)
        self._requests: deque[ConnectRequest] = deque()
        self._device: Any = None
        self._closed = False
        host, port = resolve(*address, passive=True)[0]
        answer = provider.ask("listen", host=host, port=port, backlog=backlog)
        self.number, self.port = int(answer["id"]), int(answer["port"])
        self.address = (host, self.port)
        provider.listeners[self.number] = self

    def open(self, device: Any) -> None:
        """The device it belongs to."""
        self._device = device

    def check_timers(self) -> None:
        """A device's manager keeps its own time."""

    def put(self, news: dict[str, Any]) -> None:
        """A request came; the provider calls this. The manager's words are of the peer's side: its
        ORD is what it wants of our IRD.
        """
        data = bytes.fromhex(news["private"])
        self._requests.append(
            ConnectRequest(self.provider, news["id"], data, news["ird"], news["ord"])
        )

    def poll(self) -> ConnectRequest | None:
        """A request that came, or None. Never blocks."""
        self._device.progress()
        self.provider.look_soon()
        return self._requests.popleft() if self._requests else None

    def get_request(self, timeout_s: float | None = None) -> ConnectRequest:
        """Wait for a request. Raises TimeoutError."""
        found: list[ConnectRequest] = []

        def look() -> bool:
            request = self.poll()
            if request is not None:
                found.append(request)
            return bool(found)

        if not self._device.wait_until(look, timeout_s):
            raise TimeoutError(f"no connection request within {timeout_s} s")
        return found[0]

    def close(self) -> None:
        """Listen no more; requests that nobody answered are dropped. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.provider.listeners.pop(self.number, None)
        for request in self._requests:
            self.provider.drop(request.number)
        self._requests.clear()
        self.provider.ask("unlisten", id=self.number)
        self._device.forget_listener(self)

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
