"""One engine per CPU on the whole machine: a lock file per CPU that dies with its holder.

Root and every user must meet in one directory, so it is open to all and sticky; nothing in it is
trusted beyond the lock itself and one number, the holder's pid. Containers with their own
file systems do not see each other's claims; there the cpuset keeps engines apart.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ppe import lockfile
from ppe.errors import CpuTaken, OperatorError

# /run/lock is open to everyone on Debian and to root alone elsewhere: then users meet in /tmp.
DIRECTORIES: Final = (Path("/run/lock/ppe"), Path("/tmp/ppe-cpu-locks"))
DIRECTORY_VARIABLE: Final = "PPE_CPU_LOCK_DIR"

CpuClaim = lockfile.HeldLock


def claim(cpu: int) -> CpuClaim:
    """Take `cpu` for this process until `release()` or death.

    Raises CpuTaken with the holder's pid, OperatorError when no lock directory can be used.
    """
    refusals: list[str] = []
    for directory in _directories():
        try:
            _prepare(directory)
            held = lockfile.acquire(_file(directory, cpu), mode=0o666)
        except lockfile.LockHeld as taken:
            raise CpuTaken(cpu, taken.pid) from None
        except OSError as error:
            refusals.append(f"{directory}: {error.strerror}")
            continue
        # Someone who cannot use this directory claims in the other. Both of us lock first and
        # look second, so at least one sees the other.
        other = _holder_elsewhere(cpu, directory)
        if other is not None:
            held.release()
            raise CpuTaken(cpu, other)
        return held
    raise OperatorError(
        f"no directory for the CPU locks ({'; '.join(refusals)})",
        f"make one writable (mode 1777), or name one in {DIRECTORY_VARIABLE}",
    )


def claim_all(cpus: Iterable[int], force: bool = False) -> tuple[list[CpuClaim], list[str]]:
    """Claim every CPU or none; return the claims and, under `force`, a warning per shared CPU."""
    claims: list[CpuClaim] = []
    warnings: list[str] = []
    for cpu in cpus:
        try:
            claims.append(claim(cpu))
        except CpuTaken as taken:
            if not force:
                release_all(claims)
                raise
            warnings.append(f"{taken.message}; both run there because of --force")
        except BaseException:
            release_all(claims)
            raise
    return claims, warnings


def release_all(claims: Iterable[CpuClaim]) -> None:
    """Release every claim."""
    for held in claims:
        held.release()


def holders(cpus: Iterable[int]) -> dict[int, int]:
    """Return `{cpu: pid}` for the CPUs that engines hold now; pid 0 when it cannot be told."""
    found: dict[int, int] = {}
    for cpu in cpus:
        for directory in _directories():
            pid = _holder(directory, cpu)
            if pid is not None:
                found[cpu] = pid
                break
    return found


def _directories() -> tuple[Path, ...]:
    named = os.environ.get(DIRECTORY_VARIABLE)
    return (Path(named),) if named else DIRECTORIES


def _file(directory: Path, cpu: int) -> Path:
    return directory / f"cpu-{cpu:04d}.lock"


def _holder(directory: Path, cpu: int) -> int | None:
    try:
        return lockfile.holder(_file(directory, cpu))
    except PermissionError:  # Not a file of ours, which are open to all: no claim.
        return None


def _holder_elsewhere(cpu: int, directory: Path) -> int | None:
    for other in _directories():
        if other != directory:
            pid = _holder(other, cpu)
            if pid is not None:
                return pid
    return None


def _prepare(directory: Path) -> None:
    try:
        directory.mkdir()
    except FileExistsError:
        pass
    else:
        directory.chmod(0o1777)  # The umask would have closed it to the other users.
    mode = directory.lstat().st_mode
    if not stat.S_ISDIR(mode):  # lstat: a symbolic link is refused here too.
        raise NotADirectoryError(0, "not a directory", str(directory))
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise PermissionError(0, "open to everyone without the sticky bit", str(directory))
