"""Where an engine of a given name keeps its files, and which engines there are.

The run directory belongs to one user and nobody else may write there; a link or a foreign
directory in its place is refused, never repaired.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ppe import lockfile
from ppe.errors import EngineNameError, EngineNameTaken, OperatorError, RuntimeDirectoryError
from shm.rendezvous import (
    DEFAULT_NAME,
    DIRECTORY_VARIABLE,
    NAME_FORM,
    SOCKET_SUFFIX,
    SYSTEM_DIRECTORY,
    runtime_directory,
    search_directories,
)

__all__ = [
    "DEFAULT_NAME",
    "DIRECTORY_VARIABLE",
    "NAME_FORM",
    "SOCKET_SUFFIX",
    "SYSTEM_DIRECTORY",
    "EngineFiles",
    "check_name",
    "claim_name",
    "engine_files",
    "ensure_runtime_directory",
    "find_engine",
    "list_engines",
    "runtime_directory",
    "search_directories",
]

LOCK_SUFFIX: Final = ".lock"
SUN_PATH_BYTES: Final = 107  # unix(7): 108 with the closing zero.


@dataclass(frozen=True, slots=True)
class EngineFiles:
    """The files of one engine. The lock is held while it lives and has its pid inside."""

    name: str
    directory: Path

    @property
    def socket(self) -> Path:
        """The control socket."""
        return self.directory / (self.name + SOCKET_SUFFIX)

    @property
    def lock(self) -> Path:
        """The lock that makes the name unique, and the pid file at once."""
        return self.directory / (self.name + LOCK_SUFFIX)

    def pid(self) -> int | None:
        """Return the engine's pid, 0 if it cannot be told, None if none is alive."""
        try:
            return lockfile.holder(self.lock)
        except PermissionError:  # Another user's engine: connecting will tell.
            return 0 if self.socket.exists() else None


def check_name(name: str) -> str:
    """Return `name` if it can name an engine; raise EngineNameError otherwise."""
    if NAME_FORM.fullmatch(name):
        return name
    raise EngineNameError(
        f"{name!r} cannot name an engine",
        "--name takes 1 to 32 of a-z 0-9 _ - and starts with a letter or a digit",
    )


def ensure_runtime_directory() -> Path:
    """Make the run directory if it is missing, check that it can be trusted, and return it."""
    directory = runtime_directory()
    # Clients of a root engine have other uids: they pass through, the socket's mode decides.
    mode = 0o755 if directory == SYSTEM_DIRECTORY else 0o700
    try:
        directory.mkdir(mode=mode)
    except FileExistsError:
        pass
    except OSError as error:
        raise RuntimeDirectoryError(
            f"cannot make the run directory {directory}: {error.strerror}",
            f"name a directory of yours in {DIRECTORY_VARIABLE}",
        ) from error
    check_directory(directory)
    return directory


def check_directory(directory: Path) -> None:
    """Raise RuntimeDirectoryError unless `directory` is a real one that only its owner writes."""
    hint = f"remove it, or name a directory of yours in {DIRECTORY_VARIABLE}"
    facts = directory.lstat()
    if stat.S_ISLNK(facts.st_mode):
        raise RuntimeDirectoryError(f"the run directory {directory} is a symbolic link", hint)
    if not stat.S_ISDIR(facts.st_mode):
        raise RuntimeDirectoryError(f"{directory} is not a directory", hint)
    if facts.st_uid != os.geteuid():
        raise RuntimeDirectoryError(
            f"the run directory {directory} belongs to uid {facts.st_uid}", hint
        )
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RuntimeDirectoryError(
            f"others may write in the run directory {directory} "
            f"(mode {stat.S_IMODE(facts.st_mode):o})",
            f"chmod go-w {directory}",
        )


def engine_files(name: str, directory: Path | None = None) -> EngineFiles:
    """Return the files of engine `name`; raises when the socket's path is too long for unix(7)."""
    files = EngineFiles(check_name(name), directory or runtime_directory())
    length = len(os.fsencode(files.socket))
    if length > SUN_PATH_BYTES:
        raise RuntimeDirectoryError(
            f"the control socket's path {files.socket} has {length} bytes, "
            f"{SUN_PATH_BYTES} are possible",
            f"use a shorter --name, or a shorter directory in {DIRECTORY_VARIABLE}",
        )
    return files


def claim_name(name: str) -> tuple[EngineFiles, lockfile.HeldLock]:
    """Become the only engine called `name` of this user, and clear away a dead one's socket.

    Raises EngineNameTaken with the pid when it lives. Release the lock after the socket is gone.
    """
    files = engine_files(name, ensure_runtime_directory())
    try:
        # Closed to others: whoever can open a file can also lock it, and so keep a name for ever.
        lock = lockfile.acquire(files.lock, mode=0o600)
    except lockfile.LockHeld as held:
        raise EngineNameTaken(name, held.pid) from None
    except OSError as error:
        raise OperatorError(
            f"cannot lock {files.lock}: {error.strerror}", f"remove {files.lock}"
        ) from error
    # Only now: with the lock held, whoever left this socket is dead.
    try:
        files.socket.unlink(missing_ok=True)
    except OSError as error:
        lock.release()
        raise OperatorError(
            f"cannot remove the dead engine's socket {files.socket}: {error.strerror}",
            f"remove {files.socket}",
        ) from error
    return files, lock


def find_engine(name: str) -> EngineFiles | None:
    """Return the live engine `name` of this user, or else of the system; None if there is none."""
    for directory in search_directories():
        files = engine_files(name, directory)
        if files.pid() is not None:
            return files
    return None


def list_engines() -> list[EngineFiles]:
    """Return the live engines this user may talk to, sorted by name."""
    found: dict[str, EngineFiles] = {}
    for directory in search_directories():
        if not directory.is_dir():
            continue
        for lock in directory.glob("*" + LOCK_SUFFIX):
            name = lock.name.removesuffix(LOCK_SUFFIX)
            if not NAME_FORM.fullmatch(name) or name in found:
                continue
            files = EngineFiles(name, directory)
            if files.pid() is not None:
                found[name] = files
    return [found[name] for name in sorted(found)]
