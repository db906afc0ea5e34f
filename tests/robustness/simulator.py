"""Two initiators and a target joined in memory under a schedule that a seed draws: it splits,
delays and damages what is sent, cuts connections, aborts tasks and lets the clock jump, while a
model of the medium judges every answer. Equal seeds give equal runs, byte for byte.

    python -m tests.robustness.simulator --seed 7 --steps 5000 [--trace]
"""

import argparse
import hashlib
import random
import sys
import time
from collections import Counter, deque
from types import SimpleNamespace
from unittest import mock

import numpy as np

from host.memory import Buffer
from iscsi.target import control
from iscsi.target.backends import RamBackend
from iscsi.target.units import LogicalUnit, Target
from iscsi.wire.bhs import TaskFunction
from iscsi.wire.errors import ProtocolError
from iscsi.wire.keys import DIGEST_CRC32C, DIGEST_NONE, Proposal, SessionParams
from tests.robustness import sim_operations as operations
from tests.robustness.links import PrivateMemory
from tests.robustness.medium_model import BLOCK, Medium, Wrong
from tests.robustness.sim_initiator import SimInitiator
from tests.robustness.sim_target import SimTarget

NAME = "iqn.2026-01.org.example:sim"
BLOCKS = 512
DEPTH = 8
FAULTS = 0.004  # of all steps
_PIECES = (1, 7, 48, 49, 600, 5000, 20_000, 1 << 20, 1 << 20, 1 << 20, 1 << 20)
HEAL_STEPS = 60_000
RECONNECTIONS = 6  # that the healing may take: what was lost before shows up in it


class Failure(AssertionError):
    """What a run ends with; it says how to see it again."""


def draw_proposal(rng):
    """Session parameters of every kind, and digests."""
    first = rng.choice((512, 1024, 4096, 65536))
    session = SessionParams(
        initial_r2t=rng.random() < 0.5,
        immediate_data=rng.random() < 0.7,
        first_burst_length=first,
        max_burst_length=rng.choice((first, 2 * first, 262144)),
        max_outstanding_r2t=rng.choice((1, 2, 8)),
    )
    digest = (DIGEST_CRC32C,) if rng.random() < 0.5 else (DIGEST_NONE,)
    longest = rng.choice((512, 1000, 8192, 262144))
    return Proposal(session, longest, header_digest=digest, data_digest=digest)


