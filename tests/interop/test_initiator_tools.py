"""`ppe iscsi` as people run it, against tgt: what it prints, copies and refuses."""

import json
import os
import subprocess
import sys

import pytest

import host.inline  # noqa: F401 - fills the cache while tests are collected
import iscsi.session.perf  # noqa: F401 - the same
from tests.iscsi.session.tgt import TARGET, free_port, tgt_target

pytestmark = [pytest.mark.interop("tgtd", "tgtadm"), pytest.mark.slow]
RUN_S = 90


@pytest.fixture(scope="module")
def tgt(tmp_path_factory):
    with tgt_target(tmp_path_factory.mktemp("tgt"), luns=2) as running:
        yield running


def ppe(*words, data=None):
    command = [sys.executable, "-m", "ppe", "iscsi", *map(str, words)]
    return subprocess.run(command, input=data, capture_output=True, timeout=RUN_S, check=False)


def ppe_json(*words, data=None):
    done = ppe(*words, "--json", data=data)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_ls_shows_targets_and_with_s_their_luns(tgt):
    portal = f"iscsi://127.0.0.1:{tgt.port}"
    (found,) = ppe_json("ls", portal)["targets"]
    assert found == {"target": TARGET, "portals": [f"127.0.0.1:{tgt.port},1"]}
    (found,) = ppe_json("ls", "-s", portal)["targets"]
    assert [(lun["lun"], lun["type"], lun["size"]) for lun in found["luns"]] == [
        (0, "controller", None),
        (1, "disk", 64 << 20),
        (2, "disk", 64 << 20),
    ]
    text = ppe("ls", "-s", portal).stdout.decode()
    assert TARGET in text
    assert "64 MiB" in text


def test_inq_shows_what_a_lun_says(tgt):
    facts = ppe_json("inq", tgt.url)
    assert (facts["vendor"], facts["block_size"], facts["blocks"]) == ("IET", 512, 131072)
    assert facts["session"]["max_burst_length"] == 262144
    assert bytes.fromhex(ppe_json("inq", tgt.url, "--page", "0x80")["body"])


def test_what_write_takes_read_gives_back(tgt, tmp_path):
    data = os.urandom(5_000_192)
    source, sink = tmp_path / "source", tmp_path / "sink"
    source.write_bytes(data)
    written = ppe_json("write", tgt.url, source, "--lba", 11, "--pad")
    assert (written["lba"], written["blocks"]) == (11, 9766)
    ppe_json("read", tgt.url, "--lba", 11, "--blocks", 9766, "-o", sink)
    assert sink.read_bytes() == data + bytes(9766 * 512 - len(data))
    piped = ppe("read", tgt.url, "--lba", 11, "--blocks", 3)
    assert piped.stdout == data[: 3 * 512]
    assert ppe("write", tgt.url_of(2), data=data[:1024]).returncode == 0
    assert ppe("read", tgt.url_of(2), "--blocks", 2).stdout == data[:1024]


def test_perf_reports_what_it_did_and_what_it_cost(tgt):
    facts = ppe_json("perf", tgt.url, "-m", 4, "-t", 0.3, "--random", "--mix", 30, "--verify")
    assert facts["reads"] > facts["writes"] > 0
    assert facts["verified_blocks"] == 8 * facts["reads"]
    assert facts["read_latency_us"]["p50"] > 0
    assert facts["receive"] == "staged"
    assert ppe_json("perf", tgt.url, "-m", 1, "-t", 0.2)["receive"] == "coalesced"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["read", "iscs://x"], 2, "scheme"),
        (["read", "iscsi://127.0.0.1:{closed}/iqn.2026-01.a:b/1"], 1, "Connection refused"),
        (["inq", "iscsi://127.0.0.1:{port}/iqn.2026-01.a:nothere/1"], 1, "target not found"),
        (["inq", "{url}9"], 1, "has no LUN 19"),
        (["read", "{url}", "--lba", "131072", "--blocks", "1"], 1, "0..131071"),
        (["read", "{url}", "--lba", "999999999"], 1, "0..131071"),
        (["read", "{url}", "--json"], 2, "stdout"),
        (["write", "{url}", "/nonexistent/file"], 1, "No such file"),
        (["perf", "{url}", "--write", "--mix", "3"], 2, "exclude"),
        (["perf", "{url}", "-m", "0"], 1, "queue_depth 0"),
        (["read", "{url}", "--engine", "nobody"], 1, "no engine named"),
    ],
)
def test_bad_input_is_named_and_ends_with_the_right_code(tgt, words, code, said):
    places = {"url": tgt.url, "port": tgt.port, "closed": free_port()}
    done = ppe(*(word.format(**places) for word in words))
    assert (done.returncode, done.stdout) == (code, b""), done.stderr
    assert said in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_data_that_is_not_whole_blocks_needs_pad(tgt):
    done = ppe("write", tgt.url, data=b"x" * 100)
    assert done.returncode == 1
    assert b"--pad" in done.stderr
