"""One software RNIC against a peer made by hand: memory of every kind, and a stream that says what
the test wants it to say.
"""

from ppe.cycle.rnic.iwarp.core import CODE_MASK, TERMINATE, VIOLATION, QpSpec
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE_ATOMIC,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_RDMA_READ,
)
from tests.ppe.rnic import core_door as door
from tests.ppe.rnic.fpdus import fpdu, split, terminate_of
from tests.ppe.rnic.joined import PD, QueuePair, Rnic

PATTERN = bytes(range(256))


class Victim(QueuePair):
    """Regions of 256 bytes by what they permit, receive buffers of 100 bytes, CRC on or off."""

    def __init__(self, *, active=True, receives=2, secret=None, **options):
        rnic = Rnic(secret=secret)
        options.setdefault("extensions", True)
        super().__init__(rnic, QpSpec(active=active, **options), number=3)
        everything = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE | ACCESS_REMOTE_READ
        kinds = {
            "lent": everything | ACCESS_REMOTE_ATOMIC,
            "readable": ACCESS_REMOTE_READ,
            "writable": ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE,
            "private": ACCESS_LOCAL_WRITE,
        }
        self.regions = {
            name: rnic.region(256, access, fill=PATTERN) for name, access in kinds.items()
        }
        self.regions["foreign"] = rnic.region(256, everything, pd=PD + 1, fill=PATTERN)
        self.regions["ended"] = rnic.region(256, everything, fill=PATTERN)
        rnic.memory(door.INVALIDATE, self.regions["ended"].key, PD)
        self.regions["high"] = rnic.region(256, everything, iova=(1 << 64) - 256, fill=PATTERN)
        for name, region in self.regions.items():
            setattr(self, name, region)
        self.buffers = rnic.region(max(1000, 100 * receives))
        self.receives = [
            self.receive(self.buffers.piece(100 * which, 100)) for which in range(receives)
        ]

    def read(self, size=64):
        """Ask the peer for data: the sink's STag and TO."""
        aim = {"remote_addr": 0, "rkey": 1}
        self.post(WR_RDMA_READ, [self.private.piece(16, size)], **aim)
        self.data_to_send()
        return self.private.key, self.private.iova + 16

    def add(self):
        """Ask the peer for an atomic: its request id."""
        aim = {"remote_addr": 0, "rkey": 1}
        self.post(WR_ATOMIC_FETCH_AND_ADD, [self.private.piece(16, 8)], **aim)
        request = self.data_to_send()
        return int.from_bytes(request[24:28], "big")

    def hear(self, *ulpdus, direct=True):
        """Give it segments, each as an FPDU: 0 or what `take` said."""
        for each in ulpdus:
            self.take(fpdu(each, crc=self.spec.crc), direct=direct)
        return self.outcome

    def reason(self):
        """Why it ended the stream: what its Terminate says, which is all that it still says."""
        assert self.outcome & VIOLATION, f"{self.outcome:#x}"
        assert self.state == TERMINATE
        said = self.data_to_send()
        code, _, _ = terminate_of(said)
        assert len(split(said)) == 1
        assert code == self.outcome & CODE_MASK
        assert self.ask(door.HAS_SENT_ALL)
        return code

    def untouched(self, *but):
        """Whether every region but those named is as it was."""
        return all(
            region.bytes() == PATTERN for name, region in self.regions.items() if name not in but
        )
