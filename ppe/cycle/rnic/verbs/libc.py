"""Four functions of librdmacm and libibverbs that are called by name, because pyverbs lacks them or
gets them wrong: a word with a rejection, the port of a listener, an address that is no device's
(pyverbs' `bind_addr` crashes over it), and the acknowledgement of events that it did not fetch
itself (it takes back what it did not count).
"""

import ctypes
import os

from ppe.cycle.rnic.verbs.device import VerbsError
from ppe.cycle.rnic.verbs.library import part


def _manager() -> ctypes.CDLL:
    part("cmid")  # It has loaded the library, with all that this one must share with it.
    found = ctypes.CDLL("librdmacm.so.1", use_errno=True)
    found.rdma_bind_addr.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    found.rdma_reject.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint8]
    found.rdma_get_src_port.argtypes = [ctypes.c_void_p]
    found.rdma_get_src_port.restype = ctypes.c_uint16
    return found


def _check(outcome: int, what: str) -> None:
    if outcome != 0:
        number = ctypes.get_errno()
        error = VerbsError(f"{what}: {os.strerror(number)}")
        error.errno = number
        raise error


def bind_address(cm: int, socket_address: bytes, what: str) -> None:
    """`rdma_bind_addr`. Raises VerbsError, which begins with `what`."""
    _check(_manager().rdma_bind_addr(cm, socket_address), what)


def reject(cm: int, private_data: bytes, what: str) -> None:
    """`rdma_reject`. Raises VerbsError, which begins with `what`."""
    _check(_manager().rdma_reject(cm, private_data, len(private_data)), what)


def source_port(cm: int) -> int:
    """`rdma_get_src_port`, in network order."""
    return int(_manager().rdma_get_src_port(cm))


def acknowledge(cq: int, events: int) -> None:
    """`ibv_ack_cq_events`."""
    part("cq")
    found = ctypes.CDLL("libibverbs.so.1").ibv_ack_cq_events
    found.argtypes, found.restype = [ctypes.c_void_p, ctypes.c_uint], None
    found(cq, events)
