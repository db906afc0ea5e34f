"""A user's own compiled worker, in a package of his: kept from start to start like the project's,
and made again when anything of his that it is made from has changed.
"""

import os
import subprocess
import sys

import pytest

from shm.imported import ROOT
from shm.jit import JIT_DISABLED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled"),
]
FILES = {
    "mine/__init__.py": "",
    "mine/constants.py": "STEP = 3\n",
    "mine/deep/__init__.py": "from ..constants import STEP\n",
    "mine/helpers.py": """
from shm.jit import nopython
from . import constants
from .deep import STEP

STEPS = constants.STEP + STEP

@nopython
def further(value):
    return value + STEPS
""",
    "mine/worker.py": """
from shm.jit import entry
from .helpers import further

@entry("int64(int64)")
def work(value):
    return further(value)
""",
    "main.py": """
from shm.jit import compilations, entry

with compilations() as compiled:
    from mine.worker import work

    @entry("int64(int64)")
    def again(value):
        return work(work(value))

print(work(1), again(1), compiled.count)
""",
}


BESIDE = [""]


@pytest.fixture(params=[*BESIDE, "lib/site-packages"], ids=["beside the program", "installed"])
def user(tmp_path, request):
    """A program and its package, which may be installed."""
    for name, text in FILES.items():
        path = tmp_path / (request.param if name.startswith("mine") else "") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path, tmp_path / request.param


def run(directory, *words, packages=None, said="", cache=None):
    """What one start printed. `said`: a warning that is expected."""
    found = subprocess.run(
        [sys.executable, *words],
        cwd=directory,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(packages or ""), str(ROOT)))),
            "PYTHONDONTWRITEBYTECODE": "1",  # an edit within a second is an edit
            "PPE_CACHE_DIR": str(cache or directory / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert (said in found.stderr) if said else found.stderr == ""
    return [int(word) for word in found.stdout.split()]


def test_it_is_compiled_once_and_again_when_something_below_it_changed(user):
    directory, packages = user
    assert run(directory, "main.py", packages=packages) == [7, 13, 3]
    assert run(directory, "main.py", packages=packages) == [7, 13, 0]
    (packages / "mine" / "constants.py").write_text("STEP = 40\n")
    assert run(directory, "main.py", packages=packages) == [81, 161, 3]
    assert run(directory, "main.py", packages=packages) == [81, 161, 0]
    (packages / "mine" / "deep" / "__init__.py").write_text("STEP = 0\n")
    assert run(directory, "main.py", packages=packages) == [41, 81, 3]


def test_what_was_imported_before_the_watch_is_not_relied_on(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"import mine.constants\n{text}" if name == "main.py" else text)
    for _ in range(2):
        assert run(tmp_path, "main.py", said="mine was imported before shm")[2] > 0


@pytest.mark.parametrize("user", BESIDE, indirect=True)
@pytest.mark.parametrize(
    ("suffix", "left"), [("nbi", b""), ("nbi", b"nonsense"), ("nbc", b"nonsense")]
)
def test_what_was_kept_and_is_damaged_is_made_again(user, suffix, left):
    directory, packages = user
    assert run(directory, "main.py", packages=packages) == [7, 13, 3]
    damaged = list((directory / "cache").rglob(f"*.{suffix}"))
    assert len(damaged) == 2
    for path in damaged:
        path.write_bytes(left)
    assert run(directory, "main.py", packages=packages, said="was damaged")[:2] == [7, 13]
    run(directory, "main.py", packages=packages)  # which keeps what the last could not
    assert run(directory, "main.py", packages=packages) == [7, 13, 0]


@pytest.mark.parametrize("user", BESIDE, indirect=True)
def test_where_nothing_can_be_kept_it_is_said_and_nothing_is_kept_elsewhere(user):
    directory, packages = user
    (directory / "file").touch()
    for _ in range(2):
        found = run(
            directory,
            "main.py",
            packages=packages,
            cache=directory / "file" / "cache",
            said="name a directory of yours in PPE_CACHE_DIR",
        )
        assert found == [7, 13, 3]
    assert not list(directory.rglob("*.nbi"))


def test_what_is_typed_in_is_compiled_and_not_kept(tmp_path):
    typed = """
from shm.jit import entry
@entry("int64(int64)")
def double(value):
    return 2 * value
print(double(21))
"""
    assert run(tmp_path, "-c", typed) == [42]
    assert not (tmp_path / "cache").exists()
