"""A channel: a work ring and an event ring with the completion contract between them.

Every accepted post ends in exactly one completion, and its event slot is reserved when it is
posted: the host counts what is outstanding and refuses the post that might find no room; the
engine counts again for itself, because it does not trust the host, and leaves a surplus entry in
the work ring. So the engine never drops an event and never waits. An eighth of the event ring
covers the head's lag, another eighth is kept for events nobody posted for.
"""

from typing import Final

from shm.jit import nopython
from shm.layout import Field, offset, record
from shm.memory import load_32, store_32
from shm.records import (
    CHANNEL,
    CONSUMER,
    NEVER,
    PRODUCER,
    RINGER,
    SLOT_SIZE,
    SLOTS_PER_OPERATION_MAX,
    WAITER,
    WAKER,
    channel_at,
    consumer_at,
    cqe_at,
    producer_at,
    ringer_at,
    waiter_at,
    waker_at,
    wqe_at,
)
from shm.ring import claim, commit, copy_entry, free_slots, is_published, release, slot_of
from shm.view import opener, window

HOST_CHANNEL: Final = record(
    Field("producer", PRODUCER),
    Field("ringer", RINGER),
    Field("consumer", CONSUMER),
    Field("waiter", WAITER),
    Field("outstanding", "<i8"),  # accepted posts whose completion was not polled yet
    Field("signalled", "<i8"),  # those of them that will show a completion of their own
    Field("limit", "<i8"),  # of outstanding
    Field("posted", "<i8"),
    Field("completed", "<i8"),
    Field("refused", "<i8"),  # posts that found no room
    # What each outstanding signalled post was, so that it can be flushed when the engine dies:
    Field("ledger", "<i8"),  # address of LEDGER[limit + 1], or 0: none is kept
    Field("free_tickets", "<i8"),  # address of a stack of int32
    Field("free_count", "<i8"),
    size=384,
)
LEDGER: Final = record(
    Field("user_data", "<i8"),
    Field("endpoint", "<i4"),
    Field("opcode", "<i4"),  # 0: not outstanding
    size=16,
)
ledger_at = opener(LEDGER)
LEDGER_SIZE: Final = LEDGER.itemsize
ENGINE_CHANNEL: Final = record(
    Field("consumer", CONSUMER),
    Field("producer", PRODUCER),
    Field("waker", WAKER),
    Field("need_doorbell", "<i8"),  # address
    Field("inflight", "<i8"),  # taken from the work ring, not completed yet
    Field("silent", "<i8"),  # unsignalled completions the next event will cover
    Field("reserve", "<i8"),  # event slots kept for events nobody posted for
    Field("taken", "<i8"),
    Field("completed", "<i8"),
    Field("solicited", "<i8"),  # 1: a solicited event was published since the last look
    size=256,
)
host_channel_at = opener(HOST_CHANNEL)
engine_channel_at = opener(ENGINE_CHANNEL)

H_PRODUCER: Final = offset(HOST_CHANNEL, "producer")
H_RINGER: Final = offset(HOST_CHANNEL, "ringer")
H_CONSUMER: Final = offset(HOST_CHANNEL, "consumer")
H_WAITER: Final = offset(HOST_CHANNEL, "waiter")
E_CONSUMER: Final = offset(ENGINE_CHANNEL, "consumer")
E_PRODUCER: Final = offset(ENGINE_CHANNEL, "producer")
E_WAKER: Final = offset(ENGINE_CHANNEL, "waker")

# WQE flags every opcode shares; an opcode's own flags start at 1 << 8.
UNSIGNALLED: Final = 1 << 0  # success is covered by the next signalled completion
# CQE flags.
UNSOLICITED: Final = 1 << 0  # nobody posted for this event
COVERED: Final = 1 << 1  # an unsignalled operation that failed
SOLICITED: Final = 1 << 2  # its sender asked that it be noticed, or it failed (shm.solicited)

CAPACITY_MIN: Final = 8
CAPACITY_MAX: Final = 1 << 16


