"""A session's INITIATOR (the mirror), the engine's, and a target in one process: POSTs and EVENTs
between the first two, bytes between the last two, each step by itself. What a service would do
between the halves is done here in plain Python; a post that ends twice or never fails the test.
"""

import errno
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np

from iscsi.wire import initiator_mirror, initiator_mover, mover
from iscsi.wire import sequencing as sn
from iscsi.wire.initiator import InitiatorConnection, InitiatorLimits
from iscsi.wire.initiator_task import initiator_at
from iscsi.wire.port import PortLimits
from iscsi.wire.runs import RUN
from shm.jit import entry
from shm.view import address_of
from tests.iscsi.wire.full_feature import TURNS_MAX, Joined, login_result, memory

LENT_SIZE = 2048 + 48
EXTRA = 4096  # bytes of `home` behind the mirror: a test's own


@entry("int64(intp, intp, intp, int64, int64)")
def on_post(conn, post, home, home_size, handle):
    return initiator_mover.on_post(conn, post, home, home_size, handle)


@entry("boolean(intp, intp)")
def event_next(conn, event):
    return initiator_mover.event_next(conn, event)


@entry("int64(intp, intp, int64, intp)")
def notify_next(conn, buffer, size, event):
    return initiator_mover.notify_next(conn, buffer, size, event)


@entry("boolean(intp, intp, intp)")
def places_into(conn, start, end):
    return initiator_mover.places_into(conn, start, end)


@entry("int64(intp)")
def window_word(conn):
    return initiator_mover.window_word(conn)


@entry("void(intp, int64)")
def end_all(conn, status):
    initiator_mover.end_all(conn, status)


@entry("boolean(intp, intp, intp)")
def post_peek(conn, home, post):
    return initiator_mirror.post_peek(conn, home, post)


@entry("void(intp)")
def post_taken(conn):
    initiator_mirror.post_taken(conn)


@entry("int64(intp, intp)")
def on_event(conn, event):
    return initiator_mirror.on_event(conn, event)


@entry("int64(intp, intp, intp)")
def on_notify(conn, buffer, event):
    return initiator_mirror.on_notify(conn, buffer, event)


class Record:
    """One POST or EVENT at an address of its own."""

    def __init__(self, kind):
        self.array = memory(kind.itemsize).view(kind)
        self.address = address_of(self.array)

    def fill(self, **fields):
        self.array[:] = 0
        for name, value in fields.items():
            self.array[0][name] = (value + (1 << 63)) % (1 << 64) - (1 << 63)

    def fields(self):
        return {name: int(self.array[0][name]) for name in self.array.dtype.names}


