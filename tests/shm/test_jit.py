"""The cache of compiled code: an edit anywhere below an entry gives the new answer, at once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shm import jit
from shm.jit import (
    CACHE_KEPT_DIRECTORIES,
    JIT_DISABLED,
    ROOT,
    entry,
    nopython,
    prune_cache,
    python_version,
)

# What a person does to the files while this process is between its imports and the compiler.
DOOR = """
import os
import pathlib

from bench.middle import double
from shm.jit import compilations, entry

if text := os.environ.get("EDIT"):
    pathlib.Path("bench/leaf.py").write_text(text)

with compilations() as compiled:
    @entry("int64(int64)")
    def answer(value):
        return double(value)

print(answer(20), compiled.count)
"""
MIDDLE = """
from bench import (
    leaf,  # a comment (with brackets)
)
from shm.jit import nopython

addition = leaf.addition

@nopython
def double(value):
    return addition(value) + addition(value)
"""
LEAF = """
from shm.jit import nopython

@nopython
def addition(value):
    return value + {}
"""

EDITED_AND_RELOADED = """
import importlib
import pathlib
import bench.constants
pathlib.Path("bench/constants.py").write_text("BASE = 22")
importlib.reload(bench.constants)
"""


@pytest.fixture
def project(tmp_path):
    """A project of its own: the real `shm.jit`, an entry, and two helper files below it."""
    for package in ("shm", "bench"):
        (tmp_path / package).mkdir()
    for name in ("__init__", "imported", "jit", "linking"):
        shutil.copy(ROOT / "shm" / f"{name}.py", tmp_path / "shm" / f"{name}.py")
    shutil.copy(ROOT / "bench" / "__init__.py", tmp_path / "bench" / "__init__.py")
    (tmp_path / "bench" / "door.py").write_text(DOOR)
    (tmp_path / "bench" / "middle.py").write_text(MIDDLE)
    (tmp_path / "bench" / "leaf.py").write_text(LEAF.format(1))
    return tmp_path


def run(project, **environment):
    """(answer, functions compiled) of one start."""
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    found = subprocess.run(
        [sys.executable, "-m", "bench.door"],
        cwd=project,
        env={**kept, "PPE_CACHE_DIR": str(project / "cache"), **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    answer, compiled = found.stdout.split()
    return int(answer), int(compiled)


@pytest.mark.slow
@pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")
def test_an_edit_two_files_below_an_entry_is_seen_and_no_edit_compiles_nothing(project):
    answer, compiled = run(project)
    assert answer == 42
    assert compiled > 0
    assert run(project) == (42, 0)
    # Another size each time: Python does not see an edit within a second that leaves the size.
    (project / "bench" / "leaf.py").write_text(LEAF.format(22))
    assert run(project)[0] == 84
    (project / "bench" / "leaf.py").write_text(LEAF.format(1))
    assert run(project) == (42, 0)  # the former sources' code is still there


@pytest.mark.slow
@pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")
def test_another_processor_target_does_not_use_this_ones_code(project):
    assert run(project)[0] == 42
    portable = {"NUMBA_CPU_NAME": "x86-64-v2", "NUMBA_CPU_FEATURES": ""}
    answer, compiled = run(project, **portable)
    assert answer == 42
    assert compiled > 0
    assert run(project, **portable) == (42, 0)
    assert run(project) == (42, 0)


@pytest.mark.slow
def test_without_the_compiler_the_same_source_gives_the_same_answer(project):
    assert run(project, NUMBA_DISABLE_JIT="1") == (42, 0)


@pytest.mark.slow
@pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")
def test_code_from_before_an_edit_is_not_kept_for_those_who_start_after_it(project):
    answer, compiled = run(project, EDIT=LEAF.format(11))
    assert answer == 42  # what it imported, before the edit
    assert compiled > 0
    answer, compiled = run(project)
    assert answer == 62
    assert compiled > 0
    assert run(project) == (62, 0)


@pytest.mark.slow
@pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")
def test_a_process_from_before_an_edit_is_not_given_the_code_of_after_it(project):
    (project / "bench" / "leaf.py").write_text(LEAF.format(11))
    assert run(project)[0] == 62
    (project / "bench" / "leaf.py").write_text(LEAF.format(1))
    assert run(project, EDIT=LEAF.format(11))[0] == 42


@pytest.mark.slow
@pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")
def test_bytecode_that_python_did_not_see_was_old_is_not_kept_under_the_new_source(project):
    leaf = project / "bench" / "leaf.py"
    assert run(project)[0] == 42
    at = leaf.stat().st_mtime
    leaf.write_text(LEAF.format(2))
    os.utime(leaf, (at, at))  # as a second edit within the second of the first
    shutil.rmtree(project / "cache")
    assert run(project)[0] == 42
    os.utime(leaf, (at + 2, at + 2))
    assert run(project)[0] == 44


@pytest.mark.slow
@pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")
@pytest.mark.parametrize(
    ("package", "before", "culprit"),
    [
        ("", "import bench.constants", "bench"),
        ("import shm", EDITED_AND_RELOADED, r"bench\.constants"),
    ],
    ids=["before the watch", "two codes"],
)
def test_what_was_compiled_from_nobody_knows_what_is_not_kept_and_says_so(
    project, package, before, culprit
):
    (project / "bench" / "__init__.py").write_text(package)
    (project / "bench" / "door.py").write_text(f"{before}\n{DOOR}")
    for _ in range(2):
        (project / "bench" / "constants.py").write_text("BASE = 1")
        assert run(project, PYTHONWARNINGS="ignore")[1] > 0
    (project / "bench" / "constants.py").write_text("BASE = 1")
    with pytest.raises(AssertionError, match=f"not kept: {culprit} was imported before shm"):
        run(project, PYTHONWARNINGS="error::RuntimeWarning")


def test_pruning_keeps_what_was_used_lately(tmp_path, monkeypatch):
    monkeypatch.setenv("PPE_CACHE_DIR", str(tmp_path))
    for age in range(CACHE_KEPT_DIRECTORIES + 3):
        directory = tmp_path / f"{age:03}"
        directory.mkdir()
        at = directory.stat().st_mtime - age
        os.utime(directory, (at, at))
    old = tmp_path / "old"
    old.mkdir()
    os.utime(old, (0, 0))
    (tmp_path / "a file").touch()
    assert prune_cache() == 4
    assert not old.exists()
    assert (tmp_path / "000").is_dir()
    assert not (tmp_path / f"{CACHE_KEPT_DIRECTORIES:03}").exists()
    assert (tmp_path / "a file").exists()


def test_pruning_a_cache_that_is_not_there_is_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PPE_CACHE_DIR", str(tmp_path / "missing"))
    assert prune_cache() == 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PPE_CACHE_DIR": "/a"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/ppe/numba"),
        ({"HOME": "/c"}, "/c/.cache/ppe/numba"),
    ],
)
def test_the_cache_is_where_the_environment_says(monkeypatch, environment, expected):
    for name in ("PPE_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert jit.cache_root() == Path(expected)


def test_the_uncompiled_body_stays_within_reach():
    @nopython
    def helper(value):
        return value * 2

    assert python_version(helper)(4) == 8
    assert python_version(len) is len


@pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")
def test_a_helper_is_compiled_once_whatever_constants_it_is_given():
    @nopython
    def helper(value, more):
        return value + more

    @nopython
    def caller(value):
        return helper(value, 1) + helper(value, 2) + helper(3, value) + helper(value, value)

    assert caller(5) == 31
    assert len(helper.nopython_signatures) == 1


def test_integer_division_rounds_down_compiled_or_not():
    assert halves(-7) == -4
    assert python_version(halves)(-7) == -4


@entry("int64(int64)")
def halves(value):
    return value // 2
