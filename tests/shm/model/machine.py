"""Several threads, one memory, every order: x86-TSO with a kernel that sleeps and wakes.

Each thread has a first-in first-out store buffer. A store goes into it, a load looks there first, a
buffered store reaches memory at a moment of its own choosing, a fence or read-modify-write waits
until the buffer is empty (Owens, Sarkar, Sewell: "A better x86 memory model: x86-TSO"). System
calls are not taken for fences, which allows more than a real kernel does. A futex compares and
queues in one step; wake-ups without cause and EINTR come at any time, as often as the model allows.

An ordinary store, as payloads are made of, is weaker than the machine's: the compiler may move it
among its like, widen it, and hoist it over an earlier publication. So it may leave the buffer
before what stands before it, but for stores to the same word and more than `hoist` atomic ones.
Only a fence and a later atomic store wait for it. A wide store is one of these orders; it may be
torn at every word.

A thread is found out to be a finite automaton: its next visible step is a function of the results
of the former ones, and two histories that left the same frames, locals and private memory are one
state of it. Appending to the own buffer is visible to nobody, so it is done at once.
"""

import errno
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from shm.ring import WORDS
from tests.shm.model.steps import Current, Operation, Private, Record, Steps, Violation


class Node:
    """One state of one thread: what it does next, and where each result leads."""

    __slots__ = ("edges", "live", "operation", "path", "records")

    def __init__(self, operation: Operation, path: tuple[Any, ...], private: Private) -> None:
        self.operation = operation
        self.path = path
        self.records = {r.name: dict(r) for r in private.records.values()}
        self.edges: dict[Any, Node] = {}
        self.live: tuple[Any, Private] | None = None


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return ("record", value.name)
    if value is None or isinstance(value, int | str):
        return value
    if isinstance(value, tuple | list):
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, _plain(item)) for key, item in value.items())
    if callable(value) or isinstance(value, Private):
        return ("same in every history",)
    raise TypeError(f"a local of type {type(value).__name__} cannot be compared")


def _contents(private: Private) -> Any:
    records = tuple(tuple(record.items()) for record in private.records.values())
    return records, tuple(sorted(private.words.items()))


def _snapshot(generator: Any, private: Private) -> Any:
    frames = []
    while generator is not None:
        frame = generator.gi_frame
        held = tuple((name, _plain(value)) for name, value in sorted(frame.f_locals.items()))
        frames.append((frame.f_code, frame.f_lasti, held))
        generator = generator.gi_yieldfrom
    return tuple(frames), _contents(private)


class Thread:
    """A named program and the automaton that it turns out to be."""

    def __init__(
        self,
        name: str,
        program: Callable[[Private], Steps],
        records: dict[int, Record],
        merge: bool = True,
    ) -> None:
        self.name, self._program, self._records, self.merge = name, program, records, merge
        self._nodes: dict[Any, Node] = {}

    def first(self) -> Node:
        """The state before the first visible step."""
        return self._replay(())

    def step(self, node: Node, result: Any) -> Node:
        """The state after the visible step of `node` gave `result`."""
        if result in node.edges:
            return node.edges[result]
        path = (*node.path, result)
        if node.live is not None:
            (generator, private), node.live = node.live, None
            following = self._resume(generator, private, path)
        else:
            following = self._replay(path)
        node.edges[result] = following
        return following

    def _replay(self, path: tuple[Any, ...]) -> Node:
        private = Private(self._records)
        Current.private = private
        generator = self._program(private)
        results: Iterable[Any] = (None, *path) if path else ()
        for result in tuple(results)[:-1]:
            generator.send(result)
        return self._resume(generator, private, path)

    def _resume(self, generator: Any, private: Private, path: tuple[Any, ...]) -> Node:
        Current.private = private
        try:
            operation = generator.send(path[-1] if path else None)
        except StopIteration:
            return self._keep(_contents(private), ("done",), path, private)
        except Violation as violation:
            return Node(("fail", str(violation)), path, private)
        node = self._keep(_snapshot(generator, private), operation, path, private)
        if node.path is path:
            node.live = (generator, private)
        return node

    def _keep(
        self, key: Any, operation: Operation, path: tuple[Any, ...], private: Private
    ) -> Node:
        if not self.merge:
            key = path
        if key not in self._nodes:
            self._nodes[key] = Node(operation, path, private)
        return self._nodes[key]


