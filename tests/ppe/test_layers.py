"""The engine loads no host code, and looking at things loads no compiler."""

import subprocess
import sys


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    return set(done.stdout.split())


def test_an_engine_process_loads_no_host_code_and_no_upper_layer():
    loaded = modules_after("import ppe.daemon, ppe.control, ppe.engine_thread, iscsi.wire.target")
    assert "ppe.cycle.cycle" in loaded
    assert {m for m in loaded if m.split(".")[0] in ("host", "bench", "tests")} == set()
    assert {
        m for m in loaded if m.startswith(("iscsi.session", "iscsi.target", "iscsi.tools"))
    } == set()


def test_the_command_line_loads_no_compiler_before_it_must():
    loaded = modules_after("import ppe.cli, ppe.commands.version, ppe.commands.doctor")
    assert "numba" not in loaded


def test_the_host_library_loads_no_engine_until_inline_is_asked_for():
    loaded = modules_after("import host, host.handle, host.channel, host.native, host.pump")
    assert {m for m in loaded if m.startswith("ppe")} == set()
