"""A client written from the shared layout alone, so that it can break every rule of it.

It uses neither the host library nor the compiler: a hostile process starts at once, and nothing
stops it from lying. Offsets and the layout's hash are given to it, see `facts`.
"""

import array
import json
import mmap
import os
import secrets
import socket
import struct
import time
from pathlib import Path

SLOT = 64
NOP, CONNECT, LISTEN, ACCEPT, SEND, RECEIVE, SHUTDOWN, CLOSE, CANCEL = range(1, 10)
EXACT = 1 << 8
PATIENCE_S = 10
WQE = struct.Struct("<BBHIqIIqqqII")  # all but the sequence
CQE = struct.Struct("<qBBHIqiIIIqqq")


def facts(engine):
    """What a raw client must be told, as JSON for its command line."""
    from shm.layout import offset
    from shm.records import CHANNEL, LAYOUT_HASH, MAGIC, VERSION
    from shm.segment import KIND_CHANNEL, boot_id, start_time

    names = (
        "work_capacity",
        "event_capacity",
        "work_head",
        "event_head",
        "wake_at",
        "need_doorbell",
    )
    return json.dumps(
        {
            "socket": str(engine.socket_path),
            "version": VERSION,
            "layout": LAYOUT_HASH,
            "header": [VERSION, MAGIC, LAYOUT_HASH, 0, os.getpid(), start_time(os.getpid()),
                       boot_id(), KIND_CHANNEL],
            "offsets": {name: offset(CHANNEL, name) for name in names},
            "size": CHANNEL.itemsize,
        }
    )  # fmt: skip


def shared_file(size, allocate=True):
    """Make an unnamed file in shared memory; `allocate=False` leaves it with holes."""
    path = Path(f"/dev/shm/ppe-{os.getpid()}-{secrets.token_hex(8)}")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    path.unlink()
    if size and allocate:
        os.posix_fallocate(descriptor, 0, size)
    elif size:
        os.ftruncate(descriptor, size)
    return descriptor


class RawClient:
    """A control connection; `hello` is said unless `greet` is false."""

    def __init__(self, told, greet=True):
        self.told = json.loads(told) if isinstance(told, str) else told
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.settimeout(PATIENCE_S)
        self.connection.connect(self.told["socket"])
        if greet:
            self.call("hello", version=self.told["version"], layout=self.told["layout"])

    def call(self, name, descriptors=(), **fields):
        """Ask something; returns the answer and the descriptors that came with it."""
        return self.say(json.dumps({"call": name, **fields}).encode(), descriptors)

    def say(self, data, descriptors=(), listen=True):
        """Send any bytes at all."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        self.connection.sendmsg([data], rights if descriptors else [])
        return self.listen() if listen else None

    def listen(self):
        """Take one answer; None when the engine has hung up."""
        try:
            data, ancillary, _, _ = self.connection.recvmsg(1 << 17, socket.CMSG_SPACE(64))
        except ConnectionError:
            return None
        if not data:
            return None
        given = array.array("i")
        for _, _, payload in ancillary:
            given.frombytes(payload[: len(payload) - len(payload) % 4])
        return json.loads(data), list(given)

    def is_hung_up(self, seconds=PATIENCE_S):
        """Whether the engine ends this connection in time."""
        self.connection.settimeout(seconds)
        try:
            while self.listen() is not None:
                pass
        except TimeoutError:
            return False
        return True

    def region(self, size):
        """Register shared memory: its id, its descriptor and its bytes."""
        descriptor = shared_file(size)
        answer, _ = self.call("register", [descriptor], size=size)
        return answer["region"], descriptor, mmap.mmap(descriptor, size)

    def close(self):
        """Hang up."""
        self.connection.close()


class RawChannel:
    """A channel posted to and polled by hand."""

    def __init__(self, client, work=64, events=64):
        told = client.told
        self.capacity, self.event_capacity = work, events
        size = told["size"] + (work + events) * SLOT
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.descriptor = shared_file(size)
        self.memory = mmap.mmap(self.descriptor, size)
        struct.pack_into("<8q", self.memory, 0, *told["header"])
        self.offsets = told["offsets"]
        self.put("wake_at", 2**63 - 1)
        self.work, self.events = told["size"], told["size"] + work * SLOT
        self.position = self.seen = 0
        announced = told["size"] + (work + events) * SLOT
        answer, given = client.call("attach", [self.descriptor], work=work, events=events)
        assert announced <= size
        assert "error" not in answer, answer
        self.number, (self.bell, self.wake) = answer["channel"], given

    def put(self, name, value):
        """Write one of the shared words."""
        struct.pack_into("<q", self.memory, self.offsets[name], value)

    def write(self, payload, ahead=0, publish=True):
        """Write one slot's 56 bytes, and its sequence word last."""
        place = self.position + ahead
        at = self.work + (place % self.capacity) * SLOT
        self.memory[at + 8 : at + 64] = payload.ljust(56, b"\0")
        if publish:
            struct.pack_into("<q", self.memory, at, place + 1)

    def post(self, opcode, *, slots=1, flags=0, endpoint=0, user_data=0, region=0, length=0,
             offset=0, arg0=0, second=None):  # fmt: skip
        """Post one operation, whatever it says."""
        if second is not None:
            self.write(second, 1)
        self.write(
            WQE.pack(opcode, slots, flags, endpoint & 0xFFFFFFFF, user_data, region & 0xFFFFFFFF,
                     length & 0xFFFFFFFF, offset, arg0, 0, 0, 0)
        )  # fmt: skip
        self.position += 1 if second is None else 2
        self.ring()

    def ring(self):
        """Ring the engine's bell."""
        os.eventfd_write(self.bell, 1)

    def poll(self, seconds=PATIENCE_S):
        """Take the next completion as a dict; None when there is none in time."""
        deadline = time.monotonic() + seconds
        at = self.events + (self.seen % self.event_capacity) * SLOT
        while struct.unpack_from("<q", self.memory, at)[0] != self.seen + 1:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.0005)
        self.seen += 1
        self.put("event_head", self.seen)
        names = ("sequence", "opcode", "reserved", "flags", "endpoint", "user_data", "status",
                 "length", "released", "ticket", "arg0", "arg1", "arg2")  # fmt: skip
        return dict(zip(names, CQE.unpack_from(self.memory, at), strict=True))

    def do(self, opcode, **fields):
        """Post and take the completion."""
        self.post(opcode, **fields)
        done = self.poll()
        assert done is not None, f"no completion of {opcode} {fields}"
        return done

    def listen(self):
        """Listen on a free port of 127.0.0.1: endpoint and port."""
        done = self.do(LISTEN, slots=2, arg0=8, second=loopback(0))
        return done["endpoint"], done["arg0"]

    def pair(self):
        """Two connected endpoints of this channel."""
        self.listener, port = self.listen()
        self.post(CONNECT, slots=2, user_data=1, second=loopback(port))
        self.post(ACCEPT, endpoint=self.listener, user_data=2)
        ends = {done["user_data"]: done for done in (self.poll(), self.poll())}
        assert all(done["status"] == 0 for done in ends.values()), ends
        return ends[1]["endpoint"], ends[2]["endpoint"]


def loopback(port):
    """The second slot of a connect or listen: struct sockaddr_in behind the sequence word."""
    return struct.pack("=HH", socket.AF_INET, socket.htons(port)) + bytes([127, 0, 0, 1]) + bytes(8)
