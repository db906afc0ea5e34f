"""Posting, polling and waiting on a channel from Python; `host.channel` adds the calls that block.

A channel belongs to the thread that opened it. Posting never blocks: a full ring answers False, and
nothing is dropped. Waiting never consumes: `poll` does. Ctrl-C works inside every wait, because the
compiled wait returns on signals and ten times a second.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from host import doors
from host.completion import Completion, WaitResult, completion_of
from host.errors import EngineDied, NothingOutstanding, WrongThread
from host.memory import Buffer
from host.records import CONTEXT
from shm.channel import (
    H_CONSUMER,
    H_WAITER,
    HOST_CHANNEL,
    LEDGER,
    UNSIGNALLED,
    bind_host,
    keep_ledger,
    leave_time,
    outstanding_limit,
    share_wait,
)
from shm.layout import offset
from shm.operations import (
    ACCEPT,
    CANCEL,
    CLOSE,
    CONNECT,
    FLUSHED,
    LISTEN,
    MORE,
    NOP,
    RECEIVE,
    RECEIVE_EXACT,
    REUSE_PORT,
    SEND,
    SHUTDOWN,
    pack_socket_address,
)
from shm.records import CHANNEL, CQE, NEVER, STATE_CLOSING, STATE_RUNNING
from shm.view import address_of
from shm.wait import DEADLINE, PEER, REASON_NAMES, SIGNAL, TICK

TICK_NS: Final = 100_000_000
POLL_MAX: Final = 256
# Slots of a ring unless the user says otherwise: 16 KiB stay in the first-level caches of
# both cores; from 32 KiB on a burst crosses at half the rate: docs/decisions/0005.
RING_CAPACITY: Final = 256
LENGTH_MAX: Final = 0xFFFF_FFFF  # of one send or receive: what a WQE can say
# user_data of the calls that wait for their own completion; applications use 0..2**62.
_OWN: Final = 1 << 62

_forks = 0


def _after_fork() -> None:
    global _forks  # noqa: PLW0603 - a child must know that it is one
    _forks += 1


os.register_at_fork(after_in_child=_after_fork)


class Owner(Protocol):
    """What a channel needs of the engine handle that made it."""

    def forget(self, channel: "PostingChannel") -> None:
        """Detach a closed channel."""


class PostingChannel:
    """One work ring and one event ring, and what is posted to and polled from them."""

    def __init__(
        self,
        owner: Owner,
        arenas: Any,
        shared: NDArray[Any],
        capacities: tuple[int, int],
        bell: int,
        wake_descriptor: int,
        mappings: NDArray[Any] | None = None,
    ) -> None:
        """`mappings`: of another engine than the one whose memory `arenas` names."""
        self._owner, self._arenas, self._shared = owner, arenas, shared
        self._mappings: NDArray[Any] = arenas.mappings if mappings is None else mappings
        self.work_capacity, self.event_capacity = capacities
        self.wake_descriptor = wake_descriptor
        self._thread, self._forks = threading.get_ident(), _forks
        self._state = np.zeros(1, HOST_CHANNEL)
        bind_host(address_of(self._state), address_of(shared), *capacities, bell)
        leave_time(address_of(self._state), address_of(shared))
        limit = outstanding_limit(capacities[1])
        self._ledger = np.zeros(limit + 1, LEDGER)
        self._tickets = np.zeros(limit, np.int32)
        keep_ledger(address_of(self._state), address_of(self._ledger), address_of(self._tickets))
        self._context = np.zeros(1, CONTEXT)
        self._context[0]["channel"] = address_of(self._state)
        self._context[0]["mappings"] = address_of(self._mappings)
        self._map()
        arenas.on_change.append(self._map)
        self._out = np.zeros(POLL_MAX, CQE)
        # Asking an array for its address costs a microsecond, and every call would.
        self._at, self._out_at = address_of(self._context), address_of(self._out)
        at = offset(CHANNEL, "state")
        self._shared_state = shared[at : at + 8].view(np.int64)
        self._backlog: deque[Completion] = deque()
        self._next_own = _OWN
        self._closed = False
        self._flushed = False
        self._watch_engine: Callable[[], int] | None = None
        self._neighbour: PostingChannel | None = None

    def _map(self) -> None:
        self._context[0]["mapping_count"] = self._arenas.mapping_count

    @property
    def context(self) -> int:
        """What compiled workers pass to `host.native`. Valid while the channel is open."""
        self._check()
        return self._at

    @property
    def limit(self) -> int:
        """How many posts may be outstanding."""
        return int(self._state[0]["limit"])

    @property
    def counts(self) -> dict[str, int]:
        """What this channel has done: posts, completions, refusals, sleeps, doorbells."""
        state = self._state[0]
        return {
            "posted": int(state["posted"]),
            "completed": int(state["completed"]),
            "refused": int(state["refused"]),
            "outstanding": int(state["outstanding"]),
            "waits": int(state["waiter"]["waits"]),
            "sleeps": int(state["waiter"]["sleeps"]),
            "doorbells": int(state["ringer"]["rings"]),
        }

    def sleep_beside(self, first: "PostingChannel") -> None:
        """Have this channel's waiter sleep on the wake word of another one, `host.group` for both.

        Its engine was told so when the channel was attached.
        """
        share_wait(address_of(self._state), address_of(first._shared))
        self._neighbour = first

    @property
    def wake_owner(self) -> "PostingChannel":
        """The channel whose wake word this one has."""
        return self if self._neighbour is None else self._neighbour

    @property
    def watched(self) -> tuple[int, int]:
        """Addresses of its consumer and its waiter, for `shm.wait.wait_any`."""
        self._check()
        state = address_of(self._state)
        return state + H_CONSUMER, state + H_WAITER

    def run_inline(self, run: int, engine: int, watch: Callable[[], int]) -> None:
        """Tie the channel to an engine in this thread: addresses of its cycle and its record.
        `watch` gives its poller's descriptor and has it report everything from the next pass on.
        """
        self._context[0]["run"], self._context[0]["engine"] = run, engine
        self._watch_engine = watch

    @property
    def is_inline(self) -> bool:
        """Whether the engine runs in this thread."""
        return int(self._context[0]["run"]) != 0

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def engine_address(self) -> int:
        """Of the engine's record, for an inline channel; 0 for others."""
        return int(self._context[0]["engine"])

    @property
    def position(self) -> int:
        """How many entries were taken from the event ring."""
        return int(self._state[0]["consumer"]["position"])

    def watch_descriptor(self) -> int:
        """What an event loop watches: readable when an armed wait is over or work has come."""
        if self._watch_engine is None:
            return self.wake_descriptor
        descriptor = self._watch_engine()
        doors.run_inline(self._at, 1)  # The next pass.
        return descriptor

    @property
    def outstanding(self) -> int:
        """Signalled posts whose completion was not polled yet."""
        return int(self._state[0]["signalled"])

    @property
    def backlog(self) -> int:
        """Completions taken off the ring and kept for `poll`."""
        return len(self._backlog)

    def ready(self, limit: int = POLL_MAX) -> int:
        """How many completions, up to `limit` from the ring, `poll` would give."""
        return doors.ready_count(self.context, limit) + len(self._backlog)

    def progress(self) -> None:
        """Let an inline engine do what it can without waiting; keeps completions for `poll`."""
        self._backlog.extend(self._fetch(POLL_MAX))

    def pick(self, user_data: int) -> Completion | None:
        """Take the completion with this user_data if it is there; keep all others for `poll`."""
        self.progress()
        for place, completion in enumerate(self._backlog):
            if completion.user_data == user_data and not completion.unsolicited:
                del self._backlog[place]
                return completion
        return None

    def name_memory(self, address: int, size: int) -> tuple[int, int]:
        """How the engine knows shared memory of this process: region and offset. ValueError."""
        for mapping in self._mappings[: self._arenas.mapping_count]:
            start = address - int(mapping["address"])
            if start >= 0 and start + size <= int(mapping["size"]):
                return int(mapping["region"]), start + int(mapping["offset"])
        raise ValueError("that memory is not shared with the engine: use a buffer from alloc()")

    def spin(self, rounds: int) -> None:
        """Have waits poll up to `rounds` times before they sleep (0: sleep at once)."""
        self._check()
        self._context[0]["spin_rounds"] = rounds

    def _check(self) -> None:
        if threading.get_ident() != self._thread or _forks != self._forks:
            raise WrongThread(
                "this channel was opened by another thread or before a fork: open one here"
            )
        if self._closed:
            raise ValueError("this channel is closed")

    @property
    def is_running(self) -> bool:
        """Whether the engine is there."""
        return int(self._shared_state[0]) == STATE_RUNNING

    # --- posting ---------------------------------------------------------------------------

    def _answer(self, posted: int) -> bool:
        if posted < 0:
            raise ValueError("that memory is not shared with the engine: use a buffer from alloc()")
        return posted > 0

    def _post_transfer(
        self,
        opcode: int,
        flags: int,
        endpoint: int,
        data: Buffer | NDArray[Any],
        user_data: int,
    ) -> bool:
        self._ready_to_post()
        array = data.lend() if isinstance(data, Buffer) else data
        size = array.nbytes
        if not 0 < size <= LENGTH_MAX or not array.flags.c_contiguous:
            raise ValueError(
                f"a transfer is of 1 to {LENGTH_MAX} bytes of contiguous memory, not {size} bytes"
                + ("" if array.flags.c_contiguous else " with gaps")
            )
        context = self._at
        return self._answer(
            doors.post_transfer(
                context, opcode, flags, endpoint, user_data, address_of(array), size
            )
        )

    def _ready_to_post(self) -> None:
        self._check()
        if not self.is_running:
            raise EngineDied("the engine of this channel is gone: connect again")

    def post_send(
        self,
        endpoint: int,
        data: Buffer | NDArray[Any],
        user_data: int = 0,
        *,
        more: bool = False,
        signalled: bool = True,
    ) -> bool:
        """Post a send of a shared array's bytes. False, changing nothing, when there is no room.

        The memory is the engine's until the completion. `more`: another send follows at once.
        An unsignalled send completes silently with the channel's next completion, errors aside.
        """
        flags = (MORE if more else 0) | (0 if signalled else UNSIGNALLED)
        return self._post_transfer(SEND, flags, endpoint, data, user_data)

    def post_recv(
        self,
        endpoint: int,
        into: Buffer | NDArray[Any],
        user_data: int = 0,
        *,
        exact: bool = False,
    ) -> bool:
        """Post a receive: of exactly the array's size, or of any bytes that come.

        False, changing nothing, when there is no room. At the end of the stream an exact receive
        completes with END_OF_STREAM and what it had, another with length 0.
        """
        flags = RECEIVE_EXACT if exact else 0
        return self._post_transfer(RECEIVE, flags, endpoint, into, user_data)

    def _post_plain(self, opcode: int, endpoint: int, user_data: int, arg0: int = 0) -> bool:
        self._ready_to_post()
        context = self._at
        return doors.post_plain(context, opcode, 0, endpoint, user_data, arg0) > 0

    def post_nop(self, user_data: int = 0) -> bool:
        """Post the operation that the engine completes at once."""
        return self._post_plain(NOP, 0, user_data)

    def post_accept(self, listener: int, user_data: int = 0) -> bool:
        """Post an accept; its completion's `endpoint` is the connection, `peer` its address."""
        return self._post_plain(ACCEPT, listener, user_data)

    def post_shutdown(self, endpoint: int, user_data: int = 0) -> bool:
        """Post the end of our direction, behind everything that was sent."""
        return self._post_plain(SHUTDOWN, endpoint, user_data)

    def post_close(self, endpoint: int, user_data: int = 0) -> bool:
        """Post the end of an endpoint; whatever is outstanding on it completes as cancelled."""
        return self._post_plain(CLOSE, endpoint, user_data)

    def post_cancel(self, endpoint: int, target: int, user_data: int = 0) -> bool:
        """Post the cancellation of the endpoint's operation with user_data `target`.

        Its own completion is 0, -ENOENT (nothing such is outstanding) or -EALREADY (half sent).
        """
        return self._post_plain(CANCEL, endpoint, user_data, target)

    def _post_address(
        self, opcode: int, flags: int, address: tuple[str, int], user_data: int, arg0: int
    ) -> bool:
        self._ready_to_post()
        packed = np.frombuffer(pack_socket_address(*address), np.uint8)
        context = self._at
        return (
            doors.post_address(
                context, opcode, flags, user_data, arg0, address_of(packed), packed.nbytes
            )
            > 0
        )

    def post_connect(
        self, address: tuple[str, int], user_data: int = 0, *, timeout_s: float = 0
    ) -> bool:
        """Post a connect to a numeric address; `resolve` makes one from a name."""
        return self._post_address(CONNECT, 0, address, user_data, int(timeout_s * 1e9))

    def post_listen(
        self,
        address: tuple[str, int],
        user_data: int = 0,
        *,
        backlog: int = 128,
        reuse_port: bool = False,
    ) -> bool:
        """Post a listen; its completion's `endpoint` is the listener, `arg0` the bound port."""
        flags = REUSE_PORT if reuse_port else 0
        return self._post_address(LISTEN, flags, address, user_data, backlog)

    # --- completions -----------------------------------------------------------------------

    def poll(self, limit: int = POLL_MAX) -> list[Completion]:
        """Take up to `limit` completions. Never blocks; an empty list when there are none."""
        self._check()
        found: list[Completion] = []
        while self._backlog and len(found) < limit:
            found.append(self._backlog.popleft())
        if len(found) < limit:
            found += self._fetch(min(limit - len(found), POLL_MAX))
        return found

    def poll_array(self, limit: int = POLL_MAX) -> NDArray[Any]:
        """Like `poll`, as a CQE array that the next call overwrites: for many completions."""
        self._check()
        limit = min(limit, POLL_MAX)
        count = 0
        if not self._backlog:
            count = self._poll_ring(limit)
            if count == 0 and not self.is_running and not self._flushed:
                self._queue_flushed()
        while self._backlog and count < limit:
            row, completion = self._out[count], self._backlog.popleft()
            for name, value in completion._asdict().items():
                row[name] = value
            count += 1
        return self._out[:count]

    def _fetch(self, limit: int) -> list[Completion]:
        count = self._poll_ring(limit)
        if count == 0:
            return [] if self.is_running or self._flushed else self._flush()
        return [completion_of(row) for row in self._out[:count].tolist()]

    def _poll_ring(self, limit: int) -> int:
        """Take entries into `_out`. None means none, also where the engine is found to be gone:
        it may have published its last ones after the first look, so a second one follows.
        """
        count = doors.poll(self._at, self._out_at, limit)
        if count == 0 and not self.is_running:
            count = doors.poll(self._at, self._out_at, limit)
        return count

    def _flush(self) -> list[Completion]:
        """The engine is gone: give every outstanding post its completion, FLUSHED."""
        self._flushed = True
        lines = self._ledger[self._ledger["opcode"] != 0]
        self._state[0]["signalled"] = 0
        self._state[0]["outstanding"] = 0
        return [
            Completion(
                int(r["opcode"]), int(r["endpoint"]), int(r["user_data"]), FLUSHED, 0, 0, 0, 0, 0
            )
            for r in lines
        ]

    def wait_n(
        self, n: int, *, min_wait_s: float | None = None, timeout_s: float | None = None
    ) -> WaitResult:
        """Sleep until `n` completions can be polled; consumes nothing.

        `n` is clamped to what is outstanding. After `min_wait_s` one completion is enough. Raises
        ValueError for n < 1, NothingOutstanding when nothing could ever come, EngineDied.
        """
        self._check()
        if n < 1:
            raise ValueError(f"wait_n of {n}: at least 1")
        if len(self._backlog) >= n:
            return WaitResult(len(self._backlog), "threshold")
        context = self._at
        n -= len(self._backlog)
        if int(self._state[0]["signalled"]) == 0 and timeout_s is None:
            ready = doors.ready_count(context, n) + len(self._backlog)
            if ready == 0 and not self.is_running:
                raise EngineDied("the engine of this channel is gone: connect again")
            if ready == 0:
                raise NothingOutstanding(
                    "wait_n would sleep for ever: nothing is outstanding on this channel; "
                    "post first, or give timeout_s"
                )
            return WaitResult(ready, "threshold")
        now = monotonic_ns()
        deadline = NEVER if timeout_s is None else now + int(timeout_s * 1e9)
        min_wait = NEVER if min_wait_s is None else now + int(min_wait_s * 1e9)
        while True:
            reason = doors.wait_n(context, n, min_wait, deadline, now + TICK_NS)
            if reason not in (TICK, SIGNAL):
                break
            now = monotonic_ns()  # Python has had its look at signals between the two calls.
        ready = doors.ready_count(context, self.event_capacity) + len(self._backlog)
        if reason == PEER and ready == 0 and (self._flushed or not self._queue_flushed()):
            raise EngineDied("the engine went away while this channel waited: connect again")
        if reason == DEADLINE and ready >= n:
            return WaitResult(ready, "threshold")
        return WaitResult(max(ready, len(self._backlog)), REASON_NAMES[reason])

    def _queue_flushed(self) -> int:
        self._backlog.extend(self._flush())
        return len(self._backlog)

    def wait(self, *, timeout_s: float | None = None) -> WaitResult:
        """`wait_n(1)`."""
        return self.wait_n(1, timeout_s=timeout_s)

    def close(self) -> None:
        """Close every endpoint of this channel and give its memory back. Idempotent."""
        if self._closed:
            return
        self._owner.forget(self)
        self._arenas.on_change.remove(self._map)
        self._closed = True

    def mark(self, state: int = STATE_CLOSING) -> None:
        """Set the channel's state and wake its waiter; any thread may call this."""
        doors.mark_state(address_of(self._state), state, self.wake_descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
