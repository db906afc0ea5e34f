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
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import llvmlite.binding as llvm
import numba
from numba.core import event, types

from shm import imported

F = TypeVar("F", bound=Callable[..., Any])

JIT_DISABLED: Final = os.environ.get("NUMBA_DISABLE_JIT", "0") != "0"
ROOT: Final = imported.ROOT
# A cache directory that no start used for this long belongs to sources that are gone.
CACHE_KEPT_DAYS: Final = 14
CACHE_KEPT_DIRECTORIES: Final = 64


def cache_root() -> Path:
    """Where compiled code is kept: `$PPE_CACHE_DIR`, else `$XDG_CACHE_HOME/ppe/numba`."""
    if named := os.environ.get("PPE_CACHE_DIR"):
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "ppe" / "numba"


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
    helper: Any = numba.njit(nogil=True, error_model="numpy", boundscheck=False)(function)
    resolve = helper.get_call_template

    def get_call_template(arguments: Any, keywords: Any) -> Any:
        # Numba would compile a helper once more for every constant it is called with; LLVM, which
        # inlines it, makes as much of the constant without that.
        plain = {name: types.unliteral(kind) for name, kind in keywords.items()}
        return resolve(tuple(types.unliteral(kind) for kind in arguments), plain)

    helper.get_call_template = get_call_template
    return cast(F, helper)


def entry(signature: str) -> Callable[[F], F]:
    """Mark a door from Python into compiled code: one explicit signature, compiled at import."""

    def decorate(function: F) -> F:
        if JIT_DISABLED:
            return function
        with _cache_for(function) as kept:
            return cast(
                F,
                numba.njit(
                    signature, cache=kept, nogil=True, error_model="numpy", boundscheck=False
                )(function),
            )

    return decorate


@contextmanager
def _cache_for(function: Callable[..., Any]) -> Iterator[bool]:
    """Set where the compiled code of `function` is kept, and say whether it is kept at all."""
    imported.note_running()  # a loader of its own may have brought the module
    directory = _cache_directory(function.__module__, imported.noted())
    if directory is None:
        yield False
        return
    previous = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    # Numba reads the setting when the cache of one function is made, so it can differ per file.
    numba.config.CACHE_DIR = str(directory)  # type: ignore[attr-defined]
    try:
        yield True
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
        with _cache_for(function) as kept:
            compiled: Any = numba.cfunc
            self._compiled = compiled(
                signature, cache=kept, nopython=True, error_model="numpy", boundscheck=False
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
