"""Find a pyverbs that this Python can load, or say in one sentence why not and what to do.

pyverbs comes with the system's rdma-core (Debian: python3-pyverbs), built for the system's Python,
or from the package index, built for one release of rdma-core. The first that loads is taken; only
its own folder becomes importable, nothing else that lies beside it.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

NAME: Final = "pyverbs"
FOLDER_VARIABLE: Final = "PPE_PYVERBS"  # a folder that holds pyverbs; nowhere else is then looked
SYSTEM_FOLDERS: Final = ("/usr/lib/python3/dist-packages",)
# With these everything works that `device`, `queues` and `connection` do.
PARTS: Final = ("device", "cq", "qp", "srq", "pd", "mr", "cmid", "addr")
APT_FIX: Final = "apt-get install python3-pyverbs ibverbs-providers rdma-core"
PIP_FIX: Final = "pip install 'ppe-runtime[rdma]' (builds against the system's rdma-core)"

FOUND: Final = "found"
MISSING: Final = "missing"
OTHER_PYTHON: Final = "other python"
MISMATCH: Final = "mismatch"
BROKEN: Final = "broken"


@dataclass(frozen=True, slots=True)
class Library:
    """What was found. `detail` says it to a person, `fix` is one line, empty when all is well."""

    state: str
    detail: str
    fix: str = ""
    folder: Path | None = None


class NoVerbsError(ImportError):
    """There is no pyverbs that this Python can use; the message says why and what to do."""

    def __init__(self, library: Library) -> None:
        super().__init__(f"{library.detail}: {library.fix}")
        self.library = library


def find() -> Library:
    """Look everywhere and load the first pyverbs that works. Never raises."""
    failures: list[Library] = []
    for folder in _folders():
        tried = _try_folder(folder)
        if tried.state == FOUND:
            return tried
        failures.append(tried)
    # What was nearest to working is the most useful thing to say.
    order = (MISMATCH, BROKEN, OTHER_PYTHON)
    failures.sort(key=lambda failure: order.index(failure.state))
    return failures[0] if failures else Library(MISSING, "pyverbs is not installed", APT_FIX)


def load() -> ModuleType:
    """The pyverbs package. Raises NoVerbsError."""
    library = find()
    if library.state != FOUND:
        raise NoVerbsError(library)
    return sys.modules[NAME]


def part(name: str) -> Any:
    """One of pyverbs' modules, such as `cmid`. Raises NoVerbsError."""
    load()
    return importlib.import_module(f"{NAME}.{name}")


def _folders() -> Iterator[Path]:
    """Folders that hold a folder pyverbs, the most wanted first."""
    if named := os.environ.get(FOLDER_VARIABLE):
        yield Path(named)
        return
    loaded = sys.modules.get(NAME)
    if loaded is not None and loaded.__file__:
        yield Path(loaded.__file__).parent.parent
    seen = [*sys.path, *SYSTEM_FOLDERS]
    yield from (Path(folder) for folder in dict.fromkeys(seen) if (Path(folder) / NAME).is_dir())


def _try_folder(folder: Path) -> Library:
    place = folder / NAME
    if not list(place.glob("device*.so")):
        return Library(
            MISSING if not place.is_dir() else BROKEN, f"{place} holds no pyverbs", APT_FIX
        )
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    if not any(path.name.removeprefix("device") in suffixes for path in place.glob("device*.so")):
        return _other_python(place)
    try:
        _import_from(folder)
    except ImportError as error:
        return explain(str(error), place)
    return Library(FOUND, f"pyverbs in {place}", folder=folder)


def _import_from(folder: Path) -> None:
    """Import pyverbs and its parts from this folder, or leave no trace of it."""
    loaded = sys.modules.get(NAME)
    if loaded is None:
        spec = importlib.machinery.PathFinder.find_spec(NAME, [str(folder)])
        if spec is None or spec.loader is None:
            raise ImportError(f"{folder / NAME} is no package")
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = loaded
        spec.loader.exec_module(loaded)
    elif loaded.__file__ is None or Path(loaded.__file__).parent != folder / NAME:
        raise ImportError(f"this process has loaded another one, {loaded.__file__}")
    try:
        for name in PARTS:
            importlib.import_module(f"{NAME}.{name}")
    except ImportError:
        for name in [name for name in sys.modules if name.split(".")[0] == NAME]:
            del sys.modules[name]
        raise


def _other_python(place: Path) -> Library:
    found = sorted(
        match[1]
        for path in place.glob("device*.so")
        if (match := re.search(r"\.cpython-(\d+)", path.name))
    )
    names = ", ".join(f"{tag[0]}.{tag[1:]}" for tag in found) or "another Python"
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Library(
        OTHER_PYTHON,
        f"{place} is built for Python {names}, this is {own}",
        f"make the virtual environment with python{names.split(', ')[-1]}, or {PIP_FIX}",
    )


def explain(said: str, place: Path) -> Library:
    """Turn what the dynamic linker said into what to do."""
    wanted = re.search(r"IBVERBS_PRIVATE_(\d+)", said)
    if wanted:
        return Library(
            MISMATCH,
            f"{place} is for rdma-core {wanted[1]}, the system's libibverbs is another release"
            f"{_system_release()}",
            f"pip uninstall pyverbs; {APT_FIX}",
        )
    if re.search(r"version `?(IBVERBS|RDMACM|MLX5|EFA)_[\d.]+'? not found", said):
        return Library(
            MISMATCH,
            f"{place} needs a newer rdma-core than the system's{_system_release()}: {said}",
            f"pip uninstall pyverbs; {APT_FIX}",
        )
    missing = re.search(r"(lib\w+\.so[.\d]*): cannot open shared object", said)
    if missing:
        return Library(BROKEN, f"{place} needs {missing[1]}, which is not there", APT_FIX)
    return Library(BROKEN, f"{place} does not load: {said}", APT_FIX)


def _system_release() -> str:
    """The release of rdma-core whose libibverbs the system has, in brackets, if its name tells."""
    for folder in ("/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu"):
        for path in sorted(Path(folder).glob("libibverbs.so.1.*")):
            parts = path.name.removeprefix("libibverbs.so.1.").split(".")
            if len(parts) >= 2:
                return f" ({'.'.join(parts[1:])})"
    return ""
