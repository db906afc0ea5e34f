"""Data buffers that all connections of a target share: taken for one task, given back exactly once.
There are a few sizes, each with a fixed count; what does not find one has to wait or to be refused.
The owner provides the memory (`iscsi.target.buffers`); one thread uses them.
"""

from typing import Final

from shm.jit import nopython
from shm.layout import Field, offset, record
from shm.pool import POOL, give, take
from shm.view import opener

SIZES_MAX: Final = 4

CLASS: Final = record(
    Field("pool", POOL),
    Field("base", "<i8"),  # address of the first buffer
    Field("size", "<i8"),  # bytes of each
    size=POOL.itemsize + 64,
)
BUFFERS: Final = record(
    Field("class_count", "<i8"),
    Field("largest", "<i8"),  # bytes
    Field("refused", "<i8"),  # how often none was free
    Field("classes", (CLASS, SIZES_MAX)),  # in the order of their sizes
    size=64 + SIZES_MAX * CLASS.itemsize,
)
buffers_at = opener(BUFFERS)
class_at = opener(CLASS)
CLASSES: Final = offset(BUFFERS, "classes")
CLASS_SIZE: Final = CLASS.itemsize


@nopython
def largest(buffers: int) -> int:
    """Bytes of the largest buffer, 0 if there are none at all."""
    return int(buffers_at(buffers)[0]["largest"]) if buffers else 0


@nopython
def take_buffer(buffers: int, length: int) -> int:
    """A free buffer of at least `length` bytes, the smallest there is: its token, or 0."""
    if buffers == 0:
        return 0
    mine = buffers_at(buffers)[0]
    for kind in range(mine["class_count"]):
        address = buffers + CLASSES + CLASS_SIZE * kind
        if class_at(address)[0]["size"] >= length:
            index = take(address)
            if index >= 0:
                return (index + 1) << 8 | kind
    mine["refused"] += 1
    return 0


@nopython
def give_buffer(buffers: int, token: int) -> bool:
    """Give a buffer back; False, changing nothing, for one that is not taken."""
    kind = token & 0xFF
    if token == 0 or kind >= buffers_at(buffers)[0]["class_count"]:
        return False
    return give(buffers + CLASSES + CLASS_SIZE * kind, (token >> 8) - 1)


@nopython
def buffer_size(buffers: int, token: int) -> int:
    """Bytes of a buffer."""
    return int(class_at(buffers + CLASSES + CLASS_SIZE * (token & 0xFF))[0]["size"])


@nopython
def buffer_address(buffers: int, token: int) -> int:
    """Where a buffer lies."""
    its = class_at(buffers + CLASSES + CLASS_SIZE * (token & 0xFF))[0]
    return int(its["base"] + its["size"] * ((token >> 8) - 1))
