"""What every test session keeps: reference tools are accounted for, shared memory is left clean.

A test that needs a reference program says so with `@pytest.mark.interop("tgtd", ...)`. Where the
program is missing the test is listed as not run, never silently skipped, and with CI=true it fails.
"""

import glob
import importlib.util
import os
import shutil
import time
from pathlib import Path

import hypothesis
import pytest

from ppe.cycle.rnic.verbs import library

SHARED_MEMORY = Path("/dev/shm")
SEGMENT_PREFIX = "ppe-"
SEGMENT_GRACE_S = 3.0
NOT_RUN = pytest.StashKey[dict[str, list[str]]]()
MISSING = pytest.StashKey[list[str]]()
# No test asserts a time, and an example that comes first may compile.
hypothesis.settings.register_profile("ppe", deadline=None)
hypothesis.settings.load_profile("ppe")

# Tools that are not programs on the path, and how to see that they are there.
PLUGINS = {"qemu-iscsi": "/usr/lib*/*/qemu/block-iscsi.so"}
MODULES = {"pyscsi", "matplotlib"}
HEADERS = {"verbs.h": "infiniband/verbs.h", "rdma_cma.h": "rdma/rdma_cma.h"}
PACKAGES = {
    "tgtd": "tgt",
    "tgtadm": "tgt",
    "iscsi-ls": "libiscsi-bin",
    "iscsi-inq": "libiscsi-bin",
    "iscsi-test-cu": "libiscsi-bin",
    "iscsi-readcapacity16": "libiscsi-bin",
    "iscsi-perf": "libiscsi-bin",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-iscsi": "qemu-block-extra",
    "qemu-system-x86_64": "qemu-system-x86",
    "e2fsck": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "setpriv": "util-linux",
    "tshark": "tshark",
    "sg_vpd": "sg3-utils",
    "sg_inq": "sg3-utils",
    "sg_get_lba_status": "sg3-utils",
    "sg_decode_sense": "sg3-utils",
    "gcc": "gcc",
    "make": "make",
    "g++": "g++",
    "pyscsi": "pyscsi (pip)",
    "matplotlib": "matplotlib (pip)",
    "pyverbs": "python3-pyverbs",
    "verbs.h": "libibverbs-dev",
    "rdma_cma.h": "librdmacm-dev",
}


def tool_is_there(tool: str) -> bool:
    """Say whether a reference program (or plug-in) can be used on this machine."""
    if tool in MODULES:
        return importlib.util.find_spec(tool) is not None
    if tool in HEADERS:
        return (Path("/usr/include") / HEADERS[tool]).is_file()
    if tool == "pyverbs":
        return library.find().state == library.FOUND
    if tool in PLUGINS:
        return bool(glob.glob(PLUGINS[tool]))  # noqa: PTH207 - absolute pattern
    # A daemon's folder is often missing from a user's path.
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    return shutil.which(tool, path=path) is not None


def on_ci() -> bool:
    """Say whether a missing tool is a failure: CI=true (or 1) in the environment."""
    return os.environ.get("CI", "").lower() in ("true", "1")


def segment_names() -> set[str]:
    """Name our segments in shared memory now."""
    return {path.name for path in SHARED_MEMORY.glob(SEGMENT_PREFIX + "*")}


def pytest_configure(config):
    config.stash[NOT_RUN] = {}


def pytest_collection_modifyitems(config, items):
    for item in items:
        tools = [tool for mark in item.iter_markers("interop") for tool in mark.args]
        missing = [tool for tool in dict.fromkeys(tools) if not tool_is_there(tool)]
        if missing:
            item.stash[MISSING] = missing
        if item.get_closest_marker("pinned") and len(os.sched_getaffinity(0)) < 2:
            item.stash[MISSING] = [*missing, "a second CPU"]


def pytest_runtest_setup(item):
    missing = item.stash.get(MISSING, None)
    if not missing:
        return
    packages = " ".join(dict.fromkeys(PACKAGES.get(tool, tool) for tool in missing))
    if on_ci():
        pytest.fail(f"CI must have: {packages}", pytrace=False)
    item.config.stash[NOT_RUN].setdefault(packages, []).append(item.nodeid)
    raise pytest.skip.Exception(f"missing: {packages}", _use_item_location=True)


def pytest_terminal_summary(terminalreporter, config):
    not_run = config.stash[NOT_RUN]
    if not not_run:
        return
    terminalreporter.section("NOT RUN (missing reference tools)", yellow=True)
    for packages, tests in not_run.items():
        terminalreporter.line(f"{len(tests)} tests need {packages}:")
        for test in tests:
            terminalreporter.line(f"    {test}")


@pytest.fixture(scope="session", autouse=True)
def no_segment_outlives_the_session():
    """Fail the session when a segment of ours is still there after the last test."""
    before = segment_names()
    yield
    # Another session on this machine may hold a name for the moment between create and unlink.
    deadline = time.monotonic() + SEGMENT_GRACE_S
    while (left := segment_names() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, f"left behind in {SHARED_MEMORY}: {', '.join(sorted(left))}"
