"""A hostile client of the datamover service: raw channels and records, and a scripted target on a
plain socket at the other end of each connection.
"""

import contextlib
import itertools
import os
import socket
import struct

from iscsi.wire import bhs
from iscsi.wire.bhs import Opcode, encode_pdu
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.mover_spec import INITIATOR, MoverSpec
from iscsi.wire.port import PortLimits
from shm.operations import (
    CLOSE,
    MOVER_CANCEL,
    MOVER_COMMAND,
    MOVER_CONTROL,
    MOVER_RECEIVE,
)
from tests.e2e.raw import CONNECT, WQE, RawChannel, RawClient, facts, loopback

PATIENCE_S = 20
HOME_SIZE = 1 << 16
WORDS = 32768  # where in `home` the engine counts
HEADER = 4096  # and where a CONTROL's header lies
DATA_SIZE = 1 << 20
TASKS = 16
READ, WRITE = bhs.FLAG_READ, bhs.FLAG_WRITE
SESSION = SessionParams(initial_r2t=True, immediate_data=False, max_burst_length=65536)
CONNECTION = ConnectionParams(max_recv_data_segment_length=262144)


def spec(tasks=TASKS, **port):
    """What a client says of a connection whose login is over."""
    limits = PortLimits(**{"control_data_length": 2048, **port})
    return MoverSpec(INITIATOR, SESSION, CONNECTION, limits, (tasks,), (1, 64, 1)).to_message()


class Target:
    """The other end of one connection."""

    def __init__(self, stream):
        self.stream, self.stat_sn = stream, 1
        stream.settimeout(PATIENCE_S)

    def read(self, length):
        data = b""
        while len(data) < length:
            piece = self.stream.recv(length - len(data))
            assert piece, "the engine closed the connection"
            data += piece
        return data

    def pdu(self):
        """Take one PDU: its header, its data."""
        header = self.read(48)
        return bhs.decode(header), self.read(bhs.padded(bhs.data_segment_length(header)))

    def encode(self, opcode, data=b"", counted=True, **fields):
        fields = {"stat_sn": self.stat_sn, "exp_cmd_sn": 1, "max_cmd_sn": 64, **fields}
        self.stat_sn += counted
        return encode_pdu(opcode, data, **fields)

    def send(self, opcode, data=b"", counted=True, **fields):
        self.stream.sendall(self.encode(opcode, data, counted, **fields))

    def data(self, itt, data, **fields):
        """All of a READ's data, with its status."""
        self.send(Opcode.DATA_IN, data, itt=itt, has_status=1, **fields)

    def news(self, event):
        """An asynchronous message, which the host has to see."""
        self.send(Opcode.ASYNC_MESSAGE, itt=bhs.RESERVED_TAG, async_event=event)

    def is_closed(self):
        """Whether the engine hangs up in time."""
        try:
            while self.stream.recv(65536):
                pass
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True


