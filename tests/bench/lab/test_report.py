"""A report from a result set: what it says, that it hides nothing, and that it stands alone."""

import base64
import csv
import io
import json
import re
from functools import partial
from html.parser import HTMLParser

import pytest

from bench.lab import results
from bench.lab.report import drawing, html, sections
from bench.lab.report_command import ReportCommand
from ppe.errors import OperatorError
from tests.bench import running
from tests.bench.lab import builder

pytestmark = pytest.mark.slow
needs_matplotlib = pytest.mark.interop("matplotlib")
ETA = {
    "placement": ["inline", "datamover"],
    "operation": ["read", "write"],
    "block_bytes": [8192, 65536],
}
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """A page taken apart: its tree is checked, its references and figures are collected."""

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.ids, self.figures, self.text = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        for name in ("src", "href", "xlink:href", "data", "poster", "srcset", "action"):
            if name in attributes:
                self.references.append(attributes[name])
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "figure":
            self.figures.append({"tags": [], "label": None, "text": ""})
        elif "figure" in self.open:
            self.figures[-1]["tags"].append(tag)
            if tag == "svg":
                self.figures[-1]["label"] = attributes.get("aria-label")
                assert attributes.get("role") == "img"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)
        if "figure" in self.open:
            self.figures[-1]["text"] += data


run = partial(running.run, ReportCommand())


@pytest.fixture
def place(tmp_path):
    return builder.write(tmp_path / "eta", ETA)


@pytest.fixture
def no_matplotlib(monkeypatch):
    monkeypatch.setattr(drawing, "available", lambda: False)


def page_of(directory):
    return Page(html.write(sections.report(*results.load_all(directory))))


def words(page):
    return " ".join(" ".join(page.text).split())


@needs_matplotlib
def test_the_page_is_well_formed_and_names_no_other_resource(place):
    page = page_of(place)
    outside = [r for r in page.references if not r.startswith(("#", "data:text/csv;base64,"))]
    assert outside == []
    assert len(page.ids) == len(set(page.ids))


@needs_matplotlib
def test_the_page_loads_nothing_through_its_style_either(place):
    text = html.write(sections.report(*results.load_all(place)))
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    assert "<script" not in text


@needs_matplotlib
def test_every_figure_has_a_caption_a_spread_a_description_numbers_and_raw_data(place):
    page = page_of(place)
    assert len(page.figures) == 8
    for figure in page.figures:
        assert {"svg", "figcaption", "table", "a"} <= set(figure["tags"])
        assert re.search(r"exact intervals? .*from order statistics", figure["text"])
        assert "5 repeats" in figure["text"]
        assert "Example CPU, 2 CPUs, Linux 6.1.0, virtual machine" in figure["text"]
        assert len(figure["label"]) > 60
        assert "Raw data:" in figure["text"]


@needs_matplotlib
def test_the_raw_data_of_a_figure_are_the_runs_behind_it(place):
    page = page_of(place)
    data = [r for r in page.references if r.startswith("data:text/csv")]
    assert len(data) == len(page.figures)
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(data[0].partition(",")[2]).decode())))
    runs = {run.id: run for run in results.load(place).runs}
    assert len(rows) == len(runs) == 40
    for row in rows:
        measured = runs[row["run"]].value("throughput_bytes_per_s") * 1e-6
        assert float(row["throughput [MB/s]"]) == measured


@needs_matplotlib
def test_the_answer_stands_first_with_its_uncertainty(place):
    said = words(page_of(place))
    answer = said[said.index("AMP against SMP on this machine") :][:1500]
    assert "By speed (operations a second)" in answer
    assert "By cost (busy CPU of all cores per operation) SMP wins" in answer
    assert re.search(r"AMP over SMP from \d\.\d\d × \[\d\.\d\d, \d\.\d\d\]", answer)


@needs_matplotlib
def test_the_papers_figures_stand_beside_ours(place):
    said = words(page_of(place))
    assert "AMP is 30–40 % more efficient than SMP in GHz/Gbps" in said
    assert "§5.1, Fig. 3(b)" in said
    assert "Foong et al., Table 2" in said
    assert "bars and lines without numbers" in said


@needs_matplotlib
def test_what_was_not_measured_is_said_with_its_reason(place):
    builder.edit(
        place,
        "0001",
        lambda raw: raw.update(status="refused", measured=None, reason="beyond capacity"),
    )
    builder.edit(place, "0002", lambda raw: raw.update(schema=9))
    (place / "runs" / "0039.json").unlink()
    said = words(page_of(place))
    absent = said[said.rindex("What was not measured, and why") :]
    assert "no hardware counters: perf_event_open says ENOENT" in absent
    assert "refused: SMP (inline), read, 64 KiB: beyond capacity" in absent
    assert "runs/0002.json was left out: schema is 9" in absent
    assert "planned and not there: 2 runs (0002, 0039)" in absent
    assert "Timelines of single operations" in absent


@needs_matplotlib
def test_one_repeat_makes_no_figure_and_the_page_says_why(tmp_path):
    builder.write(tmp_path / "one", ETA, repeats=1)
    page = page_of(tmp_path / "one")
    assert page.figures == []
    assert "so there is no spread" in words(page)
    assert "(one run)" in words(page)


