"""sg3-utils read what our units say of themselves: VPD pages, standard data, capacities and sense,
given to the tools as hexadecimal text, so no kernel is needed.
"""

import pytest

from iscsi.wire import scsi as cdbs
from iscsi.wire.sense import Asc, SenseKey, encode_sense, progress
from tests.interop.serve import run
from tests.iscsi.target.medium import BLOCKS, Bench, ram

SERIAL = "SN-0001"
# A page, and what sg_vpd is to find in it.
PAGES = {
    0x00: ["Block limits (SBC)", "Logical block provisioning (SBC)", "Extended inquiry data"],
    0x80: [f"Unit serial number: {SERIAL}"],
    0x83: [
        "NAA 3, Locally assigned",
        "Relative target port: 0x1",
        "Target port group: 0x1",
        "iqn.2026-01.org.example:t,t,0x0001",
        "Internet SCSI (iSCSI)",
    ],
    0x86: ["HEADSUP=1", "ORDSUP=1", "SIMPSUP=1", "LUICLR=1"],
    0x87: ["policy applies to all modes pages", "Policy: shared"],
    0x8F: ["block -> block"],
    0xB0: [
        "Write same non-zero (WSNZ): 0",
        "Maximum compare and write length: 255 blocks",
        "Maximum transfer length: 8192 blocks",
        "Optimal unmap granularity: 8 blocks",
        "Atomic alignment: 2",
    ],
    0xB1: ["Non-rotating medium"],
    0xB2: [
        "Unmap command supported (LBPU): 1",
        "(LBPRZ): 1",
        "Threshold exponent: 11",
        "thin provisioned",
    ],
}
# A log page and its subpage, and what sg_logs is to find in it.
LOGS = {
    (0x00, 0x00): ["Logical block provisioning [lbp]", "General Statistics and Performance [gsp]"],
    (0x00, 0xFF): ["0x0c,0xff", "0x19,0xff"],
    (0x0C, 0x00): [
        "Available LBA mapping threshold resource count: 2",
        "Used LBA mapping threshold resource count: 0",
        "Scope: dedicated to lu",
    ],
    (0x19, 0x00): [
        "number of read commands = 1",
        "number of logical blocks transmitted = 8",
        "time interval integer = 0",
    ],
}


@pytest.fixture(scope="module")
def bench():
    return Bench(ram(serial=SERIAL))


def hexadecimal(raw):
    lines = [raw[at : at + 16].hex(" ") for at in range(0, len(raw), 16)]
    return "\n".join(lines) + "\n"


def told(*words, raw):
    done = run(*words, input=hexadecimal(raw))
    assert not done.stderr
    return done.stdout


@pytest.mark.interop("sg_vpd")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page:02x}")
def test_a_vpd_page_is_understood(bench, page):
    raw = bench.send(cdbs.inquiry(page, 1024), expected=1024).data
    text = told("sg_vpd", "--inhex=-", "--long", f"--page={page:#x}", raw=raw)
    for line in PAGES[page]:
        assert line in text


@pytest.mark.interop("sg_vpd")
def test_no_page_is_left_out(bench):
    listed = bench.send(cdbs.inquiry(0, 255), expected=255).data[4:]
    assert set(listed) == set(PAGES)


@pytest.mark.interop("sg_logs")
@pytest.mark.parametrize(("page", "subpage"), LOGS)
def test_a_log_page_is_understood(page, subpage):
    bench = Bench(ram())
    assert len(bench.send(cdbs.read_10(0, 8), expected=8 * 512).data) == 8 * 512
    cdb = bytes((0x4D, 0, 0x40 | page, subpage, 0, 0, 0, 4, 0, 0))
    raw = bench.send(cdb, expected=1024).data
    text = told("sg_logs", "--in=-", "--pdt=0", raw=raw)
    for line in LOGS[page, subpage]:
        assert line in text


@pytest.mark.interop("sg_inq")
def test_standard_inquiry_data_is_understood(bench):
    raw = bench.send(cdbs.inquiry(), expected=255).data
    text = told("sg_inq", "--inhex=-", "--descriptors", raw=raw)
    for word in ("[SPC-4]", "TPGS=1", "CmdQue=1", "iSCSI (no version", "SBC-3 (no version"):
        assert word in text


@pytest.mark.interop("sg_get_lba_status")
def test_the_status_of_blocks_is_understood(bench):
    bench.fill(16, bytes(16 * 512))
    cdb = bytes((0x9E, 0x12, *bytes(8), 0, 0, 1, 0, 0, 0))
    raw = bench.send(cdb, expected=256).data
    text = told("sg_get_lba_status", "--inhex=-", "--maxlen=256", raw=raw)
    lines = [line.split() for line in text.splitlines() if "LBA:" in line]
    found = [(int(words[2], 16), int(words[4])) for words in lines]
    assert found == [(0, 16), (16, 16), (32, BLOCKS - 32)]
    assert ["deallocated" in words for words in lines] == [True, False, True]


@pytest.mark.interop("sg_decode_sense")
@pytest.mark.parametrize("descriptor", [False, True])
@pytest.mark.parametrize(
    ("key", "code", "options", "words"),
    [
        (SenseKey.ILLEGAL_REQUEST, Asc.LBA_OUT_OF_RANGE, {}, ["block address out of range"]),
        (SenseKey.UNIT_ATTENTION, Asc.REPORTED_LUNS_CHANGED, {}, ["luns data has changed"]),
        (SenseKey.DATA_PROTECT, Asc.SPACE_ALLOCATION_FAILED, {}, ["Space allocation failed"]),
        (SenseKey.MISCOMPARE, Asc.MISCOMPARE_DURING_VERIFY, {"information": 77}, ["4d"]),
        (
            SenseKey.NOT_READY,
            Asc.SANITIZE_IN_PROGRESS,
            {"specific": progress(0.5)},
            ["sanitize in progress", "50.00%"],
        ),
    ],
)
def test_sense_is_understood_in_either_format(key, code, options, words, descriptor):
    raw = encode_sense(key, code, descriptor=descriptor, **options)
    done = run("sg_decode_sense", *raw.hex(" ").split())
    text = done.stdout.lower()
    assert ("descriptor format" in text) is descriptor
    for word in words:
        assert word.lower() in text
