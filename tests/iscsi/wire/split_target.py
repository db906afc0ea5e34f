"""An initiator, a target's engine half and its host half in one process: bytes on one side, POSTs
and EVENTs on the other, every one of them kept to look at. What a service would do between the two
halves is done here in plain Python, one record at a time.
"""

import errno
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np

from iscsi.target.buffers import DataBuffers
from iscsi.wire import (
    bhs,
    mover,
    target_mirror,
    target_mirror_post,
    target_mover,
    target_notice,
    target_posts,
    target_units,
)
from iscsi.wire.lun import LUN, LUN_SIZE, Unit, write_lun
from iscsi.wire.port import PortLimits, port_at
from iscsi.wire.target import TargetConnection
from iscsi.wire.target_block import TargetLimits
from iscsi.wire.target_task import TASK, target_at
from shm.channel import UNSIGNALLED
from shm.jit import entry
from shm.view import address_of, window
from tests.iscsi.wire.full_feature import (
    BLOCK,
    TURNS_MAX,
    Joined,
    login_result,
    memory,
)
from tests.iscsi.wire.test_buffers import Engine

PENDING = target_mover.PENDING
SIZES = ((4096, 6), (65536, 4), (1 << 20, 2))


@entry("int64(intp, intp, intp, int64, int64)")
def on_post(conn, post, home, home_size, handle):
    return target_mover.on_post(conn, post, home, home_size, handle)


@entry("boolean(intp, intp)")
def event_next(conn, event):
    return target_mover.event_next(conn, event)


@entry("int64(intp, intp, int64, intp)")
def notify_next(conn, buffer, size, event):
    return target_notice.notify_next(conn, buffer, size, event)


@entry("void(intp, int64)")
def end_all(conn, status):
    target_mover.end_all(conn, status)


@entry("boolean(intp, intp, intp)")
def places_into(conn, start, end):
    return target_mover.places_into(conn, start, end)


@entry("int64(intp, intp, intp)")
def on_notify(conn, buffer, event):
    return target_mirror.on_notify(conn, buffer, event)


@entry("void(intp, intp)")
def on_event(conn, event):
    target_mirror.on_event(conn, event)


@entry("int64(intp, int64, int64, int64)")
def ask_abort(conn, itt, ref_cmd_sn, cmd_sn):
    return target_mirror.ask_abort(conn, itt, ref_cmd_sn, cmd_sn)


@entry("int64(intp, int64)")
def abort_answer(conn, number):
    return target_mirror.abort_answer(conn, number)


@entry("void(intp, int64, int64)")
def set_gate(conn, lun, gate):
    target_mirror.set_gate(conn, lun, gate)


@entry("int64(intp)")
def unsettled(conn):
    return target_mirror.unsettled(conn)


@entry("int64(intp)")
def posts_open(conn):
    return target_mirror.posts_open(conn)


@entry("boolean(intp, intp)")
def post_peek(conn, post):
    return target_mirror_post.post_peek(conn, post)


@entry("void(intp)")
def post_taken(conn):
    target_mirror_post.post_taken(conn)


@entry("int64(intp, int64, int64, intp, int64, int64, int64, int64, int64, intp, int64, int64)")
def set_unit(luns, count, lun, start, length, size, blocks, only, state, map_, map_length, grain):
    return target_units.set_unit(
        luns, count, lun, start, length, size, blocks, only, state, map_, map_length, grain
    )


@entry("boolean(intp, int64, int64)")
def is_idle(luns, count, lun):
    return target_units.is_idle(luns, count, lun)


@dataclass
class Posted:
    """A POST on its way, and what became of it."""

    fields: dict[str, int]
    outcome: int | None = None
    events: int = 0

    @property
    def is_silent(self):
        return bool(self.fields["flags"] & UNSIGNALLED)