@dataclass
class Split(Joined):
    """`initiator` is the mirror, `lower` the engine's half; `lent` buffers are there for PDUs."""

    lent: int = 4
    lends_again: bool = True
    control_slots: int = 16
    tasks: int = 64
    refusals: dict[int, int] = field(default_factory=dict)  # ordinal of a COMMAND: its status
    posts: deque = field(default_factory=deque)  # on their way to the engine
    events: deque = field(default_factory=deque)  # on their way to the host
    open: dict = field(default_factory=dict)  # user_data of the engine's posts by handle
    seen: list = field(default_factory=list)  # every POST
    over: int = 0

    def __post_init__(self):
        super().__post_init__()
        numbers = (self.cmd_sn, self.stat_sn, self.window_size)
        takes = self.target_max_recv or self.connection.max_recv_data_segment_length
        side = replace(self.connection, peer_max_recv_data_segment_length=takes)
        login = login_result(self.session, side, *numbers)
        port = PortLimits(
            tx_entries=self.tx_entries,
            control_slots=self.control_slots,
            control_data_length=self.control_data_length,
        )
        limits = InitiatorLimits(task_count=self.tasks, port=port, vectors=mover.VECTORS_MAX)
        size = InitiatorConnection.size(login, limits)
        self.lower_memory, self.home = memory(size), memory(size + EXTRA)
        self.lower = InitiatorConnection(address_of(self.lower_memory), login, limits)
        self.initiator = InitiatorConnection(address_of(self.home), login, limits)
        self.mirror = address_of(self.home)
        initiator_at(self.mirror)[0]["is_mirror"] = 1
        self.told = window_word(self.lower.address)
        self.post, self.event = Record(mover.POST), Record(mover.EVENT)
        self.buffer = memory(LENT_SIZE)
        self.handles = self.commands = 0

    # --- one step each ---

    def post_all(self, room=1 << 30):
        """The host posts what it has, as long as there is room."""
        while room > 0 and post_peek(self.mirror, self.mirror, self.post.address):
            self.posts.append(self.post.fields())
            self.seen.append(self.posts[-1])
            post_taken(self.mirror)
            room -= 1

    def deliver(self):
        """The engine takes every post."""
        while self.posts:
            self.ask(self.posts.popleft())

    def ask(self, fields):
        """Give the engine's half one post; its handle if it is pending, else its status."""
        self.handles += 1
        status = None
        if fields["opcode"] == mover.COMMAND:
            status = self.refusals.get(self.commands)
            self.commands += 1
            if status is None and fields["arg2"] >> mover.VECTOR_SHIFT:
                fields, status = self.resolved(fields)
        if status is None:
            self.post.fill(**fields)
            status = self.post_below(self.handles)
        if status == initiator_mover.PENDING:
            self.open[self.handles] = fields["user_data"]
            return self.handles
        self.events.append(
            ({"opcode": fields["opcode"], "user_data": fields["user_data"], "status": status}, b"")
        )
        return status

    def post_below(self, handle):
        """The engine's half looks at the POST."""
        return on_post(self.lower.address, self.post.address, self.mirror, self.home.size, handle)

    def resolved(self, fields):
        """A COMMAND with its gather list as RUNs, or the status by which it is refused."""
        count, start = fields["arg2"] >> mover.VECTOR_SHIFT, fields["more4"]
        size = count * mover.VECTOR.itemsize
        if count > mover.VECTORS_MAX or not 0 <= start <= self.home.size - size:
            return fields, -errno.EINVAL
        vectors = self.home[start : start + size].view(mover.VECTOR)
        self.runs = np.zeros(count, RUN)  # as the engine's own: used at once
        self.runs["address"], self.runs["length"] = vectors["offset"], vectors["length"]
        return {**fields, "more4": address_of(self.runs)}, None

    def tell(self):
        """The engine makes its events."""
        while event_next(self.lower.address, self.event.address):
            fields = self.event.fields()
            fields["user_data"] = self.open.pop(fields["user_data"])  # KeyError: it ended twice
            self.told = fields["arg2"]
            self.events.append((fields, b""))
        while self.lent and self._notify():
            self.lent -= 1
        word = window_word(self.lower.address)
        known = self.told >> 32 & 0xFFFFFFFF
        cmd_sn = int(initiator_at(self.lower.address)[0]["cmd_sn"])
        if word != self.told and sn.is_after(cmd_sn, known):
            self.told = word
            self.events.append(({"opcode": mover.WINDOW, "arg0": word}, b""))

    def _notify(self):
        found = notify_next(
            self.lower.address, address_of(self.buffer), self.buffer.size, self.event.address
        )
        assert found >= 0, f"a lent buffer is too small: {found}"
        if found:
            fields = {**self.event.fields(), "opcode": mover.RECEIVE, "status": 0}
            self.told = fields["arg2"]
            self.events.append((fields, self.buffer[: fields["length"]].tobytes()))
        return bool(found)

    def take(self):
        """The host takes every event."""
        while self.events and not self.over:
            fields, data = self.events.popleft()
            self.event.fill(**fields)
            if fields["opcode"] != mover.RECEIVE:
                self.over = on_event(self.mirror, self.event.address)
                continue
            lent = memory(LENT_SIZE)
            lent[: len(data)] = np.frombuffer(data, np.uint8)
            self.over = on_notify(self.mirror, address_of(lent), self.event.address)
            self.lent += self.lends_again

    def end(self, status):
        """The connection is over."""
        end_all(self.lower.address, status)
        self.tell()

    # --- all of them ---

    def run(self, cut=None):
        """Everything, until nothing moves any more."""
        for _ in range(TURNS_MAX):
            posted = len(self.seen)
            self.post_all()
            self.deliver()
            self.tell()
            moved = self.move(self.lower, self.target, self.to_target, cut)
            moved += self.move(self.target, self.lower, self.to_initiator, cut)
            self.tell()
            told = len(self.events)
            self.take()
            if not moved and not told and posted == len(self.seen):
                return
        raise AssertionError("too many turns: the halves never fall silent")

    def step(self):
        """Everything but the target: what goes out is returned."""
        self.post_all()
        self.deliver()
        sent = self.lower.data_to_send()
        self.tell()
        self.take()
        return sent
