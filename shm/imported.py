"""What this process runs: the code of every module of the project and of its user's, as imported.

A file may be edited between its import and a later look at it, and Python runs the bytecode it kept
of a file that was edited twice within a second. So what compiled code depends on is never read from
the disk afterwards: a module's code is noted when it is executed. The watch begins with the first
import of `shm`, which every package of the project imports before anything else; a user's modules
that ran before are not known. What is installed beside the project (numpy, the standard library)
counts as always the same, but for the packages of compiled code themselves.
"""

import sys
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import blake2b
from importlib.machinery import ModuleSpec, SourceFileLoader
from opcode import opmap
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGES: Final = ("shm", "iscsi", "host", "ppe", "bench", "tests")
_PYTHON: Final = tuple(
    Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib")
)

_INSTALLED_NAMES: Final = frozenset(("site-packages", "dist-packages"))  # of directories
_IMPORT_NAME: Final = opmap["IMPORT_NAME"]
_LOAD_SMALL_INT: Final = opmap.get("LOAD_SMALL_INT", -1)  # a level, from Python 3.14 on

# None: other code ran under this name before, and parts of both may be in use.
_noted: dict[str, CodeType | None] = {}


def noted() -> int:
    """How many modules were noted so far; unchanged, no answer of this module has changed."""
    return len(_noted) + list(_noted.values()).count(None)


def _note(name: str, code: CodeType) -> None:
    _noted[name] = code if _noted.get(name, code) == code else None


class _Loader(SourceFileLoader):
    """Loads a module as Python does, and notes the code that it executes."""

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module. Not the file: bytecode that was kept of it, if there is any."""
        code = self.get_code(module.__name__)
        if code is None:
            raise ImportError(f"there is no code of {module.__name__}")
        _note(module.__name__, code)
        exec(code, module.__dict__)


class _Finder:
    """Finds modules where the other finders do, and gives those that may change, which are the
    project's and its user's, the noting loader.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Take the specification of the first finder that has one."""
        if not is_ours(name) and path is not None and all(map(is_fixed, path)):
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(name, path, target)
            if spec is not None:
                # Whoever brings a loader of his own, as pytest does for tests, keeps it.
                if type(spec.loader) is SourceFileLoader and (
                    is_ours(name) or not is_fixed(spec.loader.path)
                ):
                    spec.loader = _Loader(spec.loader.name, spec.loader.path)
                return spec
        return None


def watch() -> None:
    """Note every module that may change from now on, and those whose import is under way."""
    if not any(type(finder) is _Finder for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        note_running()


def note_running() -> None:
    """Note the modules whose code is being executed by this thread: those it is just importing."""
    running: list[tuple[str, CodeType]] = []
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            running.append((str(frame.f_globals.get("__name__")), frame.f_code))
        frame = frame.f_back  # type: ignore[assignment]
    for name, code in reversed(running):  # the module before what it hands to exec()
        if name not in _noted:
            _note(name, code)


def is_ours(name: str) -> bool:
    """Whether a module of this name belongs to the project."""
    return name.partition(".")[0] in PACKAGES


@cache
def is_fixed(file: str) -> bool:
    """Whether a file is Python's own, or installed: it does not change while it is worked on."""
    path = Path(file).resolve()
    return not _INSTALLED_NAMES.isdisjoint(path.parts) or any(
        path.is_relative_to(python) for python in _PYTHON
    )


def _loaded_file(name: str) -> str | None:
    """The file of an imported module; a directory without __init__.py has none."""
    return getattr(sys.modules.get(name), "__file__", None)


def _matters(name: str, importer: str) -> bool:
    """Whether code of `importer` depends on this module, if it is one."""
    if is_ours(name) or name in _noted:
        return True
    file = _loaded_file(name)
    if file is None or not file.endswith(".py"):
        return False
    # A package may be installed as a whole; another version of it is then other code.
    return name.partition(".")[0] == importer.partition(".")[0] or not is_fixed(file)


