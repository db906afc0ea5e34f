"""Threads that may wait, so that the server's never does: some for reads and writes of files, in
compiled code, and some that run commands which take long. What they are done with ends in the
server's thread.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from iscsi.target.storage import (
    JOB_SIZE,
    STORE,
    WORKER,
    WORKER_SIZE,
    WORKERS_MAX,
    finish_one,
    stop_worker,
    work,
)
from shm.view import address_of, window

log: Final = logging.getLogger(__name__)

JOBS: Final = 256  # reads and writes given to workers at the same time
_END_S: Final = 30.0
_CACHE_LINES: Final = 128


class FileWorkers:
    """The STORE record of `iscsi.target.storage` and its threads. `waker`: a descriptor."""

    def __init__(self, count: int, waker: int) -> None:
        if not 1 <= count <= WORKERS_MAX:
            raise ValueError(f"{count} workers: 1 to {WORKERS_MAX} are possible")
        self._count = count
        self._threads: list[threading.Thread] = []
        room = STORE.itemsize + count * WORKER_SIZE + JOBS * (JOB_SIZE + 8 * count + 8)
        self._memory = np.zeros(room + _CACHE_LINES, np.uint8)
        self.address = -(-address_of(self._memory) // _CACHE_LINES) * _CACHE_LINES
        workers = self.address + STORE.itemsize
        jobs = workers + count * WORKER_SIZE
        slots = jobs + JOBS * JOB_SIZE
        free = slots + 8 * JOBS * count
        mine = window(self.address, 1, STORE)[0]
        mine["workers"], mine["worker_count"], mine["jobs"] = workers, count, jobs
        mine["waker"] = waker
        pool = mine["job_pool"]
        pool["free"], pool["taken"] = free, free + 4 * JOBS
        pool["count"] = pool["free_count"] = pool["low_water"] = JOBS
        window(free, JOBS, "<i4")[:] = range(JOBS - 1, -1, -1)
        for number in range(count):
            its = window(workers + WORKER_SIZE * number, 1, WORKER)[0]
            its["slots"], its["mask"] = slots + 8 * JOBS * number, JOBS - 1
            its["storage"] = self.address

    def start(self) -> None:
        """Start the threads, unless they run."""
        for number in range(len(self._threads), self._count):
            thread = threading.Thread(
                target=work, args=(self._worker(number),), name=f"file-{number}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def _worker(self, number: int) -> int:
        return self.address + STORE.itemsize + WORKER_SIZE * number

    @property
    def counts(self) -> dict[str, int]:
        """Commands served from the page cache, those that waited, and those that wait now."""
        mine = window(self.address, 1, STORE)[0]
        return {name: int(mine[name]) for name in ("cached", "waited", "under_way")}

    def is_at_rest(self) -> bool:
        """Whether a medium that was held has come to rest since this was asked last."""
        mine = window(self.address, 1, STORE)[0]
        found = bool(mine["at_rest"])
        mine["at_rest"] = 0
        return found

    def stop(self) -> bool:
        """Finish every job and end the threads. False if a medium keeps one, and memory of ours."""
        for number in range(len(self._threads)):
            stop_worker(self._worker(number))
        for thread in self._threads:
            thread.join(_END_S)
        while finish_one(self.address):
            pass
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        if stuck:
            log.error("%s: still waits for its medium; its memory is not given back", stuck[0])
        self._threads = []
        return not stuck


class SlowCommands:
    """Threads of Python for commands that take long; `kick` has the server call `collect`."""

    def __init__(self, count: int, kick: Callable[[], None]) -> None:
        self._count, self._kick = count, kick
        self._pool: ThreadPoolExecutor | None = None
        self._done: deque[Callable[[], None]] = deque()

    def submit(self, run: Callable[[], Any], done: Callable[["Future[Any]"], None]) -> None:
        """Run `run` in a thread, then `done` with its future in the server's."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._count, "slow")
        self._pool.submit(run).add_done_callback(lambda future: self._ended(future, done))

    def _ended(self, future: "Future[Any]", done: Callable[["Future[Any]"], None]) -> None:
        self._done.append(lambda: done(future))
        self._kick()

    def collect(self) -> None:
        """Finish what is done, in the server's thread."""
        while self._done:
            try:
                self._done.popleft()()
            except Exception:  # Its session goes on without this answer, the others with theirs.
                log.exception("a command could not be answered")

    def stop(self) -> None:
        """Wait for what runs, drop what has not begun."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self.collect()
