"""What a WQE can ask for and a CQE can tell: opcodes, their flags, and how addresses travel.

Both sides read this table; neither owns the other's reading of it. Opcodes from 128 on belong to
the engine's own control plane and are refused on a client's channel.
"""

import errno
import ipaddress
import socket
import struct
from typing import Final

from shm.jit import nopython

# --- opcodes ---------------------------------------------------------------------------------
NOP: Final = 1  # completes at once: the queue's own latency
CONNECT: Final = 2  # slot 2: socket address; arg0: timeout in ns; the CQE names the endpoint
LISTEN: Final = 3  # slot 2: socket address; arg0: backlog; CQE arg0: the port that was bound
ACCEPT: Final = 4  # on a listener; the CQE names the new endpoint, arg1 and arg2 its peer
SEND: Final = 5  # completes when the transport has taken every byte
RECEIVE: Final = 6
SHUTDOWN: Final = 7  # half close: what was sent before goes out first
CLOSE: Final = 8  # ends the endpoint; whatever is outstanding on it is cancelled first
CANCEL: Final = 9  # arg0: user_data of the operation to end

# The datamover's (iscsi.wire.mover says what their words mean):
MOVER_FIRST: Final = 16
MOVER_COMMAND: Final = 16
MOVER_CONTROL: Final = 17
MOVER_RECEIVE: Final = 18
MOVER_CANCEL: Final = 19
MOVER_GET: Final = 20
MOVER_ANSWER: Final = 21
MOVER_ABORT: Final = 22
MOVER_DONE: Final = 23
MOVER_GATE: Final = 24
MOVER_UNIT: Final = 25
MOVER_FENCE: Final = 26
MOVER_LAST: Final = 31

# RDMA: work requests are 32 + their opcode in the verbs manual; the rest are ours. shm.verbs says
# what their words mean.
RDMA_FIRST: Final = 32
RDMA_WRITE: Final = 32
RDMA_WRITE_WITH_IMM: Final = 33
RDMA_SEND: Final = 34
RDMA_SEND_WITH_IMM: Final = 35
RDMA_READ: Final = 36
RDMA_ATOMIC_CMP_AND_SWP: Final = 37
RDMA_ATOMIC_FETCH_AND_ADD: Final = 38
RDMA_LOCAL_INV: Final = 39
RDMA_BIND_MW: Final = 40
RDMA_SEND_WITH_INV: Final = 41
RDMA_ATOMIC_SWAP: Final = 44  # RFC 7306's two have no number in the manual
RDMA_IMMEDIATE: Final = 45
RDMA_RECEIVE: Final = 47
RDMA_REGISTER: Final = 48
RDMA_DEREGISTER: Final = 49
RDMA_START: Final = 50
RDMA_QUERY: Final = 51
RDMA_ALLOC_MW: Final = 52
RDMA_SRQ_LIMIT: Final = 53
RDMA_LAST: Final = 63

EVENT_DISCONNECTED: Final = 64  # unsolicited: the peer reset the connection or the network did
EVENT_WINDOW: Final = 65  # unsolicited: a datamover's command window moved; arg0: its numbers
EVENT_RDMA: Final = 66  # unsolicited: a queue pair's asynchronous event; arg0: see shm.verbs

CONTROL_FIRST: Final = 128
CONTROL_ATTACH: Final = 128
CONTROL_DETACH: Final = 129
CONTROL_ADD_REGION: Final = 130
CONTROL_REMOVE_REGION: Final = 131
CONTROL_ENABLE_MOVER: Final = 133
CONTROL_MAKE_POOL: Final = 134
CONTROL_MAKE_TABLE: Final = 135
CONTROL_TAKE_OUT: Final = 136  # an endpoint leaves; the answer is its descriptor
CONTROL_ADOPT: Final = 137  # a connected descriptor becomes an endpoint
CONTROL_RDMA: Final = 138  # an order to the RDMA service; flags: which
CONTROL_VERBS: Final = 139  # an order to the service of verbs devices; flags: which
CONTROL_FAULT: Final = 132  # unsolicited: a client's memory went away under the engine

