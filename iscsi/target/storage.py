"""READ and WRITE of files in compiled code: what the page cache has is read at once, straight into
the buffer it is sent from; whatever may wait for the medium is a job for a worker thread. The
server's thread alone touches tasks and buffers; a worker sees only its job, its own ring and the
word that says whether the server sleeps.
"""

import errno
from typing import Final

from iscsi.target.backends.libc import DSYNC, NOWAIT, read_at, sync, write_at
from iscsi.target.backends.medium import NULL, medium_at
from iscsi.wire.lun import READ, is_durable
from iscsi.wire.port import queue_at
from iscsi.wire.target_command import data_may_come
from iscsi.wire.target_storage import (
    pin,
    storage_done,
    storage_next,
    unpin,
    wait_for_storage,
)
from iscsi.wire.target_task import CDB, STORAGE, hold_buffer, task_at
from shm.atomics import (
    fence,
    fetch_add,
    fetch_add_32,
    load_acquire,
    load_acquire_32,
    load_relaxed,
    store_relaxed,
    store_release,
)
from shm.jit import entry, nopython
from shm.layout import Field, offset, record
from shm.libc import futex_wait, futex_wake, monotonic_ns, wake_signal
from shm.memory import load_64, store_64, zero_bytes
from shm.pool import POOL, give, take
from shm.view import opener

WORKERS_MAX: Final = 16

JOB: Final = record(
    Field("descriptor", "<i8"),
    Field("address", "<i8"),
    Field("length", "<i8"),
    Field("offset", "<i8"),
    Field("is_read", "<i8"),
    Field("durable", "<i8"),
    Field("result", "<i8"),  # 0 or -errno, by the worker
    Field("conn", "<i8"),  # these are the server's
    Field("task", "<i8"),
    Field("medium", "<i8"),
    Field("pump", "<i8"),
    size=128,
)
WORKER: Final = record(
    Field("slots", "<i8"),  # address of int64 job addresses; a power of two of them
    Field("mask", "<i8"),
    Field("storage", "<i8"),
    # Written by the server.
    Field("tail", "<i8", own_span=True),  # jobs given
    Field("seen", "<i8"),  # jobs taken back
    Field("stop", "<i8"),
    Field("word", "<i4"),  # what the worker sleeps on
    # Written by the worker.
    Field("done", "<i8", own_span=True),
    Field("sleeping", "<i8"),
    size=512,
)
STORE: Final = record(
    Field("workers", "<i8"),  # address of WORKER
    Field("worker_count", "<i8"),
    Field("jobs", "<i8"),  # address of JOB
    Field("job_pool", POOL),
    Field("waker", "<i8"),  # descriptor: a byte there ends the server's sleep
    Field("under_way", "<i8"),  # jobs
    Field("cached", "<i8"),  # reads that needed no worker
    Field("waited", "<i8"),  # and those, and writes, that did
    Field("at_rest", "<i8"),  # 1: a medium that is held has no jobs any more
    Field("asleep", "<i8", own_span=True),  # 1: the server is about to sleep
    size=512,
)
job_at = opener(JOB)
worker_at = opener(WORKER)
store_at = opener(STORE)

JOB_SIZE: Final = JOB.itemsize
WORKER_SIZE: Final = WORKER.itemsize
JOB_POOL: Final = offset(STORE, "job_pool")
_TAIL, _STOP, _WORD = offset(WORKER, "tail"), offset(WORKER, "stop"), offset(WORKER, "word")
_DONE, _SLEEPING = offset(WORKER, "done"), offset(WORKER, "sleeping")
_ASLEEP: Final = offset(STORE, "asleep")
# A worker looks around this often even if nobody rings.
_NAP_NS: Final = 1_000_000_000
EAGAIN: Final = errno.EAGAIN
EOPNOTSUPP: Final = errno.EOPNOTSUPP
ALIGNMENT_MASK: Final = 4095


# --- in the server's thread ----------------------------------------------------------------------


@nopython
def begin(store: int, pump: int, conn: int) -> None:
    """Begin what waits for its medium; what finds no buffer or no job stays in line."""
    queue = queue_at(conn + STORAGE)[0]
    for _ in range(queue["tail"] - queue["head"]):
        address = storage_next(conn)
        if address == 0:
            return
        if not _begin_one(store, pump, conn, address):
            wait_for_storage(conn, address)


@nopython
def is_waiting(conn: int) -> bool:
    """Whether something stayed in line."""
    queue = queue_at(conn + STORAGE)[0]
    return bool(queue["head"] != queue["tail"])


