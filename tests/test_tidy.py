"""House rules that a formatter cannot check, for every file of the project."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("ppe", "host", "shm", "iscsi", "bench")
FUNCTION_LINES_MAX = 70
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPILER_NAMES = {"njit", "jit", "jitclass", "vectorize", "guvectorize"}
LIBC_LOADERS = {"ExternalFunction", "CDLL", "PyDLL"}
SANS_IO_FORBIDS = {"time", "socket", "asyncio", "threading"}
TEXT_SUFFIXES = {".py", ".c", ".cpp", ".h", ".md", ".toml", ".lock", ".service", ".txt", ""}

SOURCES = [path for top in PACKAGES for path in sorted((ROOT / top).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def text_files():
    """Find every file a reader may open: the packages, tests, docs, and what lies at the top."""
    folders = [ROOT / top for top in (*PACKAGES, "tests", "docs", "packaging", ".ci")]
    found = [path for folder in folders for path in folder.rglob("*")]
    found += [path for path in ROOT.iterdir() if path.name != ".git"]
    return sorted(
        path
        for path in found
        if path.is_file()
        and path.suffix in TEXT_SUFFIXES
        and "__pycache__" not in path.parts
        # bench/results holds measurements, which name the command line that was typed
        and "results" not in path.parts
    )


def relative(path):
    return path.relative_to(ROOT).as_posix()


def every(paths):
    return pytest.mark.parametrize("path", list(paths), ids=relative)


def imported(tree):
    """Name the modules a file imports, at any depth of nesting."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def names_used(tree):
    """Name whatever a file reads: plain names, attributes, and names it imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)


def test_there_are_sources_to_check():
    assert {relative(path).split("/")[0] for path in SOURCES} == set(PACKAGES)


@every(SOURCES + TESTS)
def test_a_function_fits_on_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, FUNCTION):
            lines = node.end_lineno - node.lineno + 1
            assert lines < FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


@every(SOURCES + TESTS)
def test_a_module_says_what_it_is(path):
    assert path.read_text().strip() == "" or ast.get_docstring(ast.parse(path.read_text()))


@every(SOURCES)
def test_a_package_module_is_never_empty(path):
    assert path.read_text().strip(), "even an empty package says what it is"


@every(path for path in SOURCES if relative(path) != "shm/jit.py")
def test_only_one_module_names_the_compiler(path):
    named = COMPILER_NAMES & set(names_used(parse(path)))
    assert not named, "declare nopython functions through shm.jit"


@every(path for path in SOURCES if path.name != "libc.py")
def test_only_libc_modules_name_libc(path):
    named = LIBC_LOADERS & set(names_used(parse(path)))
    assert not named, "declare it in this package's libc.py"


@every(path for path in SOURCES if relative(path).startswith("iscsi/wire/"))
def test_the_wire_has_no_socket_no_clock_and_no_thread(path):
    assert not SANS_IO_FORBIDS & {module.split(".")[0] for module in imported(parse(path))}


@every(text_files())
def test_nothing_is_left_for_later(path):
    # Put together here, so that this file does not name what it looks for.
    marks = "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3))
    left = re.findall(rf"\b(?:{marks})\b.*", path.read_text())
    assert not left


@every(text_files())
def test_no_path_of_this_machine_is_written_down(path):
    places = {"/home/[a-z]", "/Users/[A-Za-z]"}
    places |= {re.escape(f"{folder}/") for folder in (ROOT, Path.home())}
    # The folder above the checkout, unless it is one that every machine has.
    if len(ROOT.parent.parts) > 1 and str(ROOT.parent) not in ("/tmp", "/home", "/opt", "/srv"):
        places.add(re.escape(f"{ROOT.parent}/"))
    found = re.findall(rf"(?<![\w.])(?:{'|'.join(sorted(places))})[^\s'\"]*", path.read_text())
    assert not found


def parse(path):
    return ast.parse(path.read_text())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import socket", {"socket"}),
        ("def f():\n    from asyncio import sleep", {"asyncio"}),
        ("from . import time", set()),
    ],
)
def test_imports_are_found_wherever_they_stand(source, expected):
    assert set(imported(ast.parse(source))) == expected


@pytest.mark.parametrize("source", ["from numba import njit", "numba.njit(f)", "@njit\ndef f(): 0"])
def test_the_compiler_is_recognised_in_every_spelling(source):
    assert "njit" in set(names_used(ast.parse(source)))
