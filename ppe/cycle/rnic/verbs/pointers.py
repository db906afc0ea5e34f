"""Take C pointers out of pyverbs objects: `ibv_cq *` from a CQ, and so on.

From release 61 on pyverbs has them as properties. Before, they lie at fixed places in the objects,
which were read off Debian's release 44. The one rule: a pointer is used only after the structure
behind it has shown a number that pyverbs tells too, and reading for that proof cannot crash,
because memory is read through /proc/self/mem.
"""

import importlib
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ppe.cycle.rnic.verbs import layouts
from shm.layout import offset

_MEMORY: Final = "/proc/self/mem"
_ADDRESS_END: Final = 1 << 47  # of a process on x86-64
_CM_DEVICE: Final = "/dev/infiniband/rdma_cm"
_EVENT_FILE: Final = "anon_inode:[infinibandevent]"


class PointerUnknownError(Exception):
    """A pyverbs object did not prove to be what was expected: this release is not known."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a class keeps its pointer: the property of new releases, and the size of the object
    and the offset in it that old ones have.
    """

    attribute: str
    size: int
    offset: int


# Object head 16, weak references 8, logger 8, methods 8 where a class has any; then its members.
PLACES: Final = {
    "Context": Place("context", 184, 40),
    "PD": Place("pd", 136, 40),
    "CQ": Place("cq", 96, 40),
    "SRQ": Place("srq", 64, 40),
    "QP": Place("qp", 128, 40),
    "MR": Place("mr", 104, 56),
    "MW": Place("mw", 56, 48),
    "CMID": Place("id", 80, 40),
    "CMEvent": Place("event", 48, 40),
    "CMEventChannel": Place("event_channel", 48, 40),
}
ASYNC_EVENT_OFFSET: Final = 32  # the structure itself lies in the object
ASYNC_EVENT_SIZE: Final = 48


def read_memory(address: int, size: int) -> bytes:
    """Bytes of this process's memory. Raises PointerUnknownError where there is none."""
    if not 0 < address < _ADDRESS_END:
        raise PointerUnknownError(f"{address:#x} is no address")
    descriptor = os.open(_MEMORY, os.O_RDONLY)
    try:
        data = os.pread(descriptor, size, address)
    except OSError as error:
        raise PointerUnknownError(f"there is no memory at {address:#x}") from error
    finally:
        os.close(descriptor)
    if len(data) != size:
        raise PointerUnknownError(f"there are no {size} bytes at {address:#x}")
    return data


def word_32(address: int) -> int:
    """An unsigned 32-bit number."""
    return int(struct.unpack("<I", read_memory(address, 4))[0])


def word_64(address: int) -> int:
    """An unsigned 64-bit number, or a pointer."""
    return int(struct.unpack("<Q", read_memory(address, 8))[0])


def pointer(item: Any, prove: Callable[[int], bool]) -> int:
    """The pointer that a pyverbs object holds, proven, or PointerUnknownError."""
    kind = type(item)
    place = PLACES[kind.__name__]
    found = _by_property(item, place)
    if found is None:
        if kind.__basicsize__ != place.size:
            raise PointerUnknownError(
                f"pyverbs.{kind.__name__} has {kind.__basicsize__} bytes where release 44 has"
                f" {place.size}, and no pointer property: use rdma-core 44, or 61 and newer"
            )
        found = word_64(id(item) + place.offset)
    if not prove(found):
        raise PointerUnknownError(
            f"what pyverbs.{kind.__name__} points to does not look like it: this release of"
            " pyverbs is not known"
        )
    return found


def _by_property(item: Any, place: Place) -> int | None:
    """The property of release 61 and newer.

    Older ones have properties of the same name on two classes, which hand the pointer out as if it
    were a Python object: touching them would be the end. So the whole family must be there.
    """
    family = type(item).__module__.split(".")[0]
    if not _has_properties(family):
        return None
    value = getattr(item, place.attribute, None)
    return value if isinstance(value, int) else None


def _has_properties(family: str) -> bool:
    classes = (("cq", "CQ", "cq"), ("qp", "QP", "qp"), ("srq", "SRQ", "srq"))
    return all(
        hasattr(getattr(importlib.import_module(f"{family}.{module}"), name), attribute)
        for module, name, attribute in classes
    )


def context_pointer(context: Any) -> int:
    """`struct ibv_context *`; it must have its device's name, and functions to call."""
    name = context.name.encode() if isinstance(context.name, str) else bytes(context.name)

    def prove(found: int) -> bool:
        device = word_64(found + layouts.CONTEXT_DEVICE)
        text = read_memory(device + layouts.DEVICE_NAME, layouts.DEVICE_NAME_SIZE)
        return text.split(b"\0")[0] == name

    return pointer(context, prove)


