"""Verbs devices as clients ask the control plane for them: which there are, what a message wants of
one, and what came of it. A machine without RDMA gets one sentence that says what is missing.
"""

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ppe.cycle.blocks import Blocks
from ppe.cycle.control_port import ControlPort
from ppe.cycle.device_connections import Connections
from ppe.cycle.device_objects import Objects, OpenDevice, is_over, refusal, watch
from ppe.cycle.regions import resolve
from ppe.cycle.rnic.verbs.device import IWARP, device_names
from ppe.cycle.rnic.verbs.library import NoVerbsError
from ppe.cycle.rnic.verbs.pointers import PointerUnknownError
from shm.jit import entry
from shm.qp_spec import DEPTH_MAX, READS_MAX
from shm.verbs import (
    EVENT_QP_ACCESS_ERR,
    EVENT_QP_FATAL,
    EVENT_QP_REQ_ERR,
    EVENT_SRQ_LIMIT_REACHED,
    ORDER_TELL,
    SGES_MAX,
)
from shm.verbs_numbers import WR_ATOMIC_FETCH_AND_ADD, WR_SEND_WITH_INV

_QP_EVENTS: Final = (EVENT_QP_FATAL, EVENT_QP_REQ_ERR, EVENT_QP_ACCESS_ERR)
WORD: Final = 1 << 63
BACKLOG_MAX: Final = 4096


@entry("int64(intp, int64, int64, int64, int64)")
def _resolve(engine: int, client: int, region: int, offset: int, length: int) -> int:
    return resolve(engine, client, region, offset, length)


@dataclass(slots=True, eq=False)
class Share:
    """What one channel has of one device."""

    objects: Objects
    connections: Connections

    def close(self) -> None:
        """The channel is about to go."""
        self.connections.close()
        self.objects.close()


