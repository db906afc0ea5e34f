"""Two sides of RDMA connections for tests: each with its own channel and device of the engine under
test, in one thread; whoever waits drives both.
"""

import contextlib
import os
import time

import numpy as np

from host.verbs import ConnParam, Device, QpCap, RecvWr, SendWr
from host.verbs.records import RTS
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    ACCESS_MW_BIND,
    ACCESS_REMOTE_ATOMIC,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    SEND_SIGNALED,
    WR_SEND,
)

WAIT_S = 30
# Where the passive side listens: an address of the device.
ADDRESS = os.environ.get("PPE_RDMA_ADDRESS", "127.0.0.1"), 0
ALL_ACCESS = (
    ACCESS_LOCAL_WRITE
    | ACCESS_REMOTE_WRITE
    | ACCESS_REMOTE_READ
    | ACCESS_REMOTE_ATOMIC
    | ACCESS_MW_BIND
)


class Side:
    """One end: a channel, a device on it, a domain, a completion queue, a registered buffer."""

    def __init__(self, engine, stack, provider, *, events=1024, cq_depth=256, size=1 << 20):
        self.engine, self.is_gone = engine, False
        self.channel = stack.enter_context(engine.channel(work=1024, events=events))
        self.device = Device(engine, self.channel, provider)
        stack.callback(self._close)
        self.pd = self.device.alloc_pd()
        self.cq = self.device.create_cq(cq_depth)
        self.buffer = stack.enter_context(engine.alloc(size))
        self.buffer.array[:] = 0
        self.mr = self.pd.reg_mr(self.buffer, ALL_ACCESS)

    def _close(self):
        if self.channel.is_running and not self.is_gone:
            self.device.close()

    def leave(self):
        """Close the channel as the death of its process would: nothing is given back before."""
        self.is_gone = True
        self.channel.close()

    @property
    def array(self):
        """Its registered bytes."""
        return self.buffer.array

    def qp(self, **options):
        """Make a queue pair on its completion queue."""
        cap = options.pop("cap", QpCap(64, 64))
        return self.device.create_qp(self.pd, self.cq, cap=cap, **options)

    def take(self, count=1):
        """Wait for exactly so many work completions and return them."""
        found = []
        deadline = time.monotonic() + WAIT_S
        while len(found) < count:
            found += self.cq.poll_cq(count - len(found))
            left = deadline - time.monotonic()
            assert left > 0, f"waited {WAIT_S} s for {count} completions, got {found}"
            if len(found) < count:
                self.cq.wait_n(1, timeout_s=min(left, 0.2))
        return found

    def one(self):
        """Wait for one work completion."""
        return self.take(1)[0]

    def nothing(self):
        """Say whether no completion is there after a look at what there is."""
        self.channel.wait_n(1, timeout_s=0.02)
        return self.cq.poll_cq() == []

    def event(self):
        """Wait for one asynchronous event."""
        return self.device.get_async_event(WAIT_S)

    def fill(self, offset, length, seed=1):
        """Write a pattern down and return a copy of it."""
        pattern = np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8)
        self.array[offset : offset + length] = pattern
        return pattern


class Accepting:
    """Drives a listener from inside the active side's wait, so that one thread does both."""

    def __init__(self, listener, answer):
        self.listener, self.answer = listener, answer
        self.request = None
        self.error = None

    def poll(self):
        """Answer a request that came."""
        if self.request is None:
            self.request = self.listener.poll()
            if self.request is not None:
                try:
                    self.answer(self.request)
                except Exception as error:
                    self.error = error


def connect(active, passive, active_qp, passive_qp, *, asked=None, granted=None):
    """Connect two queue pairs of two sides. Return what each believes."""
    listener = passive.device.listen(ADDRESS)
    believed = {}

    def answer(request):
        believed["passive"] = request.accept(passive_qp, granted or ConnParam())

    try:
        believed["active"] = dial(active, active_qp, listener, answer, asked)
    finally:
        listener.close()
    return believed["active"], believed["passive"]


def dial(active, active_qp, listener, answer, asked=None):
    """Connect to a listener whose side answers with `answer(request)`; raises what connect does.

    A connect blocks its thread, so the passive side gets to run whenever the active one waits.
    """
    accepting = Accepting(listener, answer)
    waits = active.channel.wait_n

    def wait_and_serve(n, *, min_wait_s=None, timeout_s=None):
        accepting.poll()
        left = 0.01 if timeout_s is None else min(timeout_s, 0.01)
        return waits(n, min_wait_s=min_wait_s, timeout_s=left)

    active.channel.wait_n = wait_and_serve
    try:
        startup = active_qp.connect(listener.address, asked)
    finally:
        del active.channel.wait_n
        if accepting.error is not None:
            raise accepting.error
    return startup


@contextlib.contextmanager
def two_sides(engine, provider, **options):
    """Give two sides of one engine."""
    with contextlib.ExitStack() as stack:
        yield Side(engine, stack, provider, **options), Side(engine, stack, provider, **options)


def send(side, qp, offset, length, *, wr_id=1, flags=SEND_SIGNALED, opcode=WR_SEND, **fields):
    """Post a send of a piece of the side's buffer."""
    pieces = [side.mr.sge(offset, length)] if length else []
    assert qp.post_send(SendWr(opcode, pieces, wr_id, flags, **fields))


def receive(side, qp, offset, length, *, wr_id=2):
    """Post a receive into a piece of the side's buffer."""
    pieces = [side.mr.sge(offset, length)] if length else []
    assert qp.post_recv(RecvWr(pieces, wr_id))
    hand_over(qp)


def ended_by(side, *codes):
    """Wait for the event of a queue pair that ended by a Terminate of one of these codes, where the
    device tells codes; where it does not, for one that says that it ended.
    """
    event = side.event()
    if side.device.query().terminates:
        assert event.terminate in codes
    else:
        assert event.terminate is None
    return event


def hand_over(qp):
    """Wait until what was posted is with the device: what the peer posts after it on a channel of
    its own may be served before. The software RNIC looks at what came after all that was posted.
    """
    if qp.endpoint and qp.state == RTS and qp.device.query().name != "iwarp":
        qp.query()