class Simulation:
    """One run. `happened` counts what the schedule did."""

    def __init__(self, seed, *, faults=FAULTS):
        self.seed, self.share, self.faults = seed, faults, faults
        self.rng = rng = random.Random(seed)
        self.now_ns = 1
        self.step_count = self.operation_count = 0
        self.happened = Counter()
        self.trace = deque(maxlen=100)
        self.digest = hashlib.sha256()
        self.moved_before = ""
        self.memory = PrivateMemory()
        disk = np.frombuffer(bytearray(rng.randbytes(BLOCKS * BLOCK)), np.uint8)
        self.backend = RamBackend(Buffer(disk, None), thin=True)
        self.medium = Medium(disk)
        self.disk = disk
        unit = LogicalUnit(self.backend, unmaps_any_block=False)
        server = draw_proposal(rng)
        digests = (DIGEST_NONE, DIGEST_CRC32C)
        server = Proposal(server.session, server.max_recv_data_segment_length, digests, digests)
        self.target = SimTarget(
            Target(NAME, {0: unit}),
            self.memory,
            proposal=server,
            window=rng.choice((2, 5, 16)),
            nop_interval_s=rng.choice((0, 1, 5)),
        )
        self.initiators = [
            SimInitiator(
                f"iqn.2026-01.org.example:i{index}",
                NAME,
                0x80_0000_000000 + index,
                self.memory,
                proposal=draw_proposal(rng),
                cmd_sn=rng.choice((1, 0xFFFFFFF0, 0x7FFFFFF8, rng.getrandbits(32))),
            )
            for index in range(2)
        ]

    # --- the schedule ----------------------------------------------------------------------

    def run(self, steps):
        """Run `steps` steps, let everything heal, and check. Raises Failure."""
        clock = SimpleNamespace(monotonic=lambda: self.now_ns / 1e9)
        try:
            with mock.patch.object(control, "time", clock):
                for _ in range(steps):
                    self.step()
                self.heal()
                self.check()
        except Exception as error:
            told = "\n  ".join(self.trace)
            raise Failure(
                f"{type(error).__name__}: {error}\n  {told}\nagain: python -m "
                f"tests.robustness.simulator --seed {self.seed} --steps {steps} "
                f"--faults {self.share} (failed in step {self.step_count})"
            ) from error
        return self

    def note(self, *words):
        """Put a line in the trace, and all of it in the digest."""
        line = " ".join(str(word) for word in words)
        self.trace.append(f"{self.step_count} {line}")
        self.digest.update(line.encode())

    def step(self):
        """One thing happens."""
        rng = self.rng
        self.step_count += 1
        self.now_ns += rng.randrange(1, 2_000_000)
        initiator = rng.choice(self.initiators)
        if rng.random() < self.faults:
            rng.choice(_FAULTS)(self, initiator)
        elif len(initiator.queue) + len(initiator.open) < DEPTH and rng.random() < 0.3:
            self._ask(initiator)
        else:
            self._move(initiator)

    def _ask(self, initiator):
        rng = self.rng
        self.operation_count += 1
        (kind,) = rng.choices(operations.KINDS, operations.WEIGHTS)
        blocks = rng.choice((1, 1, 2, 3, 8, rng.randrange(1, 64)))
        half = BLOCKS // 2
        lba = rng.randrange(0, half - blocks - 1)
        if rng.random() < 0.7:
            lba = min(lba % 24, half - blocks - 1)  # where others are
        if kind is not operations.Read or rng.random() < 0.7:
            lba += half * self.initiators.index(initiator)  # each changes its own half
        operation = kind(rng, self.operation_count, self.medium, lba, blocks)
        self.note(initiator.name[-2:], "asks", operation)
        initiator.add(operation)

    def _move(self, initiator):
        rng = self.rng
        if initiator.link is None:
            if self.now_ns >= initiator.not_before_ns:
                self.note(initiator.name[-2:], "connects")
                self.target.accept(initiator.connect(self.now_ns), self.now_ns)
            return
        choice = rng.randrange(5)
        limit = rng.choice(_PIECES)
        if choice == 0:
            initiator.submit(self.now_ns)
            initiator.send(limit)
        elif choice == 1:
            self._deliver_down(initiator, limit)
        else:
            self._turn_of_target(choice, initiator, limit)
        if initiator.link is not None and (
            initiator.is_late(self.now_ns) or self._hung_up(initiator)
        ):
            self._lose(initiator, "gives its connection up")

    def _hung_up(self, initiator):
        """Whether the target closed, and everything that it sent before has arrived."""
        link = initiator.link
        return not link.near_open or (
            not link.far_open and not link.down and self.rng.random() < 0.5
        )

    def _lose(self, initiator, why):
        self.note(initiator.name[-2:], why)
        self.happened["connections lost"] += 1
        initiator.lose(self.now_ns)

    def _deliver_down(self, initiator, limit):
        data = initiator.link.take(initiator.link.down, limit)
        self.digest.update(data)
        try:
            initiator.receive(data, self.now_ns)
        except ProtocolError as error:
            self.note("error", error)
            if not self.faults:
                raise
            self._lose(initiator, "finds an error")
            return
        if initiator.reap():
            self._lose(initiator, "is told to go")

    def _turn_of_target(self, choice, initiator, limit):
        if choice == 2:
            self.target.work()
        for session in list(self.target.sessions):
            if session.link is initiator.link or self.rng.random() < 0.2:
                self._turn_of_session(choice, session, limit)

    def _turn_of_session(self, choice, session, limit):
        if choice == 3:
            data = session.link.take(session.link.up, limit)
            self.digest.update(data)
            if data:
                self.target.receive(session, data)
            elif not session.link.near_open:
                session.link.cut()  # the end of the stream has come
        if choice == 4 or limit < 600:
            self.target.attend(session, self.now_ns)
        if session in self.target.sessions:
            self.target.send(session, limit)

    # --- faults ----------------------------------------------------------------------------

    def _cut(self, initiator):
        if initiator.link is not None:
            self.note(initiator.name[-2:], "is cut")
            self.happened["cut"] += 1
            initiator.link.cut()

    def _cut_near(self, initiator):
        """The initiator alone sees the end: what it sent still arrives."""
        if initiator.link is not None:
            self.note(initiator.name[-2:], "is cut on its side")
            self.happened["half cut"] += 1
            initiator.lose(self.now_ns)

    def _cut_far(self, initiator):
        """The target alone sees the end; the initiator waits in vain until it is late."""
        if initiator.link is not None:
            self.note(initiator.name[-2:], "is cut far away")
            self.happened["half cut"] += 1
            for session in self.target.sessions:
                if session.link is initiator.link:
                    self.target.close(session)
                    return

    def _jump(self, initiator):
        seconds = self.rng.choice((0.5, 2, 20, 90, 7200))
        self.note("the clock jumps", seconds)
        self.happened["clock jumps"] += 1
        self.now_ns += int(seconds * 1e9)

    def _abort(self, initiator):
        if initiator.is_full and initiator.open and not initiator.managing:
            operation = self.rng.choice(list(initiator.open.values()))
            self.note(initiator.name[-2:], "aborts", operation)
            self.happened["aborts"] += 1
            initiator.manage(TaskFunction.ABORT_TASK, self.now_ns, operation)

    def _reset(self, initiator):
        if initiator.is_full and not initiator.managing and self.rng.random() < 0.3:
            self.note(initiator.name[-2:], "resets the unit")
            self.happened["resets"] += 1
            initiator.manage(TaskFunction.LOGICAL_UNIT_RESET, self.now_ns)
            for other in self.initiators:
                other.was_reset = other.was_reset or other is not initiator

    def _log_out(self, initiator):
        if initiator.is_full and not initiator.open and not initiator.leaving:
            self.note(initiator.name[-2:], "logs out")
            self.happened["logouts"] += 1
            initiator.log_out(self.now_ns)

    def _damage(self, initiator):
        """Flip a bit of what is on its way, if a digest is there to tell."""
        if not initiator.is_full or not initiator.has_digests:
            return
        up = self.rng.random() < 0.5
        pipe = initiator.link.up if up else initiator.link.down
        if not pipe or not initiator.link.far_open:
            return
        self.note(initiator.name[-2:], "is damaged", "up" if up else "down")
        self.happened["damaged"] += 1
        pipe[self.rng.randrange(len(pipe))] ^= 1 << self.rng.randrange(8)
        for operation in initiator.open.values() if up else ():
            if operation.contents:
                self.medium.damage(operation.lba, len(operation.contents))

    # --- the end ---------------------------------------------------------------------------

    def heal(self):
        """No faults from here: everything asked for must end, soon."""
        self.faults = 0.0 if not self.share else 1e-300  # 0: not even an error is excused
        before = self.happened["connections lost"]
        for count in range(HEAL_STEPS):
            if all(each.is_idle and not each.managing for each in self.initiators):
                return
            self.step_count += 1
            self.now_ns += self.rng.randrange(1, 2_000_000)
            if count % 300 == 299:
                self._wait_if_still()
            self._move(self.rng.choice(self.initiators))
            lost = self.happened["connections lost"] - before
            assert lost <= RECONNECTIONS, f"{lost} connections lost without a fault"
        left = [str(one) for each in self.initiators for one in (*each.open.values(), *each.queue)]
        raise Wrong(f"no end after {count + 1} steps; left are {left}")

    def _wait_if_still(self):
        """Where no byte moves only time helps: a lost request is given up when it is late."""
        moved, self.moved_before = self.moved_before, self.digest.hexdigest()
        if moved == self.moved_before:
            self.now_ns += 31 * 10**9

    def check(self):
        """The medium holds what the model says, and all memory comes back."""
        self.medium.check_all(self.disk)
        assert not self.medium.readers
        for initiator in self.initiators:
            initiator.lose(self.now_ns)
        for session in list(self.target.sessions):
            self.target.close(session)
        while self.target.jobs:
            self.target.work()
        assert not self.target.dying, "a session does not end"
        assert self.target.buffers.taken == 0, "a data buffer is not given back"
        self.target.buffers.free()
        assert self.memory.out == 0, f"{self.memory.out} pieces of memory are not given back"
        self.happened["operations"] = sum(each.done for each in self.initiators)
        self.happened["replayed"] = sum(each.replayed for each in self.initiators)
        self.happened["logins"] = sum(each.logins for each in self.initiators)