@nopython
def _begin_one(store: int, pump: int, conn: int, address: int) -> bool:
    task = task_at(address)[0]
    medium = medium_at(task["medium"])[0]
    if medium["held"]:
        return False
    if task["medium_offset"] + task["transfer"] > medium["size"]:  # It was cut off meanwhile.
        storage_done(conn, address, -errno.ENXIO)
        return True
    is_read = task["direction"] == READ
    if task["buffer"] == 0 and not hold_buffer(conn, address, task["transfer"]):
        return False
    if not is_read and task["received"] < task["transfer"]:
        data_may_come(conn, address)
        return True
    done = _at_once(address, is_read)
    if done == -EAGAIN or 0 <= done < task["transfer"]:
        return _submit(store, pump, conn, address, max(done, 0))
    _count(store, address, is_read, 0)
    storage_done(conn, address, min(done, 0))
    return True


@nopython
def _count(store: int, address: int, is_read: bool, waited: int) -> None:
    medium = medium_at(task_at(address)[0]["medium"])[0]
    medium["reads"] += 1 if is_read else 0
    medium["writes"] += 0 if is_read else 1
    medium["misses"] += waited if is_read else 0
    store_at(store)[0]["waited"] += waited
    store_at(store)[0]["cached"] += 1 - waited


@nopython
def _at_once(address: int, is_read: bool) -> int:
    """Do what needs no waiting: bytes done, -EAGAIN if it has to wait, or another `-errno`."""
    task = task_at(address)[0]
    medium = medium_at(task["medium"])[0]
    length = task["transfer"]
    if medium["kind"] == NULL:
        if is_read:
            zero_bytes(task["data_address"], length)
        return int(length)
    if is_durable(address + CDB) or medium["direct"] >= 0:
        return -EAGAIN
    if is_read:
        done = read_at(
            medium["buffered"], task["data_address"], length, task["medium_offset"], NOWAIT
        )
    elif medium["write_through"] or medium["waits"]:
        return -EAGAIN
    else:
        done = write_at(
            medium["buffered"], task["data_address"], length, task["medium_offset"], NOWAIT
        )
    if done == -EOPNOTSUPP:
        medium["waits"] = 1 if not is_read else medium["waits"]
        return -EAGAIN
    return done


@nopython
def _submit(store: int, pump: int, conn: int, address: int, done: int) -> bool:
    """Give the rest of a task to the worker that has the least to do. False: no job is free."""
    mine = store_at(store)[0]
    index = take(store + JOB_POOL)
    if index < 0:
        return False
    task = task_at(address)[0]
    medium = medium_at(task["medium"])[0]
    place = mine["jobs"] + JOB_SIZE * index
    job = job_at(place)[0]
    job["address"] = task["data_address"] + done
    job["length"] = task["transfer"] - done
    job["offset"] = task["medium_offset"] + done
    job["is_read"] = 1 if task["direction"] == READ else 0
    job["durable"] = 1 if is_durable(address + CDB) or medium["write_through"] else 0
    crooked = (job["offset"] | job["length"] | job["address"]) & ALIGNMENT_MASK
    straight = medium["direct"] >= 0 and crooked == 0
    job["descriptor"] = medium["direct"] if straight else medium["buffered"]
    job["conn"], job["task"], job["medium"] = conn, address, task["medium"]
    job["pump"] = pump
    _count(store, address, job["is_read"] != 0, 1)
    pin(conn, address)
    medium["jobs"] += 1
    mine["under_way"] += 1
    _hand_over(store, _least_busy(store), place)
    return True


@nopython
def _least_busy(store: int) -> int:
    mine = store_at(store)[0]
    best, least = mine["workers"], 1 << 60
    for number in range(mine["worker_count"]):
        worker = mine["workers"] + WORKER_SIZE * number
        load = worker_at(worker)[0]["tail"] - load_acquire(worker + _DONE)
        if load < least:
            best, least = worker, load
    return int(best)


@nopython
def _hand_over(store: int, worker: int, job: int) -> None:
    its = worker_at(worker)[0]
    store_64(its["slots"] + 8 * (its["tail"] & its["mask"]), job)
    store_release(worker + _TAIL, its["tail"] + 1)
    # SYNC POINT: pairs with the fence in `work`: either it sees the job, or we see it sleep.
    fence()
    if load_relaxed(worker + _SLEEPING):
        fetch_add_32(worker + _WORD, 1)
        futex_wake(worker + _WORD, 1)


