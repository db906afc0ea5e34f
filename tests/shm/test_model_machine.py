"""The machine of the model checker against known answers: a wrong one proves nothing."""

import pytest

from shm.jit import JIT_DISABLED
from tests.shm.model import programs
from tests.shm.model.machine import Explorer, Model, Ring, Thread, explore
from tests.shm.model.steps import (
    EVENTFD,
    Record,
    Violation,
    add,
    eventfd_await,
    eventfd_signal,
    fence,
    futex_wait,
    futex_wake,
    load,
    plain_load,
    plain_store,
    store,
)

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="no compiled code is in it: once is enough")

X, Y = 8, 16
RESULT = 1 << 20


def outcomes(*programs_, memory=(X, Y), **more):
    """Every combination of the results that the threads can end with."""
    found = set()

    def final(records, memory):
        found.add(tuple(records[name]["result"]["value"] for name in sorted(records)))

    threads = [
        Thread(f"t{i}", program, {RESULT: Record("result", value=-1)})
        for i, program in enumerate(programs_)
    ]
    explore(Model(threads, dict.fromkeys(memory, 0), final=final, **more))
    return found


def keep(private, value):
    private.records[RESULT]["value"] = value


def writer_then_reader(mine, other, fenced):
    def program(private):
        yield from store(mine, 1)
        if fenced:
            yield from fence()
        keep(private, (yield from load(other)))

    return program


def test_store_buffering_lets_both_read_zero_and_fences_on_both_sides_forbid_it():
    def run(first, second):
        return outcomes(writer_then_reader(X, Y, first), writer_then_reader(Y, X, second))

    assert run(False, False) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert (0, 0) in run(True, False)
    assert (0, 0) in run(False, True)
    assert run(True, True) == {(0, 1), (1, 0), (1, 1)}


def test_stores_of_one_thread_are_seen_in_their_order():
    def write(private):
        yield from store(X, 1)
        yield from store(Y, 1)
        keep(private, 0)

    def read(private):
        second = yield from load(Y)
        first = yield from load(X)
        keep(private, 10 * second + first)

    assert outcomes(write, read) == {(0, 0), (0, 1), (0, 11)}


def plain_writer(*steps):
    def program(private):
        for step, address in steps:
            yield from step(address, 1)
        keep(private, 0)

    return program


def read_y_then_x(private):
    second = yield from load(Y)
    first = yield from load(X)
    keep(private, 10 * second + first)


def test_ordinary_stores_are_seen_in_any_order():
    found = outcomes(plain_writer((plain_store, X), (plain_store, Y)), read_y_then_x)
    assert found == {(0, 0), (0, 1), (0, 10), (0, 11)}


def test_an_ordinary_store_is_seen_before_a_later_atomic_one():
    found = outcomes(plain_writer((plain_store, X), (store, Y)), read_y_then_x)
    assert found == {(0, 0), (0, 1), (0, 11)}


@pytest.mark.parametrize(("hoist", "seen"), [(0, set()), (1, {(0, 10)})])
def test_an_ordinary_store_overtakes_as_many_earlier_atomic_ones_as_it_may(hoist, seen):
    found = outcomes(plain_writer((store, X), (plain_store, Y)), read_y_then_x, hoist=hoist)
    assert found == {(0, 0), (0, 1), (0, 11)} | seen


def test_an_ordinary_store_stays_behind_a_fence_and_behind_its_own_word():
    def write(private):
        yield from store(X, 1)
        yield from fence()
        yield from plain_store(Y, 1)
        yield from plain_store(Y, 2)
        keep(private, 0)

    assert outcomes(write, read_y_then_x) == {(0, 0), (0, 1), (0, 11), (0, 21)}

    def last(records, memory):
        return None if memory[Y] == 2 else "an older store came last"

    records = {RESULT: Record("result", value=-1)}
    explore(Model([Thread("t0", write, records)], {X: 0, Y: 0}, final=last))


def test_a_word_that_no_model_tracks_reads_as_nothing_and_one_that_nobody_knows_is_an_error():
    seen = []

    def program(private):
        yield from plain_store(0x400 + 56, 7)
        seen.append((yield from plain_load(0x400 + 56)))

    thread = Thread("t0", program, {RESULT: Record("consumer", position=0)})
    memory = {0x400: 0, 0x400 + 8: 0}
    explore(Model([thread], memory, rings=[Ring(0x400, 1, "t0", "consumer")], tracked=(1,)))
    assert set(seen) == {0}
    with pytest.raises(KeyError):
        outcomes(plain_writer((plain_store, 24)))


def test_a_thread_reads_its_own_buffered_store():
    def program(private):
        yield from store(X, 5)
        keep(private, (yield from load(X)))

    assert outcomes(program) == {(5,)}


def test_two_additions_never_lose_one():
    def program(private):
        keep(private, (yield from add(X, 1)))

    assert outcomes(program, program) == {(0, 1), (1, 0)}


def test_a_futex_compares_and_queues_in_one_step():
    def sleep(private):
        keep(private, (yield from futex_wait(X, 0, 1 << 62)))

    def wake(private):
        yield from add(X, 1)
        keep(private, (yield from futex_wake(X, 1)))

    assert outcomes(sleep, wake) == {(-11, 0), (0, 1)}


def test_a_sleeper_that_nobody_wakes_is_found():
    def sleep(private):
        yield from futex_wait(X, 0, 1 << 62)

    def wake(private):  # the fault of many a queue: the word does not change
        yield from futex_wake(X, 1)

    with pytest.raises(Violation, match="t0 sleeps for ever"):
        outcomes(sleep, wake)


def test_a_thread_that_circles_for_ever_is_found():
    def spin(private):
        while not (yield from load(X)):
            pass

    with pytest.raises(Violation, match="nobody ever finishes"):
        outcomes(spin)


def test_wakes_without_cause_interrupts_and_timeouts_come_as_often_as_allowed():
    def sleep(private):
        keep(private, (yield from futex_wait(X, 0, 1)))

    assert outcomes(sleep, clock_end=1) == {(-110,)}
    assert outcomes(sleep, clock_end=1, spurious=1, interrupts=1) == {(-110,), (0,), (-4,)}


def test_an_eventfd_stays_rung():
    bell = EVENTFD + 8 * 3

    def ring(private):
        yield from eventfd_signal(3)
        keep(private, 1)

    def wait(private):
        yield from eventfd_await(3)
        keep(private, 2)

    assert outcomes(ring, wait, memory=(bell,)) == {(1, 2)}


@pytest.mark.parametrize(
    "make",
    [
        lambda code: programs.waits(code, [1], [1]),
        lambda code: programs.waits(code, [2], [2], deadline=1, clock_end=1),
        lambda code: programs.event_loop(code, [1], [1]),
        lambda code: programs.closing(code, 0),
    ],
    ids=["wait", "deadline", "eventfd", "close"],
)
def test_merging_equal_histories_loses_no_end(make):
    def ends(merge):
        model, found = make(programs.source()), set()
        for thread in model.threads:
            thread.merge = merge

        def final(records, memory):
            found.add((repr(records), tuple(memory.items())))

        model.final = final
        states = Explorer(model).run().states
        return found, states

    merged, few = ends(True)
    apart, many = ends(False)
    assert merged == apart
    assert few <= many