@cache
def _file_of(name: str) -> Path | None:
    path = ROOT.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _has_code(name: str) -> bool:
    if name in _noted:
        return True
    if name in sys.modules:
        return _loaded_file(name) is not None
    return _file_of(name) is not None


def _code_of(name: str) -> CodeType | None:
    if name in _noted:
        return _noted[name]
    if name in sys.modules:
        return None if is_ours(name) else _installed_code(name)
    # Not imported, so nothing depends on it yet. It counts because it is named: else the answer
    # would change with what else a process has imported.
    file = str(_file_of(name))
    try:
        return SourceFileLoader(name, file).get_code(name)
    except (SyntaxError, OSError):  # somebody is editing it
        return compile("", file, "exec")


def _installed_code(name: str) -> CodeType | None:
    """The code of an imported module that nobody noted, if it is installed."""
    file = str(_loaded_file(name))
    if not is_fixed(file):
        return None
    try:
        return SourceFileLoader(name, file).get_code(name)
    except (SyntaxError, OSError, ImportError):
        return None


def _imports_of(code: CodeType, package: str) -> Iterator[str]:
    """Names of modules that `code` or a function in it imports; some are no modules. `package` is
    where its relative imports begin.

    Read from the bytecode, since the file may say something else by now.
    """
    base, argument = "", 0
    level, names = None, None  # the last two constants
    operations, arguments = code.co_code[::2], code.co_code[1::2]
    steps = zip(operations, arguments, strict=True) if _IMPORT_NAME in operations else ()
    for operation, low in steps:
        argument = argument << 8 | low
        if operation == opmap["EXTENDED_ARG"]:
            continue
        if operation == opmap["LOAD_CONST"]:
            level, names = names, code.co_consts[argument]
        elif operation == _LOAD_SMALL_INT:
            level, names = names, argument
        elif operation == _IMPORT_NAME:
            base = _absolute(code.co_names[argument], level, package)
            yield base
            if names is None:  # `import a.b` binds a
                yield base.partition(".")[0]
        elif operation == opmap["IMPORT_FROM"]:
            yield f"{base}.{code.co_names[argument]}"
        argument = 0
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _imports_of(inner, package)


def _absolute(name: str, level: Any, package: str) -> str:
    """The whole name of what is imported by a name and a number of dots."""
    if not isinstance(level, int) or level < 1:
        return name
    start = package.rsplit(".", level - 1)[0] if level > 1 else package
    return f"{start}.{name}" if name else start


def _package_of(name: str) -> str:
    """The package a module is in, or is."""
    found = getattr(sys.modules.get(name), "__package__", None)
    return name.rpartition(".")[0] if found is None else str(found)


def reachable(module: str) -> dict[str, CodeType | None]:
    """Every module that may change which `module` imports, directly or not, itself included.

    The code is None of a module that ran before the watch began, or as two different codes.
    """
    found: dict[str, CodeType | None] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or not _has_code(name):
            continue
        found[name] = code = _code_of(name)
        if code is not None:
            imports = _imports_of(code, _package_of(name))
            waiting += (each for each in imports if _matters(each, name))
    return found


@cache
def fingerprint(code: CodeType) -> bytes:
    """16 bytes that differ if the code does: what it does, not where it stands in its file."""
    digest = blake2b(digest_size=16)
    _add(digest, code)
    return digest.digest()


def _add(digest: Any, value: Any) -> None:
    # marshal would do, were its bytes not different from process to process.
    if isinstance(value, CodeType):
        shape = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount)
        names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        body = (value.co_flags, value.co_code, value.co_exceptiontable)
        digest.update(repr((value.co_qualname, shape, names, body)).encode())
        _add(digest, value.co_consts)
    elif isinstance(value, tuple):
        digest.update(f"({len(value)}".encode())
        for part in value:
            _add(digest, part)
    elif isinstance(value, frozenset):
        digest.update(f"{{{sorted(map(repr, value))}".encode())
    else:
        digest.update(f"{type(value).__name__} {value!r};".encode())


note_running()  # this module, which nobody will see again