@dataclass
class Ring:
    """A ring whose slots must not be written before their consumer has read them."""

    slots: int
    capacity: int
    consumer: str  # the thread, and
    record: str  # its record with the position


@dataclass
class Model:
    """What is explored: threads over one memory, and what the kernel and the clock may do."""

    threads: list[Thread]
    memory: dict[int, int]  # every shared word with its first value
    names: dict[int, str] = field(default_factory=dict)
    rings: list[Ring] = field(default_factory=list)
    clock_end: int = 0
    spurious: int = 0  # wake-ups without cause, in all
    interrupts: int = 0  # EINTR, in all
    fields: dict[str, int] = field(default_factory=dict)
    hoist: int = 1  # how many earlier atomic stores an ordinary one may overtake
    tracked: tuple[int, ...] = (1, 2)  # words of the payload of a slot
    final: Callable[[dict[str, Any], dict[int, int]], str | None] = lambda records, memory: None


@dataclass(frozen=True)
class Explored:
    """How large the explored state space was."""

    states: int
    steps: int
    ends: int


# threads' nodes, memory, store buffers, who sleeps, clock, spurious left, interrupts left
State = tuple[Any, ...]


def _first_to_leave(buffer: tuple[tuple[int, int, bool], ...], hoist: int) -> Iterable[int]:
    """Places in a store buffer whose store may reach memory before all the others."""
    passed, words = 0, set()
    for place, (word, _, ordered) in enumerate(buffer):
        if place == 0 or not (ordered or word in words):
            yield place
        words.add(word)
        passed += ordered
        if passed > hoist:
            return


