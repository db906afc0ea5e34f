"""A fabric in memory: two queue pairs whose work requests are carried out one at a time, in order,
each when the test says so. It checks what an RNIC checks, and breaks both ends where one would.
"""

import ctypes
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from shm.verbs_numbers import (
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    SEND_SIGNALED,
    WC_LOC_LEN_ERR,
    WC_REM_ACCESS_ERR,
    WC_REM_INV_REQ_ERR,
    WC_RNR_RETRY_EXC_ERR,
    WC_SUCCESS,
    WC_WITH_INV,
    WC_WR_FLUSH_ERR,
    WR_LOCAL_INV,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_SEND,
    WR_SEND_WITH_INV,
)
from shm.view import window
from shm.work_requests import SGES_MAX, WC, WR, wr_at


@dataclass
class Tag:
    """Memory that the peer may use."""

    address: int
    length: int
    base: int  # what the peer calls the first byte
    access: int
    is_kept: bool = False


@dataclass
class Work:
    """A work request, copied when it is posted."""

    opcode: int
    flags: int
    token: int
    remote: int
    rkey: int
    invalidate: int
    pieces: list[tuple[int, int]]

    @property
    def length(self):
        return sum(length for _, length in self.pieces)

    def gathered(self):
        return b"".join(ctypes.string_at(address, length) for address, length in self.pieces)


def read_work(address):
    wr = wr_at(address)[0]
    count = int(wr["sge_count"])
    assert 0 <= count <= SGES_MAX
    pieces = []
    for index in range(count):
        addr, word = int(wr["sges"][2 * index]), int(wr["sges"][2 * index + 1])
        assert word >> 32 == 0, "checked memory needs no key"
        pieces.append((addr, word & 0xFFFFFFFF))
    return Work(
        int(wr["opcode"]),
        int(wr["flags"]),
        int(wr["token"]),
        int(wr["remote_addr"]) & (1 << 64) - 1,
        int(wr["rkey"]),
        int(wr["invalidate_rkey"]),
        pieces,
    )


@dataclass
class QueuePair:
    """One end. `sends` and `receives` are posted; `done` waits to be polled, in order, as WCs."""

    peer: "QueuePair | None" = None
    sends: deque = field(default_factory=deque)
    receives: deque = field(default_factory=deque)
    done: deque = field(default_factory=deque)  # (is_receive, WC)
    tags: dict = field(default_factory=dict)
    carried: list = field(default_factory=list)  # every Work that was carried out
    messages: list = field(default_factory=list)  # what its Sends said
    fewest: int = 1 << 30  # receives that were ever left
    broken: int = 0
    next_tag: int = 0x0100

    def register(self, address, length, access, base=None, is_kept=False):
        self.next_tag += 0x0101
        where = address if base is None else base
        self.tags[self.next_tag] = Tag(address, length, where, access, is_kept)
        return self.next_tag

    def complete(self, work, status=WC_SUCCESS):
        if work.flags & SEND_SIGNALED or status != WC_SUCCESS:
            self.tell(False, work.token, status)

    def tell(self, is_receive, token, status, byte_len=0, invalidated=0):
        wc = np.zeros(1, WC)
        wc[0]["token"], wc[0]["status"], wc[0]["byte_len"] = token, status, byte_len
        if invalidated:
            wc[0]["flags"], wc[0]["invalidated_rkey"] = WC_WITH_INV, invalidated
        self.done.append((is_receive, wc))

    def break_both(self, work, ours, theirs=WC_WR_FLUSH_ERR):
        """As after a Terminate: nothing more is carried out on either side."""
        self.complete(work, ours)
        for end, status in ((self, ours), (self.peer, theirs)):
            end.broken = status
            while end.sends:
                end.complete(end.sends.popleft(), WC_WR_FLUSH_ERR)
            while end.receives:
                end.tell(True, end.receives.popleft()[0], WC_WR_FLUSH_ERR)

    def step(self):
        """Carry out the oldest work request; whether there was one."""
        if not self.sends or self.broken:
            return False
        work = self.sends.popleft()
        self.carried.append(work)
        if work.opcode in (WR_SEND, WR_SEND_WITH_INV):
            self._send(work)
        elif work.opcode == WR_RDMA_WRITE:
            self._move(work, ACCESS_REMOTE_WRITE)
        elif work.opcode == WR_RDMA_READ:
            self._move(work, ACCESS_REMOTE_READ)
        else:
            assert work.opcode == WR_LOCAL_INV, f"nobody knows the work request {work.opcode}"
            del self.tags[work.invalidate]  # KeyError: invalidated twice
            self.complete(work)
        return True

    def _send(self, work):
        peer, data = self.peer, work.gathered()
        self.messages.append(data)
        if not peer.receives:
            self.break_both(work, WC_RNR_RETRY_EXC_ERR)
            return
        token, pieces = peer.receives.popleft()
        peer.fewest = min(peer.fewest, len(peer.receives))
        room = sum(length for _, length in pieces)
        if len(data) > room:
            peer.tell(True, token, WC_LOC_LEN_ERR)
            self.break_both(work, WC_WR_FLUSH_ERR)
            return
        invalidated = work.invalidate if work.opcode == WR_SEND_WITH_INV else 0
        if invalidated and (invalidated not in peer.tags or peer.tags[invalidated].is_kept):
            self.break_both(work, WC_REM_INV_REQ_ERR)
            return
        if invalidated:
            del peer.tags[invalidated]
        ctypes.memset(pieces[0][0], 0xA5, room)  # nothing of an earlier message is left
        ctypes.memmove(pieces[0][0], data, len(data))
        peer.tell(True, token, WC_SUCCESS, len(data), invalidated)
        self.complete(work)

    def _move(self, work, access):
        tag = self.peer.tags.get(work.rkey)
        at = work.remote - tag.base if tag else 0
        if tag is None or not tag.access & access or not 0 <= at <= tag.length - work.length:
            self.break_both(work, WC_REM_ACCESS_ERR)
            return
        for address, length in work.pieces:
            there, here = window(tag.address + at, length, "u1"), window(address, length, "u1")
            if access == ACCESS_REMOTE_WRITE:
                there[:] = here
            else:
                here[:] = there
            at += length
        self.complete(work)


def connect():
    """Two queue pairs of one connection."""
    left, right = QueuePair(), QueuePair()
    left.peer, right.peer = right, left
    return left, right


def new_work():
    """An empty WR."""
    return np.zeros(1, WR)
