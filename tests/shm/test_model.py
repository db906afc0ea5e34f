"""The model checker over ring, wait, doorbell and channel: every order up to the bounds.

Bounds: two or three threads; rings of 2, 4, 8 and 16 slots with up to 17 entries, so each wraps;
one or two words of a payload at a time, each of the seven in a program of its own; operations of
one and two slots; up to two wake-ups without cause and one EINTR; one step of the clock. Memory is
x86-TSO with unbounded store buffers, but stores of payloads leave them in any order, and before one
publication that stands before them. One sleeper for two rings has two producers, one wake word and
up to three entries. All programs together have 819,000 states and 2,556,000 steps; `pytest -rP`
prints each count.

What holds in every state: entries arrive whole, once and in order; no unread slot is overwritten;
`wait_n` gives a reason only when it is true; a wait costs at most one wake-up; nobody sleeps or
circles for ever. Each mutation below is a fault that must break one of these.
"""

from functools import partial

import pytest

from shm.jit import JIT_DISABLED
from shm.ring import WORDS
from tests.shm.model import channels, programs, several
from tests.shm.model.machine import explore
from tests.shm.model.source import drop, move_after, replace
from tests.shm.model.steps import Violation

pytestmark = pytest.mark.skipif(
    JIT_DISABLED, reason="the checker runs the uncompiled source in either run: once is enough"
)


def ring_of_word(word):
    """Bursts, which are copied wide at both ends, and one word of them that is followed."""
    return partial(programs.ring_by_bursts, capacity=2, entries=5, tracked=(word,))


PROGRAMS = {
    **{f"ring-word-{word}": ring_of_word(word) for word in range(1, WORDS + 1)},
    "ring": partial(programs.ring_by_ones, capacity=2, entries=6, limit=2),
    "ring-of-4": partial(programs.ring_by_ones, capacity=4, entries=10, limit=3),
    "ring-of-8": partial(programs.ring_by_ones, capacity=8, entries=12, limit=2, tracked=(1,)),
    "bursts": partial(programs.ring_by_bursts, capacity=2, entries=6),
    "bursts-of-4": partial(programs.ring_by_bursts, capacity=4, entries=9),
    "pairs": partial(programs.ring_of_pairs, capacity=4, operations=5),
    "pairs-of-8": partial(programs.ring_of_pairs, capacity=8, operations=7),
    "head-too-far": partial(programs.ring_with_a_liar, lie=3),
    "head-far-too-far": partial(programs.ring_with_a_liar, lie=1 << 40),
    "head-negative": partial(programs.ring_with_a_liar, lie=-1),
    "wait-1": partial(programs.waits, wants=[1, 1], batches=[1, 1]),
    "wait-1-full": partial(programs.waits, wants=[1] * 5, batches=[1] * 5, capacity=2),
    "wait-1-spurious": partial(
        programs.waits, wants=[1, 1], batches=[1, 1], spurious=2, interrupts=1
    ),
    "wait-2": partial(programs.waits, wants=[2, 1], batches=[1, 1, 1]),
    "solicited": partial(programs.solicited_waits, flags=[4]),
    "solicited-late": partial(programs.solicited_waits, flags=[0, 4, 0]),
    "solicited-unasked": partial(programs.solicited_waits, flags=[0, 0, 1]),
    "solicited-spurious": partial(programs.solicited_waits, flags=[0, 4], spurious=2, interrupts=1),
    "solicited-for-others": partial(programs.solicited_waits, flags=[4, 0, 4], wants=3),
    "one-wait": partial(programs.waits, wants=[1], batches=[1, 1, 1]),
    "wait-2-batch": partial(programs.waits, wants=[2], batches=[2]),
    "wait-2-late": partial(programs.waits, wants=[2, 1], batches=[3]),
    "wait-2-spurious": partial(
        programs.waits, wants=[2, 2, 2], batches=[1] * 6, spurious=2, interrupts=1
    ),
    "wait-3-late": partial(programs.waits, wants=[3, 2, 1], batches=[1, 2, 3]),
    "wait-holding-slots": partial(programs.waits, wants=[1, 8], batches=[1, 8], capacity=8),
    "wait-with-lag": partial(
        programs.waits, wants=[1, 16], batches=[1, 16], capacity=16, tracked=(1,)
    ),
    "min-wait": partial(programs.waits, wants=[2], batches=[1], min_wait=1, clock_end=1),
    "min-wait-3": partial(
        programs.waits, wants=[3], batches=[1, 1, 1], min_wait=1, clock_end=1, spurious=1
    ),
    "kept-min-wait": partial(programs.kept_waits, wants=[2], batches=[1], clock_end=1),
    "kept-min-wait-solicited": partial(
        programs.kept_waits,
        wants=[2],
        batches=[1],
        clock_end=1,
        look="solicited.wake_if_solicited",
    ),
    "kept-min-wait-2": partial(programs.kept_waits, wants=[2, 1], batches=[1, 1, 1], clock_end=1),
    "kept-min-wait-3": partial(
        programs.kept_waits, wants=[3], batches=[1, 1], clock_end=1, spurious=1
    ),
    "deadline": partial(programs.waits, wants=[2], batches=[1], deadline=1, clock_end=1),
    "close": partial(programs.closing, entries=1),
    "signal-then-close": partial(programs.closing, entries=2, signals=1),
    "eventfd": partial(programs.event_loop, wants=[1, 1], batches=[1, 1]),
    "eventfd-2": partial(programs.event_loop, wants=[2, 1, 1], batches=[1] * 4),
    "eventfd-close": programs.closing_event_loop,
    "eventfd-then-futex": programs.changing_kind,
    "two-rings": partial(several.sleeping_for_two, batches=([1, 1], [1])),
    "two-rings-batch": partial(several.sleeping_for_two, batches=([2], [1])),
    "two-rings-spurious": partial(
        several.sleeping_for_two, batches=([1], [1]), spurious=2, interrupts=1
    ),
    "two-rings-full": partial(several.sleeping_for_two, batches=([1, 1, 1], [])),
    "two-rings-deadline": partial(
        several.sleeping_for_two, batches=([1], [1]), deadline=1, clock_end=1
    ),
    "two-rings-lag": several.sleeping_with_lag,
    "two-rings-close": several.closing_one_of_two,
    "park": partial(programs.parking, batches=[1, 1]),
    "park-burst": partial(programs.parking, batches=[1, 2, 1, 1]),
    "channel": partial(channels.channel, posts=3, deep=2, capacity=2),
    "channel-deep": partial(channels.channel, posts=5, deep=4, capacity=4),
}

