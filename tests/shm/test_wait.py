"""`wait_n` and the doorbell between two processes: every reason, and who wakes whom how often."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from shm.channel import (
    H_CONSUMER,
    H_RINGER,
    H_WAITER,
    HOST_CHANNEL,
    bind_host,
    channel_size,
    initialise,
    leave_time,
)
from shm.layout import offset
from shm.records import CHANNEL, NEVER, SLOT, STATE_CLOSING, STATE_DEAD, WAKE_EVENTFD
from shm.segment import create
from shm.view import address_of
from shm.wait import (
    DEADLINE,
    MIN_WAIT,
    NOBODY,
    PEER,
    REASON_NAMES,
    SIGNAL,
    THRESHOLD,
    TICK,
    WOKEN,
)
from tests.shm import doors
from tests.shm.channel_doors import fill_and_submit, prepare
from tests.shm.peer import DEADLINE_S, EVENT, WORK, until

ROOT = Path(__file__).resolve().parent.parent.parent
MS = 1_000_000


class Host:
    """The host's side of a channel whose engine is another process."""

    def __init__(self):
        size = channel_size(WORK, EVENT)
        self.segment = create(size)
        initialise(self.segment.address, WORK, EVENT)
        self.shared = self.segment.array[: CHANNEL.itemsize].view(CHANNEL)
        self.eventfd, self.bell = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
        self.state = np.zeros(1, HOST_CHANNEL)
        self.at = address_of(self.state)
        bind_host(self.at, self.segment.address, WORK, EVENT, self.bell)
        self.consumer, self.waiter = self.at + H_CONSUMER, self.at + H_WAITER
        self.out = np.zeros(EVENT, SLOT)
        descriptors = (self.segment.descriptor, self.eventfd, self.bell)
        self.peer = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.shm.peer",
                str(descriptors[0]),
                str(size),
                *map(str, descriptors[1:]),
            ],
            cwd=ROOT,
            pass_fds=descriptors,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.answer() == "ready"

    def tell(self, command):
        """Give the peer a command; `answer` says what came of it."""
        self.peer.stdin.write(command + "\n")
        self.peer.stdin.flush()

    def answer(self):
        ready, _, _ = select.select([self.peer.stdout], [], [], 2 * DEADLINE_S)
        assert ready, "the peer does not answer"
        return self.peer.stdout.readline().strip()

    def ask(self, command):
        self.tell(command)
        return self.answer()

    def wait(self, n, min_wait_ms=None, timeout_ms=None, tick_ms=None):
        now = time.monotonic_ns()
        times = [
            NEVER if at is None else now + at * MS for at in (min_wait_ms, timeout_ms, tick_ms)
        ]
        return doors.wait_n(self.consumer, self.waiter, n, *times)

    def poll(self):
        count = doors.poll(self.consumer, address_of(self.out), EVENT)
        return self.out["word0"][:count].tolist()

    @property
    def sleeps(self):
        return int(self.state["waiter"]["sleeps"][0])

    def close(self):
        self.peer.stdin.close()
        try:
            self.peer.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.peer.kill()
            self.peer.wait()
        self.peer.stdout.close()
        for descriptor in (self.eventfd, self.bell):
            os.close(descriptor)
        self.segment.close()


@pytest.fixture(scope="module")
def two_sides():
    host = Host()
    yield host
    host.close()


@pytest.fixture
def host(two_sides):
    """A running channel with nothing in it, armed or rung."""
    yield two_sides
    two_sides.shared["state"] = 0
    two_sides.poll()
    for descriptor in (two_sides.eventfd, two_sides.bell):
        doors.eventfd_drain(descriptor)
    assert two_sides.shared["wake_at"][0] == NEVER, "a wait left itself armed"
    assert two_sides.shared["enough_at"][0] == NEVER, "a wait left its time behind"


def test_entries_that_are_there_end_the_wait_without_sleep_or_wake(host):
    before = host.sleeps
    assert host.ask("batch 1 2 3") == "0"
    assert host.wait(3) == THRESHOLD
    assert host.sleeps == before
    assert host.poll() == [1, 2, 3]


def test_a_wait_consumes_nothing(host):
    host.ask("batch 1 2")
    assert host.wait(1) == THRESHOLD
    assert host.wait(2) == THRESHOLD
    assert host.poll() == [1, 2]


def test_a_sleeper_is_woken_by_the_entry_that_completes_its_number_and_only_once(host):
    before = host.sleeps
    host.tell("asleep post 1 2 3 4")
    assert host.wait(3) == THRESHOLD
    assert host.answer() == "1"
    assert host.sleeps > before
    assert host.poll() == [1, 2, 3, 4]


