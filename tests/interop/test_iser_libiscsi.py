"""libiscsi 1.20 over iSER on siw, in a guest, with our target. Its suites at the level of iSCSI
make their own PDUs and bytes, so they are for TCP alone and not run here.
"""

import pytest

import iscsi.target.server  # noqa: F401 - compiles while tests are collected
import ppe.cycle.services.iser
import ppe.cycle.services.rdma  # noqa: F401 - the same
from shm.jit import JIT_DISABLED
from tests.guest import debian13
from tests.guest.machine import HOST, QEMU_TOOLS
from tests.interop import testcu
from tests.interop.serve import IQN, Served
from tests.iscsi.session.tgt import free_port

pytestmark = [
    pytest.mark.rdma_guest,
    pytest.mark.slow,
    pytest.mark.interop(*QEMU_TOOLS, "gcc", "make"),
    pytest.mark.timeout(400),
    pytest.mark.skipif(JIT_DISABLED, reason="the server's loop is compiled"),
]

SIZE = 64 << 20
SUITES = (
    "Inquiry",
    "ReadCapacity10",
    "ReadCapacity16",
    "Read6",
    "Read10",
    "Read12",
    "Read16",
    "Write10",
    "Write12",
    "Write16",
    "WriteVerify10",
)
# Over iSER libiscsi takes as many bytes for received as it had asked for, whatever the residual
# count says; these three look at bytes that never came. Over ib_iser, which does look at it, the
# same suite passes.
BEYOND_THE_RESIDUAL = {"Inquiry": {"Standard", "AllocLength", "BlockLimits"}}
# Now and then siw of Linux 6.1 ends a connection over a CRC that is right: what it says it found
# are the same bytes one place too early, as if a part of them, come in a segment of its own, had
# been written over. The tool does not connect again and dies of it (one in twenty Read10.Async).
SPLIT_CRC = "siw: crc error"
ATTEMPTS = 4


@pytest.fixture(scope="module", params=["engine", "datamover"])
def url(request):
    """Our target's first unit, as the guest reaches it."""
    port = free_port()
    flags = ("--ram", str(SIZE), "--iser", f"127.0.0.1:{port}", "--placement", request.param)
    with Served(*flags):
        yield f"iser://{HOST}:{port}/{IQN}/0"


@pytest.fixture(scope="module")
def run(iser_guest):
    """Run a program of Debian 13 in the guest: what it printed."""
    root = f"/host{debian13.prepare()}"
    for name in ("dev", "proc", "sys"):
        iser_guest.run(f"mount -o rbind /{name} {root}/{name}")

    def run(command, timeout=60):
        prefix = f"ulimit -l unlimited; chroot {root} "
        return iser_guest.output(prefix + command, timeout=timeout)

    return run


def test_libiscsi_logs_in_over_iser(run, url):
    assert "Vendor:PPE" in run(f"iscsi-inq {url}")
    assert f"Total size:{SIZE}" in run(f"iscsi-readcapacity16 {url}")


def split_crcs(guest):
    """How often siw has met one since the guest began."""
    return int(guest.output(f"dmesg | grep -c '{SPLIT_CRC}' || true"))


@pytest.mark.parametrize("suite", SUITES)
def test_libiscsis_suite_over_iser(run, iser_guest, url, suite):
    for _ in range(ATTEMPTS):
        before = split_crcs(iser_guest)
        text = run(f"iscsi-test-cu -d -t SCSI.{suite} {url} 2>&1 || true", timeout=120)
        if split_crcs(iser_guest) == before:
            break
    verdict = testcu.read(text)
    assert verdict.failed == BEYOND_THE_RESIDUAL.get(suite, set()), verdict.text
    assert verdict.passed, f"nothing of {suite} ran: {verdict.text}"
