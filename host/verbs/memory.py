"""Protection domains, memory regions and memory windows, with the verbs manual's words."""

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from host.memory import Buffer
from host.verbs.work import Sge
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
)
from shm.view import address_of

if TYPE_CHECKING:
    from host.verbs.device import Device


def span_of(memory: Buffer | NDArray[Any]) -> tuple[int, int]:
    """Address and size of a buffer or a contiguous array over shared memory."""
    array = memory.lend() if isinstance(memory, Buffer) else memory
    if not array.flags.c_contiguous:
        raise ValueError("only contiguous memory can be registered: this array has gaps")
    return address_of(array), int(array.nbytes)


@dataclass(slots=True, eq=False)
class MemoryRegion:
    """Registered memory. `lkey` and `addr` name its first byte in our work requests, `rkey` and
    `remote_addr` in the peer's: a real device knows memory by the engine's addresses.
    """

    pd: "ProtectionDomain"
    addr: int
    length: int
    lkey: int
    rkey: int
    access: int
    remote_addr: int
    _memory: Any = field(repr=False, default=None)  # keeps the pages mapped while registered

    def sge(self, offset: int = 0, length: int | None = None) -> Sge:
        """A piece of it."""
        size = self.length - offset if length is None else length
        return Sge(self.addr + offset, size, self.lkey)

    def remote(self, address: int) -> int:
        """What peers call the byte that is `address` in our work requests."""
        return self.remote_addr + address - self.addr

    def dereg(self) -> None:
        """Take it back. Raises OSError: EBUSY while work under way needs it, EINVAL when it was
        taken back already.
        """
        self.pd.device.provider.dereg_mr(self.pd, self)
        self.pd.forget(self)

    def __enter__(self) -> "MemoryRegion":
        return self

    def __exit__(self, *_: object) -> None:
        if self in self.pd.regions:
            self.dereg()


@dataclass(slots=True, eq=False)
class MemoryWindow:
    """A window on a piece of a memory region. Each binding changes its `rkey`."""

    pd: "ProtectionDomain"
    rkey: int

    def dealloc(self) -> None:
        """Give it back. Raises OSError EBUSY while work under way needs it."""
        self.pd.device.provider.dealloc_mw(self.pd, self)
        self.pd.windows.discard(self)


class ProtectionDomain:
    """What queue pairs and memory have in common: nothing of another domain is ever touched."""

    def __init__(self, device: "Device", handle: int) -> None:
        self.device, self.handle = device, handle
        self.regions: set[MemoryRegion] = set()
        self.windows: set[MemoryWindow] = set()
        self.users: set[object] = set()

    def reg_mr(
        self,
        memory: Buffer | NDArray[Any],
        access: int = ACCESS_LOCAL_WRITE,
        *,
        iova: int | None = None,
    ) -> MemoryRegion:
        """Register shared memory (a Buffer of `alloc`, or an array over one).

        `iova`: what its first byte is called, by default its address. Raises ValueError for memory
        that the engine does not share, OSError: EINVAL for rights that do not go together,
        EOPNOTSUPP for what the device lacks (on-demand paging), ENOMEM for a full table.
        """
        address, size = span_of(memory)
        name = address if iova is None else iova
        lkey, rkey, remote = self.device.provider.reg_mr(self, address, size, name, access)
        region = MemoryRegion(self, name, size, lkey, rkey, access, remote, memory)
        self.regions.add(region)
        return region

    def alloc_mw(self) -> "MemoryWindow":
        """A memory window on nothing (type 2: it belongs to the queue pair that binds it).

        Raises OSError: EOPNOTSUPP where the device has none.
        """
        if not self.device.query().memory_windows:
            raise OSError(errno.EOPNOTSUPP, f"{self.device.query().name} has no memory windows")
        window = MemoryWindow(self, self.device.provider.alloc_mw(self))
        self.windows.add(window)
        return window

    def forget(self, region: MemoryRegion) -> None:
        """A region was taken back."""
        self.regions.discard(region)

    def dealloc(self) -> None:
        """Give it back. Raises OSError EBUSY while something rests on it."""
        if self.regions or self.windows or self.users:
            raise OSError(
                errno.EBUSY,
                f"{len(self.regions) + len(self.windows)} memory regions and {len(self.users)} "
                f"queues rest on this protection domain: {os.strerror(errno.EBUSY)}",
            )
        self.device.provider.dealloc_pd(self)
        self.device.domains.discard(self)


__all__ = ["MemoryRegion", "MemoryWindow", "ProtectionDomain", "span_of"]
