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
    reachable_sources,
)

DOOR = """
from bench.middle import double
from shm.jit import compilations, entry

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


@pytest.fixture
def project(tmp_path):
    """A project of its own: the real `shm.jit`, an entry, and two helper files below it."""
    for package in ("shm", "bench"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    shutil.copy(ROOT / "shm" / "jit.py", tmp_path / "shm")
    (tmp_path / "bench" / "door.py").write_text(DOOR)
    (tmp_path / "bench" / "middle.py").write_text(MIDDLE)
    (tmp_path / "bench" / "leaf.py").write_text(LEAF.format(1))
    return tmp_path


def run(project, **environment):
    """(answer, functions compiled) of one start."""
    found = subprocess.run(
        [sys.executable, "-m", "bench.door"],
        cwd=project,
        env={**os.environ, "PPE_CACHE_DIR": str(project / "cache"), **environment},
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
    (project / "bench" / "leaf.py").write_text(LEAF.format(2))
    assert run(project)[0] == 44
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


def test_sources_are_found_through_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(jit, "ROOT", tmp_path)
    jit._imports_of.cache_clear()
    for name in ("bench", "host"):
        (tmp_path / name).mkdir()
    files = {
        "bench/a.py": "import host.b\nfrom host import c, d as other\n",
        "host/b.py": "def late():\n    from host.e import x\n",
        "host/c.py": "from host import (\n    f,\n)\nimport numpy\n",
        "host/d.py": "",
        "host/e.py": "x = 1\n",
        "host/f.py": "from bench import a\n",
        "host/unused.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = {str(path.relative_to(tmp_path)) for path in reachable_sources(tmp_path / "bench/a.py")}
    jit._imports_of.cache_clear()
    assert found == set(files) - {"host/unused.py"}


def test_the_ring_is_reachable_from_the_channel_and_the_channel_not_from_the_ring():
    ring, channel = ROOT / "shm" / "ring.py", ROOT / "shm" / "channel.py"
    assert ring in reachable_sources(channel)
    assert channel not in reachable_sources(ring)
    assert ROOT / "shm" / "atomics.py" in reachable_sources(channel)


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


def test_integer_division_rounds_down_compiled_or_not():
    assert halves(-7) == -4
    assert python_version(halves)(-7) == -4


@entry("int64(int64)")
def halves(value):
    return value // 2
