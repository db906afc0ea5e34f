"""The conformance suite as the guest's worker runs it: over one of the guest's devices, with the
engine in its own thread, all tests in one call, since a start of pytest is dear there.
"""

import os
import sys
from pathlib import Path

import pytest

# What these need is imported, and on the host compiled, before anybody waits for it.
import ppe.cycle.devices
import ppe.cycle.services.verbs  # noqa: F401

ROOT = Path(__file__).parent.parent.parent
FOLDER = "tests.rdma"


class Results:
    """How each test ended: passed, skipped and why, or failed and how."""

    def __init__(self):
        self.found = {}

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return
        name = report.nodeid.rpartition("/")[2]
        if report.skipped:
            self.found[name] = ["skipped", str(report.longrepr[2])]
        elif report.failed:
            self.found[name] = ["failed", report.longreprtext]
        else:
            self.found.setdefault(name, ["passed", f"{report.duration:.2f}"])

    def pytest_collectreport(self, report):
        if report.failed:
            self.found[report.nodeid] = ["failed", report.longreprtext]


def run(device, address, files, names):
    """Run tests of these files whose names match, over a device; what became of each."""
    os.environ["PPE_RDMA_PROVIDER"], os.environ["PPE_RDMA_ADDRESS"] = device, address
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name in [name for name in sys.modules if name.startswith(FOLDER + ".")]:
        if name != __name__:  # What they know of the device is read again.
            del sys.modules[name]
            vars(sys.modules[FOLDER]).pop(name.rpartition(".")[2], None)
    results = Results()
    paths = [str(ROOT / "tests" / "rdma" / file) for file in files]
    words = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={ROOT}"]
    words += ["--import-mode=importlib", "-k", f"inline and not daemon and ({names})", *paths]
    log = Path("/run/suite.log")
    sys.stdout.flush()
    before = os.dup(1)
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        try:
            pytest.main(words, plugins=[results])
        finally:
            sys.stdout.flush()
            os.dup2(before, 1)
            os.close(before)
    return results.found
