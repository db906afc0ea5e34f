"""The first start: another process compiles a part, and the engine does not depend on that."""

import json
import os
import subprocess
import sys

import pytest

from shm.jit import JIT_DISABLED, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled"),
]

START = """
import json
import os
import sys

from ppe import first_start

first_start.MODULES = ("tests.ppe.compiled_here",)
first_start.MODULES_APART = ("tests.ppe.compiled_apart",)
sys.executable = os.environ.get("OTHER_PROGRAM", sys.executable)
said = []
counter = first_start.compile_engine(lambda kind, text: said.append(text), {0})

from tests.ppe.compiled_apart import thrice

print(json.dumps({"compiled": counter.count, "said": said, "answer": thrice(14)}))
"""


def start(cache, **environment):
    """What one start did, with its cache in `cache`."""
    done = subprocess.run(
        [sys.executable, "-c", START],
        cwd=ROOT,
        env={**os.environ, "PPE_CACHE_DIR": str(cache), **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_another_process_compiled_is_not_compiled_here_and_a_second_start_compiles_nothing(
    tmp_path,
):
    first = start(tmp_path)
    assert first["compiled"] == 1
    assert first["answer"] == 42
    assert [text.partition(" ")[0] for text in first["said"]] == [
        "compiling",
        "waiting",
        "compiled",
    ]
    assert start(tmp_path) == {"compiled": 0, "said": [], "answer": 42}


@pytest.mark.parametrize("program", ["/bin/false", "/nonexistent/python"])
def test_when_the_other_process_fails_everything_is_compiled_here(tmp_path, program):
    assert start(tmp_path, OTHER_PROGRAM=program)["compiled"] == 2
    assert start(tmp_path)["compiled"] == 0
