"""Exclusive claims that the kernel drops when their holder dies: flock on a file that names it.

flock and not POSIX record locks: those vanish when the process closes any other descriptor of
the file, so merely asking for the holder would release one's own claim. A file may be removed
while it is locked, so whoever gets the lock checks that the name still means the file it locked.
"""

import errno
import fcntl
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

# Someone asking for the holder takes the lock for microseconds, and a new holder needs as long
# to write its pid: a claim that fails beside no living pid is tried again for this long.
SETTLE_S: Final = 0.1
RETRY_S: Final = 0.005
RECORD_BYTES: Final = 20  # A pid, padded, so that one write replaces whatever stood there.


class LockHeld(Exception):
    """Someone else holds the lock; `pid` is 0 when the holder cannot be told."""

    def __init__(self, path: Path, pid: int) -> None:
        super().__init__(f"{path} is locked by pid {pid}")
        self.path = path
        self.pid = pid


@dataclass
class HeldLock:
    """A lock this process holds until `release`, the end of the `with` block, or its death."""

    path: Path
    descriptor: int
    owner_pid: int = field(default_factory=os.getpid)

    def release(self) -> None:
        """Give the claim back and remove its file; a second call does nothing."""
        if self.descriptor < 0:
            return
        # A forked child shares the lock: it may close its copy, not undo its parent's claim.
        if os.getpid() == self.owner_pid:
            try:
                self.path.unlink()
            except OSError:  # Another user's file in a sticky directory: empty it instead.
                os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)
        self.descriptor = -1

    def __enter__(self) -> "HeldLock":
        """Return the lock itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self.release()


def acquire(path: Path, mode: int = 0o600) -> HeldLock:
    """Lock `path`, made with `mode` if missing, and write this pid into it; never follow a link.

    Raises LockHeld at once when a live process has it, OSError when the file cannot be trusted.
    """
    deadline = time.monotonic() + SETTLE_S
    while True:
        descriptor = _open(path, mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _recorded_pid(descriptor)
            os.close(descriptor)
            if _is_alive(pid) or time.monotonic() >= deadline:
                raise LockHeld(path, pid) from None
            time.sleep(RETRY_S)
            continue
        if _still_named(path, descriptor):
            os.pwrite(descriptor, f"{os.getpid():<{RECORD_BYTES - 1}}\n".encode(), 0)
            return HeldLock(path, descriptor)
        os.close(descriptor)  # Removed by its last holder between our open and our lock.


def holder(path: Path) -> int | None:
    """Return the pid that holds `path`, 0 if it cannot be told, None if nobody holds it.

    Raises PermissionError when this user may not look.
    """
    deadline = time.monotonic() + SETTLE_S
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except PermissionError:
            raise
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _recorded_pid(descriptor)
            if _is_alive(pid) or time.monotonic() >= deadline:
                return pid
        else:
            return None
        finally:
            os.close(descriptor)
        time.sleep(RETRY_S)


def _open(path: Path, mode: int) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        try:
            # Not O_CREAT at first: in a sticky directory the kernel refuses that flag on another
            # user's file (fs.protected_regular).
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            try:
                descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
            except FileExistsError:
                continue
            os.fchmod(descriptor, mode)  # The umask must not close it to the other users.
        break
    facts = os.fstat(descriptor)
    # A second link would let somebody aim our write at a file of ours.
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EPERM, "not a plain file of its own", str(path))
    return descriptor


def _still_named(path: Path, descriptor: int) -> bool:
    ours = os.fstat(descriptor)
    try:
        named = path.lstat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)


def _recorded_pid(descriptor: int) -> int:
    text = os.pread(descriptor, RECORD_BYTES, 0).strip()
    return int(text) if text.isdigit() and len(text) < 10 else 0


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
