"""Facts on a terminal: what `ppe iscsi inq`, `readcap` and `perf` print without `--json`."""

from iscsi.tools.facts import WIDTH, fact_lines
from iscsi.tools.initiator_perf import _latency_lines


def test_a_fact_is_a_line_and_a_table_is_indented_below_its_name():
    facts = {"thin": True, "session": {"initial_r2t": False, "burst": 65536}, "blocks": 8}
    assert list(fact_lines(facts)) == [
        "thin:    yes",
        "blocks:  8",
        "session:",
        "  initial_r2t:  no",
        "  burst:        65536",
    ]


def test_a_list_is_words_that_are_wrapped_and_never_cut():
    pages = [f"0x{page:02x}" for page in range(40)]
    lines = list(fact_lines({"pages": pages, "name": "x" * 100}))
    assert all(len(line) <= WIDTH for line in lines[:-1])
    assert " ".join(lines[:-1]).split() == ["pages:", *pages]
    assert lines[-1] == "name:   " + "x" * 100


def test_what_is_not_known_is_left_out():
    assert list(fact_lines({"serial": "", "pages": [], "alias": None, "zero": 0})) == ["zero:  0"]


def test_latencies_are_a_table_that_fits_a_terminal():
    latency = {"count": 7, "mean": 123.45, "max": 1234567.8}
    latency |= {f"p{percent}": 98765.43 for percent in (50, 90, 99, 99.9, 99.99)}
    facts = {"read_latency_us": latency, "write_latency_us": None}
    head, read = _latency_lines(facts)
    assert head.split() == ["µs", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "max"]
    assert read.split() == ["read", "123.5", *["98,765.4"] * 5, "1,234,567.8"]
    assert len(head) == len(read) <= WIDTH
    assert _latency_lines({"read_latency_us": None, "write_latency_us": None}) == []
