"""iSCSI initiator and target (RFC 7143). Public names load on first use (PEP 562), so an engine
that imports `iscsi.wire` loads no session or host code.
"""

from importlib import import_module
from typing import Any, Final

import shm as _shm  # noqa: F401 - notes every later import of the project

_HOMES: Final = {
    "AsyncBlockDevice": "iscsi.session.blockdev",
    "AuthError": "iscsi.session.errors",
    "BlockDevice": "iscsi.session.blockdev",
    "CommandTimeout": "iscsi.session.errors",
    "ConnectionLost": "iscsi.session.errors",
    "Context": "iscsi.context",
    "ISCSI_HEADER_DIGEST_CRC32C": "iscsi.context",
    "ISCSI_HEADER_DIGEST_CRC32C_NONE": "iscsi.context",
    "ISCSI_HEADER_DIGEST_NONE": "iscsi.context",
    "ISCSI_HEADER_DIGEST_NONE_CRC32C": "iscsi.context",
    "ISCSI_SESSION_DISCOVERY": "iscsi.context",
    "ISCSI_SESSION_NORMAL": "iscsi.context",
    "NEVER": "iscsi.session.options",
    "Recovery": "iscsi.session.options",
    "SCSIError": "iscsi.session.errors",
    "SCSI_XFER_NONE": "iscsi.context",
    "SCSI_XFER_READ": "iscsi.context",
    "SCSI_XFER_WRITE": "iscsi.context",
    "Task": "iscsi.context",
    "Timeouts": "iscsi.session.options",
    "TransportError": "iscsi.session.errors",
    "URL": "iscsi.context",
    "UnknownOutcome": "iscsi.session.errors",
    "aopen": "iscsi.session.blockdev",
    "discover": "iscsi.session.discovery",
    "open": "iscsi.session.blockdev",
}

__all__ = [  # noqa: PLE0604 - the names above
    *_HOMES,
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'iscsi' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