class Explorer:
    """Breadth-first over all states, so a counterexample is a shortest one."""

    def __init__(self, model: Model, limit: int = 1_500_000) -> None:
        self.model, self.limit = model, limit
        self.index = {address: i for i, address in enumerate(model.memory)}
        self.addresses = list(model.memory)
        self.seen: dict[State, int] = {}
        self.from_: list[tuple[int, str]] = []
        self._guards = self._slot_words()

    def _slot_words(self) -> dict[int, tuple[int, int, str]]:
        """For each word of a guarded slot: its sequence word, the reader's thread and record."""
        guards = {}
        names = [thread.name for thread in self.model.threads]
        for ring in self.model.rings:
            reader = names.index(ring.consumer)
            for address, i in self.index.items():
                if ring.slots <= address < ring.slots + 64 * ring.capacity:
                    start = address - (address - ring.slots) % 64
                    guards[i] = (self.index[start], reader, ring.record)
        return guards

    def _untracked(self) -> frozenset[int]:
        slots = [r.slots + 64 * i for r in self.model.rings for i in range(r.capacity)]
        words = {slot + 8 * word for slot in slots for word in range(1, WORDS + 1)}
        return frozenset(words - self.model.memory.keys())

    def run(self) -> Explored:
        """Visit every state. Raises Violation with a shortest trace to the first that is wrong."""
        Current.fields = self.model.fields
        Current.tracked = self.model.tracked
        Current.untracked = self._untracked()
        count = len(self.model.threads)
        nodes, buffers = [], []
        for at, thread in enumerate(self.model.threads):
            node, buffer = self._settle(at, thread.first(), (), 0, "start")
            nodes.append(node)
            buffers.append(buffer)
        model = self.model
        first: State = (
            tuple(nodes),
            tuple(model.memory.values()),
            tuple(buffers),
            (False,) * count,
            0,
            model.spurious,
            model.interrupts,
        )
        self.seen[first] = 0
        self.from_.append((-1, "start"))
        queue = deque([first])
        before: list[list[int]] = [[]]
        ends: list[int] = []
        steps = 0
        while queue:
            state = queue.popleft()
            number = self.seen[state]
            following = list(self._following(state, number))
            if not following:
                self._check_end(state, number)
                ends.append(number)
            for label, after in following:
                steps += 1
                known = self.seen.get(after)
                if known is None:
                    known = self.seen[after] = len(self.from_)
                    if known >= self.limit:
                        raise MemoryError(f"more than {self.limit} states")
                    self.from_.append((number, label))
                    before.append([])
                    queue.append(after)
                before[known].append(number)
        self._check_progress(before, ends)
        return Explored(len(self.from_), steps, len(ends))

    def _check_progress(self, before: list[list[int]], ends: list[int]) -> None:
        """From every state an end can be reached: nobody circles for ever."""
        good, waiting = set(ends), list(ends)
        while waiting:
            for number in before[waiting.pop()]:
                if number not in good:
                    good.add(number)
                    waiting.append(number)
        if len(good) != len(before):
            stuck = min(set(range(len(before))) - good)
            self._fail(stuck, "from here on nobody ever finishes")

    def _check_end(self, state: State, number: int) -> None:
        for at, node in enumerate(state[0]):
            if node.operation != ("done",):
                kind = "sleeps" if state[3][at] else "is stuck"
                what = f"{self.model.threads[at].name} {kind} for ever in {self._say(node)}"
                self._fail(number, what)
        names = [thread.name for thread in self.model.threads]
        records = {n: node.records for n, node in zip(names, state[0], strict=True)}
        memory = dict(zip(self.addresses, state[1], strict=True))
        if complaint := self.model.final(records, memory):
            self._fail(number, complaint)

    def _say(self, node: Node) -> str:
        kind, *rest = node.operation
        names = self.model.names
        if rest and isinstance(rest[0], int):
            rest[0] = names.get(rest[0], hex(rest[0]))
        return f"{kind}({', '.join(map(str, rest))})"

    def _fail(self, number: int, complaint: str, last: str = "") -> None:
        trace = [last] if last else []
        while number >= 0:
            number, label = self.from_[number]
            trace.append(label)
        raise Violation("\n".join([complaint, *(f"  {line}" for line in reversed(trace))]))

    def _settle(
        self, at: int, node: Node, buffer: tuple[Any, ...], number: int, label: str
    ) -> tuple[Node, tuple[Any, ...]]:
        thread = self.model.threads[at]
        while node.operation[0] in ("store", "plain store"):
            kind, address, value = node.operation
            buffer = (*buffer, (self.index[address], value, kind == "store"))
            node = thread.step(node, None)
        if node.operation[0] == "fail":
            self._fail(number, f"{thread.name}: {node.operation[1]}", label)
        return node, buffer

    def _moved(
        self, state: State, number: int, at: int, result: Any, memory: Any = None, **other: Any
    ) -> tuple[str, State]:
        """The state after thread `at` was given `result`."""
        nodes, old_memory, buffers, asleep, clock, spurious, interrupts = state
        thread = self.model.threads[at]
        label = f"{thread.name}: {self._say(nodes[at])} -> {result}"
        node, buffer = self._settle(at, thread.step(nodes[at], result), buffers[at], number, label)
        if asleep[at]:
            asleep = (*asleep[:at], False, *asleep[at + 1 :])
        return label, (
            (*nodes[:at], node, *nodes[at + 1 :]),
            old_memory if memory is None else memory,
            buffers if buffer is buffers[at] else (*buffers[:at], buffer, *buffers[at + 1 :]),
            asleep,
            clock,
            other.get("spurious", spurious),
            other.get("interrupts", interrupts),
        )

    def _following(self, state: State, number: int) -> Iterable[tuple[str, State]]:
        clock = state[4]
        if clock < self.model.clock_end:
            yield f"time is {clock + 1}", (*state[:4], clock + 1, *state[5:])
        for at in range(len(self.model.threads)):
            for place in _first_to_leave(state[2][at], self.model.hoist):
                yield self._drained(state, number, at, place)
            if state[3][at]:
                yield from self._woken_by_nobody(state, number, at)
            else:
                yield from self._acted(state, number, at)

    def _drained(self, state: State, number: int, at: int, place: int) -> tuple[str, State]:
        nodes, memory, buffers = state[:3]
        word, value, _ = buffers[at][place]
        rest = (*buffers[at][:place], *buffers[at][place + 1 :])
        address = self.addresses[word]
        name = self.model.names.get(address, hex(address))
        label = f"{self.model.threads[at].name}: {name} = {value} reaches memory"
        if word in self._guards:
            sequence, reader, record = self._guards[word]
            if memory[sequence] > nodes[reader].records[record]["position"]:
                self._fail(number, "an unread slot is overwritten", label)
        memory = (*memory[:word], value, *memory[word + 1 :])
        buffers = (*buffers[:at], rest, *buffers[at + 1 :])
        return label, (nodes, memory, buffers, *state[3:])

    def _woken_by_nobody(self, state: State, number: int, at: int) -> Iterable[tuple[str, State]]:
        clock, spurious, interrupts = state[4:]
        if clock >= state[0][at].operation[3]:
            yield self._moved(state, number, at, -errno.ETIMEDOUT)
        if spurious:
            yield self._moved(state, number, at, 0, spurious=spurious - 1)
        if interrupts:
            yield self._moved(state, number, at, -errno.EINTR, interrupts=interrupts - 1)

    def _read(self, state: State, at: int, word: int) -> int:
        for held, value, _ in reversed(state[2][at]):
            if held == word:
                return int(value)
        return int(state[1][word])

    def _acted(self, state: State, number: int, at: int) -> Iterable[tuple[str, State]]:
        nodes, memory, buffers, asleep = state[:4]
        kind, *rest = nodes[at].operation
        word = self.index[rest[0]] if rest else -1
        if kind == "load":
            yield self._moved(state, number, at, self._read(state, at, word))
        elif kind == "fence":
            if not buffers[at]:
                yield self._moved(state, number, at, None)
        elif kind == "add":
            if not buffers[at]:
                changed = (*memory[:word], memory[word] + rest[1], *memory[word + 1 :])
                yield self._moved(state, number, at, memory[word], changed)
        elif kind == "clock":
            yield self._moved(state, number, at, state[4])
        elif kind == "futex_wait":
            if self._read(state, at, word) != rest[1]:
                yield self._moved(state, number, at, -errno.EAGAIN)
            elif rest[2] <= state[4]:
                yield self._moved(state, number, at, -errno.ETIMEDOUT)
            else:
                label = f"{self.model.threads[at].name}: sleeps in {self._say(nodes[at])}"
                sleeping = (*asleep[:at], True, *asleep[at + 1 :])
                yield label, (*state[:3], sleeping, *state[4:])
        elif kind == "futex_wake":
            yield from self._woke(state, number, at, rest[0])
        elif kind == "signal":
            yield self._moved(state, number, at, 8, (*memory[:word], 1, *memory[word + 1 :]))
        elif kind == "await" and memory[word]:
            yield self._moved(state, number, at, 8, (*memory[:word], 0, *memory[word + 1 :]))

    def _woke(
        self, state: State, number: int, at: int, address: int
    ) -> Iterable[tuple[str, State]]:
        sleepers = [
            other
            for other, sleeps in enumerate(state[3])
            if sleeps and state[0][other].operation[1] == address
        ]
        if not sleepers:
            yield self._moved(state, number, at, 0)
        for other in sleepers:  # FUTEX_WAKE of one: whichever the kernel takes
            _, woken = self._moved(state, number, other, 0)
            yield self._moved(woken, number, at, 1)


def explore(model: Model) -> Explored:
    """Check every interleaving of `model`. Raises Violation, or says how many states there were."""
    return Explorer(model).run()
