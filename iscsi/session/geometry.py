"""The shape of a block device: which transfers are possible, and how large one command may be.
Memory handed in is looked at as bytes here, so that every refusal happens before anything is sent.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from host.memory import Buffer
from iscsi.session.errors import OutOfRange
from iscsi.session.unit import UnitFacts

COMMAND_BLOCKS_MAX: Final = 0xFFFF  # what READ(10) and WRITE(10) can say
BOUNCE_SIZE: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Geometry:
    """Block size and count of a device, and the blocks one command moves at most."""

    block_size: int
    block_count: int
    blocks_per_command: int

    @property
    def size(self) -> int:
        """Bytes of the device."""
        return self.block_size * self.block_count

    def check(self, lba: int, blocks: int) -> None:
        """Raise OutOfRange unless all of these blocks exist."""
        if blocks < 1 or lba < 0 or lba + blocks > self.block_count:
            raise OutOfRange(
                f"blocks {lba}..{lba + blocks - 1} of a device that has 0..{self.block_count - 1}"
                if blocks > 0
                else f"{blocks} blocks: at least 1"
            )

    def blocks_of(self, size: int) -> int:
        """How many blocks `size` bytes are. Raises ValueError for parts of one."""
        if size == 0 or size % self.block_size:
            raise ValueError(
                f"{size} bytes are not whole blocks: use a multiple of {self.block_size}"
            )
        return size // self.block_size


def geometry_of(facts: UnitFacts, command_bytes: int) -> Geometry:
    """The geometry of an examined unit. `command_bytes` bounds a command, but one block may go."""
    blocks = max(1, min(command_bytes // facts.capacity.block_size, COMMAND_BLOCKS_MAX))
    if facts.limits.max_transfer_length:
        blocks = min(blocks, facts.limits.max_transfer_length)
    return Geometry(facts.capacity.block_size, facts.capacity.blocks, blocks)


def as_bytes(data: Any, *, writable: bool) -> NDArray[Any]:
    """A flat uint8 array over a Buffer, an ndarray or anything with the buffer protocol.

    Raises TypeError for what is none of them or not contiguous, ValueError for read-only memory
    that would be written.
    """
    if isinstance(data, Buffer):
        return data.array
    view = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    if not view.flags.c_contiguous:
        raise TypeError("the array is not contiguous: copy it first")
    if writable and not view.flags.writeable:
        raise ValueError("the memory is read-only: use a bytearray, an array or alloc()")
    return view.reshape(-1).view(np.uint8)
