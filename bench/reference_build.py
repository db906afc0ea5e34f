"""Build the C and C++ programs that the benchmarks compare with, and run them.

They are compiled on the machine that measures, at the moment they are first wanted. The one rule:
what cannot be built or run is `ReferenceMissing` with its reason, never a number.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

SOURCES: Final = Path(__file__).parent / "reference"
BUILD_TIMEOUT_S: Final = 120
# Every program ends by itself `seconds` + 10 after it started (reference.h).
RUN_GRACE_S: Final = 20
SECONDS_USUAL: Final = 10
FLAGS: Final = ("-O3", "-march=native", "-pthread", "-Wall", "-Wextra")
# By suffix: the environment's choice, what else to look for, the language.
COMPILERS: Final = {
    ".c": ("CC", ("gcc", "cc", "clang"), "-std=c11"),
    ".cpp": ("CXX", ("g++", "c++", "clang++"), "-std=c++17"),
}


class ReferenceMissing(Exception):
    """A reference cannot be had on this machine. The message is the reason to report."""


def names() -> list[str]:
    """Name every reference program there is a source for."""
    return sorted(path.stem for path in SOURCES.iterdir() if path.suffix in COMPILERS)


def build(name: str) -> Path:
    """Return the executable of reference `name`, compiled now unless it is in the cache.

    Raises ReferenceMissing when there is no such source, no compiler, or it does not compile.
    """
    source = _source(name)
    compiler = _compiler(source.suffix)
    language = COMPILERS[source.suffix][2]
    command = [*compiler, *FLAGS, language]
    target = cache_directory() / f"{name}-{_digest(source, command)}"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _compile(source, command, target)
    except OSError as error:
        raise ReferenceMissing(f"cannot write {target.parent}: {error.strerror}") from error
    return target


def run(name: str, **options: int) -> dict[str, Any]:
    """Run reference `name` with `key=value` options and return the object it prints.

    `a` and `b` are the cores of its two sides (-1: not pinned), `seconds` its limit. Raises
    ReferenceMissing when it cannot be built, fails, or says nothing in time.
    """
    command = command_line(name, **options)
    limit_s = options.get("seconds", SECONDS_USUAL) + RUN_GRACE_S
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise ReferenceMissing(f"{name} said nothing within {limit_s} s") from error
    except OSError as error:
        raise ReferenceMissing(f"{name} does not start: {error.strerror}") from error
    if done.returncode != 0:
        reason = done.stderr.strip() or f"exit status {done.returncode}"
        raise ReferenceMissing(f"{name} failed: {reason}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def command_line(name: str, **options: int) -> list[str]:
    """Build reference `name` and return the argv that runs it with `options`."""
    return [str(build(name)), *(f"{key}={value}" for key, value in options.items())]


def cache_directory() -> Path:
    """Say where built references are kept: XDG_CACHE_HOME/ppe/reference."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ppe" / "reference"


def _source(name: str) -> Path:
    for suffix in COMPILERS:
        source = SOURCES / f"{name}{suffix}"
        if source.is_file():
            return source
    raise ReferenceMissing(f"there is no reference program {name}; there are {', '.join(names())}")


def _compiler(suffix: str) -> list[str]:
    variable, candidates, _ = COMPILERS[suffix]
    chosen = os.environ.get(variable, "").split()
    if chosen:
        if shutil.which(chosen[0]) is None:
            raise ReferenceMissing(f"{variable}={chosen[0]} is not a program")
        return chosen
    for candidate in candidates:
        if shutil.which(candidate):
            return [candidate]
    raise ReferenceMissing(f"no compiler: none of {', '.join(candidates)} is installed")


def _digest(source: Path, command: Sequence[str]) -> str:
    """Hash whatever the executable depends on, the processor included (-march=native)."""
    digest = hashlib.sha256()
    for path in (source, *sorted(SOURCES.glob("*.h"))):
        digest.update(path.read_bytes())
    digest.update("\0".join((*command, _compiler_version(command[0]), _processor())).encode())
    return digest.hexdigest()[:16]


@cache
def _compiler_version(compiler: str) -> str:
    done = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def _compile(source: Path, command: Sequence[str], target: Path) -> None:
    """Compile beside the target and rename: another process sees all of it or nothing."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        partial = Path(folder) / target.name
        try:
            done = subprocess.run(
                [*command, str(source), "-o", str(partial)],
                capture_output=True,
                text=True,
                timeout=BUILD_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ReferenceMissing(f"{source.name} did not compile in time") from error
        if done.returncode != 0:
            raise ReferenceMissing(f"{source.name} does not compile:\n{done.stderr.strip()}")
        partial.replace(target)
