"""Queue pairs and shared receive queues as the control plane makes them: those of the software RNIC
here, those of a verbs device in `devices`, which is loaded when a client asks for one.
"""

from typing import TYPE_CHECKING, Any

from ppe.cycle.blocks import Blocks
from ppe.cycle.control_port import ControlPort
from ppe.cycle.rnic.receive import build_rq, rq_size
from ppe.cycle.services.rdma_records import HELD, HELD_OVER, HELD_SIZE, HELD_STATE
from shm.atomics import load_acquire
from shm.jit import entry
from shm.qp_spec import DEPTH_MAX, QpSpec
from shm.verbs import ORDER_DOMAIN, ORDER_ENABLE, ORDER_SRQ
from shm.view import window

if TYPE_CHECKING:
    from ppe.cycle.device_objects import Objects
    from ppe.cycle.devices import Devices


@entry("boolean(intp)")
def _is_over(held: int) -> bool:
    return load_acquire(held + HELD_STATE) == HELD_OVER


class Rnics:
    """The RDMA objects of one engine. `limit`: bytes of all their blocks together; `client_limit`:
    of those that one client uses; `devices`: the verbs devices that clients may use, None for all.
    """

    def __init__(
        self,
        port: ControlPort,
        limit: int,
        client_limit: int,
        devices: tuple[str, ...] | None = None,
    ) -> None:
        self._port = port
        self._limits, self._allowed = (limit, client_limit), devices
        self._devices: Devices | None = None
        self._blocks = Blocks("queue pairs and receive queues", _is_over, limit, client_limit)

    def call(self, client: int, channel: int, message: dict[str, Any]) -> dict[str, Any]:
        """Carry out what a client asks for: `do` is domain, srq, enable, or iser: make ready for
        datamovers on queue pairs, which may take a while.

        Raises ValueError for what cannot be, MemoryError beyond a limit, OSError when the engine
        refuses.
        """
        if "device" in message:
            return self.devices.call(client, channel, message)
        what = message.get("do")
        if what == "domain":
            return {"domain": self._port.order_rdma(ORDER_DOMAIN, channel)}
        if what == "srq":
            domain, depth = _number(message, "domain"), _number(message, "depth")
            return {"srq": self.make_srq(client, channel, domain, depth)}
        if what == "enable":
            spec = QpSpec.from_message(message.get("spec"))
            self.enable(client, channel, _number(message, "endpoint"), spec)
            return {}
        if what == "iser":
            self._port.tables.load_iser()
            return {}
        raise ValueError(f"{what!r} is nothing that an RNIC does")

    @property
    def devices(self) -> "Devices":
        """The verbs devices."""
        if self._devices is None:
            from ppe.cycle.devices import Devices

            self._devices = Devices(self._port, *self._limits, self._allowed)
        return self._devices

    def owner(self, channel: int, endpoint: int) -> "Objects | None":
        """Whose queue pair an endpoint of a channel is, if it is a verbs device's."""
        return None if self._devices is None else self._devices.owner(channel, endpoint)

    def leave(self, channel: int) -> None:
        """A channel is about to be detached: what it had of verbs devices goes first."""
        if self._devices is not None:
            self._devices.leave(channel)

    def left(self, channel: int) -> None:
        """The channel is detached."""
        if self._devices is not None:
            self._devices.left(channel)

    def close(self) -> None:
        """Close the verbs devices; no channel is left, and the engine runs still."""
        if self._devices is not None:
            self._devices.close()

    def make_srq(self, client: int, channel: int, domain: int, depth: int) -> int:
        """Id of a new shared receive queue of a protection domain."""
        if not 1 <= depth <= DEPTH_MAX:
            raise ValueError(f"depth {depth} is outside 1..{DEPTH_MAX}")
        table = self._load()
        with self._blocks.block(client, HELD_SIZE + rq_size(depth)) as held:
            core = _core_of(held)
            build_rq(core, depth, table, domain, shared=True)
            return self._port.order_rdma(ORDER_SRQ, channel, held=held, domain=domain)

    def enable(self, client: int, channel: int, endpoint: int, spec: QpSpec) -> None:
        """Have the engine make a queue pair of a connection after its start-up."""
        from ppe.cycle.rnic.iwarp.spec import QpSpec as Core

        table = self._load()
        core = Core(
            active=spec.active,
            crc=spec.crc,
            markers_rx=spec.markers_rx,
            markers_tx=spec.markers_tx,
            extensions=spec.extensions,
            rtr=spec.rtr,
            ird=spec.ird,
            ord=spec.ord,
            mulpdu=spec.mulpdu,
            sq_depth=spec.sq_depth,
        )
        core.check()
        size = HELD_SIZE + core.size + rq_size(spec.rq_depth)
        with self._blocks.block(client, size) as held:
            at = _core_of(held)
            rq = at + core.size
            build_rq(rq, spec.rq_depth, table, spec.domain)
            core.build(at, number=endpoint, pd=spec.domain, table=table, rq=rq)
            self._port.order_rdma(
                ORDER_ENABLE,
                channel,
                held=held,
                domain=spec.domain,
                endpoint=endpoint,
                srq=spec.srq,
            )

    def _load(self) -> int:
        """Make the engine able to serve queue pairs; address of its table of memory."""
        self._port.tables.load_rdma()
        return self._port.tables.memory_table


def _core_of(held: int) -> int:
    """Where what a new HELD is about lies: right behind it."""
    core = held + HELD_SIZE
    window(held, 1, HELD)[0]["core"] = core
    return core


def _number(message: dict[str, Any], name: str) -> int:
    value = message.get(name)
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError(f"{name} is {value!r}, which is no number of something")
    return value