class MoverClient:
    """A client with one channel, a home and a data region; close it."""

    def __init__(self, engine, work=64, events=64):
        self.client = RawClient(facts(engine))
        self.channel = RawChannel(self.client, work, events)
        self.home, home_file, self.home_bytes = self.client.region(HOME_SIZE)
        self.data, data_file, self.data_bytes = self.client.region(DATA_SIZE)
        self.files = [home_file, data_file, self.channel.descriptor]
        self.files += [self.channel.bell, self.channel.wake]
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(PATIENCE_S)
        self.numbers = itertools.count(1000)
        self.targets = []

    def connect(self):
        """A connected endpoint and its target; nothing is enabled yet."""
        port = self.server.getsockname()[1]
        done = self.channel.do(CONNECT, slots=2, second=loopback(port))
        assert done["status"] == 0, done
        self.targets.append(Target(self.server.accept()[0]))
        return done["endpoint"], self.targets[-1]

    def enable(self, number, **changes):
        """Ask for the datamover: the answer."""
        fields = {
            **spec(),
            "channel": self.channel.number,
            "home": [self.home, 0, HOME_SIZE],
            "words": WORDS,
            "endpoint": number,
            **changes,
        }
        self.client.connection.settimeout(300)  # a cold cache compiles the service first
        return self.client.call("mover", **fields)[0]

    def mover(self, **changes):
        """A datamover endpoint and its target."""
        endpoint, target = self.connect()
        answer = self.enable(endpoint, **changes)
        assert "error" not in answer, answer
        return endpoint, target

    def pool(self):
        """A pool of buffers: its id."""
        self.client.connection.settimeout(300)
        return self.client.call("pool", channel=self.channel.number)[0]["pool"]

    def post(self, opcode, endpoint, *, slots=2, flags=0, region=0, offset=0, length=0, arg0=0,
             arg1=0, arg2=0, more=(), user_data=None):  # fmt: skip
        """Post one operation, whatever it says: its user_data."""
        channel = self.channel
        number = next(self.numbers) if user_data is None else user_data
        if slots == 2:
            words = [*more, *[0] * (6 - len(more))]
            channel.write(struct.pack("<6q", *words), 1)
        channel.write(
            WQE.pack(opcode, slots, flags, endpoint, number, region & 0xFFFFFFFF,
                     length & 0xFFFFFFFF, offset, arg0, arg1, arg2 & 0xFFFFFFFF, 0)
        )  # fmt: skip
        channel.position += slots
        with contextlib.suppress(BlockingIOError):
            channel.ring()
        return number

    def command(self, endpoint, index=0, *, flags=READ, **changes):
        """Post a sane COMMAND of 64 KiB, changed: its user_data."""
        fields = {
            "region": self.data,
            "offset": index << 16,
            "length": 1 << 16,
            "arg1": (0x10000 | index) | (index + 1) << 32,
            "arg2": flags,
            "more": (0x28, 0, 256 * index),
            **changes,
        }
        return self.post(MOVER_COMMAND, endpoint, **fields)

    def ping(self, endpoint, index):
        """Post a NOP-Out that has an answer."""
        header = encode_pdu(Opcode.NOP_OUT, immediate=1, itt=0x10000 | index)
        self.home_bytes[HEADER : HEADER + 48] = header
        return self.post(MOVER_CONTROL, endpoint, more=(HEADER,))

    def lend(self, endpoint, length=4096, offset=DATA_SIZE - 4096, **changes):
        """Lend a buffer."""
        fields = {"region": self.data, "offset": offset, "length": length, **changes}
        return self.post(MOVER_RECEIVE, endpoint, slots=1, **fields)

    def cancel(self, endpoint, itt):
        """Post a CANCEL."""
        return self.post(MOVER_CANCEL, endpoint, arg1=itt)

    def next(self):
        """The next completion of an operation; what nobody posted for is passed over."""
        while True:
            done = self.channel.poll(PATIENCE_S)
            if done is None or not done["flags"] & 1:
                return done

    def outcome(self, number):
        """The status of the next completion, which must be this operation's."""
        done = self.next()
        assert done is not None, f"no completion of {number}"
        assert done["user_data"] == number, done
        return done["status"]

    def collect(self, count):
        """The next completions by user_data: each operation has one."""
        found = {}
        while len(found) < count:
            done = self.next()
            assert done is not None, f"{count} completions expected, these came: {found}"
            assert done["user_data"] not in found, f"twice: {done}"
            found[done["user_data"]] = done["status"]
        return found

    def end(self, endpoint):
        """Close an endpoint: its status."""
        return self.outcome(self.post(CLOSE, endpoint, slots=1))

    def unregister(self, region):
        """Whether the engine let go of a region."""
        return self.client.call("unregister", region=region)[0]["done"]

    def close(self):
        """Leave without a word, and give everything back."""
        self.client.close()
        for target in self.targets:
            target.stream.close()
        self.server.close()
        for descriptor in self.files:
            os.close(descriptor)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
