"""A target server in a thread of the test, over an inline engine, and an initiator of plain sockets
that can be as ill-behaved as a test wants.
"""

import contextlib
import socket
import threading
import time

import numpy as np

import host
from iscsi.target.config import ServerConfig
from iscsi.target.server import TargetServer
from iscsi.target.units import RamDisk, Target
from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.login import InitiatorLogin
from iscsi.wire.names import Portal
from ppe.cycle.accounts import ENDPOINT_STATS

NAME = "iqn.2026-01.org.example:t"
OTHER = "iqn.2026-01.org.example:other"
HOST = "iqn.2026-01.org.example:i"
BLOCK = 512
BLOCKS = 8192
WAIT_S = 20
EVERYWHERE = ("stream", "datamover", "engine")
TWO = ("stream", "engine")
default_placement = "stream"  # of servers that are made now: see conftest


def wait_until(what, is_true, seconds=WAIT_S):
    """Wait for something another thread does; fails with `what` when it does not come."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


class ServerThread:
    """A server in a thread of the test, over an inline engine, or one that is named. A subclass
    says of what.
    """

    def __init__(self, **options):
        self._options = {"placement": default_placement, **options}
        self._engine_name = self._options.pop("engine", "inline:")
        self.placement = self._options["placement"]
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="target", daemon=True)
        self.error = None
        self.server = None

    def configure(self, engine):
        """Return the ServerConfig; called in the server's thread."""
        raise AssertionError("a subclass says what is served")

    def _run(self):
        try:
            with host.connect(self._engine_name) as self.engine:
                config = self.configure(self.engine)
                with TargetServer(self.engine, config) as self.server:
                    self.before = self.memory
                    self.ports = [port for _, port in self.server.bound]
                    self._ready.set()
                    self.server.serve_forever()
        except BaseException as error:
            self.error = error
        finally:
            self._ready.set()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(90), "the server does not start"
        if self.error:
            raise self.error
        return self

    def __exit__(self, *_):
        if self.server is not None:
            self.server.stop()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the server does not stop"
        if self.error:
            raise self.error

    @property
    def port(self):
        return self.ports[0]

    @property
    def counts(self):
        return self.server.counts

    @property
    def memory(self):
        """Free buffers of each size there is no arena room left to carve: what was taken twice."""
        return {size: len(free) for size, free in self.engine._arenas._free.items()}

    @property
    def mapped(self):
        """Bytes of shared memory the engine's buffers lie in, used or free."""
        return sum(segment.size for segment in self.engine._arenas._segments)

    @property
    def arena_size(self):
        """Bytes that come at once when there is not enough."""
        return self.engine._arenas._arena_size

    @property
    def endpoints(self):
        """Endpoints the engine has open, its listeners among them."""
        tables = self.engine.tables
        rows = tables.layout.rows(tables.accounts.array, "endpoints", ENDPOINT_STATS)
        return int(np.count_nonzero(rows["state"]))

    @property
    def own_endpoints(self):
        """How many it has without any connection: its listener, what other threads end its sleep
        by, and with a datamover a pool of buffers, and tables of units.
        """
        tables = len(self.server._targets) if self.placement == "engine" else 0
        return 2 + (self.placement != "stream") + tables

    def count(self, name="reads", lun=0):
        """How many commands of a unit were served without Python, wherever that was."""
        units = self.server.statistics()["targets"][0]["units"]
        return next(unit[name] for unit in units if unit["lun"] == lun)

    def log_in(self, **options):
        return Raw(self.port).log_in(**options)

    def wait_idle(self):
        """Wait until no connection is left."""
        wait_until("connections gone", lambda: not self.server.connections)


class Serving(ServerThread):
    """A server with two targets: NAME has LUN 0, the read-only LUN 1 and LUN 300; OTHER LUN 0."""

    def configure(self, engine):
        self.disk = engine.alloc(BLOCK * BLOCKS)
        random = np.random.default_rng(7)
        self.disk.array[:] = random.integers(0, 256, len(self.disk), np.uint8)
        units = {
            0: RamDisk(self.disk, **self._options.pop("disk", {})),
            1: RamDisk(engine.alloc(64 * BLOCK), read_only=True),
            300: RamDisk(engine.alloc(64 * 4096), block_size=4096),
        }
        targets = (Target(NAME, units), Target(OTHER, {0: units[0]}))
        portals = self._options.pop("portals", (Portal("127.0.0.1", 0),))
        return ServerConfig(targets, portals, **self._options)