def channel_size(work_capacity: int, event_capacity: int) -> int:
    """Bytes of a channel's segment. Raises ValueError for capacities that cannot be."""
    for name, capacity in (("work", work_capacity), ("event", event_capacity)):
        if capacity & (capacity - 1) or not CAPACITY_MIN <= capacity <= CAPACITY_MAX:
            raise ValueError(
                f"{name} ring capacity {capacity} is not a power of two "
                f"in {CAPACITY_MIN}..{CAPACITY_MAX}"
            )
    return CHANNEL.itemsize + (work_capacity + event_capacity) * SLOT_SIZE


def outstanding_limit(event_capacity: int) -> int:
    """How many posts may be outstanding: what is left of the ring after both reserved eighths."""
    return event_capacity - 2 * (event_capacity >> 3)


def bind_host(state: int, shared: int, work_capacity: int, event_capacity: int, bell: int) -> None:
    """Prepare the host's private HOST_CHANNEL at `state` for the shared channel at `shared`."""
    events = shared + CHANNEL.itemsize + work_capacity * SLOT_SIZE
    producer = producer_at(state + H_PRODUCER)[0]
    producer["slots"], producer["head"] = (
        shared + CHANNEL.itemsize,
        shared + offset(CHANNEL, "work_head"),
    )
    producer["capacity"] = work_capacity
    ringer = ringer_at(state + H_RINGER)[0]
    ringer["need_doorbell"], ringer["descriptor"] = shared + offset(CHANNEL, "need_doorbell"), bell
    consumer = consumer_at(state + H_CONSUMER)[0]
    consumer["slots"], consumer["head"] = events, shared + offset(CHANNEL, "event_head")
    consumer["capacity"] = event_capacity
    waiter = waiter_at(state + H_WAITER)[0]
    for word in ("wake_at", "wake_seq", "wake_kind", "state"):
        waiter[word] = shared + offset(CHANNEL, word)
    host_channel_at(state)[0]["limit"] = outstanding_limit(event_capacity)


def bind_engine(
    state: int, shared: int, work_capacity: int, event_capacity: int, wake_descriptor: int
) -> None:
    """Prepare the engine's private ENGINE_CHANNEL at `state`; the capacities were checked."""
    events = shared + CHANNEL.itemsize + work_capacity * SLOT_SIZE
    consumer = consumer_at(state + E_CONSUMER)[0]
    consumer["slots"], consumer["head"] = (
        shared + CHANNEL.itemsize,
        shared + offset(CHANNEL, "work_head"),
    )
    consumer["capacity"] = work_capacity
    producer = producer_at(state + E_PRODUCER)[0]
    producer["slots"], producer["head"] = events, shared + offset(CHANNEL, "event_head")
    producer["capacity"] = event_capacity
    waker = waker_at(state + E_WAKER)[0]
    for word in ("wake_at", "wake_seq", "wake_kind", "enough_at", "enough_position"):
        waker[word] = shared + offset(CHANNEL, word)
    waker["descriptor"] = wake_descriptor
    mine = engine_channel_at(state)[0]
    mine["need_doorbell"] = shared + offset(CHANNEL, "need_doorbell")
    mine["reserve"] = event_capacity >> 3


def leave_time(state: int, shared: int) -> None:
    """Let whoever produces this HOST_CHANNEL's events keep the time of short minimum waits, as an
    engine does (`shm.wait.keep_time`).
    """
    waiter = waiter_at(state + H_WAITER)[0]
    for word in ("enough_at", "enough_position"):
        waiter[word] = shared + offset(CHANNEL, word)


def share_wake(state: int, first: int) -> None:
    """Have whoever wakes the host of this ENGINE_CHANNEL change the futex word of the shared
    channel at `first`, on which the same thread sleeps for both (`shm.wait.wait_any`).
    """
    waker_at(state + E_WAKER)[0]["wake_seq"] = first + offset(CHANNEL, "wake_seq")


def share_wait(state: int, first: int) -> None:
    """The same for the host's HOST_CHANNEL."""
    waiter_at(state + H_WAITER)[0]["wake_seq"] = first + offset(CHANNEL, "wake_seq")


# --- the host's side -------------------------------------------------------------------------


@nopython
def prepare(host: int, slots: int) -> bool:
    """Whether an operation of `slots` slots may be posted: work slots free, an event slot too."""
    mine = host_channel_at(host)[0]
    if mine["outstanding"] >= mine["limit"] or free_slots(host + H_PRODUCER, slots) < slots:
        mine["refused"] += 1
        return False
    return True


