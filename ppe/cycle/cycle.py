"""The duty cycle: one pass over all stages, and the loop that repeats it.

Time is read once at the start of a pass and after each stage that did something, so an empty pass
costs one reading. What empty stages cost is sampled, one pass in SAMPLE_EVERY.
"""

import ctypes
from typing import Final

from ppe.cycle import hot, libc
from ppe.cycle.accounts import ENGINE_INFO, INDEX, STAGE_INDEX, STAGE_ROW, STAGE_SIZE, add
from ppe.cycle.readiness import poller
from ppe.cycle.records import NONE, SLEEP, YIELD, engine_at
from ppe.cycle.stages import (
    completions,
    control,
    events,
    receive,
    submissions,
    timers,
    transmit,
)
from ppe.cycle.stages import readiness as readiness_stage
from ppe.cycle.stages.channels import park_all
from shm.atomics import cycles, load_relaxed, pause, store_relaxed
from shm.counters import count, keep_maximum
from shm.histogram import record
from shm.jit import callback, nopython
from shm.layout import offset
from shm.libc import EINTR, monotonic_ns
from shm.ring import is_published

SAMPLE_EVERY: Final = 256
LOOK_EVERY: Final = 64  # empty passes between looks at the wall clock and the stop word
SLEEP_NS_MAX: Final = 250_000_000

# Why `run` returned.
STOPPED: Final = 0
READY: Final = 1
TIME: Final = 2
INTERRUPTED: Final = 3

CONTROL, SUBMISSIONS = STAGE_INDEX["control"], STAGE_INDEX["submissions"]
READINESS, RECEIVE = STAGE_INDEX["readiness"], STAGE_INDEX["receive"]
COMPLETIONS = STAGE_INDEX["completions"]
TRANSMIT, TIMERS, EVENTS = STAGE_INDEX["transmit"], STAGE_INDEX["timers"], STAGE_INDEX["events"]
_USEFUL, _WORK = offset(STAGE_ROW, "useful_cycles"), offset(STAGE_ROW, "work")
_RUNS, _EMPTY = offset(STAGE_ROW, "runs"), offset(STAGE_ROW, "empty_cycles")
_PASSES, _USEFUL_PASSES = offset(ENGINE_INFO, "passes"), offset(ENGINE_INFO, "useful_passes")
_INFO_USEFUL = offset(ENGINE_INFO, "useful_cycles")
_INFO_EMPTY = offset(ENGINE_INFO, "empty_cycles")
_ASLEEP = offset(ENGINE_INFO, "asleep_cycles")
_ACTIVE = offset(ENGINE_INFO, "active_channels")
_MAX_PASS = offset(ENGINE_INFO, "max_pass_cycles")
_STALLS = offset(ENGINE_INFO, "stalls")
_SLEEPS, _YIELDS = INDEX["sleeps"], INDEX["yields"]


@nopython
def account(engine: int, stage: int, work: int, mark: int, sampled: bool) -> int:
    """Charge the time since `mark` to a stage that worked, or to its empty running. New mark."""
    if work == 0 and not sampled:
        return mark
    row = engine_at(engine)[0]["stages"] + stage * STAGE_SIZE
    now = cycles()
    if work > 0:
        add(row + _USEFUL, now - mark)
        add(row + _WORK, work)
        add(row + _RUNS, 1)
    else:
        add(row + _EMPTY, (now - mark) * SAMPLE_EVERY)
    return now


@nopython
def one_pass(engine: int) -> int:
    """Run every stage once. Return how much was done."""
    mine = engine_at(engine)[0]
    start = cycles()
    mine["now"] = start
    mine["passes"] += 1
    sampled = mine["passes"] % SAMPLE_EVERY == 0
    work = control.step(engine)
    mark = account(engine, CONTROL, work, start, sampled)
    total = work
    work = submissions.step(engine)
    mark = account(engine, SUBMISSIONS, work, mark, sampled)
    total += work
    if mine["hot"] != NONE:
        hot.ask(engine)
    work = readiness_stage.step(engine)
    mark = account(engine, READINESS, work, mark, sampled)
    total += work
    if mine["verbs"] != 0:
        work = completions.step(engine)
        mark = account(engine, COMPLETIONS, work, mark, sampled)
        total += work
    if mine["receive_head"] != mine["receive_tail"]:
        work = receive.step(engine)
        mark = account(engine, RECEIVE, work, mark, sampled)
        total += work
    if mine["transmit_head"] != mine["transmit_tail"]:
        work = transmit.step(engine)
        mark = account(engine, TRANSMIT, work, mark, sampled)
        total += work
    work = timers.step(engine)
    mark = account(engine, TIMERS, work, mark, sampled)
    total += work
    if mine["dirty_count"] > 0:
        work = events.step(engine)
        mark = account(engine, EVENTS, max(work, 1), mark, sampled)
    if mine["gathering_count"] > 0:
        work = events.keep_times(engine)
        mark = account(engine, EVENTS, work, mark, sampled)
        total += work
    if total > 0:
        _account_pass(engine, mark - start)
    return total


