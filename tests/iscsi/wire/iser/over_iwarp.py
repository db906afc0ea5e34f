"""The fabric's place taken by two software RNICs joined byte by byte: `pair.Pair`'s queue pairs as
real ones, with one key for all memory of their own, which no peer may use.
"""

import numpy as np

from iscsi.wire.iser.records import PAGE, iser_at
from ppe.cycle.rnic.records import WC, rq_at
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    WC_RECV,
    WR_LOCAL_INV,
)
from tests.iscsi.wire.iser.fabric import Tag
from tests.iscsi.wire.iser.pair import Pair
from tests.ppe.rnic import core_door as door
from tests.ppe.rnic import joined

EVERYTHING = 1 << 47


class Sends:
    """What is appended is posted at once."""

    def __init__(self, qp):
        self._qp = qp

    def append(self, work):
        qp = self._qp
        qp.carried.append(work)
        if work.opcode == WR_LOCAL_INV:
            del qp.tags[work.invalidate]  # KeyError: invalidated twice
        pieces = [(address, length, qp.key) for address, length in work.pieces]
        outcome = qp.end.try_post(
            work.opcode,
            pieces,
            flags=work.flags,
            token=work.token,
            remote_addr=work.remote,
            rkey=work.rkey,
            invalidate_rkey=work.invalidate,
        )
        assert outcome == 0, outcome

    def __len__(self):
        return 0  # nothing waits for the test


class Receives:
    def __init__(self, qp):
        self._qp = qp

    def append(self, posted):
        token, pieces = posted
        keyed = [(address, length, self._qp.key) for address, length in pieces]
        outcome = self._qp.end.rq.post(*keyed, token=token)
        assert outcome == 0, outcome

    def __len__(self):
        return int(rq_at(self._qp.end.rq.address)[0]["posted"])


class IwarpQueuePair:
    """One end: `tests.iscsi.wire.iser.fabric.QueuePair` over a QP of the core."""

    def __init__(self, end, other):
        self.end, self.other = end, other
        everything = (joined.PD, joined.CLIENT, PAGE, EVERYTHING, PAGE, ACCESS_LOCAL_WRITE)
        self.key = end.rnic.memory(door.REGISTER, *everything)
        assert self.key > 0
        self.sends, self.receives = Sends(self), Receives(self)
        self.tags, self.carried, self._done = {}, [], []
        self.broken = 0

    def register(self, address, length, access, base=None, is_kept=False):
        where = address if base is None else base
        asked = (joined.PD, joined.CLIENT, address, length, joined.signed(where), access)
        stag = self.end.rnic.memory(door.REGISTER, *asked)
        assert stag > 0, stag
        self.tags[stag] = Tag(address, length, where, access, is_kept)
        return stag

    @property
    def done(self):
        """Completions to be polled, as the fabric keeps them."""
        for found in self.end.completions():
            wc = np.zeros(1, WC)
            for name, value in found.items():
                wc[0][name] = value
            self._done.append((found["opcode"] & WC_RECV != 0, wc))
            if found["invalidated_rkey"]:
                self.tags.pop(found["invalidated_rkey"], None)
        return _Queue(self._done)

    def step(self):
        """Carry what this end has to say to the other; whether it was anything."""
        data = self.end.data_to_send(self.chunk)
        self.other.take(data, direct=self.direct)
        return bool(data)

    chunk, direct = 1 << 30, True


class _Queue:
    def __init__(self, items):
        self._items = items

    def popleft(self):
        return self._items.pop(0)

    def __bool__(self):
        return bool(self._items)


class IwarpPair(Pair):
    """`Pair` over software iWARP. `chunk`: bytes carried at once."""

    def __init__(self, *arguments, chunk=1 << 30, direct=True, spec=None, **options):
        super().__init__(*arguments, **options)
        left, right = joined.Rnic(), joined.Rnic()
        self.wire = joined.Pair(left_rnic=left, right_rnic=right, **(spec or {}))
        self.left.qp = IwarpQueuePair(self.wire.left, self.wire.right)
        self.right.qp = IwarpQueuePair(self.wire.right, self.wire.left)
        for side in (self.left, self.right):
            side.qp.chunk, side.qp.direct = chunk, direct
            self.post_receives(side)

    def post_receives(self, side):
        """`Pair` has posted them to the fabric: once more."""
        size = side.iser_limits.receive_size if side is self.right else side.limits.receive_size
        count = side.iser_limits.receives if side is self.right else side.limits.receives
        for number in range(count):
            side.qp.receives.append((number, [(receive_buffer(side, number), size)]))


def receive_buffer(side, number):
    mine = iser_at(side.iser)[0]
    return int(mine["receives"]) + number * int(mine["receive_size"])