@nopython
def fill(
    host: int,
    opcode: int,
    flags: int,
    endpoint: int,
    user_data: int,
    region: int,
    offset_: int,
    length: int,
) -> int:
    """Write a WQE's common fields in place, after `prepare`. Return its address for the rest."""
    slot = claim(host + H_PRODUCER, 0)
    wqe = wqe_at(slot)[0]
    wqe["opcode"] = opcode
    wqe["slots"] = 1
    wqe["flags"] = flags
    wqe["endpoint"] = endpoint
    wqe["user_data"] = user_data
    wqe["region"] = region
    wqe["length"] = length
    wqe["offset"] = offset_
    wqe["arg0"] = 0
    wqe["arg1"] = 0
    wqe["arg2"] = 0
    wqe["ticket"] = 0
    return slot


@nopython
def submit(host: int, slots: int) -> None:
    """Publish the operation filled in place and take its event slot. Rings no doorbell."""
    mine = host_channel_at(host)[0]
    wqe = wqe_at(claim(host + H_PRODUCER, 0))[0]
    wqe["slots"] = slots
    mine["outstanding"] += 1
    mine["posted"] += 1
    if wqe["flags"] & UNSIGNALLED == 0:
        mine["signalled"] += 1
        if mine["ledger"] != 0:
            wqe["ticket"] = _enter(host, wqe["user_data"], wqe["endpoint"], wqe["opcode"])
    commit(host + H_PRODUCER, slots)


@nopython
def _enter(host: int, user_data: int, endpoint: int, opcode: int) -> int:
    """Write an outstanding post down; there is a ticket for each post the limit allows."""
    mine = host_channel_at(host)[0]
    mine["free_count"] -= 1
    ticket = load_32(mine["free_tickets"] + 4 * mine["free_count"])
    line = ledger_at(mine["ledger"] + ticket * LEDGER_SIZE)[0]
    line["user_data"] = user_data
    line["endpoint"] = endpoint
    line["opcode"] = opcode
    return ticket


@nopython
def _strike(host: int, ticket: int) -> None:
    """The post with this ticket has its completion."""
    mine = host_channel_at(host)[0]
    if ticket == 0 or ticket > mine["limit"] or mine["ledger"] == 0:
        return
    line = ledger_at(mine["ledger"] + ticket * LEDGER_SIZE)[0]
    if line["opcode"] != 0:
        line["opcode"] = 0
        store_32(mine["free_tickets"] + 4 * mine["free_count"], ticket)
        mine["free_count"] += 1


@nopython
def note_completion(host: int, completion: int) -> None:
    """Give back what a polled completion at `completion` releases."""
    mine, cqe = host_channel_at(host)[0], cqe_at(completion)[0]
    mine["outstanding"] -= cqe["released"]
    mine["completed"] += 1
    if cqe["flags"] & (UNSOLICITED | COVERED) == 0:
        mine["signalled"] -= 1
        _strike(host, cqe["ticket"])


@nopython
def next_completion(host: int) -> int:
    """Address of the next CQE, in place, or 0. Call `consume_completion` when done with it."""
    if not is_published(host + H_CONSUMER, 0):
        return 0
    return slot_of(host + H_CONSUMER, 0)


@nopython
def consume_completion(host: int) -> None:
    """Return the slot of the CQE that `next_completion` gave."""
    note_completion(host, slot_of(host + H_CONSUMER, 0))
    release(host + H_CONSUMER, 1)


# --- the engine's side -----------------------------------------------------------------------


@nopython
def event_room(engine: int) -> int:
    """Event slots neither used nor promised to an operation in flight."""
    mine = engine_channel_at(engine)[0]
    capacity = producer_at(engine + E_PRODUCER)[0]["capacity"]
    # Looks at the host's head only when the answer could be "too little" otherwise.
    wanted = min(mine["inflight"] + mine["reserve"] + 1, capacity)
    return int(free_slots(engine + E_PRODUCER, wanted) - mine["inflight"])


@nopython
def can_take(engine: int) -> bool:
    """Whether an operation is there and an event slot for it is free."""
    if not is_published(engine + E_CONSUMER, 0):
        return False
    return bool(event_room(engine) > engine_channel_at(engine)[0]["reserve"])


