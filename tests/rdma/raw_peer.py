"""A peer over a plain socket that may lie: MPA's start-up by hand, then FPDUs of its own making.

It shares no code with what it tests but the checksum: its headers are written out from the RFCs.
"""

import contextlib
import select
import socket
import struct
import threading
import time

from shm.crc32c import crc32c

TIMEOUT_S = 30
WRITE, READ_REQUEST, READ_RESPONSE, SEND, TERMINATE = 0, 1, 2, 3, 7


def fpdu(ulpdu, *, length=None, crc=True, spoilt=False):
    """Frame a ULPDU. `length` is what the frame claims; `spoilt`: the checksum is wrong."""
    body = struct.pack(">H", len(ulpdu) if length is None else length) + ulpdu
    body += bytes(-len(body) % 4)
    check = crc32c(body) if crc else 0
    if spoilt:
        check ^= 0x0100_0000
    return body + struct.pack("<I", check)


def tagged(opcode, stag, offset, data=b"", *, last=True, control=None):
    """Write a tagged segment."""
    ddp = (0xC1 if last else 0x81) if control is None else control
    return struct.pack(">BBIQ", ddp, 0x40 | opcode, stag, offset) + data


def untagged(opcode, queue, msn, data=b"", *, offset=0, stag=0, last=True, control=None):
    """Write an untagged segment."""
    ddp = (0x41 if last else 0x01) if control is None else control
    return struct.pack(">BBIIII", ddp, 0x40 | opcode, stag, queue, msn, offset) + data


def read_request(msn, sink_stag, sink, size, stag, source):
    """Write a Read Request."""
    body = struct.pack(">IQIIQ", sink_stag, sink & (1 << 64) - 1, size, stag, source)
    return untagged(READ_REQUEST, 1, msn, body)


class RawPeer:
    """The active side of a connection, or what pretends to be one. While it waits for bytes it
    calls `drive`, because the engine under test may run in this very thread.
    """

    def __init__(self, address, *, receive_buffer=None, drive=lambda: None):
        self.drive = drive
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(address)

    def start(self, *, crc=True, ird=16, ord=16):
        """Send a Request of revision 2 without peer-to-peer mode."""
        flags = 0x10 | (0x40 if crc else 0)
        self.socket.sendall(b"MPA ID Req Frame" + struct.pack(">BBHHH", flags, 2, 4, ird, ord))

    def reply(self):
        """Read the Reply: its flags and its private data."""
        head = self.exactly(20)
        assert head[:16] == b"MPA ID Rep Frame"
        flags, _, length = struct.unpack(">BBH", head[16:])
        return flags, self.exactly(length)

    def receive(self, count):
        """Read up to so many bytes, at least one; b"" at the end of the stream."""
        deadline = time.monotonic() + TIMEOUT_S
        while not select.select([self.socket], [], [], 0.001)[0]:
            assert time.monotonic() < deadline, f"no bytes came within {TIMEOUT_S} s"
            self.drive()
        return self.socket.recv(count)

    def exactly(self, count):
        """Read so many bytes."""
        data = b""
        while len(data) < count:
            part = self.receive(count - len(data))
            assert part, f"the stream ended after {data!r}"
            data += part
        return data

    def send(self, data):
        """Send bytes."""
        self.socket.sendall(data)

    def next_ulpdu(self):
        """Read an FPDU, whose checksum must be right; b"" at the end of the stream."""
        head = self.receive(1)
        if not head:
            return b""
        head += self.exactly(1)
        (length,) = struct.unpack(">H", head)
        padded = self.exactly(length + -(2 + length) % 4)
        (check,) = struct.unpack("<I", self.exactly(4))
        assert check == crc32c(head + padded)
        return padded[:length]

    def await_terminate(self):
        """Read until a Terminate; its layer << 12 | type << 8 | code."""
        while True:
            ulpdu = self.next_ulpdu()
            assert ulpdu, "the stream ended without a Terminate"
            if ulpdu[1] & 15 == TERMINATE:
                return struct.unpack_from(">H", ulpdu, 18)[0]

    def await_end(self):
        """Read until the stream ends."""
        with contextlib.suppress(ConnectionResetError):
            while self.receive(65536):
                pass

    def reset(self):
        """Cut the connection with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self):
        """Close the socket."""
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def call(listener, side, **options):
    """Connect a raw peer to a side's listener."""
    return RawPeer(listener.address, drive=side.device.progress, **options)


class Server:
    """A passive peer that answers one connection with given bytes, in a thread of its own."""

    def __init__(self, answer, *, then=None):
        self._answer, self._then = answer, then
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TIMEOUT_S)
        self.address = self._listener.getsockname()
        self.request = b""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(TIMEOUT_S)
                head = connection.recv(20, socket.MSG_WAITALL)
                (length,) = struct.unpack(">H", head[18:])
                self.request = head + connection.recv(length, socket.MSG_WAITALL)
                connection.sendall(self._answer)
                if self._then is not None:
                    self._then(connection)
                connection.recv(1)  # Until the other side closes.

    def close(self):
        """Stop listening and wait for the thread."""
        self._listener.close()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
