"""What a logical unit's blocks lie in: memory, a file, or nowhere. A backend knows bytes and
offsets, no SCSI; what fails on the medium is an OSError.
"""

from iscsi.target.backends.base import Backend, Usage, check_range
from iscsi.target.backends.file import CACHE_MODES, FileBackend
from iscsi.target.backends.medium import Medium
from iscsi.target.backends.null import NullBackend
from iscsi.target.backends.ram import RamBackend

__all__ = [
    "CACHE_MODES",
    "Backend",
    "FileBackend",
    "Medium",
    "NullBackend",
    "RamBackend",
    "Usage",
    "check_range",
]