@nopython
def take(engine: int, out: int) -> int:
    """Copy the next operation to private memory at `out` (4 slots). Return its slots, 0, or -1.

    -1: the slot count is out of range or its slots are not published; the first slot is consumed
    and stands at `out`, to be completed with an error.
    """
    if not can_take(engine):
        return 0
    first = slot_of(engine + E_CONSUMER, 0)
    copy_entry(out, first)
    slots = int(wqe_at(out)[0]["slots"])
    mine = engine_channel_at(engine)[0]
    mine["inflight"] += 1
    mine["taken"] += 1
    if (
        slots < 1
        or slots > SLOTS_PER_OPERATION_MAX
        or not is_published(engine + E_CONSUMER, slots - 1)
    ):
        release(engine + E_CONSUMER, 1)
        return -1
    for ahead in range(1, slots):
        copy_entry(out + ahead * SLOT_SIZE, slot_of(engine + E_CONSUMER, ahead))
    release(engine + E_CONSUMER, slots)
    return slots


@nopython
def complete(
    engine: int,
    opcode: int,
    flags: int,
    endpoint: int,
    user_data: int,
    ticket: int,
    status: int,
    length: int,
    arg0: int,
    arg1: int,
    arg2: int,
) -> None:
    """Publish the completion of one taken operation; its slot was reserved when it was taken."""
    mine = engine_channel_at(engine)[0]
    released = mine["silent"] + 1
    mine["silent"] = 0
    mine["inflight"] -= 1
    cqe = cqe_at(_fill_event(engine, opcode, flags, endpoint, user_data, status, length))[0]
    cqe["released"] = released
    cqe["ticket"] = ticket
    cqe["arg0"] = arg0
    cqe["arg1"] = arg1
    cqe["arg2"] = arg2
    if flags & SOLICITED != 0:
        mine["solicited"] = 1
    commit(engine + E_PRODUCER, 1)


@nopython
def complete_silently(engine: int) -> None:
    """End one unsignalled operation that succeeded: the next event will cover it."""
    mine = engine_channel_at(engine)[0]
    mine["inflight"] -= 1
    mine["silent"] += 1
    mine["completed"] += 1


@nopython
def notify(engine: int, opcode: int, endpoint: int, user_data: int, status: int, arg0: int) -> bool:
    """Publish an event nobody posted for, from the reserved share. False: no room, ask again."""
    if event_room(engine) <= 0:
        return False
    cqe = cqe_at(_fill_event(engine, opcode, UNSOLICITED, endpoint, user_data, status, 0))[0]
    cqe["arg0"] = arg0
    engine_channel_at(engine)[0]["solicited"] = 1
    commit(engine + E_PRODUCER, 1)
    return True


@nopython
def _fill_event(
    engine: int, opcode: int, flags: int, endpoint: int, user_data: int, status: int, length: int
) -> int:
    """Write the common fields of the next CQE in place. Return its address for the rest."""
    address = claim(engine + E_PRODUCER, 0)
    cqe = cqe_at(address)[0]
    cqe["opcode"] = opcode
    cqe["reserved"] = 0
    cqe["flags"] = flags
    cqe["endpoint"] = endpoint
    cqe["user_data"] = user_data
    cqe["status"] = status
    cqe["length"] = length
    cqe["released"] = 0
    cqe["ticket"] = 0
    cqe["arg0"] = 0
    cqe["arg1"] = 0
    cqe["arg2"] = 0
    engine_channel_at(engine)[0]["completed"] += 1
    return address


def keep_ledger(state: int, ledger: int, free_tickets: int) -> None:
    """Have the host's channel at `state` write down its signalled posts.

    `ledger` is the address of LEDGER[limit + 1], zeroed, `free_tickets` of int32[limit].
    """
    mine = host_channel_at(state)[0]
    limit = int(mine["limit"])
    window(free_tickets, limit, "<i4")[:] = range(1, limit + 1)
    mine["ledger"], mine["free_tickets"] = ledger, free_tickets
    mine["free_count"] = mine["limit"]


def initialise(shared: int, work_capacity: int, event_capacity: int) -> None:
    """Write a fresh channel's shared words: nothing armed, running."""
    channel = channel_at(shared)[0]
    channel["work_capacity"], channel["event_capacity"] = work_capacity, event_capacity
    channel["wake_at"] = channel["enough_at"] = NEVER
