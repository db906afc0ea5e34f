"""A worker in compiled code, as a user's program has one."""

from host import native
from shm.channel import UNSOLICITED
from shm.jit import entry
from shm.records import NEVER, cqe_at


@entry("int64(intp, int64, int64, intp, intp, int64, int64)")
def bounce(context, client, server, out, back, length, rounds):
    """Send and receive `rounds` times between two endpoints of a channel; completions, or -1."""
    completed = 0
    for turn in range(rounds):
        native.post_recv(context, server, 2 * turn, back, length, 1 << 8)
        native.post_send(context, client, 2 * turn + 1, out, length, 0)
        native.flush(context)
        waiting = 2
        while waiting > 0:
            native.wait_n(context, waiting, NEVER, NEVER, NEVER)
            found = native.next_completion(context)
            while found != 0:
                cqe = cqe_at(found)[0]
                if cqe["status"] != 0 or cqe["flags"] & UNSOLICITED != 0:
                    return -1
                native.consume_completion(context)
                waiting -= 1
                completed += 1
                found = native.next_completion(context)
    return completed