@dataclass
class Split(Joined):
    """`Joined` with the target cut in two. `target` is the host half, `engine` the other."""

    hot: bool = False  # the engine serves the RAM disk
    host_hot: bool = True  # else every command goes to the cold code
    buffers: bool = True
    receive_size: int = 1 << 20
    cold_length: int = 4096
    first_burst_room: bool = True  # whether the engine keeps unsolicited data
    posts: list[Posted] = field(default_factory=list)

    def __post_init__(self):
        super().__post_init__()
        ours = self.connection
        takes = self.target_max_recv or ours.max_recv_data_segment_length
        side = replace(
            ours,
            max_recv_data_segment_length=takes,
            peer_max_recv_data_segment_length=ours.max_recv_data_segment_length,
        )
        port = PortLimits(
            tx_entries=self.tx_entries,
            control_slots=self.window_size + 8,
            control_data_length=self.control_data_length,
        )
        login = login_result(self.session, side, self.cmd_sn, self.stat_sn, self.window_size)
        self.limits = limits = TargetLimits(self.window_size, self.cold_length, port)
        self.shared = DataBuffers(Engine(), SIZES if self.buffers else ())
        self.below = DataBuffers(Engine(), SIZES if self.first_burst_room else ())
        if not self.host_hot:
            write_lun(address_of(self.luns), None)
        self.home = memory(TargetConnection.size(2, limits))
        self.target = TargetConnection(
            address_of(self.home),
            login,
            address_of(self.luns),
            2,
            limits,
            buffers=self.shared.address,
            buffer_quota=self.shared.quota,
        )
        self.engine_luns = memory(2 * LUN_SIZE).view(LUN)
        count = 2 if self.hot else 0
        self.engine_memory = memory(TargetConnection.size(count, limits))
        self.engine = TargetConnection(
            address_of(self.engine_memory),
            login,
            address_of(self.engine_luns),
            count,
            limits,
            buffers=self.below.address,
            buffer_quota=self.below.quota,
        )
        self.lower_memory = memory(target_mover.lower_size(limits))
        target_mover.build_lower_half(self.engine.address, address_of(self.lower_memory), limits)
        self.mirror_memory = memory(target_mirror.mirror_size(limits, 2))
        target_mirror.build_mirror(
            self.target.address,
            address_of(self.mirror_memory),
            limits,
            self.target.address,
            serves_units=self.hot,
        )
        if self.hot:
            unit = Unit(address_of(self.ram), BLOCK, self.blocks, self.read_only)
            write_lun(address_of(self.engine_luns), unit)
        self.post = np.zeros(1, mover.POST)
        self.event = np.zeros(1, mover.EVENT)
        self.lent = deque(memory(self.receive_size) for _ in range(4))  # RECEIVE's buffers
        self.shown = deque()  # events of RECEIVEs that the host has not looked at, and buffers
        self.ring_room = 1 << 30  # how many more posts the ring takes
        self.serve = self.serve_default
        self.served = []
        self.notified = []  # headers

    # --- what a service does ---

    def run(self, cut=None):
        for _ in range(TURNS_MAX):
            if not self.turn(cut):
                return
        raise AssertionError("too many turns: the two ends never fall silent")

    def turn(self, cut=None):
        moved = self.move(self.initiator, self.engine, self.to_target, cut)
        moved += self.turn_target()
        moved += self.move(self.engine, self.initiator, self.to_initiator, cut)
        return moved

    def turn_target(self):
        """The host half and what lies between the halves, without a byte on the wire."""
        moved = self.tell_host()
        moved += self.serve_host()
        return moved + self.send_posts()

    def tell_host(self):
        """Carry events and notices up."""
        event = address_of(self.event)
        moved = 0
        while event_next(self.engine.address, event):
            self.deliver(self.posts[int(self.event[0]["user_data"]) - 1])
            moved += 1
        return moved + self.tell_host_later() + self.look_at_notices()

    def tell_host_later(self):
        """Fill the buffers that were lent; the host looks at them with its next turn."""
        event = address_of(self.event)
        moved = 0
        while self.lent:
            buffer = self.lent[0]
            found = notify_next(self.engine.address, address_of(buffer), buffer.size, event)
            assert found >= 0, f"a buffer of {buffer.size} bytes is too small"
            if found == 0:
                break
            self.lent.popleft()
            self.shown.append((self.event.copy(), buffer))
            moved += 1
        return moved

    def look_at_notices(self):
        moved = 0
        while self.shown:
            event, buffer = self.shown[0]
            outcome = on_notify(self.target.address, address_of(buffer), address_of(event))
            if outcome == -errno.EAGAIN:
                break
            self.notified.append(bhs.decode(buffer[: bhs.BHS_LENGTH].tobytes()))
            assert outcome == 0, f"a notice was refused: {errno.errorcode[-outcome]}"
            buffer[:] = 0xAA  # whoever still reads it reads nonsense
            self.shown.popleft()
            self.lent.append(buffer)
            moved += 1
        return moved

    def deliver(self, posted):
        """The event of a post, whose status and words are in `event`, reaches the host."""
        posted.outcome = int(self.event[0]["status"])
        posted.events += 1
        assert posted.events == 1, "a post has one event"
        assert int(self.event[0]["opcode"]) == posted.fields["opcode"]
        if posted.is_silent and posted.outcome == 0:
            return
        self.event[0]["user_data"] = posted.fields["user_data"]
        on_event(self.target.address, address_of(self.event))

    def send_posts(self):
        """Carry posts down, as many as there is room for."""
        moved = 0
        while self.ring_room and post_peek(self.target.address, address_of(self.post)):
            again = self.post.copy()
            assert post_peek(self.target.address, address_of(self.post))
            assert np.array_equal(again, self.post), "shown again, it is the same"
            post_taken(self.target.address)
            self.ring_room -= 1
            self.ask(self.post)
            moved += 1
        return moved

    def ask(self, post):
        """One post, for the engine half."""
        posted = Posted({name: int(post[0][name]) for name in post.dtype.names})
        self.posts.append(posted)
        outcome = self.post_below(post, len(self.posts))
        if outcome != PENDING:
            self.event[0]["opcode"] = posted.fields["opcode"]
            self.event[0]["status"] = outcome
            self.event[0]["arg0"] = post[0]["arg0"]
            self.deliver(posted)
        return posted

    def post_below(self, post, handle):
        """The engine's half looks at the POST."""
        home = address_of(self.home)
        return on_post(self.engine.address, address_of(post), home, self.home.size, handle)

    # --- the cold code ---

    def serve_host(self):
        before = len(self.served)
        for command in self.target.cold_commands():
            self.served.append(command)
            self.serve(command)
        for pdu in self.target.controls():
            self.served.append(pdu)
            self.serve(pdu)
        return len(self.served) - before

    def serve_default(self, what):
        """Commands end GOOD without data; control PDUs are only kept."""
        if hasattr(what, "task_id"):
            self.target.respond(what.task_id)

    # --- looking ---

    def asked(self, opcode):
        return [posted for posted in self.posts if posted.fields["opcode"] == opcode]

    def tasks(self, conn):
        mine = target_at(conn.address)[0]
        return window(int(mine["tasks"]), int(mine["task_count"]), TASK)

    def check_at_rest(self):
        """Everything was given back: tasks, slots, buffers, posts, on both sides."""
        for conn in (self.engine, self.target):
            mine, port = target_at(conn.address)[0], port_at(conn.address)[0]
            assert mine["task_pool"]["free_count"] == mine["task_count"]
            assert (self.tasks(conn)["state"] == 0).all()
            assert port["control_pool"]["free_count"] == port["control_count"]
            assert mine["buffer_held"] == 0
            assert mine["ordered"] == 0
        assert self.shared.taken == self.below.taken == 0
        assert posts_open(self.target.address) == unsettled(self.target.address) == 0
        lower = target_posts.lower_at(int(target_at(self.engine.address)[0]["lower"]))[0]
        assert lower["open_posts"] == 0
        assert (self.engine_luns["under_way"] == 0).all()
        for posted in self.posts:
            assert posted.events == 1