class Devices:
    """The verbs devices of one engine. `allowed`: those that clients may use, None for all."""

    def __init__(
        self, port: ControlPort, limit: int, client_limit: int, allowed: tuple[str, ...] | None
    ) -> None:
        self._port, self._allowed = port, allowed
        self._blocks = Blocks("queue pairs of verbs devices", is_over, limit, client_limit)
        self._opened: dict[str, OpenDevice] = {}
        self._shares: dict[tuple[int, str], Share] = {}
        self._departed: list[tuple[int, Share]] = []  # whose records the engine still looks at
        self._methods: dict[str, Callable[[Share, Mapping[str, Any]], dict[str, Any]]] = {
            "open": self._open,
            "domain": lambda share, _: {"domain": share.objects.make_domain()},
            "register": self._register,
            "deregister": self._deregister,
            "srq": self._make_srq,
            "srq_limit": self._arm,
            "resolve": self._resolve,
            "prepare": self._prepare,
            "connect": self._connect,
            "accept": self._accept,
            "reject": self._reject,
            "drop": self._drop,
            "listen": self._listen,
            "unlisten": self._unlisten,
            "disconnect": self._disconnect,
            "retire": self._retire,
            "look": self._look,
        }

    def call(self, client: int, channel: int, message: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out what a client asks for. What a device or its owner refuses is an answer, with
        the number of the error. Raises ValueError for a message that is none.
        """
        method = self._methods.get(str(message.get("do")))
        if method is None:
            raise ValueError(f"{message.get('do')!r} is nothing that a verbs device does")
        try:
            return method(self._share(client, channel, _text(message, "device")), message)
        except NoVerbsError as error:
            return {"errno": errno.ENODEV, "why": str(error)}
        except PointerUnknownError as error:
            return {"errno": errno.EOPNOTSUPP, "why": str(error)}
        except OSError as error:
            why = error.strerror or str(error)
            return {"errno": error.errno or errno.EIO, "why": why}

    def open(self, name: str) -> OpenDevice:
        """Open a device, once. Raises OSError, NoVerbsError or PointerUnknownError."""
        opened = self._opened.get(name)
        if opened is None:
            self._check_name(name)
            self._port.tables.load_verbs()
            opened = self._opened[name] = OpenDevice(self._port, name)
        return opened

    def owner(self, channel: int, endpoint: int) -> Objects | None:
        """Whose queue pair an endpoint of a channel is, if it is a device's."""
        for (number, _), share in self._shares.items():
            if number == channel and endpoint in share.objects.qps:
                return share.objects
        return None

    def leave(self, channel: int) -> None:
        """A channel is about to be detached: devices let go of what it had. Its queues' records
        stay until `left`, because the engine flushes them when it ends the channel's endpoints.
        """
        for key in [key for key in self._shares if key[0] == channel]:
            share = self._shares.pop(key)
            self._departed.append((channel, share))
            share.close()

    def left(self, channel: int) -> None:
        """The channel is detached: the engine looks at nothing of it any more."""
        self._departed = [each for each in self._departed if each[0] != channel]

    def close(self) -> None:
        """Close every device; the engine runs still, and no channel is left."""
        for key in list(self._shares):
            self._shares.pop(key).close()
        for opened in self._opened.values():
            opened.close()
        self._opened.clear()

    def _check_name(self, name: str) -> None:
        if self._allowed is not None and name not in self._allowed:
            has = f"it drives {', '.join(self._allowed)}" if self._allowed else "it drives none"
            raise refusal(
                errno.EACCES,
                f"this engine does not drive the RDMA device {name!r}, {has}: start it with "
                f"`ppe up --rdma-devices {name}`",
            )
        found = device_names()
        if name not in found:
            has = f"there are {', '.join(found)}" if found else "there is none (see `ppe doctor`)"
            raise refusal(errno.ENODEV, f"this machine has no RDMA device {name!r}: {has}")

    def _share(self, client: int, channel: int, name: str) -> Share:
        share = self._shares.get((channel, name))
        if share is None:
            opened = self.open(name)
            objects = Objects(self._port, self._blocks, opened, client, channel)
            share = Share(objects, Connections(self._port, objects))
            watch(self._port, opened.device.async_descriptor, channel)
            self._shares[channel, name] = share
        return share

    # --- one for each word -----------------------------------------------------------------------

    def _open(self, share: Share, _: Mapping[str, Any]) -> dict[str, Any]:
        device = share.objects.opened.device
        limits = device.limits
        return {
            "max_qp_wr": min(limits.send_requests, DEPTH_MAX),
            "max_sge": min(limits.sges, SGES_MAX),
            "max_srq_wr": min(limits.srq_requests, DEPTH_MAX),
            "max_qp_rd_atom": min(limits.ird, READS_MAX),
            "atomics": bool(device.opcodes >> WR_ATOMIC_FETCH_AND_ADD & 1),
            "on_demand_paging": device.has_odp,
            # Over InfiniBand and RoCE a Send invalidates windows alone.
            "invalidation": device.transport == IWARP
            and bool(device.opcodes >> WR_SEND_WITH_INV & 1),
            "transport": device.transport,
        }

    def _register(self, share: Share, message: Mapping[str, Any]) -> dict[str, Any]:
        region, offset = _number(message, "region"), _number(message, "offset")
        length = _number(message, "length")
        engine, client = self._port.tables.address, share.objects.client
        address = _resolve(engine, client, region, offset, length)
        if address == 0:
            raise refusal(errno.EFAULT, "that memory is not shared with the engine")
        lkey, rkey = share.objects.register(
            _number(message, "domain"), address, length, _word(message, "iova"),
            _number(message, "access"),
        )  # fmt: skip
        return {"lkey": lkey, "rkey": rkey, "address": address}

    def _deregister(self, share: Share, message: Mapping[str, Any]) -> dict[str, Any]:
        share.objects.deregister(_number(message, "domain"), _number(message, "lkey"))
        return {}

    def _make_srq(self, share: Share, message: Mapping[str, Any]) -> dict[str, Any]:
        domain, depth = _number(message, "domain"), _number(message, "depth")
        return {"srq": share.objects.make_srq(domain, depth)}

    def _arm(self, share: Share, message: Mapping[str, Any]) -> dict[str, Any]:
        hold = share.objects.srqs.get(_number(message, "srq"))
        if hold is None:
            raise refusal(errno.EBADF, "there is no such shared receive queue")
        limit = _number(message, "limit")
        if limit > hold.depth:
            raise refusal(errno.EINVAL, f"a limit of {limit} for {hold.depth} receives")
        hold.srq.arm(limit)
        return {}

    def _resolve(self, share: Share, message: Mapping[str, Any]) -> dict[str, Any]:
        port = _number(message, "port")
        return {"id": share.connections.resolve(_text(message, "host"), port)}

    def _prepare(self, share: Share, message: Mapping[str, Any]) -> dict[str, Any]:
        names = ("id", "domain", "srq", "sends", "receives")
        return {"endpoint": share.connections.prepare(*(_number(message, each) for each in names))}

    def _connect(self, share: Share, message: Mapping[str, Any]) -> dict[str, Any]:
        share.connections.connect(_number(message, "id"), *_parameters(message))
        return {}

    def _accept(self, share: Share, message: Mapping[str, Any]) -> dict[str, Any]:
        share.connections.accept(_number(message, "id"), *_parameters(message))
        return {}

    def _reject(self, share: Share, message: Mapping[str, Any]) -> dict[str, Any]:
        share.connections.reject(_number(message, "id"), _private(message))
        return {}

    def _drop(self, share: Share, message: Mapping[str, Any]) -> dict[str, Any]:
        share.connections.drop(_number(message, "id"))
        return {}

    def _listen(self, share: Share, message: Mapping[str, Any]) -> dict[str, Any]:
        number, port = share.connections.listen(
            _text(message, "host"),
            _number(message, "port"),
            min(_number(message, "backlog"), BACKLOG_MAX),
        )
        return {"id": number, "port": port}

    def _unlisten(self, share: Share, message: Mapping[str, Any]) -> dict[str, Any]:
        share.connections.unlisten(_number(message, "id"))
        return {}

    def _disconnect(self, share: Share, message: Mapping[str, Any]) -> dict[str, Any]:
        share.connections.disconnect(_number(message, "endpoint"))
        return {}

    def _retire(self, share: Share, message: Mapping[str, Any]) -> dict[str, Any]:
        endpoint = _number(message, "endpoint")
        share.connections.forget(endpoint)
        share.objects.retire(endpoint)
        return {}

    def _look(self, share: Share, _: Mapping[str, Any]) -> dict[str, Any]:
        for each in list(self._shares.values()):
            each.connections.look()
        for opened in self._opened.values():
            self._look_at(opened)
        return {"news": share.connections.take_news()}

    # --- asynchronous events ---------------------------------------------------------------------

    def _look_at(self, opened: OpenDevice) -> None:
        """Tell the owners of queues what the device says of them."""
        found = opened.device.wait_async(0)
        while found is not None:
            self._on_async(opened, *found)
            found = opened.device.wait_async(0)

    def _on_async(self, opened: OpenDevice, event: int, element: int) -> None:
        for share in self._shares.values():
            if share.objects.opened is not opened:
                continue
            if event in _QP_EVENTS:
                for name, pair in share.objects.qps.items():
                    if pair.qp.pointer == element:
                        share.connections.end(name, event)
                        return
            if event == EVENT_SRQ_LIMIT_REACHED:
                for name, hold in share.objects.srqs.items():
                    if hold.srq.pointer == element:
                        channel = share.objects.channel
                        self._port.order_verbs(ORDER_TELL, channel, endpoint=name, arg0=event)
                        return


def _private(message: Mapping[str, Any]) -> bytes:
    try:
        return bytes.fromhex(_text(message, "private"))
    except ValueError as error:
        raise ValueError(f"private data is no hexadecimal text: {error}") from None


def _parameters(message: Mapping[str, Any]) -> tuple[bytes, int, int]:
    return _private(message), _number(message, "ird"), _number(message, "ord")


def _number(message: Mapping[str, Any], name: str) -> int:
    value = message.get(name)
    if type(value) is not int or not 0 <= value < WORD:
        raise ValueError(f"{name} is {value!r}, which is no number of something")
    return value


def _word(message: Mapping[str, Any], name: str) -> int:
    value = message.get(name)
    if type(value) is not int or not -WORD <= value < WORD:
        raise ValueError(f"{name} is {value!r}, which is no word of 64 bits")
    return value


def _text(message: Mapping[str, Any], name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}, which is no text")
    return value
