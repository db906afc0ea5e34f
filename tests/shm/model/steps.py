"""The visible steps of modelled code: what stands in the place of atomics, payload copies and libc.

Each is a generator function under the name of the real one; it yields an operation and is sent the
result. Private memory (addresses from PRIVATE on) is read and written at once.

Of the seven payload words of a slot a model tracks one or two; the others are read as 0 and writes
to them vanish. Words do not depend on each other, so what holds for each holds for all.
"""

from collections.abc import Generator
from typing import Any

PRIVATE = 1 << 20  # addresses from here on belong to the thread that uses them
EVENTFD = 1 << 12  # descriptor d is the word at EVENTFD + 8 * d

Operation = tuple[Any, ...]
Steps = Generator[Operation, Any, Any]


class Violation(Exception):
    """A property does not hold; the text says which and the trace how."""


class Record(dict[str, int]):
    """A private record of one thread."""

    def __init__(self, name: str, **fields: int) -> None:
        super().__init__(fields)
        self.name = name


class SharedRecord(int):
    """The address of a slot whose fields are written in place."""


class Private:
    """What one thread knows: its records by address, and its own words (payload buffers)."""

    def __init__(self, records: dict[int, Record]) -> None:
        self.records = {at: type(r)(r.name, **r) for at, r in records.items()}
        self.words: dict[int, int] = {}


class Current:
    """Whose code is running: set before a generator is resumed."""

    private: Private
    fields: dict[str, int]
    tracked: tuple[int, ...]
    untracked: frozenset[int]  # addresses


def load(address: int) -> Steps:
    """Read a word: through the own buffer, from memory, or from private memory."""
    if address >= PRIVATE:
        return Current.private.words.get(address, 0)
    return (yield ("load", address))


def store(address: int, value: int) -> Steps:
    """Write a word: into the own buffer, or private memory."""
    if address >= PRIVATE:
        Current.private.words[address] = value
        return
    yield ("store", address, value)


def plain_load(address: int) -> Steps:
    """Read a word of a payload."""
    return 0 if address in Current.untracked else (yield from load(address))


def plain_store(address: int, value: int) -> Steps:
    """Write a word of a payload: an ordinary store, which the compiler may move and widen."""
    if address >= PRIVATE:
        Current.private.words[address] = value
    elif address not in Current.untracked:
        yield ("plain store", address, value)


def fence() -> Steps:
    """Wait until the own buffer is empty."""
    yield ("fence",)


def add(address: int, value: int) -> Steps:
    """Read, add and write in one step with the buffer empty; return what was there."""
    return (yield ("add", address, value))


def futex_wait(address: int, expected: int, deadline_ns: int) -> Steps:
    """Compare and queue in one step; the result is 0 or -errno."""
    return (yield ("futex_wait", address, expected, deadline_ns))


def futex_wake(address: int, count: int) -> Steps:
    """Wake up to `count` sleepers of the word."""
    return (yield ("futex_wake", address, count))


def eventfd_signal(descriptor: int) -> Steps:
    """Make the eventfd readable; it stays so."""
    return (yield ("signal", EVENTFD + 8 * descriptor))


def eventfd_await(descriptor: int) -> Steps:
    """Sleep until the eventfd is readable, and reset it."""
    return (yield ("await", EVENTFD + 8 * descriptor))


def monotonic_ns() -> Steps:
    """The model's time, which goes forward at any moment until its end."""
    return (yield ("clock",))


def get_field(record: SharedRecord, name: str) -> Steps:
    """Read a tracked field of a slot in place; untracked ones read as 0."""
    word = Current.fields.get(name)
    return 0 if word is None else (yield from load(record + 8 * word))


def set_field(record: SharedRecord, name: str, value: int) -> Steps:
    """Write a tracked field of a slot in place; untracked ones vanish."""
    word = Current.fields.get(name)
    if word is not None:
        yield from plain_store(record + 8 * word, value)


def record_at(address: int) -> list[Record]:
    """What an opener of a private record gives."""
    return [Current.private.records[address]]


def shared_at(address: int) -> list[SharedRecord]:
    """What an opener of a shared record gives."""
    return [SharedRecord(address)]


PRIMITIVES: dict[str, Any] = {
    "load_acquire": load,
    "load_acquire_32": load,
    "load_relaxed": load,
    "load_64": plain_load,
    "store_release": store,
    "store_relaxed": store,
    "store_64": plain_store,
    "fence": fence,
    "fetch_add": add,
    "fetch_add_32": add,
    "futex_wait": futex_wait,
    "futex_wake": futex_wake,
    "eventfd_signal": eventfd_signal,
    "wake_signal": eventfd_signal,  # a socket stays readable until it is read, as an eventfd does
    "monotonic_ns": monotonic_ns,
    "get_field": get_field,
    "set_field": set_field,
}
PLAIN: dict[str, Any] = {
    "pause": lambda: None,
    "opener": lambda dtype: record_at,
    "wqe_at": shared_at,
    "cqe_at": shared_at,
    **{
        f"{name}_at": record_at
        for name in ("producer", "consumer", "waker", "waiter", "watched", "ringer", "channel")
    },
}
