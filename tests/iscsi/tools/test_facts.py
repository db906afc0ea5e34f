"""Facts on a terminal: what `ppe iscsi inq` and `readcap` print when nobody asks for JSON."""

from iscsi.tools.facts import WIDTH, fact_lines


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
