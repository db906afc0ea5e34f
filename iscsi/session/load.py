"""A load: so many commands outstanding, each replaced when it completes (a closed loop) or when the
next one is due (a fixed rate), in compiled code from the choice of the address to the latency's
histogram. With `verify` every word written is derived from its block's address, and every word read
is compared. At a fixed rate a latency counts from when the command was due, sent late or not.
"""

from typing import Final

from iscsi.session import jobs
from iscsi.session.jobs import worker_at
from iscsi.wire import bhs
from iscsi.wire.initiator_post import block_cdb, completed_next, release, submit
from iscsi.wire.initiator_task import KIND_SCSI, task_at
from shm.histogram import record as count_latency
from shm.jit import entry, nopython
from shm.layout import Field, record
from shm.libc import monotonic_ns
from shm.memory import load_32, load_64, store_32, store_64
from shm.view import opener

LOAD: Final = record(
    Field("worker", "<i8"),
    Field("lun", "<i8"),
    Field("block_size", "<i8"),
    Field("blocks", "<i8"),  # of one command
    Field("first_lba", "<i8"),
    Field("places", "<i8"),  # commands side by side from first_lba on
    Field("next_place", "<i8"),  # sequential
    Field("is_random", "<i8"),
    Field("write_percent", "<i8"),
    Field("verify", "<i8"),
    Field("state", "<i8"),  # of the random numbers
    Field("left", "<i8"),  # commands still to submit; negative: no limit
    Field("slots", "<i8"),  # address of SLOT[depth]
    Field("free", "<i8"),  # address of a stack of int32
    Field("free_count", "<i8"),
    Field("reads", "<i8"),
    Field("writes", "<i8"),
    Field("failed", "<i8"),  # commands that did not end well
    Field("bad_blocks", "<i8"),
    Field("first_bad_lba", "<i8"),
    Field("read_latency", "<i8"),  # addresses of histograms, nanoseconds
    Field("write_latency", "<i8"),
    Field("failure", "<i8"),  # address of a JOB that keeps the first failure
    Field("interval_ns", "<i8"),  # between two commands; 0: as fast as they complete
    Field("due_ns", "<i8"),  # when the next command is to be sent
    size=256,
)
SLOT: Final = record(
    Field("started_ns", "<i8"),
    Field("lba", "<i8"),
    Field("address", "<i8"),  # of its data
    Field("number", "<i8"),
    size=32,
)
load_at = opener(LOAD)
slot_at = opener(SLOT)
SLOT_SIZE: Final = SLOT.itemsize

# Knuth's MMIX constants, modulo 2^63: a full period, and the same numbers in both worlds.
_MULTIPLIER: Final = 6364136223846793005
_INCREMENT: Final = 1442695040888963407
_MASK: Final = (1 << 63) - 1
_SPREAD: Final = 0x9E3779B1


@nopython
def next_random(load: int) -> int:
    """A random number in 0..2^42-1."""
    mine = load_at(load)[0]
    mine["state"] = (mine["state"] * _MULTIPLIER + _INCREMENT) & _MASK
    return int(mine["state"] >> 21)


@nopython
def word_of(lba: int, index: int) -> int:
    """What a verified block holds at its word `index`."""
    return ((lba + 1) << 16) ^ (index * _SPREAD)


