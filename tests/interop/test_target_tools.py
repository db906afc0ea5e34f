"""libiscsi's tools and QEMU as initiators of our target, over an inline engine and a daemon's."""

import os
import re
import signal
import socket
import struct
import subprocess

import pytest

from shm.jit import JIT_DISABLED
from tests.interop.serve import IQN, Served, engine, run
from tests.interop.testcu import conform
from tests.iscsi.target.serving import Raw

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(JIT_DISABLED, reason="the server's loop is compiled"),
]

SIZE = 64 << 20
# How many tests each suite of the tool has, and those that only a later command set can pass.
SUITES = {
    "TestUnitReady": 1,
    "Inquiry": 7,
    "Mandatory": 1,
    "ModeSense6": 5,
    "ReadCapacity10": 1,
    "ReadCapacity16": 4,
    "Read6": 2,
    "Read10": 6,
    "Read12": 5,
    "Read16": 5,
    "Write10": 6,
    "Write12": 5,
    "Write16": 5,
    "ReportSupportedOpcodes": 4,
    "StartStopUnit": 3,
}
SKIPPED = {
    # They want a thin LUN, take the refusal that they asked for as a missing command, and want a
    # medium that can be taken out.
    "Inquiry": {"BlockLimits"},
    "ReportSupportedOpcodes": {"OneCommand"},
    "StartStopUnit": {"Simple"},
}


@pytest.fixture(scope="module", params=["inline", "daemon"])
def served(request, tmp_path_factory):
    if request.param == "inline":
        with Served("--ram", "64M") as server:
            yield server
        return
    runtime = tmp_path_factory.mktemp("runtime")
    with (
        engine(runtime, "target-interop") as name,
        Served("--ram", "64M", "--engine", name, runtime=runtime) as server,
    ):
        yield server


@pytest.mark.interop("iscsi-ls")
def test_iscsi_ls_lists_the_target_and_its_unit(served):
    said = run("iscsi-ls", "-s", f"iscsi://{served.portal}").stdout
    assert f"Target:{IQN} Portal:{served.portal},1" in said
    assert re.search(r"Lun:0\s+Type:DIRECT_ACCESS", said)


@pytest.mark.interop("iscsi-inq")
@pytest.mark.parametrize(
    ("page", "said"),
    [
        (None, "Vendor:PPE"),
        ("0", "Page:0xb2"),
        ("128", "Unit Serial Number:["),
        ("131", f"{IQN},t,0x0001"),
        ("176", "optimal transfer length granularity:8"),
        ("177", "Medium Rotation Rate:1RPM"),
        ("178", "provisioning type:0"),
    ],
)
def test_iscsi_inq_reads_the_unit_and_its_pages(served, page, said):
    options = () if page is None else ("-e", "1", "-c", page)
    assert said in run("iscsi-inq", *options, served.url).stdout


@pytest.mark.interop("iscsi-readcapacity16")
def test_iscsi_readcapacity16_tells_the_size(served):
    assert f"Total size:{SIZE}" in run("iscsi-readcapacity16", served.url).stdout


@pytest.mark.interop("iscsi-perf")
def test_iscsi_perf_reads_with_many_commands_outstanding(served):
    done = run("iscsi-perf", "-m", "32", "-b", "8", "-t", "1", "-r", served.url)
    assert "finished" in done.stdout
    assert int(re.findall(r"iops average (\d+)", done.stdout)[-1]) > 0


@pytest.mark.interop("qemu-img", "qemu-iscsi")
def test_qemu_img_writes_an_image_and_reads_the_same(served, tmp_path):
    image, back = tmp_path / "image", tmp_path / "back"
    image.write_bytes(os.urandom(SIZE))
    assert f"({SIZE} bytes)" in run("qemu-img", "info", served.url).stdout
    raw = ("-f", "raw", "-O", "raw")
    run("qemu-img", "convert", "-n", *raw, image, served.url)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, served.url)
    run("qemu-img", "convert", *raw, served.url, back)
    assert back.read_bytes() == image.read_bytes()


@pytest.mark.interop("qemu-img", "qemu-iscsi")
@pytest.mark.parametrize("flags", [("-w",), ()], ids=["write", "read"])
@pytest.mark.parametrize("size", ["4096", "65536"])
def test_qemu_img_bench_ends(served, flags, size):
    words = ("-c", "2000", "-d", "32", "-s", size, "-f", "raw", "-t", "none")
    assert "Run completed" in run("qemu-img", "bench", *flags, *words, served.url).stdout


@pytest.mark.interop("iscsi-test-cu")
@pytest.mark.parametrize("suite", SUITES)
def test_the_unit_conforms(served, suite):
    verdict = conform(f"ALL.{suite}", served.url)
    assert verdict.ran == SUITES[suite], verdict.text
    assert not verdict.failed, verdict.text
    assert verdict.skipped == SKIPPED.get(suite, set()), verdict.text


@pytest.mark.interop("iscsi-test-cu")
@pytest.mark.parametrize(
    ("suite", "count"), [("iSCSIcmdsn", 2), ("iSCSITMF", 2), ("iSCSIResiduals", 10)]
)
def test_the_protocol_conforms(served, suite, count):
    verdict = conform(f"iSCSI.{suite}", served.url)
    assert verdict.ran == count, verdict.text
    assert not verdict.failed, verdict.text
    assert not {name for name in verdict.skipped if "WriteVerify" not in name}, verdict.text


@pytest.mark.interop("qemu-img", "qemu-iscsi", "iscsi-readcapacity16")
def test_a_killed_writer_leaves_the_others_served(served):
    for _ in range(3):
        words = ("-w", "-c", "1000000", "-d", "32", "-s", "65536", "-f", "raw", "-t", "none")
        writer = subprocess.Popen(["qemu-img", "bench", *words, served.url], stdout=subprocess.PIPE)
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                writer.wait(0.3)
        finally:
            writer.kill()
            writer.communicate()
        assert f"Total size:{SIZE}" in run("iscsi-readcapacity16", served.url).stdout


@pytest.mark.interop("iscsi-inq", "iscsi-readcapacity16", "qemu-img", "qemu-iscsi")
def test_large_blocks_and_write_protection_reach_the_initiator(tmp_path):
    flags = ("--ram", "8M", "--ram", "4M", "--block-size", "4096", "--read-only")
    with Served(*flags) as server:
        assert len(server.urls) == 2
        for url, size in zip(server.urls, (8 << 20, 4 << 20), strict=True):
            said = run("iscsi-readcapacity16", url).stdout
            assert f"Total size:{size}" in said
            assert "LOGICAL BLOCK LENGTH IN BYTES:4096" in said
        image = tmp_path / "image"
        image.write_bytes(bytes(8 << 20))
        words = ("convert", "-n", "-f", "raw", "-O", "raw", image, server.url)
        assert run("qemu-img", *words, check=False).returncode != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_in_order_with_a_client_connected(number):
    with Served("--ram", "1M") as server, Raw(server.port).log_in(IQN) as client:
        assert "stopped: 1 accepted, 1 logged in" in server.stop(number)
        assert client.is_closed()


def test_a_second_server_on_the_same_portal_says_so():
    refused = pytest.raises(AssertionError, match="another server listens there")
    with Served("--ram", "1M") as server, refused:
        Served("--ram", "1M", "--portal", server.portal)


def test_nothing_is_lost_when_the_client_resets(served):
    host, _, port = served.portal.rpartition(":")
    for _ in range(20):
        with socket.create_connection((host, int(port)), 10) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert served.process.poll() is None