def functions(context: int) -> dict[int, int]:
    """The functions of a context by their offset. PointerUnknownError: one is no code."""
    offsets = (
        layouts.CONTEXT_POLL_CQ,
        layouts.CONTEXT_REQ_NOTIFY_CQ,
        layouts.CONTEXT_POST_SRQ_RECV,
        layouts.CONTEXT_POST_SEND,
        layouts.CONTEXT_POST_RECV,
    )
    found = {place: word_64(context + place) for place in offsets}
    for place, address in found.items():
        if not _is_code(address):
            raise PointerUnknownError(f"the context has no function at offset {place}")
    return found


def _is_code(address: int) -> bool:
    """Whether an address lies in memory that may be executed."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights = line.split()[:2]
        first, end = (int(part, 16) for part in span.split("-"))
        if first <= address < end:
            return "x" in rights
    return False


def pd_pointer(pd: Any, context: int) -> int:
    """`struct ibv_pd *` of this context, with the handle that pyverbs tells."""
    return pointer(
        pd,
        lambda found: word_64(found) == context and word_32(found + layouts.PD_HANDLE) == pd.handle,
    )


def cq_pointer(cq: Any, context: int) -> int:
    """`struct ibv_cq *` of this context, with the capacity that pyverbs tells."""
    return pointer(
        cq, lambda found: word_64(found) == context and word_32(found + layouts.CQ_CQE) == cq.cqe
    )


def srq_pointer(srq: Any, context: int, pd: int) -> int:
    """`struct ibv_srq *` of this context and protection domain."""
    return pointer(
        srq, lambda found: word_64(found) == context and word_64(found + layouts.SRQ_PD) == pd
    )


def qp_pointer(qp: Any, context: int) -> int:
    """`struct ibv_qp *` of this context, with the number that pyverbs tells."""
    return pointer(
        qp,
        lambda found: word_64(found) == context and word_32(found + layouts.QP_QP_NUM) == qp.qp_num,
    )


def mr_pointer(mr: Any, context: int) -> int:
    """`struct ibv_mr *` of this context, with the keys that pyverbs tells."""
    return pointer(
        mr,
        lambda found: (
            word_64(found) == context
            and word_32(found + layouts.MR_LKEY) == mr.lkey
            and word_32(found + layouts.MR_RKEY) == mr.rkey
        ),
    )


def mw_pointer(mw: Any, context: int) -> int:
    """`struct ibv_mw *` of this context, with the rkey that pyverbs tells."""
    return pointer(
        mw, lambda found: word_64(found) == context and word_32(found + layouts.MW_RKEY) == mw.rkey
    )


def cm_event_pointer(event: Any) -> int:
    """`struct rdma_cm_event *`, of the type that pyverbs tells."""
    at = offset(layouts.CM_EVENT, "event")
    return pointer(event, lambda found: word_32(found + at) == event.event_type)


def event_channel_pointer(channel: Any) -> int:
    """`struct rdma_event_channel *`: its descriptor must be open on the connection manager."""
    return pointer(channel, lambda at: _leads_to(word_32(at), _CM_DEVICE))


def event_channel_descriptor(channel: Any) -> int:
    """The file descriptor of a CMEventChannel."""
    return word_32(event_channel_pointer(channel))


def cm_pointer(cm: Any, channel: int) -> int:
    """`struct rdma_cm_id *` of an identifier whose events go to this event channel."""
    return pointer(cm, lambda found: word_64(found + layouts.CM_ID_CHANNEL) == channel)


def _leads_to(descriptor: int, path: str) -> bool:
    try:
        return Path(f"/proc/self/fd/{descriptor}").readlink() == Path(path)
    except OSError:
        return False


def event_descriptor(cq: int) -> int:
    """The descriptor of the channel that a completion queue's events go to."""
    found = word_32(word_64(cq + layouts.CQ_CHANNEL) + layouts.CHANNEL_FD)
    if not _leads_to(found, _EVENT_FILE):
        raise PointerUnknownError("the completion queue has no event channel where it should")
    return found


def async_descriptor(context: int) -> int:
    """The descriptor that is readable when the device has an asynchronous event."""
    return word_32(context + layouts.CONTEXT_ASYNC_FD)


def async_element(event: Any) -> int:
    """The address of the queue pair, queue or port number that an AsyncEvent is about."""
    if type(event).__basicsize__ != ASYNC_EVENT_SIZE:
        raise PointerUnknownError("pyverbs.AsyncEvent has another size than was known")
    place = id(event) + ASYNC_EVENT_OFFSET
    if word_32(place + offset(layouts.ASYNC_EVENT, "event_type")) != event.event_type:
        raise PointerUnknownError("pyverbs.AsyncEvent does not hold its event where it should")
    return word_64(place)