@nopython
def stamp(address: int, lba: int, blocks: int, block_size: int) -> None:
    """Fill blocks with what `word_of` says."""
    for block in range(blocks):
        for index in range(block_size // 8):
            store_64(address + block * block_size + 8 * index, word_of(lba + block, index))


@nopython
def first_bad(address: int, lba: int, blocks: int, block_size: int) -> int:
    """Number of the first block that is not as stamped, or -1."""
    for block in range(blocks):
        for index in range(block_size // 8):
            found = load_64(address + block * block_size + 8 * index)
            if found != word_of(lba + block, index):
                return block
    return -1


@nopython
def _choose(load: int) -> int:
    """The address of the next command."""
    mine = load_at(load)[0]
    if mine["is_random"]:
        place = next_random(load) % mine["places"]
    else:
        place = mine["next_place"]
        mine["next_place"] = place + 1 if place + 1 < mine["places"] else 0
    return int(mine["first_lba"] + place * mine["blocks"])


@nopython
def _due(load: int) -> int:
    """How many commands of a load at a fixed rate are due by now."""
    mine = load_at(load)[0]
    late = monotonic_ns() - mine["due_ns"]
    return int(1 + late // mine["interval_ns"]) if late >= 0 else 0


@nopython
def _start_ns(load: int) -> int:
    """When the command just sent began: now, or when it was due; the next one is due after that."""
    mine = load_at(load)[0]
    if mine["interval_ns"] == 0:
        return int(monotonic_ns())
    due = int(mine["due_ns"])
    mine["due_ns"] = due + mine["interval_ns"]
    return due


@nopython
def _submit(load: int) -> int:
    """Submit commands while there are slots and, at a fixed rate, while one is due. How many."""
    mine = load_at(load)[0]
    hot = worker_at(mine["worker"])[0]
    done = jobs.resubmit(mine["worker"])
    if done < 0 or hot["conn"] == 0 or hot["gate"] != jobs.OPEN:
        return 0
    room = mine["free_count"]
    if mine["interval_ns"] != 0:
        room = min(room, _due(load))
    while room > 0 and mine["left"] != 0:
        number = load_32(mine["free"] + 4 * (mine["free_count"] - 1))
        slot = mine["slots"] + SLOT_SIZE * number
        its = slot_at(slot)[0]
        is_write = next_random(load) % 100 < mine["write_percent"]
        lba, length = _choose(load), mine["blocks"] * mine["block_size"]
        if is_write and mine["verify"]:
            stamp(its["address"], lba, mine["blocks"], mine["block_size"])
        cdb = mine["worker"] + jobs.WORKER_CDB
        block_cdb(cdb, is_write, lba, mine["blocks"])
        flags = (bhs.FLAG_WRITE if is_write else bhs.FLAG_READ) | 1
        tag = submit(hot["conn"], mine["lun"], cdb, flags, length, its["address"], slot)
        if tag < 0:
            break
        its["lba"], its["started_ns"] = lba, _start_ns(load)
        room -= 1
        mine["free_count"] -= 1
        mine["left"] -= 1
        hot["outstanding"] += 1
        done += 1
    return done


@nopython
def _end(load: int, task: int) -> None:
    """Account one completed command."""
    mine, its = load_at(load)[0], task_at(task)[0]
    hot = worker_at(mine["worker"])[0]
    # A ping of the session's, or a command that nobody waits for any more.
    if its["kind"] != KIND_SCSI or its["user_data"] == 0:
        jobs.complete_task(mine["worker"], task)
        return
    if jobs.hold(mine["worker"], task):
        return
    slot = slot_at(its["user_data"])[0]
    hot["outstanding"] -= 1
    hot["completions"] += 1
    hot["retries"] = 0
    store_32(mine["free"] + 4 * mine["free_count"], slot["number"])
    mine["free_count"] += 1
    if its["result"] != 0 or its["response"] != 0 or its["status"] != 0:
        if mine["failed"] == 0:
            jobs.job_at(mine["failure"])[0]["failed"] = 1
            jobs.keep_outcome(mine["failure"], task)
        mine["failed"] += 1
        mine["left"] = 0
        return
    took = monotonic_ns() - slot["started_ns"]
    if its["flags"] & bhs.FLAG_WRITE:
        mine["writes"] += 1
        count_latency(mine["write_latency"], took)
        return
    mine["reads"] += 1
    count_latency(mine["read_latency"], took)
    if mine["verify"]:
        bad = first_bad(slot["address"], slot["lba"], mine["blocks"], mine["block_size"])
        if bad >= 0:
            if mine["bad_blocks"] == 0:
                mine["first_bad_lba"] = slot["lba"] + bad
            mine["bad_blocks"] += 1


@nopython
def _take_completed(load: int) -> int:
    conn = worker_at(load_at(load)[0]["worker"])[0]["conn"]
    done = 0
    if conn == 0:
        return 0
    task = completed_next(conn)
    while task != 0:
        _end(load, task)
        release(conn, task)
        done += 1
        task = completed_next(conn)
    return done


@nopython
def _wait(load: int, deadline_ns: int, tick_at_ns: int, now_ns: int) -> int:
    """`jobs.wait`, but no longer than until the next command is due."""
    mine = load_at(load)[0]
    worker, due = mine["worker"], mine["due_ns"]
    # One that is due already was not taken for want of room, which only a completion makes.
    if mine["interval_ns"] == 0 or mine["left"] == 0 or due <= now_ns or due >= tick_at_ns:
        return jobs.wait(worker, deadline_ns, tick_at_ns, now_ns)
    reason = jobs.wait(worker, deadline_ns, due, now_ns)
    return 0 if reason == jobs.LOOK and monotonic_ns() >= due else reason


@entry("int64(intp, int64, int64, int64)")
def run_load(load: int, end_ns: int, deadline_ns: int, tick_at_ns: int) -> int:
    """Keep the load up until `end_ns` or its last command, then let what is open end.

    Returns `jobs.FINISHED`, or why Python has to look; calling again goes on.
    """
    mine = load_at(load)[0]
    worker = mine["worker"]
    while True:
        now = monotonic_ns()
        if now >= end_ns:
            mine["left"] = 0
        moved = _submit(load) + jobs.exchange(worker) + _take_completed(load)
        if mine["left"] == 0 and worker_at(worker)[0]["outstanding"] == 0:
            return jobs.FINISHED
        reason = jobs.news(worker)
        if reason == 0 and moved == 0:
            reason = _wait(load, deadline_ns, tick_at_ns, now)
        if reason == 0 and now >= tick_at_ns:
            reason = jobs.LOOK
        if reason != 0:
            return reason


@entry("void(intp)")
def settle_load(load: int) -> None:
    """Account what is complete, without moving a byte."""
    _take_completed(load)
