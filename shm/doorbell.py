"""The mirror of `wait_n`: an idle consumer stops polling a ring and the producer rings for it.

A parked ring costs the consumer nothing per pass. The argument is that of `shm.wait`: the consumer
stores `need_doorbell`, fences and looks again; the producer publishes, fences and looks at
`need_doorbell`; one of the two must see the other. The bell is an eventfd, which stays rung until
it is read, so nothing can fall between looking and sleeping.
"""

from shm.atomics import fence, load_relaxed, store_relaxed
from shm.jit import nopython
from shm.libc import eventfd_signal
from shm.records import ringer_at
from shm.ring import is_published


@nopython
def park(consumer: int, need_doorbell: int) -> bool:
    """Ask for the bell. Return False, not parked, if an entry has come in the meantime."""
    store_relaxed(need_doorbell, 1)
    # SYNC POINT: pairs with the fence in `ring_if_needed`.
    fence()
    if is_published(consumer, 0):
        store_relaxed(need_doorbell, 0)
        return False
    return True


@nopython
def unpark(need_doorbell: int) -> None:
    """The consumer polls again; the producer need not ring."""
    store_relaxed(need_doorbell, 0)


@nopython
def ring_if_needed(ringer: int) -> int:
    """After publishing: ring if the consumer is parked. Return the rings done, 0 or 1."""
    mine = ringer_at(ringer)[0]
    # SYNC POINT: pairs with the fence in `park`.
    fence()
    if load_relaxed(mine["need_doorbell"]) == 0:
        return 0
    eventfd_signal(mine["descriptor"])
    mine["rings"] += 1
    return 1
