"""`ppe experiment list|run`: what it prints and refuses, how it ends, and that it goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import host.inline  # noqa: F401 - compiles while tests are collected, where no timeout runs
import iscsi.session.doors  # noqa: F401 - the same
from bench.lab import builtin
from bench.lab.command import ExperimentCommand
from ppe.errors import ConfigError, OperatorError, UsageError
from tests.bench import running
from tests.bench.lab.trees import descendants

ROOT = Path(__file__).parent.parent.parent.parent
DOCUMENT = ROOT / "docs" / "EXPERIMENTS.md"
PPE = (
    "import signal, sys, ppe.cli as cli;"
    "signal.signal(signal.SIGINT, signal.default_int_handler);"  # a job's parent may ignore it
    "cli._plugins = lambda: {'experiment': 'bench.lab.command:ExperimentCommand'};"
    "sys.exit(cli.main(sys.argv[1:]))"
)
MINE = """\
title = "Mine"
repeats = 3
warm_up_s = 0
measure_s = 0.1
[workload]
placement = "inline"
[partition]
shared = true
"""
WAIT_S = 90


run = partial(running.run, ExperimentCommand())


def started(*words):
    return subprocess.Popen(
        [sys.executable, "-c", PPE, "experiment", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,  # a Ctrl-C of its own
    )


def wait_for(what, condition):
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.02)
    return found


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return path


def test_the_list_names_every_built_in_experiment_and_how_long_it_takes(capsys):
    assert run("list") == 0
    printed = capsys.readouterr().out
    for name in builtin.names():
        assert f"\n{name} " in printed
    assert "docs/EXPERIMENTS.md" in printed


def test_the_list_as_json_says_how_many_runs_each_form_has(capsys):
    assert run("list", "--json") == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["experiments"]}
    assert set(found) == {
        *("eta", "libiscsi-iser", "thesis", "wait-n", "partition", "registration", "scaling")
    }
    assert all(0 < one["short"]["runs"] < one["full"]["runs"] for one in found.values())


def test_a_dry_run_shows_the_plan_and_writes_nothing(mine, tmp_path, capsys):
    assert run("run", mine, "--dry-run", "--into", tmp_path / "none") == 0
    printed = capsys.readouterr().out
    assert "0002  2" in printed
    assert "3 runs of 0 + 0.1 s, about 12 s; seed 1" in printed
    assert not (tmp_path / "none").exists()
    assert run("run", mine, "--dry-run", "--json", "--repeats", "2") == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 2


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (("etta",), UsageError, "there is no experiment 'etta'"),
        (("gone.toml",), ConfigError, "gone.toml: No such file"),
        (("eta", "--repeats", "0"), UsageError, "--repeats 0: at least 1"),
        (("{tmp}",), UsageError, "is a folder"),
        (("{tmp}", "--resume"), OperatorError, "nothing was begun there"),
        (("{tmp}", "--resume", "--short"), UsageError, "--short has no meaning with --resume"),
        (("{mine}", "--short"), UsageError, "has no short form"),
        (("{mine}", "--into", "{mine}"), UsageError, "is in use"),
        (("{mine}", "--into", "{mine}/x"), OperatorError, "Not a directory"),
    ],
)
def test_what_cannot_be_run_is_refused_with_what_to_change(mine, tmp_path, words, error, said):
    empty = tmp_path / "empty"
    empty.mkdir()
    given = [word.format(tmp=empty, mine=mine) for word in words]
    with pytest.raises(error, match=said) as caught:
        run("run", *given)
    assert caught.value.hint


def test_the_file_in_the_documentation_is_one_that_runs(tmp_path, capsys):
    text = DOCUMENT.read_text().partition("```toml\n")[2].partition("```")[0]
    assert text.count("# <-") == 3
    path = tmp_path / "documented.toml"
    path.write_text(text)
    assert run("run", path, "--dry-run") == 0
    assert "40 runs" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.pinned
@pytest.mark.timeout(300)
def test_a_killed_sweep_keeps_what_was_finished_leaves_nothing_and_goes_on(mine, tmp_path):
    into = tmp_path / "set"
    child = started("run", mine, "--into", into)
    try:
        first = into / "runs" / "0000.json"
        wait_for("the first run", lambda: first.exists() or child.poll() is not None)
        assert child.poll() is None, child.stderr.read()
        wait_for("processes of the second run", lambda: len(descendants(child.pid)) >= 2)
        below = descendants(child.pid)
    finally:
        child.kill()
        child.communicate(timeout=WAIT_S)
    for pid in below:
        wait_for(f"process {pid} to end", lambda pid=pid: is_gone(pid))
    kept = {path.name: path.read_bytes() for path in (into / "runs").glob("[0-9]*.json")}
    assert "0000.json" in kept
    assert run("run", into, "--resume") == 0
    found = {path.name: path.read_bytes() for path in (into / "runs").glob("[0-9]*.json")}
    assert sorted(found) == ["0000.json", "0001.json", "0002.json"]
    assert found.items() >= kept.items()
    assert all(json.loads(text)["status"] == "done" for text in found.values())


@pytest.mark.slow
@pytest.mark.pinned
@pytest.mark.timeout(300)
def test_ctrl_c_says_what_is_kept_and_how_to_go_on(tmp_path):
    path, into = tmp_path / "mine.toml", tmp_path / "set"
    path.write_text(MINE.replace("measure_s = 0.1", "measure_s = 60"))
    child = started("run", path, "--into", into)
    try:
        wait_for("a run", lambda: len(descendants(child.pid)) >= 2 or child.poll() is not None)
        below = descendants(child.pid)
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does: all of them get it
        _, said = child.communicate(timeout=WAIT_S)
    finally:
        child.kill()
    assert child.returncode == 130, said
    assert "Traceback" not in said
    assert "interrupted: 0 of 3 runs are finished and kept" in said
    assert f"go on   ppe experiment run {into} --resume" in said
    for pid in below:
        wait_for(f"process {pid} to end", lambda pid=pid: is_gone(pid))
