"""Two software RNICs joined in memory, byte by byte if wanted: what each sends is carried to the
other, and nothing else happens by itself.
"""

import ctypes

import numpy as np

from ppe.cycle.rnic.iwarp.core import QpSpec, qp_at
from ppe.cycle.rnic.memory import build_table, table_size
from ppe.cycle.rnic.receive import build_rq, rq_size
from ppe.cycle.rnic.records import (
    SGE_SIZE,
    WC,
    WR,
    WR_SGES,
    mr_at,
    sge_at,
    wc_at,
    wr_at,
)
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    ACCESS_MW_BIND,
    ACCESS_REMOTE_ATOMIC,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    SEND_SIGNALED,
    WC_SUCCESS,
)
from shm.view import address_of
from tests.ppe.rnic import core_door as door

PD, CLIENT = 5, 7
ALL = (
    ACCESS_LOCAL_WRITE
    | ACCESS_REMOTE_WRITE
    | ACCESS_REMOTE_READ
    | ACCESS_REMOTE_ATOMIC
    | ACCESS_MW_BIND
)
TOP = 1 << 64
DEPTH = 64
GUARD = 128


def signed(number):
    """A 64-bit number as compiled code takes it."""
    number %= TOP
    return number - TOP if number >= TOP >> 1 else number


def block(size):
    """Zeroed bytes that begin on a cache line, as the engine's memory does."""
    memory = np.zeros(size + 64, np.uint8)
    skip = -address_of(memory) % 64
    return memory[skip : skip + size]


class Region:
    """Registered memory of a peer. `iova` is what everybody calls its first byte."""

    def __init__(self, rnic, size, access=ALL, *, iova=None, pd=PD, fill=None):
        self.data = block(size)
        if fill is not None:
            self.data[:] = np.frombuffer(bytes(fill), np.uint8)
        self.address = address_of(self.data)
        self.iova = self.address if iova is None else iova
        self.rnic = rnic
        asked = (pd, CLIENT, self.address, size, signed(self.iova), access)
        self.key = rnic.memory(door.REGISTER, *asked)
        assert self.key > 0, self.key

    def bytes(self, start=0, length=None):
        """A copy of what is there."""
        end = self.data.size if length is None else start + length
        return self.data[start:end].tobytes()

    def piece(self, start=0, length=None):
        """An entry of a gather list."""
        length = self.data.size - start if length is None else length
        return (self.iova + start, length, self.key)

    @property
    def uses(self):
        """How much work holds it."""
        return int(mr_at(self.rnic.memory(door.FIND, self.key))[0]["uses"])


class Rnic:
    """A table of memory that queue pairs share."""

    def __init__(self, capacity=64, secret=None):
        self._regions = []
        self._table = block(table_size(capacity))
        self.table = address_of(self._table)
        build_table(self.table, capacity, secret)

    def memory(self, what, *arguments):
        """Ask the memory table."""
        return door.ask(what, self.table, *arguments, *[0] * (6 - len(arguments)))

    def region(self, size, access=ALL, **options):
        """Register fresh memory, which lives as long as this does."""
        self._regions.append(Region(self, size, access, **options))
        return self._regions[-1]


class ReceiveQueue:
    """A queue pair's own, or shared."""

    def __init__(self, rnic, depth=DEPTH, *, shared=False, pd=PD):
        self._memory = block(rq_size(depth))
        self.address = address_of(self._memory)
        build_rq(self.address, depth, rnic.table, pd, shared=shared)

    def post(self, *pieces, token=0):
        """0 or -errno."""
        request = WorkRequest(pieces, token=token)
        return door.ask(door.POST_RECV, self.address, request.address, 0, 0, 0, 0, 0)


class WorkRequest:
    """A WR in memory."""

    def __init__(self, pieces=(), **values):
        self._memory = block(WR.itemsize)
        self.address = address_of(self._memory)
        record = wr_at(self.address)[0]
        record["sge_count"] = len(pieces)
        for which, (iova, length, key) in enumerate(pieces):
            sge = sge_at(self.address + WR_SGES + SGE_SIZE * which)[0]
            sge["addr"], sge["length"], sge["lkey"] = signed(iova), length, key
        inline = values.pop("inline", None)
        if inline is not None:
            self._inline = np.frombuffer(bytes(inline) + b"\0", np.uint8)
            record["inline_address"] = address_of(self._inline)
            record["inline_length"] = len(inline)
        for name, value in values.items():
            record[name] = signed(value)


