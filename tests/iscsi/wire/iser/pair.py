"""A session's mirror, an initiator's half, a fabric, a target's half and its host's mirror in one
process: POSTs and EVENTs at both ends, work requests in the middle, each step by itself.
"""

from dataclasses import dataclass, field

import numpy as np

from iscsi.wire import bhs
from iscsi.wire.iser import work
from iscsi.wire.iser.build import (
    REPLY_LENGTH,
    build_initiator_iser,
    build_target_iser,
    initiator_iser_size,
    target_iser_size,
)
from iscsi.wire.iser.records import ISER_TASK, IserLimits, iser_at
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.port import port_at
from shm.view import address_of, window
from tests.iscsi.wire import split_initiator, split_target
from tests.iscsi.wire.full_feature import TURNS_MAX, memory
from tests.iscsi.wire.iser import doors
from tests.iscsi.wire.iser.fabric import connect, new_work, read_work

LENGTHS = ConnectionParams(max_recv_data_segment_length=8192)
LIMITS = IserLimits(receives=64, data_length=8192)


@dataclass
class IserInitiator(split_initiator.Split):
    """The initiator's two halves; the lower one is an ISER."""

    limits: IserLimits = LIMITS
    keeps_tags: bool = False  # tags stay, as of a pool
    tags_left: int = 1 << 30
    base: int | None = None  # what the peer calls the first byte of a buffer; None: its address
    broken: int = 0

    def __post_init__(self):
        super().__post_init__()
        conn = self.lower.address
        self.iser_memory = memory(initiator_iser_size(conn, self.limits))
        self.iser = address_of(self.iser_memory)
        build_initiator_iser(self.iser, conn, self.limits)
        self.wr = new_work()
        self.qp = None

    def post_below(self, handle):
        return self.half(doors.POST, self.post.address, self.mirror, self.home.size, handle)

    def half(self, what, first=0, second=0, third=0, fourth=0):
        return doors.initiator_half(self.iser, what, first, second, third, fourth)

    def work(self):
        """Post what there is to post; how many work requests."""
        count = 0
        wr = address_of(self.wr)
        while self.half(doors.RECEIVE, wr):
            made = read_work(wr)
            self.qp.receives.append((made.token, made.pieces))
        while not self.broken and self.half(doors.WORK, wr):
            count += 1
            if int(self.wr[0]["opcode"]) == work.WR_TAG:
                self.tag()
            else:
                self.qp.sends.append(read_work(wr))
        return count

    def tag(self):
        asked = self.wr[0]
        stag = 0
        if self.tags_left:
            self.tags_left -= 1
            address, length = int(asked["bind_addr"]), int(asked["bind_length"])
            access = int(asked["bind_access"])
            stag = self.qp.register(address, length, access, self.base, self.keeps_tags)
        base = self.qp.tags[stag].base if stag else 0
        signed = base - (1 << 64) if base >> 63 else base
        self.half(doors.TAGGED, int(asked["token"]), stag, signed, self.keeps_tags)

    def poll(self, most=1 << 30):
        """Take completions; how many."""
        count = 0
        while self.qp.done and count < most and not self.broken:
            is_receive, wc = self.qp.done.popleft()
            self.broken = self.half(doors.RECEIVED if is_receive else doors.SENT, address_of(wc))
            count += 1
        return count

    def turn(self):
        """Everything between mirror and queue pair; how much moved."""
        before = len(self.seen)
        self.post_all()
        self.deliver()
        moved = self.poll() + self.work()
        self.tell()
        moved += len(self.events)
        self.take()
        return moved + len(self.seen) - before

    def end(self, status):
        """The connection is over: the queue pair and every tag of its own are gone."""
        while stag := self.half(doors.LEFT):
            del self.qp.tags[stag]  # KeyError: it was invalidated before
        super().end(status)


