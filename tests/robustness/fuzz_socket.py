"""Fuzzing a whole target server over real sockets, in a thread of this process, so that a crash of
its compiled code ends the process. A neighbour on a unit of its own must never notice.
"""

import random
import socket
import threading

import host
from iscsi.target.config import ServerConfig
from iscsi.target.server import TargetServer
from iscsi.target.units import RamDisk, Target
from iscsi.wire import bhs
from iscsi.wire.names import Portal
from tests.iscsi.target.serving import BLOCK, Raw, wait_until
from tests.robustness.fuzz import START_S
from tests.robustness.fuzz_target import BLOCKS, Attacker
from tests.robustness.simulator import NAME, draw_proposal

EVERY = 10  # cases between two looks at the neighbour
ANSWER_S = 10
MAPPED_GROWTH = 64 << 20


class SocketFuzz(Attacker):
    """The attacker on a socket. LUN 0 is the neighbour's."""

    name = "socket"

    def __init__(self, seed):
        self.rng = random.Random(f"socket {seed}")
        self.pdus = self.cases = 0
        self.socket = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="target", daemon=True)
        self._thread.start()
        assert self._ready.wait(START_S), "the server does not start"
        self.neighbour = Raw(self.port).log_in(NAME, isid=0x4000_0000_0001).clear_attention()
        self.neighbourly()
        self.mapped = self._mapped()

    def _serve(self):
        with host.connect("inline:") as self.engine:
            alloc = self.engine.alloc
            units = {0: RamDisk(alloc(BLOCKS * BLOCK)), 1: RamDisk(alloc(BLOCKS * BLOCK))}
            units[2] = RamDisk(alloc(BLOCKS * BLOCK), read_only=True)
            units[3] = RamDisk(alloc(BLOCKS * BLOCK), 4096, thin=True, removable=True)
            config = ServerConfig(
                (Target(NAME, units),), (Portal("127.0.0.1", 0),), window=8, linger_s=0.2
            )
            with TargetServer(self.engine, config) as self.server:
                self.port = self.server.bound[0][1]
                self._ready.set()
                self.server.serve_forever()

    def _mapped(self):
        return sum(segment.size for segment in self.engine._arenas._segments)

    def neighbourly(self):
        """The neighbour writes and reads; each in time, or his socket raises TimeoutError."""
        blocks = self.rng.randrange(1, 16)
        lba, data = self.rng.randrange(BLOCKS - blocks), self.rng.randbytes(blocks * BLOCK)
        while (header := self.neighbour.write(lba, data)).status == 2:
            pass  # a unit attention: somebody reset what is not ours alone
        assert header.status == 0, header
        assert self.neighbour.read(lba, blocks) == data, "the neighbour's data changed"

    # --- the attack ------------------------------------------------------------------------

    def begin(self, case_seed):
        """Log the attacker in."""
        self.draw = random.Random(case_seed)
        self.is_open = True
        cmd_sn = self.draw.choice((1, 0xFFFFFFFE, self.draw.getrandbits(32)))
        raw = Raw(self.port, timeout=ANSWER_S)
        raw.cmd_sn = cmd_sn
        raw.log_in(NAME, isid=0x4000_0000_0009, proposal=draw_proposal(self.draw))
        self.socket = raw.socket
        self.got = bytearray()
        self.start(cmd_sn, raw.result.connection)

    def feed(self, message):
        """Send it, in pieces, and read what has come so far."""
        self.pdus += 1
        if not self.is_open:
            return
        try:
            cut = self.draw.randrange(len(message) + 1) if self.draw.random() < 0.3 else 0
            for piece in (message[:cut], message[cut:]):
                if piece:
                    self.socket.sendall(piece)
            self.socket.settimeout(0.0005)
            while data := self.socket.recv(1 << 16):
                self.got += data
            self.is_open = False
        except (TimeoutError, BlockingIOError):
            pass
        except OSError:
            self.is_open = False
        self.socket.settimeout(ANSWER_S)
        self._read_whole()

    def _read_whole(self):
        """The complete PDUs of what came."""
        while len(self.got) >= bhs.BHS_LENGTH:
            length = bhs.data_segment_length(self.got[:48])
            size = 48 + 4 * self.digests[0] + bhs.padded(length)
            size += 4 if length and self.digests[1] else 0
            if len(self.got) < size:
                return
            self._read(bytes(self.got[:size]))
            del self.got[:size]

    def end(self):
        """Hang up, orderly or not; what he had is given back and the neighbour did not notice."""
        if self.draw.random() < 0.5:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()
        self.cases += 1
        if self.cases % EVERY == 0:
            self.neighbourly()
            wait_until("the attacker's sessions end", lambda: len(self.server.connections) == 1)
            grown = self._mapped() - self.mapped
            assert grown <= MAPPED_GROWTH, f"the engine's memory grew by {grown} bytes"

    def close(self):
        """Stop the server."""
        self.neighbour.socket.close()
        self.server.stop()
        self._thread.join(30)
        assert not self._thread.is_alive(), "the server does not stop"
