"""The other process of the two-process tests: an engine's side of a channel that obeys.

One line in, one line out. A line may begin with `asleep`: then the rest is done once the process
that started this one sleeps with `wake_at` armed.
"""

import os
import select
import sys
import time

import numpy as np

from shm.channel import E_CONSUMER, E_PRODUCER, E_WAKER, ENGINE_CHANNEL, bind_engine
from shm.layout import offset
from shm.records import CHANNEL, NEVER, SLOT, SLOTS_PER_OPERATION_MAX, WAKER, WQE
from shm.segment import map_descriptor
from shm.view import address_of
from shm.wait import GATHERING, NOBODY
from tests.shm import doors
from tests.shm.channel_doors import take

WORK, EVENT = 8, 32  # of 32 event slots, up to three are handed back late
DEADLINE_S = 30.0
LOOK_S = 0.002


def until(condition, what):
    """Wait for `condition`, and say what was waited for when it does not come."""
    ends = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"waited {DEADLINE_S} s for {what}")
        time.sleep(LOOK_S)


def sleeps(pid):
    """Whether the main thread of a process is off the CPU (proc(5), field 3)."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123 - read once and again
        return file.read().rpartition(")")[2].split()[0] == "S"


class Engine:
    """The engine's private side, and one method for each command."""

    def __init__(self, descriptor, size, eventfd, bell):
        self.segment = map_descriptor(descriptor, size)
        self.shared = self.segment.array[: CHANNEL.itemsize].view(CHANNEL)
        self.bell = bell
        self.state = np.zeros(1, ENGINE_CHANNEL)
        self.at = address_of(self.state)
        bind_engine(self.at, self.segment.address, WORK, EVENT, eventfd)
        self.entries = np.zeros(EVENT, SLOT)
        self.out = np.zeros(SLOTS_PER_OPERATION_MAX, WQE)

    def asleep(self, *command):
        host = os.getppid()
        until(lambda: self.shared["wake_at"][0] != NEVER and sleeps(host), "a sleeper")
        return getattr(self, command[0])(*command[1:])

    def post(self, *numbers):
        """Post these, each with a wake-up if it is due. Return the wake-ups."""
        return sum(self.batch(number) for number in numbers)

    def batch(self, *numbers):
        """Post these and look for a crossing once. Return the wake-ups."""
        self.entries["word0"][: len(numbers)] = [int(number) for number in numbers]
        producer = self.at + E_PRODUCER
        done = doors.post_burst(producer, address_of(self.entries), len(numbers))
        assert done == len(numbers)
        return int(doors.wake_if_crossed(producer, self.at + E_WAKER))

    def batch_and_keep_time(self, *numbers):
        """The same, and then keep the time of whoever left it here. Return the wake-ups."""
        woken = self.batch(*numbers)
        producer, waker = self.at + E_PRODUCER, self.at + E_WAKER
        found = GATHERING if not woken and doors.is_time_kept(waker) else NOBODY
        while found == GATHERING:
            found = doors.keep_time(producer, waker, time.monotonic_ns())
        return f"{woken} {found}"

    def wake(self):
        """Wake without posting, as somebody who changes the state does."""
        doors.wake(self.at + E_WAKER)
        return int(self.state["waker"]["wakes"][0])

    def close(self, state):
        """Change the channel's state and wake."""
        self.shared["state"] = int(state)
        return self.wake()

    def wake_then_post(self, number):
        """Wake without cause, let the sleeper look and sleep again, then post."""
        self.wake()
        return self.asleep("post", number)

    def second_waker(self):
        """Wake through a WAKER of its own, as a watcher thread does."""
        waker = np.zeros(1, WAKER)
        waker[:] = self.state["waker"]
        self.shared["state"] = 2
        doors.wake(address_of(waker))
        return int(self.shared["wake_seq"][0])

    def park(self):
        """Park, sleep until the bell rings, and take what is there. Return the numbers."""
        need = self.segment.address + offset(CHANNEL, "need_doorbell")
        parked = doors.park(self.at + E_CONSUMER, need)
        if parked:
            ready, _, _ = select.select([self.bell], [], [], DEADLINE_S)
            if not ready:
                raise TimeoutError("the bell did not ring")
            doors.eventfd_drain(self.bell)
            doors.unpark(need)
        taken = []
        while take(self.at, address_of(self.out)) > 0:
            taken.append(str(self.out["user_data"][0]))
        return f"{int(parked)} {','.join(taken)}"


def main():
    engine = Engine(*[int(argument) for argument in sys.argv[1:]])
    print("ready", flush=True)  # noqa: T201 - the protocol
    for line in sys.stdin:
        command, *rest = line.split()
        print(getattr(engine, command)(*rest), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
