"""What is read of the kernel and the processor: parsed right, and honest about what is missing."""

import errno
import os
import threading
import time

import pytest

from bench.lab import accounting, hardware
from bench.lab.accounting import TICK_S, ProcessCounts
from bench.lab.hardware import Counter, Counters, NoCounters

STAT = """\
cpu  300 0 0 0 0 0 0 0 0 0
cpu0 100 10 50 400 40 5 7 3 0 0
cpu2 200 0 60 300 0 0 1 0 0 0
intr 4711 1 2 3
ctxt 99
"""
TASK_CLOCK = (hardware.TYPE_SOFTWARE, 1)


def test_a_core_is_busy_when_it_is_not_idle_and_one_that_is_offline_has_no_line():
    found = accounting.parse_system(STAT)
    assert set(found.cores) == {0, 2}
    assert found.interrupts == 4711
    first = found.cores[0]
    assert first.busy_s == pytest.approx(175 * TICK_S)
    assert first.idle_s == pytest.approx(440 * TICK_S)
    assert first.user_s == pytest.approx(110 * TICK_S)


def test_between_two_readings_a_core_grew_and_one_that_was_not_there_is_left_out():
    before = accounting.parse_system(STAT)
    after = accounting.parse_system(STAT.replace("cpu0 100 10 50 400", "cpu0 107 10 50 500"))
    grown = accounting.between(before, after, [0, 1, 2])
    assert set(grown) == {0, 2}
    assert grown[0].busy_s == pytest.approx(7 * TICK_S)
    assert grown[0].idle_s == pytest.approx(100 * TICK_S)
    assert grown[2].busy_s == 0


def test_a_process_that_works_and_sleeps_is_seen_to():
    before = accounting.process(os.getpid())
    until = time.process_time() + 0.05
    while time.process_time() < until:
        sum(range(1000))
    touched = bytearray(32 << 20)
    touched[::4096] = bytes(len(touched[::4096]))
    for _ in range(5):
        time.sleep(0.002)
    used = accounting.process(os.getpid()) - before
    assert used.cpu_ns >= 50_000_000
    assert used.voluntary >= 5
    assert used.page_faults > 0
    assert sum(used.seconds.values()) == pytest.approx(used.cpu_ns / 1e9)


def test_cpu_time_without_a_tick_is_still_time():
    assert ProcessCounts(1000, 0, 0, 0, 0, 0).seconds == {"user_s": 0.0, "system_s": 1e-6}
    assert ProcessCounts(1000, 3, 1, 0, 0, 0).seconds["user_s"] == pytest.approx(750e-9)


def test_every_thread_of_a_process_is_found():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, args=(10,))
    thread.start()
    try:
        assert {os.getpid(), thread.native_id} <= set(accounting.threads_of(os.getpid()))
    finally:
        stop.set()
        thread.join()


def task_clock():
    """A counter that needs no hardware, or the error that refuses it."""
    try:
        return Counter(TASK_CLOCK, [0]), None
    except NoCounters as error:
        return None, error


def test_a_counter_counts_a_thread_or_says_why_there_is_none():
    counter, error = task_clock()
    if counter is None:
        assert errno.errorcode[error.errno] in str(error)
        return
    try:
        before, until = counter.read(), time.thread_time() + 0.02
        while time.thread_time() < until:
            sum(range(1000))
        assert counter.read() - before >= 15e6
    finally:
        counter.close()


def test_an_event_there_is_not_is_refused_and_leaves_no_descriptor_open():
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    with pytest.raises(NoCounters, match="perf_event_open says "):
        Counter((99, 0), [0])
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_each_event_is_counted_or_missing_with_its_reason():
    counters = Counters([os.getpid()], "AMD EPYC")
    try:
        found = counters.read()
        assert set(found) | set(counters.missing) == {*hardware.EVENTS, "machine_clears"}
        assert not set(found) & set(counters.missing)
        assert all(counters.missing.values())
        assert "AMD EPYC" in counters.missing["machine_clears"]
    finally:
        counters.close()


def test_the_attributes_have_the_size_the_kernel_first_had():
    assert len(hardware.attributes(*TASK_CLOCK)) == hardware.ATTRIBUTES_SIZE


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EACCES, "perf_event_paranoid"), (errno.ENOENT, "no hardware counters")],
)
def test_the_reason_names_the_error_and_what_decides_it(number, said):
    text = hardware.reason(number)
    assert errno.errorcode[number] in text
    assert said in text