OPCODE_NAMES: Final = {
    NOP: "nop",
    CONNECT: "connect",
    LISTEN: "listen",
    ACCEPT: "accept",
    SEND: "send",
    RECEIVE: "receive",
    SHUTDOWN: "shutdown",
    CLOSE: "close",
    CANCEL: "cancel",
    MOVER_COMMAND: "command",
    MOVER_CONTROL: "send control",
    MOVER_RECEIVE: "receive control",
    MOVER_CANCEL: "cancel command",
    MOVER_GET: "get data",
    MOVER_ANSWER: "answer",
    MOVER_ABORT: "abort tasks",
    MOVER_DONE: "control done",
    MOVER_GATE: "gate",
    MOVER_UNIT: "unit",
    MOVER_FENCE: "fence",
    RDMA_WRITE: "rdma write",
    RDMA_WRITE_WITH_IMM: "rdma write with immediate",
    RDMA_SEND: "rdma send",
    RDMA_SEND_WITH_IMM: "rdma send with immediate",
    RDMA_READ: "rdma read",
    RDMA_ATOMIC_CMP_AND_SWP: "compare and swap",
    RDMA_ATOMIC_FETCH_AND_ADD: "fetch and add",
    RDMA_LOCAL_INV: "local invalidate",
    RDMA_BIND_MW: "bind memory window",
    RDMA_SEND_WITH_INV: "rdma send with invalidate",
    RDMA_ATOMIC_SWAP: "atomic swap",
    RDMA_IMMEDIATE: "rdma immediate",
    RDMA_RECEIVE: "rdma receive",
    RDMA_REGISTER: "register memory",
    RDMA_DEREGISTER: "deregister memory",
    RDMA_START: "start queue pair",
    RDMA_QUERY: "query queue pair",
    RDMA_ALLOC_MW: "allocate memory window",
    RDMA_SRQ_LIMIT: "set receive limit",
    EVENT_DISCONNECTED: "disconnected",
    EVENT_WINDOW: "window",
    EVENT_RDMA: "asynchronous event",
}

# --- WQE flags (bit 0 is shm.channel.UNSIGNALLED) ---------------------------------------------
RECEIVE_EXACT: Final = 1 << 8  # complete when all `length` bytes are there; else when any are
MORE: Final = 1 << 9  # another SEND follows at once: do not transmit a short packet for this one
REUSE_PORT: Final = 1 << 10

# --- statuses that are not plain errno of the transport ---------------------------------------
END_OF_STREAM: Final = -errno.ENODATA  # the peer half-closed before an exact receive was full
CANCELLED: Final = -errno.ECANCELED
FLUSHED: Final = -errno.ESHUTDOWN  # the engine or the channel went away (made by the host library)

# Ids are generation << 16 | index, so a stale id is told from a reused slot.
INDEX_BITS: Final = 16
INDEX_MASK: Final = (1 << INDEX_BITS) - 1
GENERATION_MAX: Final = 0x7FFF  # so that an id fits a signed and an unsigned 32-bit word alike

SOCKET_ADDRESS_MAX: Final = 28  # sizeof(struct sockaddr_in6)


@nopython
def next_generation(generation: int) -> int:
    """The generation after this one; never 0, so that no valid id is 0."""
    return generation + 1 if generation < GENERATION_MAX else 1


def pack_socket_address(host: str, port: int) -> bytes:
    """A struct sockaddr_in or sockaddr_in6 for a numeric address. Raises ValueError for others."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port} is not in 0..65535")
    if address.version == 4:
        return struct.pack("=HH", socket.AF_INET, socket.htons(port)) + address.packed + bytes(8)
    scope = host.partition("%")[2]
    scope_id = (int(scope) if scope.isdigit() else socket.if_nametoindex(scope)) if scope else 0
    head = struct.pack("=HHI", socket.AF_INET6, socket.htons(port), 0)
    return head + address.packed + struct.pack("=I", scope_id)


def unpack_peer(family_and_port: int, high: int, low: int) -> tuple[str, int]:
    """The peer that an ACCEPT's completion names in arg0 (family << 16 | port), arg1 and arg2."""
    family, port = family_and_port >> 16, family_and_port & 0xFFFF
    raw = struct.pack("<qq", high, low)
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(raw[:4])), port
    return str(ipaddress.IPv6Address(raw)), port