@nopython
def finish(store: int) -> int:
    """End the tasks whose jobs are done. Address of the PUMP of one of them, or 0: call it again
    until then.
    """
    mine = store_at(store)[0]
    for number in range(mine["worker_count"]):
        worker = mine["workers"] + WORKER_SIZE * number
        its = worker_at(worker)[0]
        if its["seen"] != load_acquire(worker + _DONE):
            place = load_64(its["slots"] + 8 * (its["seen"] & its["mask"]))
            its["seen"] += 1
            return _end(store, place)
    return 0


@nopython
def _end(store: int, place: int) -> int:
    mine, job = store_at(store)[0], job_at(place)[0]
    mine["under_way"] -= 1
    medium = medium_at(job["medium"])[0]
    medium["jobs"] -= 1
    if medium["held"] and medium["jobs"] == 0:
        mine["at_rest"] = 1
    if unpin(job["conn"], job["task"]):
        storage_done(job["conn"], job["task"], job["result"])
    pump = int(job["pump"])
    give(store + JOB_POOL, (place - mine["jobs"]) // JOB_SIZE)
    return pump


@nopython
def may_sleep(store: int) -> bool:
    """Say that the server is about to sleep; False if a job was done after all."""
    store_relaxed(store + _ASLEEP, 1)
    # SYNC POINT: pairs with the fence in `work`: either we see what is done, or it sees us sleep.
    fence()
    mine = store_at(store)[0]
    for number in range(mine["worker_count"]):
        worker = mine["workers"] + WORKER_SIZE * number
        if worker_at(worker)[0]["seen"] != load_acquire(worker + _DONE):
            store_relaxed(store + _ASLEEP, 0)
            return False
    return True


@nopython
def is_awake(store: int) -> None:
    """The server looks again: nobody needs to wake it."""
    store_relaxed(store + _ASLEEP, 0)


# --- in a worker's thread ------------------------------------------------------------------------


@nopython
def _do(place: int) -> int:
    job = job_at(place)[0]
    descriptor, durable = job["descriptor"], job["durable"] != 0
    if job["is_read"]:
        if durable:  # FUA: not what is only in the cache (SBC-3 §5.8)
            result = sync(descriptor)
            if result < 0:
                return result
        done = read_at(descriptor, job["address"], job["length"], job["offset"], 0)
        return -errno.EIO if 0 <= done < job["length"] else min(done, 0)
    if not durable:
        return _write_all(place, 0)
    result = _write_all(place, DSYNC)
    if result == -EOPNOTSUPP:  # a file system that knows no durable writes, but syncs
        result = _write_all(place, 0)
        if result == 0:
            result = sync(descriptor)
    return result


@nopython
def _write_all(place: int, flags: int) -> int:
    job = job_at(place)[0]
    start = 0
    while start < job["length"]:
        done = write_at(
            job["descriptor"],
            job["address"] + start,
            job["length"] - start,
            job["offset"] + start,
            flags,
        )
        if done < 0:
            return done
        start += done
    return 0


@entry("void(intp)")
def work(worker: int) -> None:
    """Do jobs until told to stop; runs without the interpreter lock."""
    mine = worker_at(worker)[0]
    store = mine["storage"]
    done = load_acquire(worker + _DONE)
    while True:
        if load_acquire(worker + _TAIL) != done:
            place = load_64(mine["slots"] + 8 * (done & mine["mask"]))
            job_at(place)[0]["result"] = _do(place)
            done += 1
            store_release(worker + _DONE, done)
            # SYNC POINT: pairs with the fence in `may_sleep`.
            fence()
            if load_relaxed(store + _ASLEEP) == 1 and fetch_add(store + _ASLEEP, -1) == 1:
                wake_signal(store_at(store)[0]["waker"])
            continue
        if load_relaxed(worker + _STOP):
            return
        word = load_acquire_32(worker + _WORD)
        store_relaxed(worker + _SLEEPING, 1)
        # SYNC POINT: pairs with the fence in `_hand_over`.
        fence()
        if load_acquire(worker + _TAIL) == done and load_relaxed(worker + _STOP) == 0:
            futex_wait(worker + _WORD, word, monotonic_ns() + _NAP_NS)
        store_relaxed(worker + _SLEEPING, 0)


@entry("void(intp)")
def stop_worker(worker: int) -> None:
    """Have a worker end when its jobs are done."""
    store_relaxed(worker + _STOP, 1)
    fence()
    fetch_add_32(worker + _WORD, 1)
    futex_wake(worker + _WORD, 1)


@entry("intp(intp)")
def finish_one(store: int) -> int:
    """Door to `finish`."""
    return finish(store)