def test_without_matplotlib_there_are_tables_and_a_line_how_to_get_figures(place, no_matplotlib):
    page = page_of(place)
    assert len(page.figures) == 8
    assert all({"table", "figcaption"} <= set(f["tags"]) for f in page.figures)
    assert not any("svg" in figure["tags"] for figure in page.figures)
    assert "matplotlib is not installed. For figures: pip install 'ppe-runtime[plot]'" in words(
        page
    )


def test_text_from_a_result_file_is_no_markup(place, no_matplotlib, tmp_path):
    evil = '<script src="http://example.com/x.js">"&'
    (place / "experiment.toml").write_text(f"title = '''{evil}'''\nquestion = '''{evil}'''\n")
    builder.edit(place, "0000", lambda raw: raw["not_measured"].update({evil: evil}))
    page = page_of(place)
    assert page.references
    assert not any("example.com" in reference for reference in page.references)
    assert evil in words(page)


def test_injected_faults_are_told_with_what_was_lost(place, no_matplotlib):
    fault = {"at_step": 7, "kind": "kill engine", "lost_operations": 0, "recovery_s": 0.4}
    builder.edit(place, "0003", lambda raw: raw.update(faults=[fault]))
    said = words(page_of(place))
    assert "No operation was lost." in said
    assert "kill engine 7 0 0.4" in said


def test_a_users_own_experiment_gets_its_title_question_and_figure(tmp_path, no_matplotlib):
    builder.write(
        tmp_path / "mine",
        {"block_bytes": [4096, 16384, 65536], "digests": ["none", "both"]},
        experiment="mine",
        spec='name = "mine"\ntitle = "Digests"\nquestion = "What do digests cost?"\n',
    )
    page = page_of(tmp_path / "mine")
    said = words(page)
    assert "mine: Digests" in said
    assert "What do digests cost?" in said
    assert "against block size" in page.figures[0]["text"]
    assert {"digests none", "digests both"} <= set(re.findall(r"digests \w+", said))


def test_the_model_stands_beside_the_measurement_with_its_residuals(tmp_path, no_matplotlib):
    machine = builder.Machine(
        iops=lambda p: 1e6 * p["depth"] / (50 + 10 * p["depth"]), host_us=lambda p: 10.0
    )
    builder.write(tmp_path / "mine", {"depth": [1, 4, 32]}, experiment="mine", machine=machine)
    said = words(page_of(tmp_path / "mine"))
    assert re.search(r"SMP \(inline\): \d+\.\d % off in the median", said)
    assert len(re.findall(r"[+-]\d+\.\d %", said)) == 3


def test_percentiles_are_of_all_repeats_and_only_where_samples_lie_beyond(place, no_matplotlib):
    said = words(page_of(place))
    start = said.index("Latency percentiles of all repeats together")
    row = said[start : start + 700]
    first = next(iter(results.load(place).points().values()))
    total = sum(int(run.value("operations")) for run in first)
    assert row.index("99.99 % (µs)") < row.index(f" {total:,} ")


def test_several_result_sets_become_one_page(tmp_path, no_matplotlib):
    builder.write(tmp_path / "all" / "eta", ETA, repeats=3)
    builder.write(
        tmp_path / "all" / "wait",
        {"wait_n": [1, 4, 16]},
        experiment="wait-n",
        repeats=3,
        placement="datamover",
    )
    said = words(page_of(tmp_path / "all"))
    assert "eta: SMP against AMP" in said
    assert "wait-n: Coalescing" in said


def test_an_experiment_without_smp_says_that_it_does_not_answer(tmp_path, no_matplotlib):
    builder.write(tmp_path / "wait", {"wait_n": [1, 4]}, experiment="wait-n", placement="datamover")
    assert "AMP against SMP is not answered here" in words(page_of(tmp_path / "wait"))


@needs_matplotlib
@pytest.mark.parametrize("kind", ["svg", "png"])
def test_markdown_has_figure_files_and_raw_data_beside_it(place, tmp_path, kind, capsys):
    out = tmp_path / "out" / "page.md"
    assert run(place, "--markdown", out, "--open-format", kind) == 0
    text = out.read_text()
    links = re.findall(r"\]\((page-figures/[^)]+)\)", text)
    assert len(links) == 16
    for link in links:
        assert (out.parent / link).stat().st_size > 100
    assert {link.rpartition(".")[2] for link in links} == {kind, "csv"}
    assert f"written {out}" in capsys.readouterr().out
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_the_page_lies_in_the_set_when_no_file_is_named(place, no_matplotlib, capsys):
    assert run(place) == 0
    assert (place / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert str(place / "report.html") in capsys.readouterr().out
    assert run(place) == 0, "a report may be written over, and is not read as a result"


def test_the_command_tells_a_program_what_it_wrote_and_found(place, no_matplotlib, capsys):
    assert run(place, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["written"] == [str(place / "report.html")]
    assert len(found["sets"][0]["duels"]) == 4
    assert "SMP wins" in found["sets"][0]["answer"]


def test_a_folder_that_is_none_and_a_place_that_cannot_be_written_are_refused(
    place, tmp_path, no_matplotlib
):
    with pytest.raises(OperatorError, match="is not a folder"):
        run(tmp_path / "nowhere")
    with pytest.raises(OperatorError, match="cannot be written"):
        run(place, "--html", place / "plan.json" / "page.html")
