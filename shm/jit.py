"""The one doorway to the compiler.

`@nopython` marks a helper: compiled when a compiled caller needs it, inlined by LLVM, never cached
on its own. `@entry(signature)` marks a door from Python into compiled code: compiled when its
module is imported, so nothing compiles later, and cached on disk. Every cached entry lives in a
directory named by a hash of all code it can reach, because numba's own cache looks only at the
entry's file and would run yesterday's helper. The hash is of the code that was imported
(`shm.imported`), never of what lies on the disk by now.
"""

import ctypes
import hashlib
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import llvmlite.binding as llvm
import numba
from numba.core import event

from shm import imported
from shm.linking import DoorPipeline, Helper

F = TypeVar("F", bound=Callable[..., Any])

JIT_DISABLED: Final = os.environ.get("NUMBA_DISABLE_JIT", "0") != "0"
# No GIL, no bounds checks, C division.
OPTIONS: Final[dict[str, Any]] = {"nogil": True, "error_model": "numpy", "boundscheck": False}
ROOT: Final = imported.ROOT
# A cache directory that no start used for this long belongs to sources that are gone. One version
# of the project with its tests has some fifty: with little room two of them would evict each other.
CACHE_KEPT_DAYS: Final = 14
CACHE_KEPT_DIRECTORIES: Final = 512


def cache_root() -> Path:
    """Where compiled code is kept: `$PPE_CACHE_DIR`, else `$XDG_CACHE_HOME/ppe/numba`."""
    if named := os.environ.get("PPE_CACHE_DIR"):
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "ppe" / "numba"


@cache
def _can_keep(root: Path) -> bool:
    """Whether compiled code can be kept there; says why not, once."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return True
    except OSError as error:
        warnings.warn(
            f"compiled code is not kept: {error}; name a directory of yours in PPE_CACHE_DIR",
            RuntimeWarning,
            stacklevel=2,
        )
        return False


@cache
def _cache_directory(module: str, _noted: int) -> Path | None:
    digest = hashlib.blake2b(digest_size=8)
    for name, code in sorted(imported.reachable(module).items()):
        if code is None:
            # Nobody knows what it was compiled from, so nobody may be given it later.
            warnings.warn(
                f"the compiled code of {module} is not kept: {name} was imported before shm, or"
                " twice with an edit in between; start the process again",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        digest.update(name.encode() + imported.fingerprint(code))
    target = numba.config.CPU_NAME or llvm.get_host_cpu_name()  # type: ignore[attr-defined]
    features = numba.config.CPU_FEATURES  # type: ignore[attr-defined]
    digest.update(f"{numba.__version__} {llvm.llvm_version_info} {target} {features}".encode())
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
    if not imported.is_ours(function.__module__):
        imported.note_running()  # an installed module, which nobody watches
    return cast(F, Helper(function, targetoptions={**OPTIONS, "nopython": True}))


def entry(signature: str) -> Callable[[F], F]:
    """Mark a door from Python into compiled code: one explicit signature, compiled at import."""

    def decorate(function: F) -> F:
        if JIT_DISABLED:
            return function

        def compiled(keep: bool) -> Any:
            compiler: Any = numba.njit
            return compiler(signature, cache=keep, pipeline_class=DoorPipeline, **OPTIONS)(function)

        return cast(F, _kept(function, compiled))

    return decorate


def _kept(function: Callable[..., Any], compiled: Callable[[bool], Any]) -> Any:
    """What `compiled` makes of a function, from what was kept of it if there is any."""
    with _cache_for(function) as directory:
        try:
            return compiled(directory is not None)
        except Exception:
            if directory is None:
                raise
            made = compiled(False)  # Raises again, unless it was what had been kept.
            shutil.rmtree(directory, ignore_errors=True)
            warnings.warn(
                f"the compiled code of {function.__module__} in {directory} was damaged, and is"
                " made again",
                RuntimeWarning,
                stacklevel=3,
            )
            return made


@contextmanager
def _cache_for(function: Callable[..., Any]) -> Iterator[Path | None]:
    """Set where the compiled code of `function` is kept, and say where; None: it is not."""
    # What was typed in will be typed in again. And without a directory of ours numba would keep
    # code beside the sources, and look at one of them only.
    if not Path(function.__code__.co_filename).is_file() or not _can_keep(cache_root()):
        yield None
        return
    imported.note_running()  # a loader of its own may have brought the module
    directory = _cache_directory(function.__module__, imported.noted())
    if directory is None:
        yield None
        return
    previous = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    # Numba reads the setting when the cache of one function is made, so it can differ per file.
    numba.config.CACHE_DIR = str(directory)  # type: ignore[attr-defined]
    try:
        yield directory
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

        def compiled(keep: bool) -> Any:
            cfunc: Any = numba.cfunc
            return cfunc(
                signature,
                cache=keep,
                pipeline_class=DoorPipeline,
                nopython=True,
                error_model="numpy",
                boundscheck=False,
            )(function)

        self._compiled = _kept(function, compiled)
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
