"""The first start: the engine is compiled for this processor; later starts find it in the cache.

Numba compiles one function at a time in a process. So the services that the duty cycle calls by
their addresses, more than half of the engine, are compiled by processes of their own on the CPUs
that the engines will have, and this one finds them in the cache; should that fail for whatever
reason, they are compiled here.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, Final

from ppe import notify

Report = Callable[[str, str], None]  # kind ("progress", "note", "ready"), text

# Everything in them is compiled when it is imported.
MODULES: Final = ("ppe.cycle.guard", "ppe.control")
MODULES_APART: Final = (
    "ppe.cycle.services.datamover",
    "ppe.cycle.services.rdma",
    "ppe.cycle.services.iser",
)
APART_SECONDS_MAX: Final = 300


def compile_module(module: str) -> None:
    """What the other process does. It ends at once when the engine's process does."""

    def end_with_the_engine() -> None:
        os.read(0, 1)  # Nothing is ever sent, so this is the end of the pipe.
        os._exit(1)

    threading.Thread(target=end_with_the_engine, daemon=True).start()
    import_module(module)


@contextlib.contextmanager
def compiled_apart(module: str, cpus: Iterable[int]) -> Iterator[subprocess.Popen[bytes] | None]:
    """A process that imports one module, and none where there cannot be another process. It never
    outlives the block.
    """
    from shm.jit import ROOT

    try:
        process = subprocess.Popen(
            [sys.executable, "-c", f"import ppe.first_start as f; f.compile_module({module!r})"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        yield None
        return
    with contextlib.suppress(OSError):  # It may have ended, or the CPUs are not ours any more.
        os.sched_setaffinity(process.pid, set(cpus))
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def await_end(process: subprocess.Popen[bytes]) -> None:
    """Return when it is done, or after APART_SECONDS_MAX."""
    deadline = time.monotonic() + APART_SECONDS_MAX
    while time.monotonic() < deadline:
        notify.extend_start(60)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
            return


def compile_engine(report: Report, cpus: Iterable[int]) -> Any:
    """Import the compiled parts, reporting what is compiled; returns the running counter.

    `cpus`: where nothing runs yet.
    """
    from numba.core import event

    from shm.jit import CompileCounter, prune_cache

    started = time.monotonic()
    apart: list[subprocess.Popen[bytes] | None] = []

    with contextlib.ExitStack() as undo:

        def progress(count: int, name: str) -> None:
            if count == 1:
                report("progress", "compiling the engine for this processor, first start only …")
                apart.extend(
                    undo.enter_context(compiled_apart(module, cpus))
                    for module in MODULES_APART
                    if module not in sys.modules
                )
            elif count % 25 == 0:
                report("progress", f"compiled {count} functions, now {name}")
            notify.extend_start(60)

        counter = CompileCounter(progress)
        event.register("numba:compile", counter)
        prune_cache()
        for module in MODULES:
            import_module(module)
        others = [process for process in apart if process is not None]
        if others:
            report("progress", "waiting for the services, which other processes compile")
        for process in others:
            await_end(process)
        for module in MODULES_APART:
            import_module(module)

    if counter.count:
        seconds = time.monotonic() - started
        report("progress", f"compiled the engine in {seconds:.1f} s; cached")
    return counter
