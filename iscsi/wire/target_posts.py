"""What both halves of a target keep about posts under way (`iscsi.wire.mover`), besides its tasks:
a LOWER beside the engine's TARGET, a MIRROR beside the host's. Everything is bounded when it is
built; the owner of the TARGET is the only one who touches it.
"""

from collections.abc import Mapping
from typing import Final

from iscsi.wire.mover import QUERY
from iscsi.wire.port import QUEUE, build_queue, pop, push, queue_at, round_up
from shm.jit import nopython
from shm.layout import Field, offset, record
from shm.memory import load_64
from shm.operations import MOVER_ANSWER, MOVER_GET, MOVER_UNIT
from shm.view import opener

PENDING: Final = 1  # of `target_mover.on_post`: an event follows
WORD_MASK: Final = 0xFFFFFFFF
# `post` of a TASK: what ends with it, or 0.
POST_NONE: Final = 0
POST_GET: Final = MOVER_GET
POST_ANSWER: Final = MOVER_ANSWER
POST_UNIT: Final = MOVER_UNIT  # no post: it counts in its unit's `under_way`

LOWER: Final = record(
    Field("over", "<i8"),  # the status the connection ended with; 0 while it lives
    Field("open_posts", "<i8"),  # taken, and their events not fetched
    Field("post_limit", "<i8"),
    Field("aborts", "<i8"),  # `arg2` of the newest ABORT that was carried out
    Field("refused_reads", "<i8"),  # WRITEs that were refused while their data was being read
    Field("notices", QUEUE),  # tokens of what the host is to see, in the order it came
    Field("ended", QUEUE),  # four words for each event
    # Four words for each ABORT or CANCEL that waits: handle, opcode, count, position in `tx_made`.
    Field("sending", QUEUE),
    Field("waiting", QUEUE),  # three words for each CONTROL: handle, header, bytes of data
    size=192,
)
ABORT_ENTRY: Final = record(
    Field("lun", "<i8"),
    Field("cmd_sn", "<i8"),
    Field("flags", "<i8"),
    Field("itt", "<i8"),
    Field("number", "<i8"),  # its place in the order of ABORTs, from 1 on
    Field("stage", "<i8"),
    Field("is_asked", "<i8"),  # 1: somebody wants to know `count`
    Field("count", "<i8"),  # of the engine's tasks that it ended, once it is over
    size=64,
)
MIRROR: Final = record(
    Field("home", "<i8"),  # what offsets count from
    Field("serves_units", "<i8"),  # 1: the engine serves units, and is told of every gate
    Field("posts", "<i8"),  # that an event is still to come for
    Field("unsettled", "<i8"),  # ABORTs, CANCELs and GATEs, posted or to be posted
    Field("peeked", "<i8"),  # source of what `post_peek` showed
    Field("aborts", "<i8"),  # address of ABORT_ENTRY
    Field("abort_count", "<i8"),
    Field("abort_number", "<i8"),  # of the newest
    Field("aborts_open", "<i8"),  # how many are under way
    Field("dropped", "<i8"),  # commands that were aborted before they were known here
    Field("fences", "<i8"),  # ABORTs, CANCELs and GATEs that were posted, in all
    Field("dones", QUEUE),  # control slots of the engine
    Field("cancels", QUEUE),  # ids of tasks
    Field("gates", QUEUE),  # LUNs
    size=256,
)
lower_at = opener(LOWER)
mirror_at = opener(MIRROR)
abort_at = opener(ABORT_ENTRY)

NOTICES: Final = offset(LOWER, "notices")
ENDED: Final = offset(LOWER, "ended")
SENDING: Final = offset(LOWER, "sending")
WAITING: Final = offset(LOWER, "waiting")
DONES: Final = offset(MIRROR, "dones")
CANCELS: Final = offset(MIRROR, "cancels")
GATES: Final = offset(MIRROR, "gates")
ABORT_SIZE: Final = ABORT_ENTRY.itemsize

# `stage` of an ABORT_ENTRY.
ABORT_FREE: Final = 0
ABORT_DUE: Final = 1
ABORT_POSTED: Final = 2
ABORT_OVER: Final = 3  # kept until it was asked for


# --- the engine's half -----------------------------------------------------------------------


@nopython
def ended(lower: int, handle: int, opcode: int, status: int, arg0: int) -> None:
    """A post that was taken is over: its event waits for `event_next`."""
    push(lower + ENDED, handle)
    push(lower + ENDED, opcode)
    push(lower + ENDED, status)
    push(lower + ENDED, arg0)


@nopython
def forget_notice(lower: int, token: int) -> None:
    """Take what was aborted out of the line; everything else keeps its order."""
    queue = queue_at(lower + NOTICES)[0]
    for _ in range(queue["tail"] - queue["head"]):
        found = pop(lower + NOTICES)
        if found != token:
            push(lower + NOTICES, found)


def lower_parts(task_count: int, control_count: int) -> dict[str, int]:
    """Sizes of a LOWER and what it points to."""
    limit = post_limit(task_count, control_count)
    return {
        "lower": LOWER.itemsize,
        "notices": 8 * round_up(task_count + control_count),
        "ended": 8 * round_up(4 * limit),
        "sending": 8 * round_up(4 * limit),
        "waiting": 8 * round_up(3 * limit),
    }


def post_limit(task_count: int, control_count: int) -> int:
    """How many posts may be open at once: more than a well-behaved host has."""
    return 2 * (task_count + control_count) + 64


