"""Completion queues. A device's channel brings the completions of all its queue pairs; a completion
queue holds those of its own until they are polled. Its depth was reserved when the work was posted,
so it cannot overflow: the post that might find no room is refused.
"""

from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING

import numpy as np

from host.completion import Completion, WaitResult
from host.errors import EngineDied, NothingOutstanding
from host.posting import TICK_NS
from host.verbs import doors
from host.verbs.native import EFAULT, EINVAL, EOPNOTSUPP
from host.verbs.records import CQ
from host.verbs.work import WorkCompletion
from shm.channel import SOLICITED
from shm.operations import RDMA_BIND_MW, RDMA_RECEIVE
from shm.records import NEVER
from shm.verbs import (
    WC_FLAGS_MASK,
    WC_OPCODE_MASK,
    WC_OPCODE_SHIFT,
    WC_STATUS_MASK,
    WC_VENDOR_SHIFT,
)
from shm.verbs_numbers import (
    WC_LOC_PROT_ERR,
    WC_LOC_QP_OP_ERR,
    WC_RECV,
    WC_WR_FLUSH_ERR,
)
from shm.wait import PEER, SIGNAL, TICK

if TYPE_CHECKING:
    from host.verbs.device import Device


class CompletionQueue:
    """Where completions of its queue pairs come to. `depth`: work requests under way at most."""

    def __init__(self, device: "Device", depth: int) -> None:
        if not 1 <= depth <= device.channel.limit:
            raise ValueError(
                f"a completion queue of {depth}: this channel can keep 1 to {device.channel.limit} "
                "outstanding; open it with more events"
            )
        self.device, self.depth = device, depth
        self.record = np.zeros(1, CQ)
        self.record[0]["depth"] = depth
        self.address = int(self.record.ctypes.data)
        self._ready: deque[Completion] = deque()
        self._moderation = (1, 0.0)
        self._solicited_only: bool | None = None
        self._notices = 0
        self._rotated = 0
        self._closed = False

    @property
    def outstanding(self) -> int:
        """Work requests posted for this queue that were not polled."""
        return int(self.record[0]["posted"] - self.record[0]["done"])

    @property
    def ready(self) -> int:
        """Completions that `poll_cq` would give without asking the engine."""
        return len(self._ready)

    def put(self, completion: Completion) -> None:
        """Take a completion of one of its queue pairs; the device calls this."""
        self._ready.append(completion)
        if self._solicited_only is not None:
            is_event = not self._solicited_only or completion.flags & SOLICITED
            if is_event:
                self._notices += 1
                self._solicited_only = None  # It notifies once (ibv_req_notify_cq(3)).

    def poll_cq(self, limit: int = 256) -> list[WorkCompletion]:
        """Take up to `limit` work completions. Never blocks."""
        if len(self._ready) < limit:
            self.device.progress()
        found: list[WorkCompletion] = []
        while self._ready and len(found) < limit:
            found.append(self._take())
        return found

    def _take(self) -> WorkCompletion:
        """The oldest completion; its places in the queues are free again."""
        done = self._ready.popleft()
        doors.note_wc(
            self.device.address, done.endpoint, int(done.opcode == RDMA_RECEIVE), done.arg1
        )
        wc = wc_of(done)
        if done.opcode == RDMA_BIND_MW:
            self.device.bound(done.endpoint, wc)
        return wc

    def complete(self, wr_id: int, timeout_s: float = 10.0) -> WorkCompletion:
        """Wait for the completion with this wr_id; all others stay. Raises TimeoutError."""
        if not self.device.wait_until(lambda: self._has(wr_id), timeout_s):
            raise TimeoutError(f"no completion of work request {wr_id} within {timeout_s} s")
        return self._pick(wr_id)

    def take(self, wr_id: int) -> WorkCompletion | None:
        """The completion with this wr_id if it is there; all others stay. Never blocks."""
        self.device.progress()
        return self._pick(wr_id) if self._has(wr_id) else None

    def _has(self, wr_id: int) -> bool:
        return any(done.user_data == wr_id for done in self._ready)

    def _pick(self, wr_id: int) -> WorkCompletion:
        while self._ready[0].user_data != wr_id:
            self._ready.rotate(-1)
            self._rotated += 1
        found = self._take()
        self._ready.rotate(self._rotated)
        self._rotated = 0
        return found

    def moderate(self, count: int, period_s: float) -> None:
        """Have `wait` sleep until `count` completions are there, or `period_s` has passed and at
        least one is (ibv_modify_cq(3)'s cq_count and cq_period).
        """
        if count < 1 or period_s < 0:
            raise ValueError(f"{count} completions or {period_s} s: 1 or more, 0 or more")
        self._moderation = (count, period_s)

    def wait(self, *, timeout_s: float | None = None) -> WaitResult:
        """`wait_n` as `moderate` says."""
        count, period_s = self._moderation
        return self.wait_n(count, min_wait_s=period_s or None, timeout_s=timeout_s)

    def wait_n(
        self, n: int, *, min_wait_s: float | None = None, timeout_s: float | None = None
    ) -> WaitResult:
        """Sleep until `n` completions can be polled; consumes nothing.

        `n` is clamped to what is outstanding. After `min_wait_s` one completion is enough. Raises
        ValueError for n < 1, NothingOutstanding when nothing could ever come, EngineDied.
        """
        if n < 1:
            raise ValueError(f"wait_n of {n}: at least 1")
        start = monotonic_ns()
        deadline = NEVER if timeout_s is None else start + int(timeout_s * 1e9)
        enough_at = NEVER if min_wait_s is None else start + int(min_wait_s * 1e9)
        channel = self.device.channel
        while True:
            self.device.progress()
            ready, now = len(self._ready), monotonic_ns()
            if ready >= min(n, max(self.outstanding, 1)) or (ready and channel.outstanding == 0):
                return WaitResult(ready, "threshold")
            if ready and now >= enough_at:
                return WaitResult(ready, "min_wait")
            if now >= deadline:
                return WaitResult(ready, "deadline")
            if not channel.is_running:
                raise EngineDied("the engine of this device is gone: connect again")
            if self.outstanding == 0 and timeout_s is None:
                raise NothingOutstanding("wait_n would sleep for ever: nothing is outstanding")
            until = min(deadline, max(enough_at, now + 1)) if ready else deadline
            left = None if until == NEVER else (until - now) / 1e9
            self._sleep(n - ready, left, ready or enough_at == NEVER, enough_at - now)

    def _sleep(self, n: int, left_s: float | None, is_plain: bool | int, min_ns: int) -> None:
        """Sleep in the channel; whoever's completion wakes it, the caller looks again."""
        channel = self.device.channel
        minimum = None if is_plain or min_ns >= NEVER >> 1 else max(min_ns, 0) / 1e9
        if channel.outstanding == 0:
            left_s = 0.05 if left_s is None else min(left_s, 0.05)
        channel.wait_n(max(n, 1), min_wait_s=minimum, timeout_s=left_s)

    def req_notify(self, *, solicited_only: bool = False) -> None:
        """Ask for one event: with the next completion, or with the next that is solicited (its
        sender asked for it) or failed. What is in the queue already does not count.
        """
        self.device.progress()
        # Asking for all is the stronger wish and stays (ibv_req_notify_cq(3)).
        self._solicited_only = solicited_only and self._solicited_only is not False

    def get_cq_event(self, timeout_s: float | None = None) -> bool:
        """Sleep until the event that `req_notify` asked for; False at the timeout.

        Completions that nobody asked to be told of wake nobody. Raises ValueError if nothing was
        asked for.
        """
        start = monotonic_ns()
        deadline = NEVER if timeout_s is None else start + int(timeout_s * 1e9)
        while True:
            self.device.progress()
            if self._notices:
                self._notices -= 1
                return True
            if self._solicited_only is None:
                raise ValueError("no event was asked for: call req_notify first")
            now = monotonic_ns()
            if now >= deadline:
                return False
            if not self.device.channel.is_running:
                raise EngineDied("the engine of this device is gone: connect again")
            self._await_event(deadline, now)

    def _await_event(self, deadline: int, now: int) -> None:
        channel = self.device.channel
        if not self._solicited_only:
            left = min(deadline - now, TICK_NS) / 1e9
            channel.wait_n(1, timeout_s=left)
            return
        inline = int(channel.is_inline)
        reason = TICK
        while reason in (TICK, SIGNAL) and now < deadline:
            reason = doors.wait_solicited(channel.context, deadline, now + TICK_NS, inline)
            if reason == PEER:
                return
            if channel.ready() >= channel.limit:
                return  # Whatever is there, it takes the room of what could come.
            now = monotonic_ns()

    def destroy(self) -> None:
        """Give it back. Raises OSError EBUSY while queue pairs use it."""
        self.device.forget_cq(self)
        self._closed = True


def wc_of(done: Completion) -> WorkCompletion:
    """A completion of the channel as a work completion."""
    status = done.arg2 & WC_STATUS_MASK
    if status == 0 and done.status != 0:
        # The engine, or the host library after the engine's death, ended it before any queue pair.
        status = WC_WR_FLUSH_ERR
        if done.status in (EINVAL, EOPNOTSUPP):
            status = WC_LOC_QP_OP_ERR
        elif done.status == EFAULT:
            status = WC_LOC_PROT_ERR
    opcode = done.arg1 >> WC_OPCODE_SHIFT & WC_OPCODE_MASK
    if done.opcode == RDMA_RECEIVE:
        opcode |= WC_RECV
    return WorkCompletion(
        done.user_data,
        status,
        opcode,
        done.length,
        done.endpoint,
        done.arg0,
        done.arg1 & WC_FLAGS_MASK,
        done.arg2 >> WC_VENDOR_SHIFT,
    )