WAIT, RING, BELL, CHANNEL = "shm.wait", "shm.ring", "shm.doorbell", "shm.channel"
SOLICITED = "shm.solicited"
CROSSED = "old < load_relaxed(mine['wake_at']) <= new"
SANE_HEAD = "mine['head_seen'] <= head <= position"
ORDINARY = ("store_release", "store_64")
# What is claimed after commit() lies one further on.
BEHIND = replace(RING, "post_burst", "claim(producer, 0)", "claim(producer, -1)")
SNAPSHOT = "seen = load_acquire_32("

# name: (the program that must fail, the faults)
MUTATIONS = {
    "no fence in arm": ("wait-1", [drop(WAIT, "arm", "fence()")]),
    "no fence in arm_solicited": ("solicited", [drop(SOLICITED, "arm_solicited", "fence()")]),
    "no fence in wake_if_solicited": (
        "solicited",
        [drop(SOLICITED, "wake_if_solicited", "fence()")],
    ),
    "arm_solicited does not look again": (
        "solicited",
        [replace(SOLICITED, "arm_solicited", "not has_solicited(consumer)", "True")],
    ),
    "has_solicited looks at the first entry alone": (
        "solicited-late",
        [drop(SOLICITED, "has_solicited", "ahead += 1")],
    ),
    "a solicited entry wakes whoever waits": (
        "solicited-for-others",
        [replace(SOLICITED, "wake_if_solicited", "old < wake_at <= new", "True")],
    ),
    "no fence in wake_if_crossed": ("wait-1", [drop(WAIT, "wake_if_crossed", "fence()")]),
    "no fence in park": ("park", [drop(BELL, "park", "fence()")]),
    "no fence in ring_if_needed": ("park", [drop(BELL, "ring_if_needed", "fence()")]),
    "no fence in arm, by eventfd": ("eventfd", [drop(WAIT, "arm", "fence()")]),
    "no fence in arm, in a channel": ("channel", [drop(WAIT, "arm", "fence()")]),
    "no fence in ring_if_needed, in a channel": (
        "channel",
        [drop(BELL, "ring_if_needed", "fence()")],
    ),
    "no fence in arm, of two rings": ("two-rings", [drop(WAIT, "arm", "fence()")]),
    "no fence in wake_if_crossed, of two rings": (
        "two-rings",
        [drop(WAIT, "wake_if_crossed", "fence()")],
    ),
    "wake leaves the futex word, of two rings": (
        "two-rings",
        [drop(WAIT, "wake", "fetch_add_32(")],
    ),
    "wait_any reads wake_seq after arming": (
        "two-rings",
        [move_after(WAIT, "wait_any", SNAPSHOT, "reason = _arm_all(")],
    ),
    "wait_any arms the first ring only": (
        "two-rings",
        [replace(WAIT, "_arm_all", "range(count)", "range(1)")],
    ),
    "wait_any looks at the first state only": (
        "two-rings-close",
        [replace(WAIT, "_arm_all", "load_acquire(waiter_at(mine['waiter'])[0]['state'])", "0")],
    ),
    "wait_any keeps slots back": (
        "two-rings-lag",
        [drop(WAIT, "wait_any", "publish_head(")],
    ),
    "wait_any takes a signal for the threshold": (
        "two-rings-spurious",
        [replace(WAIT, "sleep_armed", "SIGNAL", "THRESHOLD")],
    ),
    "wake leaves the futex word": ("wait-1", [drop(WAIT, "wake", "fetch_add_32(")]),
    "close leaves the futex word": ("close", [drop(WAIT, "wake", "fetch_add_32(")]),
    "wake changes the word and wakes nobody": ("wait-1", [drop(WAIT, "wake", "if load_relaxed")]),
    "arm does not look again": (
        "wait-1",
        [replace(WAIT, "arm", "not is_published(consumer, want - 1)", "True")],
    ),
    "arm looks one slot too early": (
        "wait-2",
        [replace(WAIT, "arm", "is_published(consumer, want - 1)", "is_published(consumer, 0)")],
    ),
    "park does not look again": (
        "park",
        [replace(BELL, "park", "is_published(consumer, 0)", "False")],
    ),
    "wake_seq is read after arming": (
        "wait-1",
        [move_after(WAIT, "wait_n", SNAPSHOT, "if not arm(")],
    ),
    "wake_seq is read after the state": (
        "close",
        [move_after(WAIT, "wait_n", SNAPSHOT, "if load_acquire(")],
    ),
    "the state is not looked at": (
        "close",
        [replace(WAIT, "wait_n", "load_acquire(mine['state']) != STATE_RUNNING", "False")],
    ),
    "arm_eventfd does not look at the state": (
        "eventfd-close",
        [replace(WAIT, "arm_eventfd", "load_acquire(mine['state']) == STATE_RUNNING", "True")],
    ),
    "wait_n leaves the kind of wake": (
        "eventfd-then-futex",
        [drop(WAIT, "wait_n", "store_relaxed(mine['wake_kind']")],
    ),
    "wait_n keeps slots back": ("wait-with-lag", [drop(WAIT, "wait_n", "publish_head(")]),
    "the minimum wait is slept through": (
        "min-wait",
        [replace(WAIT, "wait_n", "min(until, min_wait_at_ns)", "until")],
    ),
    "no fence in arm, with the time kept": ("kept-min-wait", [drop(WAIT, "arm", "fence()")]),
    "no fence in wake_if_crossed, with the time kept": (
        "kept-min-wait",
        [drop(WAIT, "wake_if_crossed", "fence()")],
    ),
    "no fence in wake_if_solicited, with the time kept": (
        "kept-min-wait-solicited",
        [drop(SOLICITED, "wake_if_solicited", "fence()")],
    ),
    "the minimum wait is left to nobody": (
        "kept-min-wait",
        [drop(WAIT, "_leave_time", "store_relaxed(mine['enough_at']")],
    ),
    "whose time is kept does not look for an entry": (
        "kept-min-wait",
        [replace(WAIT, "wait_n", "is_published(consumer, 0)", "False")],
    ),
    "the time that is kept is never over": (
        "kept-min-wait",
        [replace(WAIT, "keep_time", "now_ns >= enough_at", "now_ns > enough_at + 1")],
    ),
    "a wait that is over leaves its time behind": (
        "kept-min-wait",
        [drop(WAIT, "wait_n", "if is_kept")],
    ),
    "a signal is taken for the threshold": (
        "wait-1-spurious",
        [replace(WAIT, "wait_n", "SIGNAL", "THRESHOLD")],
    ),
    "wake one entry late": (
        "wait-1",
        [replace(WAIT, "wake_if_crossed", CROSSED, CROSSED.replace("<= new", "< new"))],
    ),
    "wake only at the very entry": (
        "wait-2-late",
        [replace(WAIT, "wake_if_crossed", CROSSED, "load_relaxed(mine['wake_at']) == new")],
    ),
    "wake for a crossing that was": (
        "one-wait",
        [replace(WAIT, "wake_if_crossed", CROSSED, CROSSED.replace("old <", "old <="))],
    ),
    "crossings are not remembered": (
        "one-wait",
        [drop(WAIT, "wake_if_crossed", "mine['checked'] = new")],
    ),
    "publish before the payload": (
        "ring",
        [
            replace(RING, "post", "claim(producer, ahead)", "claim(producer, ahead - slots)"),
            move_after(RING, "post", "for ahead in", "commit("),
        ],
    ),
    "publish a burst's entry before its payload": (
        "bursts",
        [
            BEHIND,
            move_after(RING, "post_burst", "copy_entry(", "commit("),
        ],
    ),
    "publish with an ordinary store": ("ring", [replace(RING, "commit", *ORDINARY)]),
    "publish a burst with ordinary stores": ("bursts", [replace(RING, "commit", *ORDINARY)]),
    "publish in a channel with an ordinary store": (
        "channel",
        [replace(RING, "commit", *ORDINARY)],
    ),
    "fill an event after it is published": (
        "channel",
        [move_after(CHANNEL, "complete", "cqe['released'] =", "commit(")],
    ),
    "hand a polled slot back before it is copied": (
        "ring",
        [
            replace(
                RING,
                "poll",
                "is_published(consumer, count)",
                "is_published(consumer, 0) and release(consumer, 1) is None",
            ),
            replace(RING, "poll", "slot_of(consumer, count)", "slot_of(consumer, -1)"),
            drop(RING, "poll", "if count"),
        ],
    ),
    "publish the first slot first": (
        "pairs",
        [replace(RING, "commit", "range(count - 1, -1, -1)", "range(count)")],
    ),
    "believe any head": ("head-too-far", [replace(RING, "free_slots", SANE_HEAD, "True")]),
    "believe a head that is too far": (
        "head-far-too-far",
        [replace(RING, "free_slots", SANE_HEAD, "mine['head_seen'] <= head")],
    ),
    "count one slot too many": (
        "ring",
        [
            replace(
                RING,
                "free_slots",
                "int(mine['capacity'] - (position - mine['head_seen']))",
                "int(mine['capacity'] - (position - mine['head_seen']) + 1)",
            )
        ],
    ),
    "hand a slot back before it is read": (
        "ring",
        [replace(RING, "publish_head", "mine['position']", "mine['position'] + 1", sites=2)],
    ),
    "accept any newer sequence": (
        "ring",
        [
            replace(
                RING,
                "is_published",
                "load_acquire(slot_of(consumer, ahead) + SEQUENCE) == mine['position'] + ahead + 1",
                "load_acquire(slot_of(consumer, ahead) + SEQUENCE) != 0",
            )
        ],
    ),
    "take without a second look at the bell": (
        "channel",
        [replace(BELL, "park", "is_published(consumer, 0)", "False")],
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_interleaving_keeps_every_property(name, record_property):
    found = explore(PROGRAMS[name](programs.source()))
    record_property("states", found.states)
    print(f"{name}: {found.states} states, {found.steps} steps, {found.ends} ends")  # noqa: T201 - what -rP shows
    assert found.ends >= 1


@pytest.mark.parametrize("word", range(1, WORDS + 1))
def test_no_word_of_the_wide_copy_is_outside_the_proof(word):
    program = PROGRAMS[f"ring-word-{word}"]
    left_out = [drop(RING, "copy_entry", f"store_64(target + {8 * word},")]
    with pytest.raises(Violation, match="was expected"):
        explore(program(programs.source(left_out)))
    torn = [move_after(RING, "post_burst", "copy_entry(", "commit("), BEHIND]
    with pytest.raises(Violation):
        explore(program(programs.source(torn)))
    with pytest.raises(Violation):
        explore(program(programs.source([replace(RING, "commit", *ORDINARY)])))


@pytest.mark.parametrize("fault", MUTATIONS)
def test_a_deliberate_fault_is_found(fault):
    name, mutations = MUTATIONS[fault]
    with pytest.raises(Violation) as found:
        explore(PROGRAMS[name](programs.source(mutations)))
    print(found.value)  # noqa: T201 - the trace, for -rP


def test_a_mutation_whose_place_is_gone_is_an_error_and_not_a_pass():
    with pytest.raises(LookupError, match="0 sites"):
        programs.source([drop(WAIT, "arm", "no_such_call(")])["wait.arm"]
    with pytest.raises(LookupError, match="no function"):
        programs.source([drop(WAIT, "no_such_function", "fence()")])["wait.arm"]


def test_a_function_without_a_model_is_never_run_for_real():
    refused = programs.source()["channel.load_32"]
    with pytest.raises(NotImplementedError, match=r"shm\.memory\.load_32 has no model"):
        refused(0)
