"""What an initiator of the simulator asks for, and what the model has to make of each answer.
One rule: an operation knows the contents it leaves before it is sent for the first time.
"""

import numpy as np

from iscsi.session import cdb as cdbs
from iscsi.session.replay import extent_of, is_replayable
from iscsi.wire import bhs, scsi
from iscsi.wire.sense import ScsiStatus, SenseKey, decode_sense
from shm.view import address_of
from tests.robustness.medium_model import BLOCK, ZEROS, Wrong

READ, WRITE = bhs.FLAG_READ | bhs.TaskAttribute.SIMPLE, bhs.FLAG_WRITE | bhs.TaskAttribute.SIMPLE
CRC_ERROR = SenseKey.ABORTED_COMMAND  # what a damaged PDU ends a command with
AGAIN = (ScsiStatus.BUSY, ScsiStatus.TASK_SET_FULL)


class Operation:
    """One command. `contents` is what its blocks hold once it was done."""

    def __init__(self, number, medium, lba=0, blocks=0):
        self.number, self.medium = number, medium
        self.lba, self.blocks = lba, blocks
        self.cdb, self.flags, self.buffer = bytes(16), 0, None
        self.contents = ()
        self.turn = None
        self.begun = False
        self.itt = self.sent_ns = None
        self.cmd_sn = 0

    def __str__(self):
        return f"{type(self).__name__} {self.number} [{self.lba}+{self.blocks}]"

    def give(self, data):
        """Memory to be written from or read into."""
        self.buffer = np.frombuffer(bytearray(data), np.uint8)

    @property
    def length(self):
        return 0 if self.buffer is None else self.buffer.size

    @property
    def address(self):
        return 0 if self.buffer is None else address_of(self.buffer)

    def extent(self):
        """Blocks that no other change may touch meanwhile."""
        return extent_of(0, self.cdb)

    def begin(self):
        """Called once, just before it is sent for the first time."""
        self.medium.begin_write(self.lba, self.contents)

    @property
    def is_replayable(self):
        return is_replayable(self.cdb)

    def end(self, done):
        """It has an answer. True if it is to be sent again, because it was not done."""
        if done.status == ScsiStatus.GOOD:
            self.good(done)
            return False
        if done.status in AGAIN:
            return True
        sense = decode_sense(done.sense) if done.status == ScsiStatus.CHECK_CONDITION else None
        if sense is not None and sense.key in (SenseKey.UNIT_ATTENTION, CRC_ERROR):
            return True
        return self.bad(done, sense)

    def good(self, done):
        """It was done."""
        if done.residual:
            raise Wrong(f"{self} ended with residual {done.residual}")
        self.medium.end_write(self.lba, self.contents)

    def bad(self, done, sense):
        """It ended with another status."""
        raise Wrong(f"{self} ended with status {done.status:#x}: {sense}")

    def give_up(self):
        """Nobody knows whether it was done."""

    def pattern(self, random):
        """Contents that no other operation has."""
        stamp = self.number.to_bytes(8, "big")
        return [
            stamp + at.to_bytes(8, "big") + random.randbytes(16) * 31 for at in range(self.blocks)
        ]


class Read(Operation):
    """READ, checked block by block."""

    def __init__(self, random, *place):
        super().__init__(*place)
        build = random.choice((scsi.read_10, scsi.read_16))
        self.cdb, self.flags = build(self.lba, self.blocks), READ
        self.give(bytes(BLOCK * self.blocks))

    def extent(self):
        return None

    def begin(self):
        self.medium.begin_read(self, self.lba, self.blocks)

    def good(self, done):
        if done.received != self.length or done.residual:
            raise Wrong(f"{self} brought {done.received} of {self.length} bytes")
        self.medium.end_read(self, self.buffer.tobytes())

    def give_up(self):
        self.medium.end_read(self)


