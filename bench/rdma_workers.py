"""The hot loops of the RDMA benchmark, on the client library's verbs for compiled workers: keep a
queue of work requests full, answer messages, play ping-pong.
"""

from typing import Final

from bench.workers import GONE, LOOK_EVERY, WRONG
from host.native import flush
from host.verbs.native import COMPLETION, next_wc, post_recv_list, post_send
from host.verbs.records import device_at, sge_at, wc_at
from shm.atomics import cycles
from shm.jit import entry, nopython
from shm.libc import monotonic_ns
from shm.memory import store_64
from shm.verbs_numbers import (
    SEND_SIGNALED,
    WC_RECV,
    WR_RDMA_READ,
    WR_SEND,
)

ACK_SIZE: Final = 8
LOOK_TIME_EVERY: Final = 1 << 16  # polls between looks at the wall clock
SIGNAL_EVERY: Final = 16  # sends of the ping-pong that ask for one completion


@nopython
def await_wc(device: int, wc: int, deadline_ns: int) -> int:
    """Poll until a completion is there: 1, GONE, or WRONG for one that failed."""
    polls = 0
    while True:
        if next_wc(device, wc) == COMPLETION:
            return 1 if wc_at(wc)[0]["status"] == 0 else WRONG
        polls += 1
        if polls % LOOK_TIME_EVERY == 0 and monotonic_ns() > deadline_ns:
            return GONE


@nopython
def _await_message(device: int, wc: int, deadline_ns: int) -> int:
    """Poll until a receive is over: its bytes, GONE or WRONG."""
    while True:
        outcome = await_wc(device, wc, deadline_ns)
        if outcome < 0:
            return outcome
        if wc_at(wc)[0]["opcode"] & WC_RECV != 0:
            return int(wc_at(wc)[0]["byte_len"])


@nopython
def _send(qp: int, sge: int, size: int, number: int) -> int:
    flags = SEND_SIGNALED if number % SIGNAL_EVERY == 0 else 0
    piece = sge_at(sge)[0]
    return post_send(qp, WR_SEND, flags, number, piece["addr"], size, piece["lkey"], 0, 0, 0)


@entry("int64(intp, intp, int64, int64, int64, int64, int64, int64, int64, int64, intp, int64)")
def stream(
    device: int,
    qp: int,
    opcode: int,
    address: int,
    size: int,
    lkey: int,
    remote: int,
    rkey: int,
    count: int,
    depth: int,
    wc: int,
    deadline_ns: int,
) -> int:
    """Do `count` work requests of `size` bytes with `depth` under way, then read 8 bytes, which
    come when everything before them was placed. Cycles it took, GONE or WRONG.
    """
    context = device_at(device)[0]["context"]
    start = cycles()
    posted, done = 0, 0
    while done < count:
        while posted < count and posted - done < depth:
            if (
                post_send(qp, opcode, SEND_SIGNALED, posted, address, size, lkey, remote, rkey, 0)
                != 1
            ):
                return WRONG
            posted += 1
        flush(context)
        outcome = await_wc(device, wc, deadline_ns)
        if outcome < 0:
            return outcome
        done += 1
    if post_send(qp, WR_RDMA_READ, SEND_SIGNALED, 0, address, 8, lkey, remote, rkey, 0) != 1:
        return WRONG
    flush(context)
    outcome = await_wc(device, wc, deadline_ns)
    return cycles() - start if outcome > 0 else outcome


@entry("int64(intp, intp, intp, intp, int64, int64, int64, int64, intp, int64)")
def stream_sends(
    device: int,
    qp: int,
    rq: int,
    sge: int,
    size: int,
    count: int,
    depth: int,
    ack_every: int,
    wc: int,
    deadline_ns: int,
) -> int:
    """Send `count` messages, a multiple of `ack_every`, never more than `depth` unacknowledged.
    Cycles until the last acknowledgement, GONE or WRONG.
    """
    context = device_at(device)[0]["context"]
    start = cycles()
    posted, acknowledged = 0, 0
    while acknowledged < count:
        while posted < count and posted - acknowledged < depth:
            if _send(qp, sge, size, posted) != 1:
                return WRONG
            posted += 1
        flush(context)
        came = _await_message(device, wc, deadline_ns)
        if came < 0:
            return came
        acknowledged += ack_every
        if post_recv_list(rq, 0, sge, 1) != 1:
            return WRONG
    return cycles() - start


@entry("int64(intp, intp, intp, intp, intp, int64, int64)")
def take_messages(
    device: int, qp: int, rq: int, sge: int, wc: int, ack_every: int, deadline_ns: int
) -> int:
    """Receive, and post each receive again, until a message of no bytes comes: how many did. Every
    `ack_every` messages are acknowledged by one of 8 bytes.
    """
    context = device_at(device)[0]["context"]
    taken = 0
    while True:
        outcome = await_wc(device, wc, deadline_ns)
        if outcome < 0:
            return outcome
        if wc_at(wc)[0]["opcode"] & WC_RECV == 0:
            continue
        if post_recv_list(rq, 0, sge, 1) != 1:
            return WRONG
        flush(context)
        if wc_at(wc)[0]["byte_len"] == 0:
            return taken
        taken += 1
        if taken % ack_every == 0 and _send(qp, sge, ACK_SIZE, taken // ack_every) != 1:
            return WRONG
        flush(context)


@entry("int64(intp, intp, intp, intp, int64, intp, int64)")
def answer(device: int, qp: int, rq: int, sge: int, size: int, wc: int, deadline_ns: int) -> int:
    """Answer each message with one of `size` bytes until one of no bytes comes: how many."""
    context = device_at(device)[0]["context"]
    answered = 0
    while True:
        came = _await_message(device, wc, deadline_ns)
        if came < 0:
            return came
        if post_recv_list(rq, 0, sge, 1) != 1:
            return WRONG
        if came == 0:
            return answered
        answered += 1
        if _send(qp, sge, size, answered) != 1:
            return WRONG
        flush(context)


@entry("int64(intp, intp, intp, intp, int64, intp, intp, int64, int64, int64)")
def ask(
    device: int,
    qp: int,
    rq: int,
    sge: int,
    size: int,
    wc: int,
    ticks: int,
    limit: int,
    warmup: int,
    deadline_ns: int,
) -> int:
    """Time round trips of `size` bytes into int64 `ticks`. Samples, GONE or WRONG."""
    context = device_at(device)[0]["context"]
    taken, number = -warmup, 0
    last = cycles()
    while taken < limit:
        number += 1
        if _send(qp, sge, size, number) != 1:
            return WRONG
        flush(context)
        came = _await_message(device, wc, deadline_ns)
        if came < 0:
            return came
        if came != size or post_recv_list(rq, 0, sge, 1) != 1:
            return WRONG
        now = cycles()
        if taken >= 0:
            store_64(ticks + 8 * taken, now - last)
        taken += 1
        last = now
        if taken % LOOK_EVERY == 0 and monotonic_ns() > deadline_ns:
            break
    return max(taken, 0)