def test_a_batch_that_passes_the_number_wakes_too(host):
    host.tell("asleep batch 1 2 3 4 5")
    assert host.wait(2) == THRESHOLD
    assert host.answer() == "1"
    assert host.poll() == [1, 2, 3, 4, 5]


def test_a_whole_ring_can_be_waited_for(host):
    host.tell("asleep post " + " ".join(map(str, range(EVENT))))
    assert host.wait(EVENT) == THRESHOLD
    assert host.answer() == "1"
    assert host.poll() == list(range(EVENT))


def test_after_the_minimum_wait_one_entry_is_enough(host):
    host.ask("post 1")
    assert host.wait(3, min_wait_ms=20, timeout_ms=60_000) == MIN_WAIT
    assert host.poll() == [1]


def test_after_the_minimum_wait_the_first_entry_wakes(host):
    host.tell("asleep post 1")
    assert host.wait(3, min_wait_ms=0) == MIN_WAIT
    assert host.answer() == "1"
    assert host.poll() == [1]


@pytest.fixture
def kept(host):
    """The same whose engine keeps the time of short minimum waits."""
    leave_time(host.at, host.segment.address)
    yield host
    waiter = host.state["waiter"]
    waiter["enough_at"] = waiter["enough_position"] = 0


def test_an_engine_ends_the_minimum_wait_that_was_left_to_it(kept):
    kept.tell("asleep batch_and_keep_time 1")
    assert kept.wait(3, min_wait_ms=1) == MIN_WAIT
    assert kept.answer() == f"0 {WOKEN}"
    assert kept.poll() == [1]


def test_an_engine_that_keeps_time_wakes_at_the_number_before_it(kept):
    kept.tell("asleep batch_and_keep_time 1 2 3")
    assert kept.wait(3, min_wait_ms=1) == THRESHOLD
    assert kept.answer() == f"1 {NOBODY}"
    assert kept.poll() == [1, 2, 3]


def test_who_finds_an_entry_keeps_the_time_himself(kept):
    kept.ask("post 1")
    assert kept.wait(3, min_wait_ms=1) == MIN_WAIT
    assert kept.poll() == [1]


def test_a_long_minimum_wait_is_not_left_to_the_engine(kept):
    kept.tell("asleep batch_and_keep_time 1")
    assert kept.wait(3, min_wait_ms=200) == MIN_WAIT
    assert kept.answer() == f"0 {NOBODY}"
    assert kept.poll() == [1]


def test_a_deadline_ends_a_wait_that_nothing_came_for(host):
    began = time.monotonic_ns()
    assert host.wait(1, timeout_ms=20) == DEADLINE
    assert time.monotonic_ns() - began >= 20 * MS


def test_a_deadline_ends_a_wait_that_too_little_came_for(host):
    host.ask("post 1")
    assert host.wait(2, timeout_ms=20) == DEADLINE
    assert host.poll() == [1]


@pytest.mark.parametrize("timeout_ms", [0, -5, -(10**12)])
def test_a_deadline_in_the_past_looks_once_and_does_not_sleep(host, timeout_ms):
    before = host.sleeps
    assert host.wait(1, timeout_ms=timeout_ms) == DEADLINE
    host.ask("post 1")
    assert host.wait(1, timeout_ms=timeout_ms) == THRESHOLD
    assert host.sleeps == before


def test_a_tick_brings_the_caller_back_who_may_go_on_waiting(host):
    assert host.wait(1, tick_ms=10, timeout_ms=60_000) == TICK
    host.tell("asleep post 1")
    while (reason := host.wait(1, tick_ms=10, timeout_ms=60_000)) == TICK:
        pass
    assert REASON_NAMES[reason] == "threshold"
    assert host.answer() == "1"


@pytest.mark.parametrize("state", [STATE_CLOSING, STATE_DEAD])
def test_a_channel_that_stops_running_wakes_its_sleeper(host, state):
    host.tell(f"asleep close {state}")
    assert host.wait(2) == PEER
    host.answer()
    assert host.wait(1) == PEER


def test_entries_come_before_the_news_that_the_channel_closed(host):
    host.ask("post 1")
    host.ask(f"close {STATE_DEAD}")
    assert host.wait(1) == THRESHOLD
    assert host.wait(2) == PEER


def test_anybody_with_a_waker_of_its_own_can_end_the_wait(host):
    host.tell("asleep second_waker")
    assert host.wait(1) == PEER
    host.answer()


def test_a_wake_without_cause_sends_the_sleeper_back_to_sleep(host):
    before = host.sleeps
    host.tell("asleep wake_then_post 7")
    assert host.wait(1) == THRESHOLD
    assert host.answer() == "1"
    assert host.sleeps >= before + 2
    assert host.poll() == [7]


