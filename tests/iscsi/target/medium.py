"""Units in plain memory, or in files, for tests of the commands on the medium, and short words for
their CDBs and answers.
"""

import numpy as np

from host.memory import Buffer
from iscsi.target import scsi
from iscsi.target.backends import RamBackend
from iscsi.target.nexus import Nexus
from iscsi.target.units import LogicalUnit, Target
from iscsi.wire import bhs
from iscsi.wire.sense import ScsiStatus

NAME = "iqn.2026-01.org.example:t"
BLOCK = 512
BLOCKS = 4096
GRAIN = 8  # blocks of one piece of a thin unit


def ram(blocks=BLOCKS, *, thin=True, block_size=BLOCK, **options):
    """A unit in this process' memory."""
    backend = RamBackend(Buffer(np.zeros(blocks * block_size, np.uint8), None), thin=thin)
    return LogicalUnit(backend, block_size=block_size, **options)


class Faulty:
    """A backend that fails from some offset on: with `code` when it is read or written there."""

    def __init__(
        self, backend, code, offset=0, *, on=("read", "write", "discard", "zero", "flush")
    ):
        self._backend, self._code, self._offset, self._on = backend, code, offset, on
        self.calls = []

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def _reach(self, name, end):
        self.calls.append(name)
        if name in self._on and end > self._offset:
            raise OSError(self._code, "as asked for")

    def read(self, offset, length):
        self._reach("read", offset + length)
        return self._backend.read(offset, length)

    def write(self, offset, data, *, durable=False):
        self._reach("write durably" if durable else "write", offset + memoryview(data).nbytes)
        return self._backend.write(offset, data, durable=durable)

    def discard(self, offset, length):
        self._reach("discard", offset + length)
        return self._backend.discard(offset, length)

    def zero(self, offset, length):
        self._reach("zero", offset + length)
        return self._backend.zero(offset, length)

    def flush(self):
        self._reach("flush", self._offset + 1)
        return self._backend.flush()


class Bench:
    """A target with units, and a nexus that sends commands to them."""

    def __init__(self, *units):
        self.units = units or (ram(),)
        self.target = Target(NAME, dict(enumerate(self.units)))
        self.nexus = Nexus("iqn.2026-01.org.example:i", 1)
        self.nexus.attach(self.target, None)

    def send(self, cdb, data=b"", *, lun=0, nexus=None, expected=None, abandoned=None):
        """The answer to a CDB with data written or, with `expected` alone, read."""
        expected = len(data) if expected is None else expected
        flags = bhs.FLAG_WRITE if data else bhs.FLAG_READ
        command = scsi.Command(
            bytes(cdb),
            self.target,
            lun,
            nexus or self.nexus,
            data,
            expected,
            flags,
            abandoned=abandoned or (lambda: False),
        )
        return scsi.execute(command)

    def fill(self, first, data, lun=0):
        """Put bytes on the medium behind the commands' back."""
        unit = self.units[lun]
        unit.backend.write(first * unit.block_size, data)

    def blocks(self, first, count, lun=0):
        """The bytes on the medium."""
        unit = self.units[lun]
        return bytes(unit.backend.read(first * unit.block_size, count * unit.block_size))


def cdb_10(operation, lba=0, count=0, option=0):
    return bytes((operation, option, *lba.to_bytes(4, "big"), 0, *count.to_bytes(2, "big"), 0))


def cdb_12(operation, lba=0, count=0, option=0):
    return bytes((operation, option, *lba.to_bytes(4, "big"), *count.to_bytes(4, "big"), 0, 0))


def cdb_16(operation, lba=0, count=0, option=0):
    return bytes((operation, option, *lba.to_bytes(8, "big"), *count.to_bytes(4, "big"), 0, 0))


def is_good(answer):
    return answer.status == ScsiStatus.GOOD and answer.sense is None


def fault(answer):
    """Key and code of the sense of an answer that must have one."""
    assert answer.status == ScsiStatus.CHECK_CONDITION, answer
    assert not answer.data
    return answer.sense.key, answer.sense.code


def pattern(blocks, seed=1, block_size=BLOCK):
    """Random bytes, the same for the same seed."""
    random = np.random.default_rng(seed)
    return random.integers(1, 256, blocks * block_size, np.uint8).tobytes()
