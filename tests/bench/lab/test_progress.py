"""What a sweep shows: lines that say what ran and what came out, on a terminal and elsewhere."""

import io

import pytest
from rich.console import Console

from bench.lab import Experiment, plan, progress
from bench.lab.partition import Machine
from bench.lab.spec import Timing

FOUR = Machine((0, 1, 2, 3))
DONE = {
    "status": "done",
    "measured": {
        "iops": 12345.6,
        "latency_ns": {"p50": 50_000.0},
        "cpu": {"host_cpu_ns_per_op": 1500.0, "total_busy_ns_per_op": 9000.0},
    },
}
REFUSED = {"status": "refused", "reason": "rate beyond capacity [red]: 2 asked"}


def planned():
    given = Experiment("mine", timing=Timing(1, 0.5, 1), sweep={"depth": [1, 2], "wait_us": [5, 6]})
    return plan.make(given, FOUR)


def watch(watcher, made):
    watcher.begin(made, made.runs[1:], 20.0)
    for run, found in zip(made.runs[1:], (DONE, REFUSED, DONE), strict=True):
        watcher.next(run, 12.0)
        watcher.made(run, found)
    watcher.end()


def check(said, made):
    assert "mine: 4 runs, 1 of them made before; about 20 s" in said
    run = made.runs[1]
    assert f"2/4 (12 s) datamover tcp read 4K depth {run.point.depth} " in said
    assert f"wait_us {run.point.wait_us}: 12,346 IOPS, p50 50 µs, host 1.50 and all 9.00 µs" in said
    assert "refused: rate beyond capacity [red]: 2 asked" in said


def test_without_a_terminal_each_run_is_a_line(capsys):
    made = planned()
    watch(progress.Lines(), made)
    said = capsys.readouterr()
    check(said.err, made)
    assert len(said.err.splitlines()) == 4
    assert said.out == ""


def test_on_a_terminal_the_same_lines_stand_above_what_runs_now(capsys):
    made, screen = planned(), io.StringIO()
    live = progress.Live(Console(file=screen, force_terminal=True, width=200))
    watch(live, made)
    check(capsys.readouterr().err + screen.getvalue(), made)
    assert "left, after" in screen.getvalue()


def test_the_kind_of_watcher_is_chosen_by_where_its_words_go(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    assert type(progress.watcher()) is progress.Lines
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert type(progress.watcher()) is progress.Live


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (600, "10 min"), (7260, "2 h 1 min")],
)
def test_times_are_told_in_the_unit_that_suits(seconds, said):
    assert progress.duration(seconds) == said
