"""Sweeps that end early, at any run: nothing finished is lost, and nothing runs twice."""

import json

import pytest

import bench.lab
from bench.lab import Experiment, driver, result_files, runs
from bench.lab.driver import Silent
from bench.lab.partition import Machine
from bench.lab.spec import Timing
from ppe.errors import UsageError

FOUR = Machine((0, 1, 2, 3))
POINTS, REPEATS = 2, 3
RUNS = POINTS * REPEATS


def experiment(**changes):
    given = {
        "timing": Timing(REPEATS, 0, 0.1),
        "sweep": {"placement": ["inline", "datamover"]},
    }
    return Experiment("mine", **{**given, **changes})


class Performed:
    """Takes the place of `runs.perform`: does nothing but keep what it was asked, and may fail."""

    def __init__(self, monkeypatch):
        self.ids, self.stop_at, self.status = [], None, "done"
        monkeypatch.setattr(runs, "perform", self.perform)

    def perform(self, run, experiment, timing, here):
        if len(self.ids) == self.stop_at:
            raise KeyboardInterrupt
        self.ids.append(run.id)
        return {"id": run.id, "status": self.status, "reason": None, "made": len(self.ids)}


@pytest.fixture
def performed(monkeypatch):
    return Performed(monkeypatch)


def texts(directory):
    return {path.name: path.read_bytes() for path in (directory / "runs").iterdir()}


@pytest.mark.parametrize("at", range(RUNS))
def test_a_sweep_interrupted_at_any_run_goes_on_with_what_is_missing(performed, tmp_path, at):
    sweep = driver.begin(experiment(), tmp_path, FOUR)
    performed.stop_at = at
    with pytest.raises(KeyboardInterrupt):
        sweep.perform(FOUR, Silent())
    kept = texts(tmp_path)
    assert len(kept) == at
    performed.stop_at = None
    again = driver.resume(tmp_path, experiment())
    assert [run.id for run in again.left] == [run.id for run in sweep.plan.runs[at:]]
    again.perform(FOUR, Silent())
    assert performed.ids == [f"{number:04}" for number in range(RUNS)]
    assert texts(tmp_path).items() >= kept.items()
    assert len(texts(tmp_path)) == RUNS


def test_a_finished_sweep_has_nothing_left(performed, tmp_path):
    driver.begin(experiment(), tmp_path, FOUR).perform(FOUR, Silent())
    again = driver.resume(tmp_path)
    assert again.left == ()
    assert again.perform(FOUR, Silent()) == {}


def test_a_run_that_failed_is_made_again_and_one_that_was_refused_is_not(performed, tmp_path):
    performed.status = "failed"
    driver.begin(experiment(), tmp_path, FOUR).perform(FOUR, Silent())
    again = driver.resume(tmp_path)
    assert len(again.left) == RUNS
    performed.status = "refused"
    again.perform(FOUR, Silent())
    assert driver.resume(tmp_path).left == ()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": 1}', "\x00"])
def test_a_run_file_that_says_nothing_counts_for_none(performed, tmp_path, text):
    driver.begin(experiment(), tmp_path, FOUR).perform(FOUR, Silent())
    (tmp_path / "runs" / "0003.json").write_text(text)
    assert [run.id for run in driver.resume(tmp_path).left] == ["0003"]


def test_a_file_that_could_not_be_written_whole_leaves_no_part_of_it(performed, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        result_files.write_json(tmp_path / "runs" / "0000.json", {"value": float("nan")})
    result_files.write_text(tmp_path / "runs" / "0001.json", "{}")
    with pytest.raises(TypeError):
        result_files.write_text(tmp_path / "runs" / "0001.json", 1)
    assert texts(tmp_path) == {"0001.json": b"{}"}


def test_a_folder_in_use_is_refused_with_how_to_go_on(performed, tmp_path):
    driver.begin(experiment(), tmp_path, FOUR)
    with pytest.raises(UsageError, match="is in use") as caught:
        driver.begin(experiment(), tmp_path, FOUR)
    assert "--resume" in caught.value.hint
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="is in use") as caught:
        driver.begin(experiment(), other, FOUR)
    assert "--resume" not in caught.value.hint


def test_a_sweep_begun_with_another_experiment_is_not_gone_on_with(performed, tmp_path):
    driver.begin(experiment(), tmp_path, FOUR)
    with pytest.raises(UsageError, match="another experiment"):
        driver.resume(tmp_path, experiment(seed=2))


def test_the_short_form_goes_on_as_the_short_form(performed, tmp_path):
    text = "repeats = 9\nmeasure_s = 1\n[partition]\nshared = true\n[short]\nrepeats = 2\n"
    driver.begin(Experiment.from_text(text), tmp_path, FOUR, is_short=True)
    again = driver.resume(tmp_path, Experiment.from_text(text))
    assert (len(again.left), again.plan.is_short) == (2, True)
    assert (tmp_path / "experiment.toml").read_text() == text


def test_what_a_machine_cannot_run_is_recorded_without_running(monkeypatch, tmp_path):
    monkeypatch.setattr(runs.processes, "started", None)  # Nothing may be started.
    skipping = Experiment(
        "mine", fixed={"shared": True}, sweep={"engines": [1, 9]}, impossible="skip"
    )
    plan = driver.begin(skipping, tmp_path, FOUR).plan
    refused = next(run for run in plan.runs if run.refusal)
    found = runs.perform(refused, "mine", plan.timing, FOUR)
    assert (found["status"], found["measured"], found["cores"]) == ("refused", None, None)
    assert found["reason"] == "engines: 9 engines want 9 cores, and there are 4: 0, 1, 2, 3"
    assert found["point"]["engines"] == 9


def test_the_estimate_learns_from_the_runs_that_were_made(performed, tmp_path):
    told = []

    class Watching(Silent):
        def next(self, run, seconds):
            told.append(seconds)

    driver.begin(experiment(), tmp_path, FOUR).perform(FOUR, Watching())
    # Runs that take no time at all: each estimate is less than the one before by more than a run.
    assert told == sorted(told, reverse=True)
    assert told[-1] < told[0] / RUNS


def test_python_runs_an_experiment_and_goes_on_with_it_by_two_calls(performed, tmp_path):
    given = experiment(fixed={"shared": True}, sweep={"depth": [1, 2]})
    assert set(bench.lab.run(given, tmp_path).values()) == {"done"}
    assert bench.lab.run(given, tmp_path, resume_it=True) == {}
    (tmp_path / "runs" / "0001.json").unlink()
    assert bench.lab.run(given, tmp_path, resume_it=True) == {"0001": "done"}


def test_every_file_of_a_set_is_json_of_this_schema(performed, tmp_path):
    driver.begin(experiment(), tmp_path, FOUR).perform(FOUR, Silent())
    assert json.loads((tmp_path / "plan.json").read_text())["schema"] == result_files.SCHEMA
    assert sorted(texts(tmp_path)) == [f"{number:04}.json" for number in range(RUNS)]