@nopython
def _account_pass(engine: int, duration: int) -> None:
    mine = engine_at(engine)[0]
    info = mine["info"]
    mine["last_work"] = mine["now"]
    add(info + _USEFUL_PASSES, 1)
    add(info + _INFO_USEFUL, duration)
    record(mine["durations"], duration)
    keep_maximum(info + _MAX_PASS, 0, duration)
    if duration > mine["stall_cycles"]:
        add(info + _STALLS, 1)


@nopython
def _show(engine: int) -> None:
    mine = engine_at(engine)[0]
    store_relaxed(mine["info"] + _PASSES, mine["passes"])
    store_relaxed(mine["info"] + _ACTIVE, mine["active_count"])


@nopython
def sleep(engine: int, until_ns: int, inline: bool) -> int:
    """Park what is polled and sleep until something rings. Negative: `-errno`; 0: did not sleep."""
    mine = engine_at(engine)[0]
    hot.cool(engine)
    if mine["receive_head"] != mine["receive_tail"]:
        return 0  # It has to be asked once more.
    # The inline host cannot post while it sleeps here, so its channel needs no parking.
    if not inline and not park_all(engine):
        return 0
    if mine["verbs"] != 0 and completions.arm(engine) != 0:
        return 0
    _show(engine)
    wait_ns = min(until_ns - monotonic_ns(), SLEEP_NS_MAX)
    if mine["timed"] > 0:
        wait_ns = min(wait_ns, 1_000_000)
    if wait_ns <= 0:
        return 0
    before = cycles()
    outcome = poller.sleep(engine, wait_ns)
    add(mine["info"] + _ASLEEP, cycles() - before)
    count(mine["counters"], _SLEEPS, 1)
    mine["now"] = cycles()
    mine["last_work"] = mine["now"]
    readiness_stage.dispatch(engine)
    return outcome if outcome == -EINTR else 1


@nopython
def idle(engine: int, until_ns: int, inline: bool) -> int:
    """What to do after an empty pass, by the idle strategy."""
    mine = engine_at(engine)[0]
    if mine["idle"] == SLEEP and mine["now"] - mine["last_work"] > mine["sleep_after"]:
        if (
            mine["receive_head"] == mine["receive_tail"]
            and mine["transmit_head"] == mine["transmit_tail"]
            and mine["gathering_count"] == 0
        ):
            return sleep(engine, until_ns, inline)
    elif mine["idle"] == YIELD:
        libc.yield_cpu()
        count(mine["counters"], _YIELDS, 1)
    pause()
    return 0


@callback(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
def run(engine: int, consumer: int, wanted: int, until_ns: int) -> int:
    """Repeat the pass until the stop word is set, the time is over, or `wanted` events are there.

    `consumer` is the inline host's event ring, 0 for a daemon's thread, which then looks at nothing
    but the stop word. A negative `until_ns` asks for one pass. Returns STOPPED, READY, TIME or
    INTERRUPTED (a Unix signal, inline only).
    """
    mine = engine_at(engine)[0]
    empty = 0
    previous = cycles()
    while True:
        work = one_pass(engine)
        if consumer != 0 and is_published(consumer, wanted - 1):
            _show(engine)
            return READY
        if until_ns < 0:
            return TIME  # One pass was asked for.
        if work > 0:
            empty = 0
            previous = cycles()
            continue
        add(mine["info"] + _INFO_EMPTY, mine["now"] - previous)
        previous = mine["now"]
        empty += 1
        outcome = idle(engine, until_ns, consumer != 0)
        if outcome != 0:
            previous = cycles()
        if empty % LOOK_EVERY == 0 or outcome != 0:
            _show(engine)
            if load_relaxed(mine["stop"]) != 0:
                return STOPPED
            if consumer != 0 and outcome == -EINTR:
                return INTERRUPTED
            if consumer != 0 and monotonic_ns() >= until_ns:
                return TIME
