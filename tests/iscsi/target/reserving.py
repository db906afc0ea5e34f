"""A unit and three initiators that reserve it, by commands, without a server between."""

from iscsi.target.backends import NullBackend
from iscsi.target.nexus import Nexus
from iscsi.target.scsi import Command, execute
from iscsi.target.units import LogicalUnit, Target
from iscsi.wire.sense import ScsiStatus

NAME = "iqn.2026-01.org.example:t"
KEYS = (0xA1, 0xB2, 0xC3)
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_ANYHOW, MOVE = range(8)
WE, EA, WE_RO, EA_RO, WE_AR, EA_AR = 1, 3, 5, 6, 7, 8
TYPES = (WE, EA, WE_RO, EA_RO, WE_AR, EA_AR)
CONFLICT = ScsiStatus.RESERVATION_CONFLICT


def parameters(key=0, action_key=0, *, flags=0, tail=b""):
    return (
        key.to_bytes(8, "big")
        + action_key.to_bytes(8, "big")
        + bytes(4)
        + bytes((flags, 0, 0, 0))
        + tail
    )


def moving(peer, to, *, action_key=0xD4, flags=0, port=1, key=None):
    """The parameter list of REGISTER AND MOVE to a nexus."""
    name = to.transport_id
    head = (peer.key if key is None else key).to_bytes(8, "big") + action_key.to_bytes(8, "big")
    tail = port.to_bytes(2, "big") + len(name).to_bytes(4, "big") + name
    return head + bytes((0, flags)) + tail


class Peer:
    """One initiator's session with the unit."""

    def __init__(self, target, number):
        self.key = KEYS[number]
        self.words = {}
        self.ended = []
        self.nexus = Nexus(f"iqn.2026-01.org.example:i{number}", 0x80AABB000000 + number)
        self.nexus.attach(target, self.words.__setitem__)
        self.nexus.tasks = self
        self.jobs = 0
        self.target = target

    def abort_lun(self, lun=None):
        self.ended.append(lun)

    def aborted_work(self, lun=None):
        return self.jobs if self.ended else 0

    def run(self, cdb, data=b""):
        return execute(Command(cdb, self.target, 0, self.nexus, data, len(data)))

    def out(self, action, key=None, action_key=0, *, kind=0, scope=0, length=None, **options):
        data = parameters(self.key if key is None else key, action_key, **options)
        return self.out_raw(action, data, kind=kind, scope=scope, length=length)

    def out_raw(self, action, data, *, kind=0, scope=0, length=None):
        length = len(data) if length is None else length
        cdb = bytes((0x5F, action, scope << 4 | kind, 0, 0)) + length.to_bytes(4, "big") + b"\0"
        return self.run(cdb, data)

    def register(self, key=None, **options):
        answer = self.out(REGISTER, 0, self.key if key is None else key, **options)
        assert answer.status == 0
        return self

    def reserve(self, kind):
        assert self.out(RESERVE, kind=kind).status == 0
        return self

    def ask(self, action, length=0xFFFF):
        """The data of a PERSISTENT RESERVE IN; a nexus without unit attentions of its own asks."""
        cdb = bytes((0x5E, action, 0, 0, 0, 0, 0)) + length.to_bytes(2, "big") + b"\0"
        answer = execute(Command(cdb, self.target, 0))
        assert answer.status == 0
        return bytes(answer.data)

    @property
    def keys(self):
        data = self.ask(0)
        assert int.from_bytes(data[4:8], "big") == len(data) - 8
        return [int.from_bytes(data[at : at + 8], "big") for at in range(8, len(data), 8)]

    @property
    def generation(self):
        return int.from_bytes(self.ask(0)[:4], "big")

    @property
    def held(self):
        """(key, type) of the reservation, or None."""
        data = self.ask(1)
        if len(data) == 8:
            return None
        assert len(data) == 24
        return int.from_bytes(data[8:16], "big"), data[21]

    def attention(self):
        """The unit attention that waits, taken."""
        return self.nexus.take_attention(0)

    @property
    def reads(self):
        return self.run(bytes((0x28, *bytes(7), 1, 0))).status == 0

    @property
    def writes(self):
        # SYNCHRONIZE CACHE conflicts as a WRITE does, and moves nothing.
        return self.run(bytes((0x35, *bytes(9)))).status == 0

    @property
    def is_gated(self):
        return bool(self.words.get(0))


class World:
    """A unit and three initiators."""

    def __init__(self, **options):
        self.unit = LogicalUnit(NullBackend(1 << 20), **options)
        self.target = Target(NAME, {0: self.unit})
        self.a, self.b, self.c = self.peers = [Peer(self.target, n) for n in range(3)]


def sense_code(answer):
    assert answer.status == ScsiStatus.CHECK_CONDITION
    return answer.sense.code
