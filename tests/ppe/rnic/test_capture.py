"""What two software RNICs say to each other, as a capture that Wireshark's dissectors understand:
every FPDU is MPA, DDP and RDMAP, and none is malformed.
"""

import itertools
import re
import struct
import subprocess

import pytest

from shm.verbs_numbers import (
    SEND_SIGNALED,
    SEND_SOLICITED,
    WR_ATOMIC_CMP_AND_SWP,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_SEND,
    WR_SEND_WITH_INV,
)
from tests.ppe.rnic.joined import Pair

pytestmark = [pytest.mark.slow, pytest.mark.interop("tshark")]
LINKTYPE_RAW_IP = 101
PORTS = 40000, 7174
# Both guess that a payload of iWARP is theirs, and call what is not malformed.
NOT_HERE = ("rpcordma", "smb_direct")
FLAG_M, FLAG_C = 0x80, 0x40


class Capture:
    """A pcap of one TCP connection, one segment for every piece of it."""

    def __init__(self, path, flags):
        self._file = path.open("wb")
        self._file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, LINKTYPE_RAW_IP))
        self._seq, self.carried = [1000, 2000], [0, 0]
        self._times = itertools.count()
        self._segment(0, b"", 0x02)
        self._segment(1, b"", 0x12)
        self.carry(0, b"MPA ID Req Frame" + bytes((flags, 1, 0, 0)))
        self.carry(1, b"MPA ID Rep Frame" + bytes((flags, 1, 0, 0)))
        self.carried = [0, 0]  # in full operation

    def carry(self, side, data):
        """A piece of the stream that one side sends."""
        self._segment(side, data, 0x18)
        self.carried[side] += len(data)

    def _segment(self, side, data, flags):
        ports = PORTS if side == 0 else PORTS[::-1]
        acknowledged = self._seq[1 - side] if flags & 0x10 else 0
        tcp = struct.pack(
            ">HHIIBBHHH", *ports, self._seq[side], acknowledged, 0x50, flags, 65535, 0, 0
        )
        addresses = bytes((10, 0, 0, 1 + side, 10, 0, 0, 2 - side))
        total = 40 + len(data)
        ip = struct.pack(">BBHHHBBH", 0x45, 0, total, 1, 0, 64, 6, 0) + addresses
        now = next(self._times)
        self._file.write(struct.pack("<IIII", now, 0, total, total) + ip + tcp + data)
        self._seq[side] += len(data) + (1 if flags & 0x02 else 0)

    def close(self):
        self._file.close()


def fpdus_of(stream, markers, start):
    """Cut a stream into FPDUs, with the markers in them."""
    while stream:
        at, end = 0, None
        while end is None or at < end:
            if markers and (start + at) % 512 == 0:
                at += 4
                end = None if end is None else end + 4
            if end is None:
                length = int.from_bytes(stream[at : at + 2], "big")
                end = at + (2 + length + 3 & ~3) + 4
            at += 4
        yield stream[:end]
        stream = stream[end:]
        start += end


def converse(pair, capture, markers):
    """Carry everything both ways, and write it down FPDU by FPDU."""
    for _ in range(100):
        streams = pair.left.data_to_send(), pair.right.data_to_send()
        if not any(streams):
            return
        for side, stream in enumerate(streams):
            for each in fpdus_of(stream, markers, capture.carried[side]):
                capture.carry(side, each)
        pair.right.take(streams[0])
        pair.left.take(streams[1])
    raise AssertionError("they never fall silent")


def everything(pair):
    """Post one of every kind that the dissector knows, and at the end something wrong."""
    left, right = pair.left_rnic.region(3000, fill=b"x" * 3000), pair.right_rnic.region(3000)
    aim = {"remote_addr": right.iova, "rkey": right.key}
    for _ in range(4):
        pair.right.receive(right.piece(0, 2000))
    pair.left.post(WR_SEND, [left.piece(0, 2000)])
    pair.left.post(WR_SEND, [left.piece(0, 5)], flags=SEND_SIGNALED | SEND_SOLICITED)
    for flags in (SEND_SIGNALED, SEND_SIGNALED | SEND_SOLICITED):
        lent = pair.right_rnic.region(8)
        pair.left.post(WR_SEND_WITH_INV, [left.piece(0, 3)], flags=flags, invalidate_rkey=lent.key)
    pair.left.post(WR_RDMA_WRITE, [left.piece()], **aim)
    pair.left.post(WR_RDMA_READ, [left.piece()], **aim)
    pair.left.post(WR_ATOMIC_FETCH_AND_ADD, [left.piece(0, 8)], compare_add=1, **aim)
    pair.left.post(WR_ATOMIC_CMP_AND_SWP, [left.piece(0, 8)], compare_add=1, swap=2, **aim)


def dissected(path):
    """What tshark makes of a capture, a text for every frame."""
    words = ["tshark", "-n", "-r", str(path), "-V"]
    for name in NOT_HERE:
        words += ["--disable-protocol", name]
    text = subprocess.run(words, capture_output=True, text=True, timeout=90, check=True).stdout
    return re.split(r"^Frame \d+: ", text, flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("crc", [True, False], ids=["crc", "no crc"])
@pytest.mark.parametrize("markers", [True, False], ids=["markers", "no markers"])
def test_a_capture_is_understood(tmp_path, crc, markers):
    pair = Pair(crc=crc, markers=markers, mulpdu=1000)
    path = tmp_path / "iwarp.pcap"
    capture = Capture(path, FLAG_M * markers | FLAG_C * crc)
    everything(pair)
    converse(pair, capture, markers)
    assert pair.left.outcome == pair.right.outcome == 0
    pair.left.post(WR_RDMA_READ, [pair.left_rnic.region(8).piece()], remote_addr=0, rkey=9)
    converse(pair, capture, markers)
    capture.close()
    frames = dissected(path)[4:]
    text = "".join(frames)
    assert "Malformed" not in text
    assert "does not contain the expected length" not in text
    for frame in frames:
        assert "iWARP Marker Protocol data unit Aligned framing" in frame
        assert "iWARP Direct Data Placement" in frame
        assert "DDP header" in frame
        assert ("Good CRC32" in frame) == crc
        assert "Bad CRC32" not in frame
    for name in ("Write", "Read Request", "Read Response", "Send", "Send with Invalidate"):
        assert f"OpCode: {name} (" in text, name
    for name in ("Send with SE", "Send with SE and Invalidate", "Terminate", "Atomic Request"):
        assert f"OpCode: {name} (" in text, name
    for name in (
        "FetchAdd",
        "CmpSwap",
        "Atomic Response",
        "Remote Protection Error",
        "Invalid STag",
    ):
        assert name in text, name
    assert ("FPDU back pointer" in text) == markers
