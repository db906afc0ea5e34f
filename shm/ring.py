"""A one-way ring: one producer posts, one consumer polls, neither ever waits.

The sequence word inside a slot is its publication: a consumer at position p looks for p + 1 there.
So a post and its signal cost one cache-line transfer, and an idle consumer reads only a line it
already has. The consumer tells the producer how far it is (`head`) an eighth of the ring at a time.
Each side keeps its geometry and position in private memory and range-checks what it reads from the
other: an entry whose sequence is not exactly p + 1 is not there, a head outside [seen, position]
is ignored.

Capacity is a power of two. An operation may span up to four consecutive slots; its first slot is
published last, so whoever sees the first sees all.
"""

from typing import Final

from shm.atomics import load_acquire, store_release
from shm.jit import nopython
from shm.memory import load_64, store_64
from shm.records import SEQUENCE, SLOT_SIZE, consumer_at, producer_at

WORDS: Final = 7  # of payload in a slot
HEAD_LAG_SHIFT: Final = 3  # the head is published once per capacity >> 3 entries


@nopython
def copy_fresh_entry(target: int, source: int) -> None:
    """Copy the payload of an entry that was written a moment ago, word by word.

    A wide load of words still in the store buffer would wait for them to leave it (some 3 % of a
    round trip, measured); loads as wide as the stores were do not.
    """
    for word in range(1, WORDS + 1):
        store_64(target + 8 * word, load_64(source + 8 * word))


@nopython
def copy_entry(target: int, source: int) -> None:
    """Copy the payload of one slot, all but the sequence word, which is the publication.

    Every load stands before the first store, so the compiler makes two wide moves of them: a burst
    then keeps more lines in flight between the cores. In which order and how wide the words move is
    left to it; the SYNC POINTs before and after the copy are what holds them.
    """
    word1 = load_64(source + 8)
    word2 = load_64(source + 16)
    word3 = load_64(source + 24)
    word4 = load_64(source + 32)
    word5 = load_64(source + 40)
    word6 = load_64(source + 48)
    word7 = load_64(source + 56)
    store_64(target + 8, word1)
    store_64(target + 16, word2)
    store_64(target + 24, word3)
    store_64(target + 32, word4)
    store_64(target + 40, word5)
    store_64(target + 48, word6)
    store_64(target + 56, word7)


@nopython
def free_slots(producer: int, wanted: int) -> int:
    """How many slots may be written now; the consumer's head is read only if `wanted` needs it."""
    mine = producer_at(producer)[0]
    position = mine["position"]
    if position + wanted - mine["head_seen"] > mine["capacity"]:
        # SYNC POINT: slots before `head` are ours again; pairs with the release in `release`.
        head = load_acquire(mine["head"])
        # A hostile or broken consumer may write anything here: only a sane value moves us.
        if mine["head_seen"] <= head <= position:
            mine["head_seen"] = head
    return int(mine["capacity"] - (position - mine["head_seen"]))


@nopython
def claim(producer: int, ahead: int) -> int:
    """Address of the slot `ahead` places past the position. The caller has checked free_slots."""
    mine = producer_at(producer)[0]
    index = (mine["position"] + ahead) & (mine["capacity"] - 1)
    return int(mine["slots"] + index * SLOT_SIZE)


@nopython
def commit(producer: int, count: int) -> None:
    """Publish the next `count` claimed slots as one operation, the first slot last."""
    mine = producer_at(producer)[0]
    position = mine["position"]
    for ahead in range(count - 1, -1, -1):
        index = (position + ahead) & (mine["capacity"] - 1)
        # SYNC POINT: publishes the slot; pairs with the acquire of `sequence` in `is_published`.
        store_release(mine["slots"] + index * SLOT_SIZE + SEQUENCE, position + ahead + 1)
    mine["position"] = position + count


@nopython
def post(producer: int, entry: int, slots: int) -> bool:
    """Copy one operation of `slots` slots in. Return False, changing nothing, without room."""
    if free_slots(producer, slots) < slots:
        return False
    for ahead in range(slots):
        copy_fresh_entry(claim(producer, ahead), entry + ahead * SLOT_SIZE)
    commit(producer, slots)
    return True


@nopython
def post_burst(producer: int, entries: int, count: int) -> int:
    """Copy in as many of `count` one-slot entries as fit. Return how many."""
    room = min(free_slots(producer, count), count)
    for done in range(room):
        copy_entry(claim(producer, 0), entries + done * SLOT_SIZE)
        commit(producer, 1)
    return room


@nopython
def slot_of(consumer: int, ahead: int) -> int:
    """Address of the slot `ahead` places past the consumer's position, published or not."""
    mine = consumer_at(consumer)[0]
    index = (mine["position"] + ahead) & (mine["capacity"] - 1)
    return int(mine["slots"] + index * SLOT_SIZE)


@nopython
def is_published(consumer: int, ahead: int) -> bool:
    """Whether the slot `ahead` places past the position is there.

    Then all before it are too, where operations have one slot: `commit` goes from last to first.
    """
    mine = consumer_at(consumer)[0]
    # SYNC POINT: pairs with the release of `sequence` in `commit`.
    return bool(load_acquire(slot_of(consumer, ahead) + SEQUENCE) == mine["position"] + ahead + 1)


@nopython
def release(consumer: int, count: int) -> None:
    """Consume `count` slots; the producer hears of it once per eighth of the ring."""
    mine = consumer_at(consumer)[0]
    mine["position"] += count
    if mine["position"] - mine["head_published"] >= max(mine["capacity"] >> HEAD_LAG_SHIFT, 1):
        publish_head(consumer)


@nopython
def publish_head(consumer: int) -> None:
    """Hand every consumed slot back to the producer now."""
    mine = consumer_at(consumer)[0]
    # SYNC POINT: hands the slots back; pairs with the acquire of `head` in `free_slots`.
    store_release(mine["head"], mine["position"])
    mine["head_published"] = mine["position"]


@nopython
def poll(consumer: int, out: int, limit: int) -> int:
    """Move up to `limit` one-slot entries to `out`. Return how many, which may be none."""
    count = 0
    while count < limit and is_published(consumer, count):
        copy_entry(out + count * SLOT_SIZE, slot_of(consumer, count))
        count += 1
    if count:
        release(consumer, count)
    return count


@nopython
def ready(consumer: int, limit: int) -> int:
    """How many entries, up to `limit`, could be polled now. Consumes nothing."""
    count = 0
    while count < limit and is_published(consumer, count):
        count += 1
    return count
