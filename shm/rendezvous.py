"""Where engines and clients find each other: engine names, run directories, control sockets.

Only naming: nothing is created or trusted here. The engine's side of it is `ppe.paths`.
"""

import os
import re
from pathlib import Path
from typing import Final

DEFAULT_NAME: Final = "default"
DIRECTORY_VARIABLE: Final = "PPE_RUNTIME_DIR"
SYSTEM_DIRECTORY: Final = Path("/run/ppe")
NAME_FORM: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
SOCKET_SUFFIX: Final = ".sock"


def runtime_directory() -> Path:
    """Return where this user's engines keep their files; touches nothing.

    $PPE_RUNTIME_DIR, else /run/ppe for root, else $XDG_RUNTIME_DIR/ppe, else /tmp/ppe-<uid>.
    """
    named = os.environ.get(DIRECTORY_VARIABLE)
    if named:
        return Path(named).absolute()
    if os.geteuid() == 0:
        return SYSTEM_DIRECTORY
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session:
        return Path(session) / "ppe"
    return Path(f"/tmp/ppe-{os.geteuid()}")


def search_directories() -> list[Path]:
    """Return where a client looks for engines: its own run directory, then the system's.

    A directory named in $PPE_RUNTIME_DIR is the only one.
    """
    own = runtime_directory()
    if os.environ.get(DIRECTORY_VARIABLE) or own == SYSTEM_DIRECTORY:
        return [own]
    return [own, SYSTEM_DIRECTORY]


def socket_candidates(name: str) -> list[Path]:
    """Every place where the control socket of engine `name` may be, the likeliest first."""
    return [directory / (name + SOCKET_SUFFIX) for directory in search_directories()]