def test_a_unix_signal_brings_the_caller_back_and_its_handler_runs(host):
    seen = []
    previous = signal.signal(signal.SIGUSR1, lambda *what: seen.append(what[0]))
    main = threading.main_thread().ident
    stop = threading.Event()

    def interrupt():  # again and again: the first may come before the sleep
        while not stop.wait(0.02):
            signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        assert host.wait(1, timeout_ms=int(DEADLINE_S * 1000)) == SIGNAL
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, previous)
    assert seen


def test_a_sleeper_gives_every_slot_back_first(host):
    host.ask("post 1")
    assert host.poll() == [1]
    assert host.wait(1, timeout_ms=1) == DEADLINE
    assert host.shared["event_head"][0] == host.state["consumer"]["position"][0]


def test_spinning_finds_entries_and_gives_up(host):
    assert not doors.spin_n(host.consumer, 1, 10)
    host.ask("batch 1 2")
    assert doors.spin_n(host.consumer, 2, 10)
    assert not doors.spin_n(host.consumer, 3, 10)
    assert host.poll() == [1, 2]


# --- the eventfd -------------------------------------------------------------------------------


def readable(descriptor, timeout_s):
    return bool(select.select([descriptor], [], [], timeout_s)[0])


def test_an_armed_eventfd_is_written_once_when_the_number_is_there(host):
    assert doors.arm_eventfd(host.consumer, host.waiter, 2)
    assert host.shared["wake_kind"][0] == WAKE_EVENTFD
    assert host.ask("post 1") == "0"
    assert not readable(host.eventfd, 0)
    assert host.ask("post 2 3") == "1"
    assert readable(host.eventfd, DEADLINE_S)
    assert doors.eventfd_drain(host.eventfd) == 8
    doors.disarm(host.waiter)
    assert host.poll() == [1, 2, 3]


def test_an_eventfd_is_not_armed_when_the_entries_are_there_or_the_channel_is_not(host):
    host.ask("post 1")
    assert not doors.arm_eventfd(host.consumer, host.waiter, 1)
    assert host.poll() == [1]
    host.ask(f"close {STATE_DEAD}")
    assert not doors.arm_eventfd(host.consumer, host.waiter, 1)


def test_closing_rings_an_armed_eventfd(host):
    assert doors.arm_eventfd(host.consumer, host.waiter, 1)
    host.ask(f"close {STATE_DEAD}")
    assert readable(host.eventfd, DEADLINE_S)
    doors.disarm(host.waiter)


def test_after_the_eventfd_the_same_channel_sleeps_on_the_futex(host):
    assert doors.arm_eventfd(host.consumer, host.waiter, 1)
    doors.disarm(host.waiter)
    host.tell("asleep post 1")
    assert host.wait(1) == THRESHOLD
    assert host.answer() == "1"
    assert not readable(host.eventfd, 0)


def test_an_event_loop_wakes_by_the_eventfd(host):
    async def wait():
        loop, rung = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(host.eventfd, rung.set)
        try:
            assert doors.arm_eventfd(host.consumer, host.waiter, 2)
            host.tell("asleep post 1 2")
            await asyncio.wait_for(rung.wait(), DEADLINE_S)
        finally:
            loop.remove_reader(host.eventfd)

    asyncio.run(wait())
    doors.disarm(host.waiter)
    assert host.answer() == "1"
    assert host.poll() == [1, 2]


# --- the doorbell ------------------------------------------------------------------------------


def post(host, number):
    assert prepare(host.at, 1)
    fill_and_submit(host.at, number, 0, 1)
    return doors.ring_if_needed(host.at + H_RINGER)


def parked(host):
    return bool(host.shared["need_doorbell"][0])


def test_posting_to_a_polling_engine_rings_no_bell(host):
    assert not parked(host)
    assert post(host, 1) == 0
    assert not readable(host.bell, 0)
    assert host.ask("park") == "0 1"
    assert not parked(host)


def test_posting_to_a_parked_engine_rings(host):
    host.tell("park")
    until(lambda: parked(host), "the engine to park")
    assert post(host, 5) == 1
    assert host.answer() == "1 5"
    assert not parked(host)


def test_a_burst_rings_once_when_the_bell_is_looked_at_once(host):
    host.tell("park")
    until(lambda: parked(host), "the engine to park")
    for number in (1, 2):
        assert prepare(host.at, 1)
        fill_and_submit(host.at, number, 0, 1)
    rings = int(host.state["ringer"]["rings"][0])
    assert doors.ring_if_needed(host.at + H_RINGER) == 1
    assert host.answer() == "1 1,2"
    assert host.state["ringer"]["rings"][0] == rings + 1


def test_the_shared_words_are_where_the_records_say(host):
    assert offset(CHANNEL, "wake_seq") % 128 == 0
    assert address_of(host.shared) == host.segment.address