_FAULTS = (
    Simulation._cut,
    Simulation._cut_near,
    Simulation._cut_far,
    Simulation._jump,
    Simulation._abort,
    Simulation._abort,
    Simulation._reset,
    Simulation._log_out,
    Simulation._damage,
    Simulation._damage,
)


def main(arguments=None):
    """Run one seed, or many one after another, until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=1, help="so many, from --seed on")
    parser.add_argument("--seconds", type=float, default=0, help="until so many have passed")
    parser.add_argument("--faults", type=float, default=FAULTS, help="a share of all steps")
    parser.add_argument("--trace", action="store_true", help="show the last lines of the schedule")
    asked = parser.parse_args(arguments)
    total, seed, until = Counter(), asked.seed, time.monotonic() + asked.seconds
    while seed < asked.seed + asked.seeds or time.monotonic() < until:
        try:
            run = Simulation(seed, faults=asked.faults).run(asked.steps)
        except Failure as failure:
            sys.stderr.write(f"seed {seed}: {failure}\n")
            return 1
        total += run.happened
        if asked.trace:
            sys.stdout.write("\n".join(run.trace) + "\n")
        seed += 1
    count = seed - asked.seed
    sys.stdout.write(f"{count} seeds from {asked.seed}: {dict(total)}\n")
    if count == 1:
        sys.stdout.write(f"digest {run.digest.hexdigest()[:16]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