def build_lower(at: Mapping[str, int], task_count: int, control_count: int) -> None:
    """Fill in a LOWER in zeroed memory; `at` are the addresses of `lower_parts`."""
    lower, limit = at["lower"], post_limit(task_count, control_count)
    lower_at(lower)[0]["post_limit"] = limit
    build_queue(lower + NOTICES, at["notices"], task_count + control_count)
    build_queue(lower + ENDED, at["ended"], 4 * limit)
    build_queue(lower + SENDING, at["sending"], 4 * limit)
    build_queue(lower + WAITING, at["waiting"], 3 * limit)


# --- the host's half -------------------------------------------------------------------------


@nopython
def add_abort(mirror: int, lun: int, cmd_sn: int, flags: int, itt: int) -> int:
    """Have the engine's tasks ended too: a number for `abort_of`, or 0: there is no room.

    One that says the same and was not posted yet is enough. Those that are over are forgotten last:
    a command that was shown before one of them may still wait to be looked at.
    """
    mine = mirror_at(mirror)[0]
    free = 0
    for index in range(mine["abort_count"]):
        place = mine["aborts"] + ABORT_SIZE * index
        entry = abort_at(place)[0]
        if entry["stage"] == ABORT_FREE:
            if free == 0 or entry["number"] < abort_at(free)[0]["number"]:
                free = place
        elif entry["stage"] == ABORT_DUE and flags == entry["flags"] == 0:
            is_same = entry["lun"] == lun and entry["cmd_sn"] == cmd_sn
            if is_same:
                return int(entry["number"])
    if free == 0:
        return 0
    mine["abort_number"] += 1
    mine["unsettled"] += 1
    entry = abort_at(free)[0]
    entry["lun"], entry["cmd_sn"], entry["flags"], entry["itt"] = lun, cmd_sn, flags, itt
    entry["number"] = mine["abort_number"]
    entry["is_asked"] = 0
    entry["stage"] = ABORT_DUE
    return int(mine["abort_number"])


@nopython
def abort_of(mirror: int, number: int) -> int:
    """Address of the ABORT_ENTRY with this number, or 0 if it is over."""
    mine = mirror_at(mirror)[0]
    for index in range(mine["abort_count"]):
        place = mine["aborts"] + ABORT_SIZE * index
        if abort_at(place)[0]["stage"] != ABORT_FREE and abort_at(place)[0]["number"] == number:
            return int(place)
    return 0


@nopython
def aborts_under_way(mirror: int, lun_number: int) -> int:
    """ABORTs that may concern one LUN, or any with -1, and that are not over."""
    mine = mirror_at(mirror)[0]
    count = 0
    for index in range(mine["abort_count"]):
        entry = abort_at(mine["aborts"] + ABORT_SIZE * index)[0]
        if entry["stage"] in (ABORT_DUE, ABORT_POSTED) and entry["flags"] & QUERY == 0:
            count += lun_number == -1 or entry["lun"] in (-1, lun_number)
    return count


@nopython
def add_done(mirror: int, slot: int) -> None:
    """The engine may have its control slot back."""
    push(mirror + DONES, slot)


@nopython
def add_cancel(mirror: int, task_id: int) -> None:
    """Have nothing more of a GET's data placed."""
    mirror_at(mirror)[0]["unsettled"] += 1
    push(mirror + CANCELS, task_id)


@nopython
def _is_in(queue: int, value: int) -> bool:
    mine = queue_at(queue)[0]
    for place in range(mine["head"], mine["tail"]):
        if load_64(mine["slots"] + 8 * (place & (mine["capacity"] - 1))) == value:
            return True
    return False


@nopython
def add_gate(mirror: int, lun: int) -> None:
    """Have the engine told of a nexus' word for a unit, as it is when that is posted."""
    if not _is_in(mirror + GATES, lun):
        mirror_at(mirror)[0]["unsettled"] += 1
        push(mirror + GATES, lun)


@nopython
def gate_last(mirror: int) -> None:
    """Have the gate that would be posted next posted behind the others that wait."""
    push(mirror + GATES, pop(mirror + GATES))


@nopython
def gates_waiting(mirror: int) -> int:
    """How many gates were not posted yet."""
    mine = queue_at(mirror + GATES)[0]
    return int(mine["tail"] - mine["head"])


def mirror_parts(task_count: int, control_count: int, lun_count: int) -> dict[str, int]:
    """Sizes of a MIRROR and what it points to."""
    aborts = abort_room(control_count, lun_count)
    return {
        "mirror": MIRROR.itemsize,
        "aborts": ABORT_SIZE * aborts,
        "dones": 8 * round_up(control_count),
        "cancels": 8 * round_up(task_count),
        "gates": 8 * round_up(max(1, lun_count)),
    }


def abort_room(control_count: int, lun_count: int) -> int:
    """ABORTs kept at once: those of this session's requests, and any others for each unit."""
    return 2 * control_count + 2 * lun_count + 64


def build_mirror_part(
    at: Mapping[str, int], home: int, task_count: int, control_count: int, lun_count: int
) -> None:
    """Fill in a MIRROR in zeroed memory; `at` are the addresses of `mirror_parts`."""
    mirror = at["mirror"]
    mine = mirror_at(mirror)[0]
    mine["home"] = home
    mine["aborts"], mine["abort_count"] = at["aborts"], abort_room(control_count, lun_count)
    build_queue(mirror + DONES, at["dones"], control_count)
    build_queue(mirror + CANCELS, at["cancels"], task_count)
    build_queue(mirror + GATES, at["gates"], max(1, lun_count))
