"""Fuzzing the software RNIC: a peer that knows its STags and says anything with them. One rule: no
byte is written that was not lent, and every work request ends once, whatever comes.

    python -m tests.robustness.fuzz_iwarp [--seed 1] [--seconds 60]
"""

import hashlib
import random
import sys

from ppe.cycle.rnic.iwarp.core import CODE_MASK, ERROR, RTS, TERMINATE, TERMINATED
from ppe.cycle.rnic.records import rq_at
from shm.qp_spec import RTR_NONE, RTR_READ, RTR_SEND, RTR_WRITE
from shm.verbs_numbers import (
    SEND_FENCE,
    SEND_SIGNALED,
    SEND_SOLICITED,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_IMMEDIATE,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_SEND,
)
from tests.ppe.rnic import core_door as door
from tests.ppe.rnic import fpdus
from tests.ppe.rnic.victim import PATTERN, Victim
from tests.robustness import fuzz

MESSAGES = 60
EDGES = (0, 1, 2, 3, 4, 8, 64, 99, 100, 101, 255, 256, 257, 65535, 1 << 31, (1 << 32) - 1)
NEVER_WRITTEN = ("readable", "foreign", "ended")
POSTS_MAX = 100
# What the peer may be told (RFC 5040 §4.8, 5041 §7, 5044 §8): anything else is a wrong code.
CODES = {0x0000, 0x0100, 0x0101, 0x0102, 0x0103, 0x0104, 0x0109, 0x0205, 0x0206, 0x0207, 0x0209}
CODES |= {0x1100, 0x1101, 0x1102, 0x1103, 0x1104, 0x1201, 0x1202, 0x1203, 0x1204, 0x1205, 0x1206}
CODES |= {0x2002, 0x2003, 0x2007}


