"""TCP through the kernel's sockets: the transport that is everywhere.

The only module above `libc` that touches an endpoint's descriptor. Sockets never block; readiness
is learnt from the poller's edges and from short counts.
"""

from typing import Final

from ppe.cycle import libc
from ppe.cycle.accounts import E_RECEIVE_CALLS, E_TRANSMIT_CALLS, INDEX, add
from ppe.cycle.endpoints import endpoint_of, stats_of
from ppe.cycle.readiness import poller
from ppe.cycle.readiness.events import HANGUP, READ, TAG_ENDPOINT, WRITE, make_tag
from ppe.cycle.records import endpoint_at, engine_at
from shm.counters import count
from shm.jit import nopython
from shm.memory import load_16, load_64

_RECEIVE_CALLS, _RECEIVE_EMPTY = INDEX["receive_calls"], INDEX["receive_empty"]
_TRANSMIT_CALLS, _TRANSMIT_FULL = INDEX["transmit_calls"], INDEX["transmit_full"]
SOCKADDR_IN_SIZE: Final = 16
SOCKADDR_IN6_SIZE: Final = 28
EAFNOSUPPORT: Final = -97


@nopython
def address_size(address: int) -> int:
    """Size of the socket address at `address`, or -EAFNOSUPPORT."""
    family = load_16(address)
    if family == libc.AF_INET:
        return SOCKADDR_IN_SIZE
    if family == libc.AF_INET6:
        return SOCKADDR_IN6_SIZE
    return EAFNOSUPPORT


@nopython
def open_for(address: int) -> int:
    """A socket of the address's family, or `-errno`."""
    size = address_size(address)
    if size < 0:
        return size
    return libc.open_stream(load_16(address))


@nopython
def watch(engine: int, index: int) -> int:
    """Have the poller report this endpoint's edges. Return 0 or `-errno`."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    endpoint["watched"] = 1
    tag = make_tag(TAG_ENDPOINT, endpoint["generation"], index)
    return poller.add(engine, endpoint["descriptor"], READ | WRITE | HANGUP, tag)


@nopython
def unwatch(engine: int, index: int) -> None:
    """Have the poller report nothing of it; an edge that is on its way may still come."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    endpoint["watched"] = 0
    tag = make_tag(TAG_ENDPOINT, endpoint["generation"], index)
    poller.remove(engine, endpoint["descriptor"], tag)


@nopython
def connect(engine: int, index: int, address: int) -> int:
    """Start connecting: 0 when done at once, -EINPROGRESS, or another `-errno`."""
    descriptor = endpoint_at(endpoint_of(engine, index))[0]["descriptor"]
    return libc.connect(descriptor, address, address_size(address))


@nopython
def connect_outcome(engine: int, index: int) -> int:
    """How a started connect ended: 0 or `-errno`. Ask when the poller says writable."""
    return libc.socket_error(endpoint_at(endpoint_of(engine, index))[0]["descriptor"])


@nopython
def listen(descriptor: int, address: int, backlog: int, reuse_port: bool) -> int:
    """Bind and listen. Return the bound port, or `-errno`."""
    libc.set_option(descriptor, libc.SOL_SOCKET, libc.SO_REUSEADDR, 1)
    if reuse_port:
        libc.set_option(descriptor, libc.SOL_SOCKET, libc.SO_REUSEPORT, 1)
    if load_16(address) == libc.AF_INET6:
        libc.set_option(descriptor, libc.IPPROTO_IPV6, libc.IPV6_V6ONLY, 1)
    outcome = libc.bind_and_listen(descriptor, address, address_size(address), backlog)
    return outcome if outcome < 0 else libc.bound_port(descriptor)


@nopython
def accept(engine: int, index: int, address: int, size_at: int) -> int:
    """Take one connection off the listener: its descriptor, or `-errno`."""
    descriptor = libc.accept(
        endpoint_at(endpoint_of(engine, index))[0]["descriptor"], address, size_at
    )
    if descriptor >= 0:
        libc.set_option(descriptor, libc.IPPROTO_TCP, libc.TCP_NODELAY, 1)
    return descriptor


@nopython
def receive(engine: int, index: int, spans: int) -> int:
    """Receive into the engine's first `spans` vectors: bytes, 0 at the end, or `-errno`."""
    mine = engine_at(engine)[0]
    descriptor = endpoint_at(endpoint_of(engine, index))[0]["descriptor"]
    count(mine["counters"], _RECEIVE_CALLS, 1)
    add(stats_of(engine, index) + E_RECEIVE_CALLS, 1)
    vectors = mine["vectors"]
    if spans == 1:
        got = libc.receive_bytes(descriptor, load_64(vectors), load_64(vectors + 8))
    else:
        libc.fill_message(mine["message"], vectors, spans)
        got = libc.receive_message(descriptor, mine["message"])
    if got == -libc.EAGAIN:
        count(mine["counters"], _RECEIVE_EMPTY, 1)
    return got


@nopython
def transmit(engine: int, index: int, spans: int, more: bool) -> int:
    """Transmit the engine's first `spans` vectors: bytes taken, or `-errno`."""
    mine = engine_at(engine)[0]
    descriptor = endpoint_at(endpoint_of(engine, index))[0]["descriptor"]
    count(mine["counters"], _TRANSMIT_CALLS, 1)
    add(stats_of(engine, index) + E_TRANSMIT_CALLS, 1)
    vectors = mine["vectors"]
    if spans == 1:
        put = libc.send_bytes(descriptor, load_64(vectors), load_64(vectors + 8), more)
    else:
        libc.fill_message(mine["message"], vectors, spans)
        put = libc.send_message(descriptor, mine["message"], more)
    if put == -libc.EAGAIN:
        count(mine["counters"], _TRANSMIT_FULL, 1)
    return put


@nopython
def half_close(engine: int, index: int) -> int:
    """End the sending direction: 0 or `-errno`."""
    return libc.half_close(endpoint_at(endpoint_of(engine, index))[0]["descriptor"])


@nopython
def let_go(engine: int, index: int) -> int:
    """Stop watching, and forget the descriptor without closing it: the descriptor, or -1."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    descriptor = int(endpoint["descriptor"])
    if descriptor >= 0:
        tag = make_tag(TAG_ENDPOINT, endpoint["generation"], index)
        poller.remove(engine, descriptor, tag)
        endpoint["descriptor"] = -1
    return descriptor


@nopython
def close(engine: int, index: int) -> None:
    """Stop watching and close."""
    descriptor = let_go(engine, index)
    if descriptor >= 0:
        libc.close(descriptor)
