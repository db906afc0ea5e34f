"""The one doorway to the compiler.

`@nopython` marks a helper: compiled when a compiled caller needs it, inlined by LLVM, never cached
on its own. `@entry(signature)` marks a door from Python into compiled code: compiled when its
module is imported, so nothing compiles later, and cached on disk. Every cached entry lives in a
directory named by a hash of all sources it can reach, because numba's own cache looks only at the
entry's file and would run yesterday's helper.
"""

import ctypes
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import llvmlite.binding as llvm
import numba
from numba.core import event

F = TypeVar("F", bound=Callable[..., Any])

JIT_DISABLED: Final = os.environ.get("NUMBA_DISABLE_JIT", "0") != "0"
ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGES: Final = ("shm", "iscsi", "host", "ppe", "bench", "tests")
# A cache directory that no start used for this long belongs to sources that are gone.
CACHE_KEPT_DAYS: Final = 14
CACHE_KEPT_DIRECTORIES: Final = 64

_IMPORT: Final = re.compile(
    rf"^[ ]*(?:from[ ]+((?:{'|'.join(PACKAGES)})[\w.]*)[ ]+import[ ]+(\([^)]*\)|[^\n]*)"
    rf"|import[ ]+((?:{'|'.join(PACKAGES)})[\w.]*))",
    re.MULTILINE,
)


def _source_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _imports_of(path: Path) -> tuple[Path, ...]:
    found: list[Path] = []
    for base, names, plain in _IMPORT.findall(path.read_text()):
        modules = [base or plain]
        modules += [f"{base}.{name}" for name in re.findall(r"\w+", names)]
        found += [source for source in map(_source_of, modules) if source is not None]
    return tuple(found)


def reachable_sources(path: Path) -> list[Path]:
    """Every source file of this project that `path` imports, directly or not, itself included."""
    seen = {path}
    waiting = [path]
    while waiting:
        for found in _imports_of(waiting.pop()):
            if found not in seen:
                seen.add(found)
                waiting.append(found)
    return sorted(seen)


def cache_root() -> Path:
    """Where compiled code is kept: `$PPE_CACHE_DIR`, else `$XDG_CACHE_HOME/ppe/numba`."""
    if named := os.environ.get("PPE_CACHE_DIR"):
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "ppe" / "numba"


@cache
def _cache_directory(path: Path) -> Path:
    digest = hashlib.blake2b(digest_size=8)
    for source in reachable_sources(path):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    cpu = numba.config.CPU_NAME or llvm.get_host_cpu_name()  # type: ignore[attr-defined]
    digest.update(f"{numba.__version__} {llvm.llvm_version_info} {cpu}".encode())
    return cache_root() / digest.hexdigest()


def prune_cache() -> int:
    """Delete cache directories of sources that no longer exist. Return how many went."""
    root = cache_root()
    if not root.is_dir():
        return 0
    used = sorted(
        ((entry.stat().st_mtime, entry) for entry in root.iterdir() if entry.is_dir()), reverse=True
    )
    oldest = time.time() - CACHE_KEPT_DAYS * 86_400
    gone = [
        path
        for rank, (at, path) in enumerate(used)
        if rank >= CACHE_KEPT_DIRECTORIES or at < oldest
    ]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return len(gone)


def nopython(function: F) -> F:
    """Mark a helper of compiled code: no GIL, no bounds checks, C division, compiled on demand."""
    if JIT_DISABLED:
        return function
    return cast(F, numba.njit(nogil=True, error_model="numpy", boundscheck=False)(function))


def entry(signature: str) -> Callable[[F], F]:
    """Mark a door from Python into compiled code: one explicit signature, compiled at import."""

    def decorate(function: F) -> F:
        if JIT_DISABLED:
            return function
        with _cache_for(function):
            return cast(
                F,
                numba.njit(
                    signature, cache=True, nogil=True, error_model="numpy", boundscheck=False
                )(function),
            )

    return decorate


@contextmanager
def _cache_for(function: Callable[..., Any]) -> Iterator[None]:
    module = sys.modules[function.__module__]
    directory = _cache_directory(Path(str(module.__file__)).resolve())
    previous = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    # Numba reads the setting when the cache of one function is made, so it can differ per file.
    numba.config.CACHE_DIR = str(directory)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        numba.config.CACHE_DIR = previous  # type: ignore[attr-defined]
    if directory.is_dir():
        os.utime(directory)


class Callback:
    """A compiled function with a C address: for signal handlers, threads, other compiled code."""

    def __init__(self, function: Callable[..., Any], result: Any, arguments: list[Any]) -> None:
        self._prototype = ctypes.CFUNCTYPE(result, *arguments)
        if JIT_DISABLED:
            self._function: Any = self._prototype(function)
            self.address = ctypes.cast(self._function, ctypes.c_void_p).value or 0
            return
        names = {ctypes.c_int64: "int64", ctypes.c_int32: "int32", None: "void"}
        signature = f"{names[result]}({', '.join(names[a] for a in arguments)})"
        with _cache_for(function):
            compiled: Any = numba.cfunc
            self._compiled = compiled(
                signature, cache=True, nopython=True, error_model="numpy", boundscheck=False
            )(function)
        self.address = int(self._compiled.address)
        self._function = self._prototype(self.address)

    def __call__(self, *arguments: int) -> Any:
        """Call it from Python; the GIL is released while it runs."""
        return self._function(*arguments)


def callback(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Callback]:
    """Mark a function that needs a C address; types are ctypes types, `c_int64` for addresses."""
    return lambda function: Callback(function, result, list(arguments))


def python_version(function: F) -> F:
    """Return the uncompiled body of a compiled function, for step-by-step tests."""
    return cast(F, getattr(function, "py_func", function))


class CompileCounter(event.Listener):
    """Counts the functions the compiler works on and calls `report(count, name)` for each."""

    def __init__(self, report: Callable[[int, str], None] | None = None) -> None:
        self.count = 0
        self._report = report

    def on_start(self, event: Any) -> None:
        """Take notice of one function that is about to be compiled."""
        self.count += 1
        if self._report is not None:
            dispatcher = event.data.get("dispatcher")
            self._report(self.count, getattr(dispatcher, "__name__", "?"))

    def on_end(self, event: Any) -> None:
        """Nothing to do: only starts are counted."""


@contextmanager
def compilations(report: Callable[[int, str], None] | None = None) -> Iterator[CompileCounter]:
    """Count (and report) every function compiled inside the block; cache hits do not count."""
    counter = CompileCounter(report)
    with event.install_listener("numba:compile", counter):
        yield counter