class IwarpFuzz:
    """One queue pair under attack, doing work of its own meanwhile."""

    name = "iwarp"

    def __init__(self, seed):
        self.pdus = 0

    def begin(self, case_seed):
        """A queue pair just after the start-up of MPA, on memory that a seed names."""
        self.draw = draw = random.Random(case_seed)
        self.own = random.Random(case_seed + " own")  # ours: the same in a replay
        secret = hashlib.sha256(case_seed.encode()).digest()
        self.markers = draw.random() < 0.3
        self.victim = Victim(
            secret=secret,
            active=draw.random() < 0.8,
            receives=draw.choice((0, 9, 60, 60)),
            crc=draw.random() < 0.6,
            markers_rx=self.markers,
            markers_tx=draw.random() < 0.2,
            extensions=draw.random() < 0.8,
            rtr=draw.choice((RTR_NONE, RTR_NONE, RTR_NONE, RTR_SEND, RTR_WRITE, RTR_READ)),
            ird=draw.choice((1, 2, 16)),
            ord=draw.choice((1, 2, 16)),
            mulpdu=draw.choice((128, 1000, 32786)),
        )
        self.calm = draw.choice((0.7, 0.9, 0.98))
        self.msn, self.offset, self.stream = [1, 1, 1, 1], 0, 0
        self.posted, self.ended = list(self.victim.receives), []
        self.asked, self.open, self.written = [], None, None

    # --- the attack ------------------------------------------------------------------------

    def messages(self):
        """FPDUs right or wrong, or parts of one."""
        for _ in range(self.draw.randrange(1, MESSAGES)):
            if self.victim.outcome:
                return
            yield self._message()

    def _message(self):
        rng = self.draw
        ulpdu = bytearray(self._ulpdu())
        is_odd = self._is_odd()
        if is_odd and rng.random() < 0.7:
            for _ in range(rng.choice((1, 1, 2, 5))):
                ulpdu[rng.randrange(min(len(ulpdu), 70))] ^= 1 << rng.randrange(8)
        length = (
            rng.choice((*EDGES[:12], len(ulpdu) + 1)) if is_odd and rng.random() < 0.2 else None
        )
        data = fpdus.fpdu(bytes(ulpdu), length=length)
        if self.markers:
            data = fpdus.with_markers([data], start=self.stream)
        if is_odd and rng.random() < 0.1:
            data = data[: rng.randrange(len(data))] + rng.randbytes(rng.choice((0, 4, 600)))
        self.stream += len(data)
        return data

    def _ulpdu(self):
        victim = self.victim
        if self.stream == 0 and victim.spec.rtr and not victim.spec.active:
            return self._first()
        kinds = [self._write, self._write, self._send, self._send, self._read, self._answer]
        if victim.spec.extensions:
            kinds.append(self._atomic)
        if self._is_odd():
            return self._rest()
        if self.open is not None and self.draw.random() < 0.5:
            return self.open()
        return self.draw.choice(kinds)()

    def _is_odd(self):
        return self.draw.random() > self.calm

    def _aim(self):
        """An STag, a TO and a size that are right, or nearly."""
        rng, victim = self.draw, self.victim
        region = rng.choice(list(victim.regions.values())) if self._is_odd() else victim.lent
        key = rng.choice((0, 1, region.key ^ 1, 77)) if self._is_odd() else region.key
        if self._is_odd():
            return key, region.iova + rng.choice(EDGES), rng.choice((0, 1, 100, 256, 2000))
        return key, region.iova + (rng.randrange(150) & ~7), rng.choice((0, 1, 4, 8, 16, 100))

    def _write(self):
        if self.open == self._answer and not self._is_odd():
            return self._answer()
        key, to, size = self._aim()
        if self.open == self._write and not self._is_odd():
            key, to = self.written
            size = self.draw.randrange(20)
        last = self.draw.random() < 0.7
        self.open, self.written = None if last else self._write, (key, to + size)
        return fpdus.write(key, to, self.draw.randbytes(size), last=last)

    def _answer(self):
        """Some of what was asked for."""
        if not self.asked or (self.open == self._write and not self._is_odd()):
            return self._write() if self.open == self._write else fpdus.write(1, 2)
        sink, to, left = self.asked[0]
        last = self.draw.random() < 0.7
        part = left if last else self.draw.randrange(left + 1)
        self.asked[0] = (sink, to + part, left - part)
        self.open = None if last else self._answer
        if last:
            self.asked.pop(0)
        return fpdus.read_response(sink, to, self.draw.randbytes(part), last=last)

    def _read(self):
        key, to, size = self._aim()
        self.msn[1] += 1
        return fpdus.read_request(self.msn[1] - 1, 5, 6, size, key, to)

    def _atomic(self):
        key, to, _ = self._aim()
        self.msn[1] += 1
        words = [self.draw.getrandbits(64) for _ in range(4)]
        what = self.draw.randrange(16 if self._is_odd() else 3)
        return fpdus.atomic_request(self.msn[1] - 1, what, 9, key, to, *words)

    def _first(self):
        """What was agreed that the active side says first."""
        if self.victim.spec.rtr == RTR_READ:
            self.msn[1] += 1
            return fpdus.read_request(1, 5, 6, 0, 1, 0)
        if self.victim.spec.rtr == RTR_SEND:
            self.msn[0] += 1
            return fpdus.send(1)
        return fpdus.write(1, 2)

    def _send(self):
        rng, last = self.draw, self.draw.random() < 0.7
        data = rng.randbytes(rng.choice((0, 1, 10, 30)))
        opcode = rng.choice((3, 3, 3, 5, 4, 6)) if self.offset == 0 and last else 3
        key = self._aim()[0] if self._is_odd() else self.victim.lent.key
        if opcode in (4, 6) and not self._is_odd():
            opcode = 5  # The STag it lives on is not thrown away lightly.
        made = fpdus.send(self.msn[0], data, mo=self.offset, last=last, opcode=opcode, ulp=key)
        self.offset = 0 if last else self.offset + len(data)
        self.msn[0] += last
        return made

    def _rest(self):
        rng = self.draw
        roll = rng.random()
        if roll < 0.4 and self.offset == 0:
            self.msn[0] += 1
            return fpdus.immediate(self.msn[0] - 1, rng.getrandbits(64), solicited=roll < 0.2)
        if roll < 0.6:
            self.msn[3] += 1
            return fpdus.atomic_response(self.msn[3] - 1, rng.randrange(8), rng.getrandbits(64))
        if roll < 0.63:
            more = rng.randbytes(rng.choice((0, 2, 20, 48)))
            headers = rng.randrange(8)
            return fpdus.terminate(
                rng.randrange(4), rng.randrange(4), rng.randrange(10), headers=headers, more=more
            )
        if roll < 0.66:
            return rng.randbytes(rng.choice((2, 14, 18, 46, 70)))
        return fpdus.write(1, 2)

    # --- what it does itself -----------------------------------------------------------------

    def _work(self):
        """Something that the RNIC's own user does between two messages."""
        own, victim = self.own, self.victim
        if victim.state != RTS or len(self.posted) > POSTS_MAX:
            return
        flags = own.choice((0, SEND_SIGNALED, SEND_SIGNALED | SEND_SOLICITED, 2 | SEND_FENCE))
        opcodes = [WR_SEND, WR_RDMA_WRITE, WR_RDMA_READ]
        if victim.spec.extensions:
            opcodes += [WR_IMMEDIATE, WR_ATOMIC_FETCH_AND_ADD]
        opcode = own.choice(opcodes)
        size = {WR_ATOMIC_FETCH_AND_ADD: 8}.get(opcode, own.choice((0, 1, 64)))
        pieces = [] if opcode == WR_IMMEDIATE else [victim.private.piece(64, size)]
        aim = {"remote_addr": own.randrange(1 << 32), "rkey": 7}
        self.posted.append(victim.post(opcode, pieces, flags=flags, **aim))
        if opcode == WR_RDMA_READ:
            self.asked.append((victim.private.key, victim.private.iova + 64, size))
        if own.random() < 0.3 and rq_at(victim.rq.address)[0]["free"] >= 0:
            self.posted.append(victim.receive(victim.buffers.piece(900, 100)))

    def feed(self, message):
        """Have it take one message, cut anywhere, and send what it has to say."""
        self.pdus += 1
        if self.own.random() < 0.5:
            self._work()
        cut, direct = self.own.randrange(len(message) + 1), self.own.random() < 0.5
        for part in (message[:cut], message[cut:]):
            self.victim.take(part, direct=direct)
        if self.own.random() < 0.7:
            self.victim.data_to_send(self.own.choice((1, 50, 1 << 20)))
        self.ended += [each["token"] for each in self.victim.completions()]

    def end(self):
        """The stream is over: nothing was written that was not lent, and all work ended once."""
        victim = self.victim
        if victim.outcome:
            state = ERROR if victim.outcome & TERMINATED else TERMINATE
            assert victim.state == state, victim.state
            assert victim.outcome & TERMINATED or victim.outcome & CODE_MASK in CODES
            victim.data_to_send()
            assert victim.ask(door.HAS_SENT_ALL) or state == ERROR
        self.ended += [each["token"] for each in victim.end()]
        assert sorted(self.ended) == sorted(self.posted), "a work request ended twice, or never"
        for name in NEVER_WRITTEN:
            assert victim.regions[name].bytes() == PATTERN, name
        assert victim.private.bytes(0, 64) == PATTERN[:64], "in front of a sink"
        assert victim.private.bytes(128) == PATTERN[128:], "behind a sink"
        assert victim.is_guarded, "behind the queue pair"
        for region in (*victim.regions.values(), victim.buffers):
            assert region.uses == 0, "memory is held for ever"


if __name__ == "__main__":
    sys.exit(fuzz.main(["--role", "iwarp", *sys.argv[1:]]))