@dataclass
class IserTarget(split_target.Split):
    """The target's two halves; the lower one is an ISER."""

    iser_limits: IserLimits = LIMITS
    reply_length: int = REPLY_LENGTH
    cold_length: int = 8192
    broken: int = 0

    def __post_init__(self):
        super().__post_init__()
        conn = self.engine.address
        self.iser_memory = memory(target_iser_size(conn, self.iser_limits))
        self.iser = address_of(self.iser_memory)
        build_target_iser(self.iser, conn, self.iser_limits, self.reply_length)
        self.wr = new_work()
        self.qp = None

    def post_below(self, post, handle):
        home = address_of(self.home)
        return self.half(doors.POST, address_of(post), home, self.home.size, handle)

    def half(self, what, first=0, second=0, third=0, fourth=0):
        return doors.target_half(self.iser, what, first, second, third, fourth)

    def work(self):
        count = 0
        wr = address_of(self.wr)
        while self.half(doors.RECEIVE, wr):
            made = read_work(wr)
            self.qp.receives.append((made.token, made.pieces))
        while not self.broken and self.half(doors.WORK, wr):
            count += 1
            self.qp.sends.append(read_work(wr))
        return count

    def poll(self, most=1 << 30):
        count = 0
        while self.qp.done and count < most and not self.broken:
            is_receive, wc = self.qp.done.popleft()
            self.broken = self.half(doors.RECEIVED if is_receive else doors.SENT, address_of(wc))
            count += 1
        return count

    def turn_all(self):
        moved = self.poll() + self.work()
        moved += self.turn_target()
        return moved + self.work()


@dataclass
class Pair:
    """Both ends, connected. `left` takes commands as a session gives them."""

    session: SessionParams = field(default_factory=SessionParams)
    connection: ConnectionParams = LENGTHS
    target_max_recv: int = 8192
    left_limits: IserLimits = LIMITS
    right_limits: IserLimits = LIMITS
    left_options: dict = field(default_factory=dict)
    right_options: dict = field(default_factory=dict)

    def __post_init__(self):
        common = {
            "session": self.session,
            "connection": self.connection,
            "target_max_recv": self.target_max_recv,
        }
        left = {"limits": self.left_limits, **self.left_options}
        right = {"iser_limits": self.right_limits, **self.right_options}
        self.left = IserInitiator(**common, **left)
        self.right = IserTarget(**common, **right)
        self.left.qp, self.right.qp = connect()
        self.left.work()
        self.right.work()

    @property
    def ram(self):
        return self.right.ram

    def turn(self, steps=None):
        """One round of everything; `steps` says how many work requests each end carries out."""
        moved = self.left.turn()
        moved += self.carry(self.left.qp, steps)
        moved += self.right.turn_all()
        moved += self.carry(self.right.qp, steps)
        return moved

    def carry(self, qp, steps):
        limit = steps() if steps else 1 << 30
        done = 0
        while done < limit and qp.step():
            done += 1
        # Something waits for its turn: that is not silence.
        return done + (0 if qp.broken else len(qp.sends))

    def run(self, steps=None):
        for _ in range(TURNS_MAX):
            if not self.turn(steps):
                return
        raise AssertionError("too many turns: the two ends never fall silent")

    def finish(self, steps=None):
        """Run; the completions by their user data."""
        self.run(steps)
        return {done.user_data: done for done in self.left.initiator.completions()}

    def one(self, steps=None):
        (done,) = self.finish(steps).values()
        return done

    def opcodes(self):
        """What the initiator's Sends were, and the target's."""
        ends = (self.left.qp, self.right.qp)
        return tuple(
            [bhs.Opcode(message[28] & bhs.OPCODE_MASK) for message in end.messages] for end in ends
        )

    def tasks(self, side):
        mine = iser_at(side.iser)[0]
        return window(int(mine["tasks"]), int(mine["task_count"]), ISER_TASK)

    def check_at_rest(self, posted=None):
        """Everything was given back, at both ends: tasks, slots, buffers, posts, tags, receives."""
        self.right.check_at_rest()
        left = self.left
        for address in (left.lower.address, left.mirror):
            port = port_at(address)[0]
            assert port["control_pool"]["free_count"] == port["control_count"]
        assert left.open == {}
        assert [tag for tag in left.qp.tags.values() if not tag.is_kept] == []
        for side in (left, self.right):
            mine, qp = iser_at(side.iser)[0], side.qp
            assert len(qp.receives) == mine["receive_count"]
            assert mine["reads"] == mine["unexpected"] == mine["pdus"] == 0
            assert mine["pings"] == 0
            for queue in ("released_next", "blocked", "waiting"):
                assert mine[queue]["head"] == mine[queue]["tail"]


def counts(qp):
    """How many work requests of each kind an end carried out."""
    kinds, numbers = np.unique([made.opcode for made in qp.carried], return_counts=True)
    return dict(zip(kinds.tolist(), numbers.tolist(), strict=True))
