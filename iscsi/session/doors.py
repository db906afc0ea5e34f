"""Doors from Python into the session's compiled code: few, because each is compiled at import."""

from host import native
from iscsi.session import jobs
from shm.jit import entry
from shm.libc import monotonic_ns


@entry("int64(intp, intp, int64, int64)")
def run(worker: int, job: int, deadline_ns: int, tick_at_ns: int) -> int:
    """Work until the job (0: none) has ended, or Python has to look: the reason, as in `jobs`."""
    while True:
        jobs.advance(worker)
        if job != 0 and jobs.job_at(job)[0]["state"] == jobs.DONE:
            return jobs.FINISHED
        reason = jobs.news(worker)
        if reason == 0:
            reason = jobs.wait(worker, deadline_ns, tick_at_ns, monotonic_ns())
        if reason != 0:
            return reason


@entry("int64(intp)")
def advance(worker: int) -> int:
    """Do all that can be done without waiting: BROKEN, CONTROL or 0."""
    jobs.advance(worker)
    return jobs.news(worker)


@entry("void(intp, intp)")
def start(worker: int, job: int) -> None:
    """`jobs.start`."""
    jobs.start(worker, job)


@entry("void(intp, intp)")
def adopt_task(worker: int, job: int) -> None:
    """`jobs.adopt_task`."""
    jobs.adopt_task(worker, job)


@entry("void(intp, intp)")
def cancel_rest(worker: int, job: int) -> None:
    """`jobs.cancel_rest`."""
    jobs.cancel_rest(worker, job)


@entry("void(intp, int64)")
def abort_all(worker: int, result: int) -> None:
    """`jobs.abort_all`."""
    jobs.abort_all(worker, result)


@entry("void(intp)")
def settle(worker: int) -> None:
    """Account what is complete, without moving a byte."""
    jobs.take_completed(worker)


@entry("void(intp, intp, int64)")
def end_command(worker: int, job: int, result: int) -> None:
    """`jobs.end_command`."""
    jobs.end_command(worker, job, result)


@entry("void(intp, intp, int64)")
def give_up(worker: int, job: int, result: int) -> None:
    """Submit no more of a job; it ends with `result` when its open commands have."""
    jobs.fail(job, result)
    jobs.drop_replays(worker, job)
    jobs.end_if_over(worker, job)


@entry("void(intp, intp)")
def unqueue(worker: int, job: int) -> None:
    """`jobs.unqueue`."""
    jobs.unqueue(worker, job)


@entry("boolean(intp, intp, int64)")
def is_shared(context: int, address: int, length: int) -> bool:
    """Whether the engine may touch this memory, so that it can be used in place."""
    return native.region_of(context, address, length) >= 0