@contextlib.contextmanager
def warmed(**options):
    """A server whose memory was used once, so that later uses can be compared."""
    with Serving(**options) as server:
        with server.log_in() as raw:
            raw.clear_attention().read(0, 1)
        server.wait_idle()
        yield server


@contextlib.contextmanager
def unnoticed(server):
    """A well-behaved session beside what happens in here, which must notice nothing of it."""
    endpoints = server.endpoints
    with server.log_in(isid=0x4000_0000_0001) as neighbour:
        neighbour.clear_attention()
        yield
        expected = server.disk.array[: 64 * BLOCK].tobytes()
        assert neighbour.read(0, 64) == expected
        with server.log_in(isid=0x4000_0000_0002) as newcomer:
            assert newcomer.clear_attention().read(0, 64) == expected
    server.wait_idle()
    assert server.endpoints == endpoints


class Raw:
    """An initiator by hand. CmdSN and tags are counted, everything else is the test's."""

    def __init__(self, port, host="127.0.0.1", timeout=WAIT_S):
        self.socket = socket.create_connection((host, port), timeout)
        self.cmd_sn, self.itt = 1, 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def log_in(self, target=NAME, isid=0x80AABBCC0001, initiator=HOST, **options):
        login = InitiatorLogin(initiator, target, isid=isid, cmd_sn=self.cmd_sn, **options)
        login.start()
        while True:
            self.socket.sendall(login.data_to_send())
            if login.done:
                break
            header = self.exactly(bhs.BHS_LENGTH)
            login.receive_pdu(header, self.exactly(login.segment_length(header)))
            if login.done:
                break
        self.result = login.result
        return self

    def exactly(self, length):
        data = b""
        while len(data) < length:
            piece = self.socket.recv(length - len(data))
            if not piece:
                raise EOFError(f"the target closed after {len(data)} of {length} bytes")
            data += piece
        return data

    def give(self, opcode, data=b"", **fields):
        self.socket.sendall(bhs.encode_pdu(opcode, data, **fields))

    def take(self):
        header = bhs.decode(self.exactly(bhs.BHS_LENGTH))
        data = self.exactly(bhs.padded(header.data_segment_length))
        return header, data[: header.data_segment_length]

    def request(self, opcode, data=b"", **fields):
        fields = {"itt": self.itt, "cmd_sn": self.cmd_sn, **fields}
        self.itt += 1
        self.cmd_sn += not fields.get("immediate", 0)
        self.give(opcode, data, **fields)
        return fields["itt"]

    def command(self, cdb, data=b"", *, lun=0, length=0, **fields):
        return self.request(
            Opcode.SCSI_COMMAND,
            data,
            cdb=int.from_bytes(cdb, "big"),
            lun=scsi.encode_lun(lun),
            expected_data_transfer_length=length,
            **fields,
        )

    def clear_attention(self, lun=0):
        """Take the unit attention that every new nexus has."""
        self.command(scsi.test_unit_ready(), lun=lun)
        header, _ = self.take()
        assert header.status == 2
        return self

    def read(self, lba, blocks, lun=0, block=BLOCK):
        self.command(scsi.read_16(lba, blocks), lun=lun, length=blocks * block, read=1)
        return self.data_in()

    def data_in(self):
        data = b""
        while True:
            header, piece = self.take()
            assert header.opcode is Opcode.DATA_IN, header
            assert header.buffer_offset == len(data)
            data += piece
            if header.has_status:
                assert header.status == 0
                return data

    def write(self, lba, data, lun=0, block=BLOCK):
        """A WRITE with immediate data; returns the response's header."""
        cdb = scsi.write_16(lba, len(data) // block)
        self.command(cdb, data, lun=lun, length=len(data), write=1)
        return self.take()[0]

    def log_out(self):
        self.request(Opcode.LOGOUT_REQUEST, logout_reason=0)
        header, _ = self.take()
        return header

    def is_closed(self):
        """Whether the target closes; whatever it still sends is thrown away."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True
