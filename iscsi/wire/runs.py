"""Runs: the pieces of memory that one command's data lies in, in the order of its bytes. A list of
them is RUN[count]; every length is positive, and a list is as long as the data it is for.
"""

from typing import Final

from shm.jit import nopython
from shm.layout import Field, record
from shm.view import opener

# As struct iovec, so a list of them can be handed to the kernel.
RUN: Final = record(Field("address", "<i8"), Field("length", "<i8"), size=16)
run_at = opener(RUN)
RUN_SIZE: Final = RUN.itemsize


@nopython
def find(runs: int, count: int, offset: int) -> tuple[int, int]:
    """Where the byte at `offset` lies, and how many bytes lie there in one piece; 0, 0 behind the
    end.
    """
    for index in range(count):
        run = run_at(runs + RUN_SIZE * index)[0]
        length = run["length"]
        if offset < length:
            return int(run["address"] + offset), int(length - offset)
        offset -= length
    return 0, 0


@nopython
def cut_out(
    runs: int, count: int, offset: int, length: int, into: int, room: int
) -> tuple[int, int]:
    """Make a list at `into`, of at most `room` runs, of the `length` bytes from `offset` on: how
    many runs it has, and their bytes, which are fewer if there is no room for all.
    """
    made, done = 0, 0
    for index in range(count):
        run = run_at(runs + RUN_SIZE * index)[0]
        if offset >= run["length"]:
            offset -= run["length"]
            continue
        if done == length or made == room:
            break
        mine = run_at(into + RUN_SIZE * made)[0]
        mine["address"] = run["address"] + offset
        mine["length"] = min(run["length"] - offset, length - done)
        done += mine["length"]
        offset = 0
        made += 1
    return made, int(done)


@nopython
def total(runs: int, count: int) -> int:
    """Bytes of all runs, or -1 if one of them holds nothing."""
    found = 0
    for index in range(count):
        length = run_at(runs + RUN_SIZE * index)[0]["length"]
        if length <= 0:
            return -1
        found += length
    return found


@nopython
def overlap(runs: int, count: int) -> bool:
    """Whether some byte of memory is in two runs."""
    for index in range(count):
        mine = run_at(runs + RUN_SIZE * index)[0]
        for earlier in range(index):
            other = run_at(runs + RUN_SIZE * earlier)[0]
            if (
                mine["address"] < other["address"] + other["length"]
                and other["address"] < mine["address"] + mine["length"]
            ):
                return True
    return False


@nopython
def reach_into(runs: int, count: int, start: int, end: int) -> bool:
    """Whether some byte of the runs lies between two addresses."""
    for index in range(count):
        run = run_at(runs + RUN_SIZE * index)[0]
        if run["address"] < end and start < run["address"] + run["length"]:
            return True
    return False
