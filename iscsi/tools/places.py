"""Where a copy comes from and goes to: LUNs and files that tell which parts of them hold data, so
that what holds none is neither moved nor written. Offsets and lengths are bytes.
"""

import errno
import os
import stat
from collections.abc import Iterator
from typing import Any, Final, Protocol

from iscsi.session.blockdev import BlockDevice
from iscsi.wire import scsi
from iscsi.wire.errors import ScsiError
from iscsi.wire.sense import SenseKey
from ppe.errors import OperatorError

_DEALLOCATED: Final = 1  # GET LBA STATUS; an anchored block has no data either, but says so rarely
_READS_ZEROS: Final = 0x40  # LBPRZ of READ CAPACITY(16), byte 14
Extent = tuple[int, int, bool]  # offset, length, whether it holds data


class Place(Protocol):
    """One end of a copy."""

    name: str
    size: int
    block_size: int

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The range in pieces, in order; those without data read as zeros."""

    def read(self, offset: int, into: Any) -> None:
        """Fill an array of whole blocks."""

    def write(self, offset: int, data: Any) -> None:
        """Write an array of whole blocks."""

    def clear(self, offset: int, length: int) -> None:
        """Have a range read as zeros, without room of its own where that is possible."""

    def flush(self) -> None:
        """Have everything reach the medium."""


def reads_zeros(unit: BlockDevice) -> bool:
    """Whether unmapped blocks read as zeros (SBC-3 §5.16.2): only then they need not be read."""
    if not (unit.core.capacity and unit.core.capacity.thin):
        return False
    data = unit.session.command(scsi.read_capacity_16(), length=32).data
    return len(data) > 14 and bool(data[14] & _READS_ZEROS)


class LunPlace:
    """A LUN. `sparse` False: everything is taken for data."""

    def __init__(self, unit: BlockDevice, *, sparse: bool = True) -> None:
        self.unit, self.name = unit, unit.url
        self.size, self.block_size = unit.size, unit.block_size
        self._sparse = sparse and reads_zeros(unit)
        self._writes_same = True

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What GET LBA STATUS says (SBC-3 §5.4); all of it holds data where that is not known."""
        block, end = self.block_size, offset + length
        while offset < end and self._sparse:
            try:
                found = self.unit.get_lba_status(offset // block)
            except ScsiError as error:
                if not is_unknown_command(error):
                    raise
                self._sparse = False
                break
            before = offset
            for item in found:
                upto = min((item.lba + item.blocks) * block, end)
                if item.lba * block > offset or upto <= offset:
                    continue
                yield offset, upto - offset, item.state != _DEALLOCATED
                offset = upto
            if offset == before:
                self._sparse = False  # An answer that leads nowhere.
        if offset < end:
            yield offset, end - offset, True

    def read(self, offset: int, into: Any) -> None:
        """READ commands, several at once; past the end of the unit it is zeros."""
        length = min(len(into), self.size - offset)
        into[length:] = 0
        self.unit.readinto(offset // self.block_size, into[:length])

    def write(self, offset: int, data: Any) -> None:
        """WRITE commands, several at once."""
        self.unit.write(offset // self.block_size, data)

    def clear(self, offset: int, length: int) -> None:
        """WRITE SAME of zeros, which may unmap them; never UNMAP alone, which is only a hint."""
        block = self.block_size
        if self._writes_same:
            thin = bool(self.unit.core.capacity and self.unit.core.capacity.thin)
            try:
                self.unit.write_same(offset // block, length // block, unmap=thin)
                return
            except ScsiError as error:
                if not is_unknown_command(error):
                    raise
                self._writes_same = False
        step = max((1 << 20) // block, 1) * block
        zeros = bytes(min(step, length))
        for at in range(offset, offset + length, step):
            self.unit.write(at // block, zeros[: min(step, offset + length - at)])

    def flush(self) -> None:
        """SYNCHRONIZE CACHE."""
        self.unit.flush()


def is_unknown_command(error: ScsiError) -> bool:
    """Whether a unit refused a command, or a field of it, that it does not have."""
    return error.sense is not None and error.sense.key == SenseKey.ILLEGAL_REQUEST


class FilePlace:
    """A regular file or a block device. `size`: make the file anew, with so many bytes."""

    block_size = 1

    def __init__(self, path: str, *, size: int | None = None, sparse: bool = True) -> None:
        self.name, self._sparse = path, sparse
        flags = os.O_RDONLY if size is None else os.O_RDWR | os.O_CREAT
        self._descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
        try:
            self._is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
            if size is not None and self._is_file:
                os.ftruncate(self._descriptor, 0)
                os.ftruncate(self._descriptor, size)
            self.size = os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as error:
            os.close(self._descriptor)
            if error.errno != errno.ESPIPE:
                raise
            raise OperatorError(
                f"{path} is a pipe: cp has to know its size", "use ppe iscsi read or write"
            ) from error

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What lseek says of holes (SEEK_DATA, SEEK_HOLE)."""
        end = offset + length
        while offset < end and self._sparse:
            try:
                data = os.lseek(self._descriptor, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # which says that there is none any more
                    break
                data = end
            data = min(data, end)
            if data > offset:
                yield offset, data - offset, False
            if data == end:
                return
            offset = min(os.lseek(self._descriptor, data, os.SEEK_HOLE), end)
            yield data, offset - data, True
        if offset < end:
            yield offset, end - offset, True

    def read(self, offset: int, into: Any) -> None:
        """Fill `into`; past the end of the file it is zeros."""
        view = memoryview(into)
        while view:
            count = os.preadv(self._descriptor, [view], offset)
            if count == 0:
                view[:] = bytes(len(view))
                return
            view, offset = view[count:], offset + count

    def write(self, offset: int, data: Any) -> None:
        """Write all of it."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self._descriptor, view, offset)
            view, offset = view[count:], offset + count

    def clear(self, offset: int, length: int) -> None:
        """Nothing to do in a file that was made anew: it is a hole."""
        if self._is_file:
            return
        zeros = bytes(min(length, 1 << 20))
        for at in range(offset, offset + length, len(zeros)):
            self.write(at, zeros[: min(len(zeros), offset + length - at)])

    def flush(self) -> None:
        """fsync."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)
