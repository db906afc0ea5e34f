"""The hot loops on the host's side of an engine: nops there and back, singly or N at a sleep.

They use the client library's calls for compiled workers and nothing beneath them.
"""

from bench.workers import GONE, LOOK_EVERY, SPINS_MAX, WRONG
from host.native import consume_completion, flush, next_completion, post_nop, wait_n
from shm.atomics import cycles
from shm.jit import entry, nopython
from shm.libc import monotonic_ns
from shm.memory import store_64
from shm.records import NEVER, cqe_at
from shm.wait import THRESHOLD


@nopython
def await_completion(context: int) -> int:
    """Poll until a completion is there. Its address, or 0: the engine is silent."""
    for _ in range(SPINS_MAX):
        found = next_completion(context)
        if found != 0:
            return found
    return 0


@entry("int64(intp, intp, int64, int64, int64, int64)")
def nop_trips(
    context: int, ticks: int, limit: int, warmup: int, group: int, deadline_ns: int
) -> int:
    """Time post → engine → completion into int64 `ticks`, one sample per `group` trips.

    Each trip posts, looks whether the engine must be rung, polls, checks and consumes. Returns the
    samples taken, GONE or WRONG.
    """
    taken, number = -warmup, 0
    last = cycles()
    while taken < limit:
        number += 1
        if post_nop(context, number, 0) != 1:
            return WRONG
        flush(context)
        found = await_completion(context)
        if found == 0:
            return GONE
        completion = cqe_at(found)[0]
        if completion["user_data"] != number or completion["status"] != 0:
            return WRONG
        consume_completion(context)
        if number % group != 0:
            continue
        now = cycles()
        if taken >= 0:
            store_64(ticks + 8 * taken, now - last)
        taken += 1
        last = now
        if taken % LOOK_EVERY == 0:
            if monotonic_ns() > deadline_ns:
                break
            last = cycles()
    return max(taken, 0)


@entry("int64(intp, int64, int64, int64)")
def nops_by_wait(context: int, rounds: int, n: int, deadline_ns: int) -> int:
    """Post `n` nops, sleep for all of them, take them; `rounds` times. Operations done, or GONE."""
    done = 0
    for _ in range(rounds):
        for place in range(n):
            if post_nop(context, place, 0) != 1:
                return WRONG
            flush(context)
        if wait_n(context, n, NEVER, deadline_ns, NEVER) != THRESHOLD:
            return GONE
        for _ in range(n):
            if next_completion(context) == 0:
                return WRONG
            consume_completion(context)
        done += n
    return done
