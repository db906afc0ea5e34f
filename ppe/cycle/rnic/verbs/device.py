"""Verbs devices, protection domains and registered memory, through pyverbs. Cold code.

A device is opened once by a process. What it can do is asked of it, and where a driver promises
more than it does, `QUIRKS` says so, so that a request is refused at the post and not by silence.
"""

import contextlib
import select
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from ppe.cycle.rnic.verbs import layouts, pointers
from ppe.cycle.rnic.verbs.library import part
from shm.verbs_numbers import (
    WR_ATOMIC_CMP_AND_SWP,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_BIND_MW,
    WR_LOCAL_INV,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_RDMA_WRITE_WITH_IMM,
    WR_SEND,
    WR_SEND_WITH_IMM,
    WR_SEND_WITH_INV,
)

# enum ibv_device_cap_flags
_MEM_WINDOW: Final = 1 << 17
_MEM_MGT_EXTENSIONS: Final = 1 << 21
_MEM_WINDOW_TYPE_2A: Final = 1 << 23
_MEM_WINDOW_TYPE_2B: Final = 1 << 24
_ODP_SUPPORT: Final = 1 << 0  # enum ibv_odp_general_caps
_ATOMIC_NONE: Final = 0
_NODE_RNIC: Final = 4  # enum ibv_node_type
IWARP: Final = "iwarp"
INFINIBAND: Final = "ib"  # and RoCE
WINDOW_TYPE_1, WINDOW_TYPE_2 = 1, 2

_ALWAYS: Final = (WR_SEND, WR_RDMA_WRITE, WR_RDMA_READ)
_SYSFS: Final = Path("/sys/class/infiniband")
# What a driver (by vendor id) says it can and cannot do from user space.
QUIRKS: Final = {
    0x626D74: frozenset({WR_LOCAL_INV, WR_BIND_MW}),  # siw's user-space half has no such requests
}


class VerbsError(OSError):
    """A device or the connection manager refused; the message says what was wanted. `errno` is
    what it answered, None where pyverbs does not tell.
    """

    def __init__(self, message: str, error: BaseException | None = None) -> None:
        super().__init__(message)
        self.errno = getattr(error, "error_code", None)


@contextlib.contextmanager
def asking(what: str) -> Iterator[None]:
    """Turn pyverbs' errors, which are of one class and not an OSError, into VerbsError."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.split(".")[0] != "pyverbs":
            raise
        raise VerbsError(f"{what}: {error}", error) from error


@dataclass(frozen=True, slots=True)
class Limits:
    """What a device allows: of one queue, request or connection."""

    send_requests: int
    sges: int
    completions: int
    srq_requests: int
    srq_sges: int
    ird: int
    ord: int
    windows: int


def device_names() -> list[str]:
    """The verbs devices of this machine, whether or not pyverbs can open them."""
    return sorted(path.name for path in _SYSFS.iterdir()) if _SYSFS.is_dir() else []


class Owned(ABC):
    """What is made on a device and closed once, by its maker or at last by the device."""

    def __init__(self, device: "Device") -> None:
        self.device = device
        device.made.append(self)

    def close(self) -> None:
        """Give it back; what was made of it goes before."""
        if self in self.device.made:
            self.device.made.remove(self)
            with asking(f"{self.device.name} does not give back a {type(self).__name__}"):
                self.destroy()

    @abstractmethod
    def destroy(self) -> None:
        """Do it."""


class Device:
    """An open device. Raises VerbsError, NoVerbsError or PointerUnknownError."""

    def __init__(self, name: str) -> None:
        self.made: list[Owned] = []
        self.name = name
        with asking(f"device {name} cannot be opened"):
            self.context = part("device").Context(name=name)
        self.pointer = pointers.context_pointer(self.context)
        self.functions = pointers.functions(self.pointer)
        self.attributes = self.context.query_device()
        self.transport = IWARP if _node_type(name) == _NODE_RNIC else INFINIBAND
        self.limits = _limits(self.attributes)
        self.opcodes = _opcodes(self.attributes, self.transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # An unreferenced device and what was made on it go together, in an order that nobody
        # chose; a queue whose device is closed cannot be destroyed, and drivers crash over it.
        with contextlib.suppress(Exception):
            self.close()

    def close(self) -> None:
        """Close it and all that was made on it and is still there, the last first."""
        while self.made:
            self.made[-1].close()
        self.context.close()

    @property
    def window_types(self) -> frozenset[int]:
        """The types of memory window that it has."""
        flags, found = self.attributes.device_cap_flags, set()
        if not self.limits.windows:
            return frozenset()
        if flags & _MEM_WINDOW:
            found.add(WINDOW_TYPE_1)
        if flags & (_MEM_WINDOW_TYPE_2A | _MEM_WINDOW_TYPE_2B):
            found.add(WINDOW_TYPE_2)
        return frozenset(found)

    @property
    def has_odp(self) -> bool:
        """Whether memory may be registered without being pinned (on-demand paging)."""
        return bool(self.context.query_device_ex().odp_caps.general_caps & _ODP_SUPPORT)

    def wait_async(self, timeout_s: float) -> tuple[int, int] | None:
        """The next asynchronous event: type (enum ibv_event_type) and the address of its element.

        None when none comes in time. The descriptor is waited for, never the call, which would
        hold every other Python thread.
        """
        if not is_readable(self.async_descriptor, timeout_s):
            return None
        event = self.context.get_async_event()
        found = (int(event.event_type), pointers.async_element(event))
        event.ack()
        return found

    @property
    def async_descriptor(self) -> int:
        """A descriptor that is readable when there is an asynchronous event."""
        return pointers.async_descriptor(self.pointer)


def is_readable(descriptor: int, timeout_s: float) -> bool:
    """Wait until something can be read there."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(max(0, int(timeout_s * 1000))))