class QueuePair:
    """One end of a stream."""

    def __init__(self, rnic, spec, *, number=1, rq=None, pd=PD):
        self.rnic, self.spec = rnic, spec
        self.rq = rq or ReceiveQueue(rnic, pd=pd)
        self._memory = block(spec.size + GUARD)
        self._memory[spec.size :] = GUARD
        self.address = address_of(self._memory)
        spec.build(self.address, number=number, pd=pd, table=rnic.table, rq=self.rq.address)
        self._wc = block(WC.itemsize)
        self._tokens = iter(range(1, 1 << 30))
        self.outcome = 0
        self.placed = 0  # bytes that were received where they belong

    def ask(self, what, *arguments):
        """Ask the core."""
        return door.ask(what, self.address, *arguments, *[0] * (6 - len(arguments)))

    @property
    def is_guarded(self):
        """Whether nothing was written behind its block."""
        return bool(np.all(self._memory[self.spec.size :] == GUARD))

    @property
    def record(self):
        """The QP."""
        return qp_at(self.address)[0]

    @property
    def state(self):
        return int(self.record["state"])

    def try_post(self, opcode, pieces=(), *, flags=SEND_SIGNALED, **values):
        """Post a send work request: 0 or -errno."""
        request = WorkRequest(pieces, opcode=opcode, flags=flags, **values)
        return self.ask(door.POST_SEND, request.address)

    def post(self, opcode, pieces=(), **values):
        """Post a send work request; its token."""
        token = next(self._tokens)
        outcome = self.try_post(opcode, pieces, token=token, **values)
        assert outcome == 0, outcome
        return token

    def receive(self, *pieces):
        """Post a receive; its token."""
        token = next(self._tokens)
        outcome = self.rq.post(*pieces, token=token)
        assert outcome == 0, outcome
        return token

    def completions(self):
        """Every completion there is now."""
        found = []
        while self.ask(door.WC_NEXT, address_of(self._wc)):
            record = wc_at(address_of(self._wc))[0]
            found.append({name: int(record[name]) for name in WC.names})
        return found

    def completion(self, status=WC_SUCCESS):
        """The only completion there is."""
        (found,) = self.completions()
        assert found["status"] == status, found
        return found

    def data_to_send(self, limit=1 << 30):
        """Bytes for the peer, at most `limit`, taken and sent."""
        found = []
        while length := min(self.ask(door.NEXT_SPAN), limit):
            place = int(self.record["span_address"])
            found.append(bytes((ctypes.c_char * length).from_address(place)))
            self.ask(door.TX_TAKE, length)
            self.ask(door.SENT, length)
            limit -= length
        return b"".join(found)

    def take(self, data, *, direct=True):
        """Give it bytes of the stream, straight to their place where it is known: 0 or why not."""
        at, data = 0, np.frombuffer(bytes(data), np.uint8)
        while at < data.size and self.outcome == 0:
            size = data.size - at
            wanted = int(self.record["want_length"]) if direct else 0
            address = address_of(data[at:])
            if wanted > 0:
                size, address = min(size, wanted), int(self.record["want_address"])
                ctypes.memmove(address, address_of(data[at:]), size)
                self.placed += size
            elif direct:
                size = min(size, 20)
            self.outcome = self.ask(door.TAKE, address, size)
            at += size
        return self.outcome

    def end(self, status=WC_SUCCESS):
        """The stream is gone."""
        self.ask(door.END, status)
        return self.completions()


class Pair:
    """Two queue pairs, the left one active."""

    def __init__(self, *, left_rnic=None, right_rnic=None, **options):
        self.left_rnic, self.right_rnic = left_rnic or Rnic(), right_rnic or Rnic()
        markers = options.pop("markers", False)
        options.setdefault("extensions", True)
        left = QpSpec(active=True, markers_rx=markers, markers_tx=markers, **options)
        right = QpSpec(active=False, markers_rx=markers, markers_tx=markers, **options)
        self.left = QueuePair(self.left_rnic, left, number=1)
        self.right = QueuePair(self.right_rnic, right, number=2)

    def carry(self, *, direct=True, chunk=1 << 30, limit=10_000):
        """Carry bytes both ways until nobody has any. 0, or the first violation."""
        for _ in range(limit):
            to_right = self.left.data_to_send(chunk)
            to_left = self.right.data_to_send(chunk)
            if not to_right and not to_left:
                return self.left.outcome or self.right.outcome
            self.right.take(to_right, direct=direct)
            self.left.take(to_left, direct=direct)
        raise AssertionError(f"no end after {limit} rounds")

    def open(self):
        """Let the passive side send: an empty Write comes first."""
        self.left.post(0)
        self.carry()
        assert [each["status"] for each in self.left.completions()] == [WC_SUCCESS]
        return self
