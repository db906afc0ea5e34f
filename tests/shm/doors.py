"""Doors from Python into the compiled functions under test, and rings in ordinary memory.

Each door has its signature, so it is compiled once and cached like the project's own.
"""

import numpy as np

from shm import counters, doorbell, error_log, histogram, libc, memory, ring, wait
from shm.jit import entry
from shm.records import CONSUMER, PRODUCER, SLOT
from shm.view import address_of


@entry("boolean(intp, intp, int64)")
def post(producer, item, slots):
    return ring.post(producer, item, slots)


@entry("int64(intp, intp, int64)")
def post_burst(producer, items, count):
    return ring.post_burst(producer, items, count)


@entry("int64(intp, intp, int64)")
def poll(consumer, out, limit):
    return ring.poll(consumer, out, limit)


@entry("int64(intp, int64)")
def free_slots(producer, wanted):
    return ring.free_slots(producer, wanted)


@entry("intp(intp, int64)")
def claim(producer, ahead):
    return ring.claim(producer, ahead)


@entry("void(intp, int64)")
def commit(producer, count):
    ring.commit(producer, count)


@entry("boolean(intp, int64)")
def is_published(consumer, ahead):
    return ring.is_published(consumer, ahead)


@entry("intp(intp, int64)")
def slot_of(consumer, ahead):
    return ring.slot_of(consumer, ahead)


@entry("void(intp, int64)")
def release(consumer, count):
    ring.release(consumer, count)


@entry("void(intp)")
def publish_head(consumer):
    ring.publish_head(consumer)


@entry("int64(intp, int64)")
def ready(consumer, limit):
    return ring.ready(consumer, limit)


@entry("int64(intp, intp, int64, int64, int64, int64)")
def wait_n(consumer, waiter, n, min_wait_at_ns, deadline_ns, tick_at_ns):
    return wait.wait_n(consumer, waiter, n, min_wait_at_ns, deadline_ns, tick_at_ns)


@entry("boolean(intp)")
def is_time_kept(waker):
    return wait.is_time_kept(waker)


@entry("int64(intp, intp, int64)")
def keep_time(producer, waker, now_ns):
    return wait.keep_time(producer, waker, now_ns)


@entry("boolean(intp, intp, int64)")
def arm_eventfd(consumer, waiter, want):
    return wait.arm_eventfd(consumer, waiter, want)


@entry("void(intp)")
def disarm(waiter):
    wait.disarm(waiter)


@entry("boolean(intp, int64, int64)")
def spin_n(consumer, n, rounds):
    return wait.spin_n(consumer, n, rounds)


@entry("int64(intp, intp)")
def wake_if_crossed(producer, waker):
    return wait.wake_if_crossed(producer, waker)


@entry("void(intp)")
def wake(waker):
    wait.wake(waker)


@entry("boolean(intp, intp)")
def park(consumer, need_doorbell):
    return doorbell.park(consumer, need_doorbell)


@entry("void(intp)")
def unpark(need_doorbell):
    doorbell.unpark(need_doorbell)


@entry("int64(intp)")
def ring_if_needed(ringer):
    return doorbell.ring_if_needed(ringer)


@entry("int64(int64)")
def bucket_of(value):
    return histogram.bucket_of(value)


@entry("void(intp, int64, int64)")
def count(values, index, amount):
    counters.count(values, index, amount)


@entry("void(intp, int64, int64)")
def keep_maximum(values, index, value):
    counters.keep_maximum(values, index, value)


@entry("boolean(intp, int64, int64, int64, int64)")
def log_error(log, code, detail, context, now_ns):
    return error_log.log_error(log, code, detail, context, now_ns)


@entry("int64(intp, int64, int64)")
def futex_wait(address, expected, deadline_ns):
    return libc.futex_wait(address, expected, deadline_ns)


@entry("int64(intp, int64)")
def futex_wake(address, count):
    return libc.futex_wake(address, count)


@entry("int64(int64)")
def eventfd_signal(descriptor):
    return libc.eventfd_signal(descriptor)


@entry("int64(int64)")
def wake_signal(descriptor):
    return libc.wake_signal(descriptor)


@entry("int64(int64)")
def eventfd_drain(descriptor):
    return libc.eventfd_drain(descriptor)


@entry("int64()")
def monotonic_ns():
    return libc.monotonic_ns()


@entry("int64(int64)")
def failing_close(descriptor):
    return libc.syscall(3, descriptor, 0, 0, 0, 0, 0)  # close(2) on x86-64


@entry("UniTuple(int64, 9)(intp)")
def read_all_widths(address):
    return (
        memory.load_8(address),
        memory.load_16(address),
        memory.load_32(address),
        memory.load_64(address),
        memory.load_16_be(address),
        memory.load_24_be(address),
        memory.load_32_be(address),
        memory.load_64_be(address),
        memory.load_8(address + 7),
    )


@entry("void(intp, int64, int64)")
def write_width(address, kind, value):
    if kind == 0:
        memory.store_8(address, value)
    elif kind == 1:
        memory.store_16(address, value)
    elif kind == 2:
        memory.store_32(address, value)
    elif kind == 3:
        memory.store_64(address, value)
    elif kind == 4:
        memory.store_16_be(address, value)
    elif kind == 5:
        memory.store_24_be(address, value)
    elif kind == 6:
        memory.store_32_be(address, value)
    else:
        memory.store_64_be(address, value)


@entry("void(intp, intp, int64)")
def copy_bytes(target, source, size):
    memory.copy_bytes(target, source, size)


@entry("void(intp, int64)")
def zero_bytes(target, size):
    memory.zero_bytes(target, size)


class PlainRing:
    """A ring in ordinary memory with the private state of both sides; entries are word0 numbers."""

    def __init__(self, capacity, post=post, post_burst=post_burst, poll=poll):
        self.capacity = capacity
        self.slots = np.zeros(capacity, SLOT)
        self.head = np.zeros(1, np.int64)
        self.producer, self.consumer = np.zeros(1, PRODUCER), np.zeros(1, CONSUMER)
        for side in (self.producer, self.consumer):
            side["slots"], side["head"] = address_of(self.slots), address_of(self.head)
            side["capacity"] = capacity
        self.entries, self.out = np.zeros(2 * capacity, SLOT), np.zeros(2 * capacity, SLOT)
        self._post, self._post_burst, self._poll = post, post_burst, poll

    @property
    def producer_at(self):
        return address_of(self.producer)

    @property
    def consumer_at(self):
        return address_of(self.consumer)

    def _fill(self, numbers):
        for word in range(7):
            self.entries[f"word{word}"][: len(numbers)] = np.array(numbers, np.int64) + word

    def post(self, number, slots=1):
        self._fill([number + 10 * place for place in range(slots)])
        return bool(self._post(self.producer_at, address_of(self.entries), slots))

    def post_burst(self, numbers):
        self._fill(numbers)
        return int(self._post_burst(self.producer_at, address_of(self.entries), len(numbers)))

    def poll(self, limit):
        found = int(self._poll(self.consumer_at, address_of(self.out), limit))
        for word in range(7):
            assert (self.out[f"word{word}"] == self.out["word0"] + word)[:found].all()
        return self.out["word0"][:found].tolist()
