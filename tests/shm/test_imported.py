"""What is known of imported code: all of it, as it ran, and never the file of a moment later."""

import os
import subprocess
import sys

import pytest

from shm import imported
from shm.imported import fingerprint, reachable

PROGRAM = """
import {first}
import sys
from shm import imported
names = [n for n in sys.modules if imported.is_ours(n) and getattr(sys.modules[n], "__file__", "")]
print(len(names), [n for n in names if imported.reachable(n)[n] is None])
"""


def compiled(text):
    return compile(text, "somewhere.py", "exec")


@pytest.mark.parametrize(
    "first",
    [
        *("iscsi.wire.bhs", "iscsi.wire.target", "iscsi.tools.command", "iscsi.target.pump"),
        *("ppe.cycle.cycle", "ppe.daemon", "host.doors", "host.inline", "bench.workers"),
        "tests.shm.doors",
    ],
)
def test_whatever_is_imported_first_every_module_is_noted(first):
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(first=first)],
        cwd=imported.ROOT,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    count, missing = found.stdout.split(maxsplit=1)
    assert int(count) > 3
    assert missing.strip() == "[]"


def test_modules_are_found_through_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(imported, "ROOT", tmp_path)
    monkeypatch.setattr(imported, "_noted", {})
    imported._file_of.cache_clear()
    many = "\n".join(f"a{n} = {n}.5" for n in range(300))
    files = {
        "bench/fa.py": "import host.fb\nfrom host import fc, fd as other, no_module\n",
        "host/__init__.py": "from bench import fg",
        "host/fb.py": "def late():\n    class Inner:\n        from host.fe import x\n",
        "host/fc.py": "from host import (\n    ff,\n)\nimport numpy\n",
        "host/fd.py": f"{many}\nfrom host.fh import x\n",  # more names than fit in one byte
        "host/fe.py": "x = 1\n",
        "host/ff.py": "from bench import fa\n",
        "bench/fg.py": "import host.fi as i\n",
        "host/fh.py": "",
        "host/fi.py": "",
        "host/unused.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for package in ("host", "bench"):
        monkeypatch.delitem(sys.modules, package, raising=False)
    found = reachable("bench.fa")
    imported._file_of.cache_clear()
    names = {name.removesuffix(".py").replace("/", ".") for name in files}
    assert set(found) == {n.removesuffix(".__init__") for n in names} - {"host.unused"}
    assert None not in found.values()


def test_the_ring_is_reachable_from_the_channel_and_the_channel_not_from_the_ring():
    assert {"shm.ring", "shm.atomics", "shm.jit", "shm.imported"} <= set(reachable("shm.channel"))
    assert "shm.channel" not in reachable("shm.ring")


def test_a_module_that_is_not_imported_counts_as_it_would_if_it_were():
    program = """
import sys
from shm import imported
apart = {n: imported.fingerprint(c) for n, c in imported.reachable("shm.channel").items()}
assert "shm.channel" not in sys.modules
import shm.channel
found = {n: imported.fingerprint(c) for n, c in imported.reachable("shm.channel").items()}
assert found == apart
assert "shm.ring" in found
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=imported.ROOT,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "A = 2",
        "A = 1.0",
        "A = True",
        "A = -0.0",
        "B = 1",
        "A: int = 1",
        "A = 1\ndef f(a): return a",
        "A = 1\ndef f(a, /): return a",
        "A = 1\ndef f(a): return a + 1",
        "A = 1\ndef f(a): return (a, (1, 2))",
        "A = 1\ndef f(a): return a in {1, 2}",
        "A = 1\ndef f(a): return a in {1, 3}",
        "A = 1\ndef f(a): return lambda: a",
        "A = 1\ndef f(a):\n  try: g()\n  except E: return a",
    ],
)
def test_other_code_has_another_fingerprint(text):
    others = ["A = 1", "A = 0.0", "A = 1\ndef f(b): return b", "A = 1\ndef f(a): return (a, 1, 2)"]
    assert fingerprint(compiled(text)) not in {fingerprint(compiled(other)) for other in others}


def test_the_place_of_code_in_its_file_is_no_part_of_it_nor_is_how_often_it_ran():
    text = "def f(n):\n    return sum(i in {1, 5, 'a', None} for i in range(n))\n"
    code, again = compiled(text), compiled(f"# a comment\n\n{text}")
    names = {}
    exec(code, names)
    for _ in range(50):
        names["f"](50)
    assert names["f"].__code__ in code.co_consts
    assert fingerprint(code) == fingerprint(again)