class Write(Operation):
    """WRITE of both forms."""

    def __init__(self, random, *place):
        super().__init__(*place)
        build = random.choice((scsi.write_10, scsi.write_16))
        self.contents = self.pattern(random)
        self.cdb, self.flags = build(self.lba, self.blocks), WRITE
        self.give(b"".join(self.contents))


class WriteAtomic(Write):
    """WRITE ATOMIC(16) of whole grains."""

    def __init__(self, random, number, medium, lba, blocks):
        super().__init__(random, number, medium, lba & ~1, (blocks + 1) & ~1)
        self.cdb = cdbs.write_atomic(self.lba, self.blocks)


class WriteSame(Operation):
    """WRITE SAME(16) of one block everywhere."""

    def __init__(self, random, *place):
        super().__init__(*place)
        self.contents = self.pattern(random)[:1] * self.blocks
        self.cdb, self.flags = cdbs.write_same(self.lba, self.blocks), WRITE
        self.give(self.contents[0])


class Unmap(Operation):
    """UNMAP, after which zeros are read."""

    def __init__(self, random, *place):
        super().__init__(*place)
        self.cdb, data = cdbs.unmap([(self.lba, self.blocks)])
        self.cdb, self.flags = self.cdb.ljust(16, b"\0"), WRITE
        self.contents = [ZEROS] * self.blocks
        self.give(data)

    def extent(self):
        return extent_of(0, self.cdb, self.buffer.tobytes())


class Compare(Operation):
    """Base of commands whose answer depends on what is there; `right` if it is to match."""

    def __init__(self, random, *place):
        super().__init__(*place)
        self.flags = WRITE
        self.random, self.right = random, random.random() < 0.7
        self.replaces = ()

    def expectation(self):
        """What to compare with: what is there, or something else."""
        known = self.medium.known(self.lba, self.blocks)
        if known is None:
            return None
        if self.right:
            return known
        at = self.random.randrange(len(known))
        return known[:at] + bytes((known[at] ^ 0x40,)) + known[at + 1 :]

    def bad(self, done, sense):
        if sense is None or sense.key != SenseKey.MISCOMPARE or self.right:
            return super().bad(done, sense)
        return False

    def good(self, done):
        if not self.right:
            raise Wrong(f"{self} found equal what differs")
        super().good(done)


class CompareAndWrite(Compare):
    """COMPARE AND WRITE: never sent twice."""

    def __init__(self, random, *place):
        super().__init__(random, *place)
        self.blocks = min(self.blocks, 16)
        self.replaces = self.pattern(random)
        self.cdb = cdbs.compare_and_write(self.lba, self.blocks)

    def begin(self):
        expected = self.expectation()
        if expected is None:  # nobody knows what is there: write it instead
            self.cdb, self.right = scsi.write_16(self.lba, self.blocks), True
            self.give(b"".join(self.replaces))
        else:
            self.give(expected + b"".join(self.replaces))
        if self.right:
            self.contents = self.replaces
        super().begin()


class Verify(Compare):
    """VERIFY(16) with BYTCHK."""

    def extent(self):
        return extent_of(0, scsi.write_16(self.lba, self.blocks))

    def begin(self):
        expected = self.expectation()
        self.cdb = cdbs.verify(self.lba, self.blocks, compare=expected is not None)
        if expected is None:
            self.flags, self.right = 0, True
        else:
            self.give(expected)


class Flush(Operation):
    """SYNCHRONIZE CACHE, or TEST UNIT READY."""

    def __init__(self, random, *place):
        super().__init__(*place)
        self.cdb = random.choice(
            (scsi.test_unit_ready(), cdbs.synchronize_cache(0, 0).ljust(16, b"\0"))
        )
        self.lba = self.blocks = 0


KINDS = (Read, Write, WriteAtomic, WriteSame, Unmap, CompareAndWrite, Verify, Flush)
WEIGHTS = (30, 30, 5, 8, 8, 8, 8, 3)
