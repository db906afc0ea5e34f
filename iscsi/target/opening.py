"""From the settings of a unit to the unit: its backend, how it presents itself, and the thresholds
that the operator wants. Whoever opens one closes its backend.
"""

import contextlib
import errno
from collections.abc import Iterator
from typing import Final

from host.errors import HostError
from iscsi.target.backends import Backend, FileBackend, NullBackend, RamBackend
from iscsi.target.backends.ram import Memory
from iscsi.target.settings import LunSettings
from iscsi.target.thresholds import AVAILABLE, USED, Threshold, warning
from iscsi.target.toml_reader import parse_share
from iscsi.target.units import VENDOR, LogicalUnit
from ppe.errors import OperatorError
from shm.segment import SegmentError

_PRODUCTS: Final = {"ram": "RAM disk", "file": "disk", "null": "null disk"}


def open_backend(memory: Memory, lun: LunSettings) -> Backend:
    """The place of a unit's blocks. Raises OSError that names it, MemoryError, SegmentError."""
    if lun.backend == "ram":
        capacity = lun.max_size or None
        return RamBackend.create(memory, lun.size, capacity=capacity, thin=lun.thin)
    if lun.backend == "null":
        return NullBackend(lun.size)
    return FileBackend(
        lun.path,
        size=lun.size or None,
        cache=lun.cache,
        thin=lun.thin,
        read_only=lun.read_only,
    )


def open_unit(memory: Memory, lun: LunSettings) -> LogicalUnit:
    """A unit over its backend, which the caller closes. Raises what `open_backend` does, and
    ValueError.
    """
    backend = open_backend(memory, lun)
    try:
        unit = LogicalUnit(
            backend,
            block_size=lun.block_size,
            read_only=lun.read_only,
            removable=lun.removable,
            serial=lun.serial or None,
            vendor=lun.vendor or VENDOR,
            product=lun.product or _PRODUCTS[lun.backend],
            reservations_path=lun.reservations or None,
        )
        wanted = thresholds_of(lun, unit)
        if wanted and unit.thresholds is None:
            raise ValueError(f"nobody can tell how much room {lun.shown} takes: it cannot warn")
        if unit.thresholds is not None:
            unit.thresholds.set_defaults(wanted)
        return unit
    except BaseException:
        backend.close()
        raise


def thresholds_of(lun: LunSettings, unit: LogicalUnit) -> list[Threshold]:
    """What the operator wants to be warned of, for a unit of this size."""
    size = unit.backend.size
    return [
        warning(resource, parse_share(text, size), unit.threshold_set)
        for resource, text in ((USED, lun.warn_used), (AVAILABLE, lun.warn_free))
        if text
    ]


def _hint(error: OSError, lun: LunSettings) -> str:
    """What to change about a unit that cannot be opened."""
    if error.errno == errno.ENOENT and error.filename == lun.path and not lun.size:
        return "--size makes a missing file (`size` in a configuration file)"
    return ""


@contextlib.contextmanager
def described(target: str, lun: LunSettings) -> Iterator[None]:
    """Have what goes wrong with a unit say which one it is."""
    try:
        yield
    except OSError as error:
        what = error.strerror or str(error)
        place = f"{error.filename}: " if error.filename else ""
        raise OperatorError(f"{target} LUN {lun.lun}: {place}{what}", _hint(error, lun)) from error
    except (ValueError, MemoryError, SegmentError, HostError) as error:
        raise OperatorError(f"{target} LUN {lun.lun}: {error}") from error
