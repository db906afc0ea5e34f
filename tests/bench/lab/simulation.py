"""A discrete-event simulation of what the model describes: the tests' independent witness.

Operations go from station to station in order, are served first come first served by the cores of
each, and hold a delay that occupies nobody. A host that waits for N takes completions in batches.
"""

import heapq
import random
from collections import deque
from dataclasses import dataclass
from itertools import count


@dataclass
class Outcome:
    throughput_per_s: float
    latency_s: float
    utilisation: list[float]


SERVICE = {
    "exponential": lambda generator, mean: generator.expovariate(1 / mean),
    "constant": lambda generator, mean: mean,
    "hyper": lambda generator, mean: (
        generator.expovariate(0.2 / mean)
        if generator.random() < 0.1
        else generator.expovariate(1.8 / mean)
    ),
}


class Simulation:
    """`stations` are (mean service time, cores); one run answers for `operations` completions."""

    def __init__(self, stations, delay_s, *, service="exponential", seed=1, n=1, min_wait_s=None):
        self.stations, self.delay_s = stations, delay_s
        self.draw, self.generator = SERVICE[service], random.Random(seed)
        self.n, self.min_wait_s = n, min_wait_s
        self.now, self.events, self.order = 0.0, [], count()
        self.queues = [deque() for _ in stations]
        self.idle = [cores for _, cores in stations]
        self.busy = [0.0 for _ in stations]
        self.held, self.batches, self.taken = [], 0, 0
        self.finished, self.latency_sum = 0, 0.0

    def at(self, time, what, *arguments):
        heapq.heappush(self.events, (time, next(self.order), what, arguments))

    def closed(self, depth, operations):
        self.depth, self.again = depth, True
        for _ in range(depth):
            self.enter(self.now, 0)
        return self.run(operations)

    def open(self, rate, operations, arrivals="exponential"):
        self.depth, self.again = None, False
        self.rate, self.arrivals = rate, arrivals
        self.at(0.0, self.arrive)
        return self.run(operations)

    def arrive(self):
        self.enter(self.now, 0)
        self.at(self.now + SERVICE[self.arrivals](self.generator, 1 / self.rate), self.arrive)

    def run(self, operations):
        warm = operations // 10
        started, busy = 0.0, list(self.busy)
        while self.finished < operations + warm:
            self.now, _, what, arguments = heapq.heappop(self.events)
            before = self.finished
            what(*arguments)
            if before < warm <= self.finished:
                started, busy, self.latency_sum = self.now, list(self.busy), 0.0
                first = self.finished
        span = self.now - started
        done = self.finished - first
        used = [
            (after - then) / span / cores
            for after, then, (_, cores) in zip(self.busy, busy, self.stations, strict=True)
        ]
        return Outcome(done / span, self.latency_sum / done, used)

    def enter(self, born, place):
        if place < len(self.stations):
            self.queues[place].append(born)
            self.start(place)
        elif self.delay_s:
            self.at(self.now + self.draw(self.generator, self.delay_s), self.complete, born)
        else:
            self.complete(born)

    def start(self, place):
        while self.idle[place] and self.queues[place]:
            born = self.queues[place].popleft()
            self.idle[place] -= 1
            time = self.draw(self.generator, self.stations[place][0])
            self.busy[place] += time
            self.at(self.now + time, self.served, born, place)

    def served(self, born, place):
        self.idle[place] += 1
        self.start(place)
        self.enter(born, place + 1)

    def complete(self, born):
        self.held.append(born)
        want = min(self.n, self.depth or self.n)
        if len(self.held) >= want:
            self.take()
        elif len(self.held) == 1 and self.min_wait_s is not None:
            self.at(self.now + self.min_wait_s, self.tired, self.batches)

    def tired(self, batch):
        if batch == self.batches and self.held:
            self.take()

    def take(self):
        held, self.held = self.held, []
        self.batches += 1
        for born in held:
            self.finished += 1
            self.latency_sum += self.now - born
            if self.again:
                self.enter(self.now, 0)