def _node_type(name: str) -> int:
    """The number at the head of, say, `4: RNIC`."""
    text = (_SYSFS / name / "node_type").read_text()
    return int(text.split(":")[0])


def _limits(attributes: Any) -> Limits:
    return Limits(
        send_requests=attributes.max_qp_wr,
        sges=attributes.max_sge,
        completions=attributes.max_cqe,
        srq_requests=attributes.max_srq_wr,
        srq_sges=attributes.max_srq_sge,
        ird=attributes.max_qp_rd_atom,
        ord=attributes.max_qp_init_rd_atom,
        windows=attributes.max_mw,
    )


def _opcodes(attributes: Any, transport: str) -> int:
    """Bit n: a reliable connection of this device takes opcode n from user space."""
    found = set(_ALWAYS)
    flags = attributes.device_cap_flags
    if transport == INFINIBAND:
        found |= {WR_SEND_WITH_IMM, WR_RDMA_WRITE_WITH_IMM}
        if attributes.atomic_caps != _ATOMIC_NONE:
            found |= {WR_ATOMIC_CMP_AND_SWP, WR_ATOMIC_FETCH_AND_ADD}
    if flags & _MEM_MGT_EXTENSIONS:
        found |= {WR_LOCAL_INV, WR_SEND_WITH_INV}
    if flags & (_MEM_WINDOW_TYPE_2A | _MEM_WINDOW_TYPE_2B):
        found.add(WR_BIND_MW)
    found -= QUIRKS.get(attributes.vendor_id, frozenset())
    return sum(1 << opcode for opcode in found)


class Domain(Owned):
    """A protection domain."""

    def __init__(self, device: Device) -> None:
        with asking(f"{device.name} has no further protection domain"):
            self.pd = part("pd").PD(device.context)
        self.pointer = pointers.pd_pointer(self.pd, device.pointer)
        super().__init__(device)

    def destroy(self) -> None:
        """Do it."""
        self.pd.close()


class Region(Owned):
    """Registered memory at an address that the caller keeps alive."""

    def __init__(self, domain: Domain, address: int, length: int, access: int) -> None:
        with asking(
            f"{domain.device.name} does not register {length} bytes at {address:#x} with access"
            f" {access:#x} (what may be locked is limited by `ulimit -l`)"
        ):
            self.mr = part("mr").MR(domain.pd, length, access, address=address)
        self.address, self.length = address, length
        self.lkey, self.rkey = int(self.mr.lkey), int(self.mr.rkey)
        self.pointer = pointers.mr_pointer(self.mr, domain.device.pointer)
        super().__init__(domain.device)

    def destroy(self) -> None:
        """Deregister."""
        self.mr.close()


class Window(Owned):
    """A memory window of the second type: bound and invalidated by requests in a send queue."""

    def __init__(self, domain: Domain) -> None:
        device = domain.device
        if WINDOW_TYPE_2 not in device.window_types:
            raise VerbsError(f"{device.name} has no memory windows of type 2")
        with asking(f"{device.name} has no further memory window"):
            self.mw = part("mr").MW(domain.pd, WINDOW_TYPE_2)
        self.pointer = pointers.mw_pointer(self.mw, device.pointer)
        super().__init__(device)

    @property
    def rkey(self) -> int:
        """Its rkey before it is first bound; each bind gives it the next one (`send.next_rkey`)."""
        return pointers.word_32(self.pointer + layouts.MW_RKEY)

    def destroy(self) -> None:
        """Do it."""
        self.mw.close()
