"""What a session is tried against, for each module that asks: a tgtd, a target that the test plays
itself, an engine in the test's own thread, one in a process of its own.
"""

import json
import os
import signal
import subprocess
import sys

import pytest

import host
import host.inline
import iscsi.session.perf  # noqa: F401 - the same
import ppe.cycle.services.datamover  # noqa: F401 - the same
from iscsi.session import options
from tests.iscsi.session.disk import Disk
from tests.iscsi.session.mock_target import mock_target
from tests.iscsi.session.relay import relay_to
from tests.iscsi.session.tgt import WAIT_S, tgt_target, wait_for

READY_S = 90  # a cold cache compiles the engine first


@pytest.fixture(scope="module")
def tgt(tmp_path_factory):
    with tgt_target(tmp_path_factory.mktemp("tgt")) as running:
        yield running


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def way(disk):
    """A relay to a target that serves the disk, and the URL through it."""
    with mock_target(disk.serve) as url, relay_to(url) as found:
        yield found


@pytest.fixture(scope="module")
def engine():
    """One inline engine for all: what one target does must not spoil it for the next."""
    with host.connect("inline:") as handle:
        yield handle


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    """The name of an engine in a process of its own, which this module alone can see."""
    folder = tmp_path_factory.mktemp("engine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PPE_RUNTIME_DIR", str(folder / "run"))
        patch.setenv("PPE_CPU_LOCK_DIR", str(folder / "locks"))
        command = [sys.executable, "-m", "ppe", "up", "--name", "session", "--json"]
        command += ["--idle", "sleep", "--force"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=READY_S, check=False, env=os.environ
        )
        assert done.returncode == 0, done.stderr
        pid = json.loads(done.stdout)["pid"]
        try:
            yield "session"
        finally:
            os.kill(pid, signal.SIGTERM)
            _wait_until_gone(pid)


def _wait_until_gone(pid):
    def gone():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(gone, f"engine {pid} to end within {WAIT_S} s")


@pytest.fixture(params=["inline:", "daemon", "datamover"])
def engine_name(request, monkeypatch):
    """The placements: the caller's own thread; an engine that moves bytes, or SCSI commands."""
    placement = "datamover" if request.param == "datamover" else "stream"
    monkeypatch.setattr(options, "auto_placement", lambda is_inline: placement)
    return request.param if request.param == "inline:" else request.getfixturevalue("daemon")
