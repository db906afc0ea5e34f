"""Fuzzing the software RNIC: a peer that knows its STags and says anything with them. One rule: no
byte is written that was not lent, and every work request ends once, whatever comes.

    python -m tests.robustness.fuzz_iwarp [--seed 1] [--seconds 60]
"""

import hashlib
import random
import sys

from ppe.cycle.rnic.constants import (
    SEND_FENCE,
    SEND_SIGNALED,
    SEND_SOLICITED,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_IMMEDIATE,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_SEND,
)
from ppe.cycle.rnic.iwarp.core import CODE_MASK, ERROR, RTS, TERMINATE, TERMINATED
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
            receives=draw.choice((0, 2, 9)),
            crc=draw.random() < 0.6,
            markers_rx=self.markers,
            markers_tx=draw.random() < 0.2,
            extensions=draw.random() < 0.8,
            rtr=draw.choice((0, 0, 0, 1, 2, 3)),
            ird=draw.choice((1, 2, 16)),
            ord=draw.choice((1, 2, 16)),
            mulpdu=draw.choice((128, 1000, 32786)),
        )
        self.calm = draw.choice((0.5, 0.8, 0.95))
        self.msn, self.offset, self.stream = [1, 1, 1, 1], 0, 0
        self.posted, self.ended = list(self.victim.receives), []
        self.asked = []

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
        is_odd = rng.random() > self.calm
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
        rng, victim = self.draw, self.victim
        region = rng.choice(list(victim.regions.values()))
        if rng.random() < 0.7:
            region = victim.lent
        key = region.key if rng.random() < 0.97 else rng.choice((0, 1, region.key ^ 1, 77))
        shift = rng.randrange(240) & ~7 if rng.random() < 0.9 else rng.choice(EDGES)
        to, size = region.iova + shift, rng.choice((0, 1, 4, 8, 16, 100, 256))
        kind = rng.choice(("write", "write", "send", "send", "read", "answer", "atomic", "rest"))
        last = rng.random() < 0.7
        if kind == "write":
            return fpdus.write(key, to, rng.randbytes(size), last=last)
        if kind == "send":
            return self._send(last, key)
        if kind == "read":
            self.msn[1] += 1
            return fpdus.read_request(self.msn[1] - 1, 5, 6, size, key, to)
        if kind == "answer" and self.asked:
            sink, sink_to, left = self.asked[0]
            part = left if last else rng.randrange(left + 1)
            self.asked[0] = (sink, sink_to + part, left - part)
            if last:
                self.asked.pop(0)
            return fpdus.read_response(sink, sink_to, rng.randbytes(part), last=last)
        if kind == "atomic":
            self.msn[1] += 1
            words = [rng.getrandbits(64) for _ in range(4)]
            return fpdus.atomic_request(self.msn[1] - 1, rng.randrange(4), 9, key, to, *words)
        return self._rest()

    def _send(self, last, key):
        rng = self.draw
        data = rng.randbytes(rng.choice((0, 1, 30, 50)))
        opcode = rng.choice((3, 3, 3, 3, 5, 4, 6)) if self.offset == 0 and last else 3
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
        if own.random() < 0.3:
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
        for region in (*victim.regions.values(), victim.buffers):
            assert region.uses == 0, "memory is held for ever"


if __name__ == "__main__":
    sys.exit(fuzz.main(["--role", "iwarp", *sys.argv[1:]]))
