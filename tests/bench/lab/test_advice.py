"""Advice from result sets whose figures a simulation made: the model has to find them again."""

import json
import sys
import tomllib
from functools import cache, partial
from types import ModuleType

import pytest

from bench.lab import advice, calibration, load
from bench.lab.advise_command import AdviseCommand
from ppe.errors import OperatorError, UsageError
from tests.bench import running
from tests.bench.lab import builder
from tests.bench.lab.simulation import Simulation

pytestmark = pytest.mark.slow
US = 1e-6
OPERATIONS = 20_000
DEPTHS = [1, 2, 4, 8, 16, 32]


@cache
def simulated(stations, delay_s, depth, n, min_wait_s):
    made = Simulation(stations, delay_s, seed=depth, n=n, min_wait_s=min_wait_s)
    return made.closed(depth, OPERATIONS).throughput_per_s


class SimulatedMachine(builder.Machine):
    """Throughput comes from a simulation of what an operation costs; CPU is what it costs."""

    def __init__(self, host=8.0, engine=12.0, smp=22.0, wake=0.0, delay=30.0, stretch=1.0):
        self.costs = host, engine, smp, wake
        self.stretch = stretch
        self.delay = delay
        super().__init__(noise=0.002, iops=self.rate, host_us=self.host, engine_us=self.engine)

    def host(self, point):
        host, _, smp, wake = self.costs
        own = smp if point["placement"] == "inline" else host
        return own + wake / min(point["wait_n"] or 1, point["depth"])

    def engine(self, point):
        return self.costs[1]

    def rate(self, point):
        us = US * self.stretch
        stations = [(self.host(point) * us, point["hosts"])]
        if point["placement"] != "inline":
            stations.append((self.engine(point) * us, point["engines"]))
        n = point["wait_n"] or 1
        return simulated(tuple(stations), self.delay * US, point["depth"], n, point["wait_us"] * US)


def families(tmp_path, machine, sweep, repeats=2, **fixed):
    place = builder.write(tmp_path / "set", sweep, machine=machine, repeats=repeats, **fixed)
    found, refused = calibration.families(load(place))
    assert refused == []
    return found


run = partial(running.run, AdviseCommand())


def test_two_depths_give_the_costs_that_the_machine_has(tmp_path):
    sweep = {"placement": ["inline", "stream"], "depth": [1, 32]}
    smp, amp = families(tmp_path, SimulatedMachine(), sweep, repeats=3)
    assert smp.smp
    assert smp.costs.host_s == pytest.approx(22 * US, rel=0.01)
    assert smp.costs.engine_s == 0
    assert amp.costs.host_s == pytest.approx(8 * US, rel=0.01)
    assert amp.costs.engine_s == pytest.approx(12 * US, rel=0.01)
    assert amp.costs.delay_s == pytest.approx(30 * US, rel=0.05)
    assert "every point was an anchor" in " ".join(amp.notes)
    assert amp.error() is None


def test_depths_that_were_held_out_are_predicted(tmp_path):
    sweep = {"placement": ["inline", "stream"], "depth": DEPTHS}
    for family in families(tmp_path, SimulatedMachine(), sweep):
        held_out = [r for r in family.residuals() if not r.anchor]
        assert len(held_out) == 4 * 4
        assert all(abs(r.share) < 0.03 for r in held_out)
        assert family.error() < 0.02


def test_cores_that_others_take_are_found_and_told(tmp_path):
    """An operation takes twice its CPU time: the model has to learn that from two points."""
    sweep = {"placement": ["inline", "stream"], "depth": DEPTHS}
    for family in families(tmp_path, SimulatedMachine(stretch=2.0), sweep):
        assert family.costs.stretch == pytest.approx(2, rel=0.03)
        assert family.costs.delay_s == pytest.approx(30 * US, rel=0.1)
        assert family.error() < 0.03
        assert "2.0 times its CPU time" in " ".join(family.notes)


def test_nothing_is_stretched_where_nobody_takes_a_core(tmp_path):
    sweep = {"placement": ["inline", "stream"], "depth": DEPTHS}
    for family in families(tmp_path, SimulatedMachine(), sweep):
        assert family.costs.stretch < 1.03
        assert not any("times its CPU time" in note for note in family.notes)


def test_splits_that_were_held_out_are_predicted(tmp_path):
    sweep = {"engines": [1, 2, 3], "hosts": [1, 2], "depth": [1, 32]}
    (family,) = families(tmp_path, SimulatedMachine(), sweep, placement="stream")
    assert len(family.anchors) == 2
    assert all(abs(r.share) < 0.03 for r in family.residuals() if r.metric == "iops")


def test_a_second_n_parts_the_cost_of_a_wake_up(tmp_path):
    machine = SimulatedMachine(wake=10.0)
    sweep = {"wait_n": [1, 2, 4, 8], "depth": [1, 32]}
    (family,) = families(tmp_path, machine, sweep, placement="datamover", repeats=3)
    assert family.costs.wake_s == pytest.approx(10 * US, rel=0.05)
    assert family.costs.host_s == pytest.approx(8 * US, rel=0.05)
    assert len(family.anchors) == 3
    assert family.error() < 0.12


def advised(tmp_path, machine, cores, prefer="throughput", **more):
    sweep = {"placement": ["inline", "stream"], "depth": DEPTHS} | more
    (found,) = advice.advise(families(tmp_path, machine, sweep, 3), cores, prefer=prefer)
    return found


def test_where_the_engine_pays_amp_is_recommended(tmp_path):
    found = advised(tmp_path, SimulatedMachine(host=8, engine=10, smp=22), 2)
    assert not found.best.family.smp
    assert "AMP is the better choice here" in found.reason
    assert "Measured at the deepest point of both: 2." in found.reason, "with the 2 of one host"
    assert "], better. It is the best by throughput." in found.reason


def test_where_the_cut_costs_more_than_it_saves_smp_is_recommended(tmp_path):
    found = advised(tmp_path, SimulatedMachine(host=8, engine=30, smp=22), 2)
    assert found.best.family.smp
    assert found.best.setting.layout.hosts == 2
    assert "SMP is the better choice here" in found.reason


def test_the_recommended_split_is_the_one_the_simulation_finds_best(tmp_path):
    machine = SimulatedMachine(host=5, engine=15, smp=40)
    found = advised(tmp_path, machine, 4)
    assert (found.best.setting.layout.engines, found.best.setting.layout.hosts) == (3, 1)
    rates = {
        (engines, 4 - engines): machine.rate(
            builder.POINT | {"placement": "stream", "engines": engines, "hosts": 4 - engines}
        )
        for engines in (1, 2, 3)
    }
    assert max(rates, key=rates.get) == (3, 1)


def test_a_lead_within_the_models_error_is_no_lead(tmp_path):
    found = advised(tmp_path, SimulatedMachine(host=10.9, engine=11, smp=11.05), 1 + 1)
    assert found.best.family.smp, "as fast on two cores, and at half the CPU"


@pytest.mark.parametrize(("prefer", "smp"), [("latency", False), ("cpu", True)])
def test_what_counts_first_decides(tmp_path, prefer, smp):
    """With one operation under way an engine that spins is faster, and burns its whole core."""
    sweep = {"placement": ["inline", "stream"], "depth": [1, 2, 4]}
    machine = SimulatedMachine(host=8, engine=8, smp=22)
    (found,) = advice.advise(
        families(tmp_path, machine, sweep, idle="spin"), 2, depth=1, prefer=prefer
    )
    assert found.best.family.smp == smp


def test_waiting_for_n_is_recommended_where_wake_ups_are_dear(tmp_path):
    machine = SimulatedMachine(host=2, engine=3, smp=40, wake=20)
    sweep = {"placement": ["datamover"], "wait_n": [1, 4], "depth": [1, 8, 32]}
    (found,) = advice.advise(families(tmp_path, machine, sweep), 2)
    assert found.best.setting.wait_n >= 4
    assert found.best.min_wait_us() > 0
    assert "SMP was not measured, so nothing is said about it" in found.reason


def test_no_more_cores_are_given_out_than_there_are(tmp_path):
    for cores in (2, 3, 4):
        found = advised(tmp_path / str(cores), SimulatedMachine(), cores)
        for candidate in found.candidates:
            layout = candidate.setting.layout
            assert layout.hosts + (0 if candidate.family.smp else layout.engines) <= cores


def test_a_spinning_engine_is_charged_for_its_whole_core(tmp_path):
    sweep = {"depth": [1, 32]}
    (family,) = families(tmp_path, SimulatedMachine(), sweep, placement="stream", idle="spin")
    shallow = calibration.predict(family.costs, calibration.Setting(family.layout, 1))
    assert shallow.total_cpu_s == pytest.approx(1 / shallow.iops + 8 * US, rel=0.02)


def test_a_rate_is_predicted_and_beyond_capacity_it_is_said():
    costs = calibration.Costs(8 * US, 12 * US, 0.0)
    layout = calibration.Layout(1, 1)
    found = calibration.predict(costs, calibration.Setting(layout, 32, rate_per_s=5e4))
    assert found.iops == 5e4
    assert found.latency_s > 20 * US
    assert calibration.predict(costs, calibration.Setting(layout, 32, rate_per_s=9e4)) is None


def test_at_a_rate_what_has_ended_is_seen_when_the_next_command_falls_due():
    """So waiting for more holds an operation back for half an interval, or less by `min_wait`."""
    costs, layout = calibration.Costs(8 * US, 12 * US, 0.0), calibration.Layout(1, 1)

    def latency(**more):
        setting = calibration.Setting(layout, 32, rate_per_s=1e4, **more)
        return calibration.predict(costs, setting).latency_s

    alone = latency()
    assert latency(wait_n=8) == pytest.approx(alone + 50 * US)
    assert latency(wait_n=8, min_wait_s=20 * US) == pytest.approx(alone + 20 * US)
    assert latency(wait_n=8, sessions=2) == pytest.approx(alone + 100 * US)


def test_roles_on_one_core_are_one_station():
    costs = calibration.Costs(8 * US, 12 * US, 5 * US)
    shared = frozenset({frozenset({"host", "target"})})
    apart = calibration.Layout(2, 1).stations(costs, 1.0)
    joined = calibration.Layout(2, 1, shared).stations(costs, 1.0)
    assert [(s.name, s.cores) for s in apart] == [("host", 1), ("engine", 2), ("target", 1)]
    assert [(s.name, s.cores) for s in joined] == [("host and target", 1), ("engine", 2)]
    assert joined[0].demand_s == pytest.approx(13 * US)


def test_what_was_not_measured_leaves_the_family_out_with_its_reason(tmp_path):
    machine = builder.Machine(omit=("cpu",))
    place = builder.write(tmp_path / "set", {"depth": [1, 2]}, machine=machine, repeats=2)
    assert calibration.families(load(place)) == (
        [],
        ["SMP (inline): the host's CPU per operation was not measured"],
    )
    with pytest.raises(OperatorError, match="CPU per operation was not measured"):
        run("--from", place)


def test_one_depth_alone_is_said_not_to_tell_waiting_apart(tmp_path):
    sweep = {"placement": ["inline", "stream"]}
    for family in families(tmp_path, SimulatedMachine(), sweep):
        assert "run a depth of 1 too" in " ".join(family.notes)


def test_a_spinning_host_is_noted_as_an_upper_bound(tmp_path):
    sweep = {"depth": [1, 8]}
    (family,) = families(tmp_path, SimulatedMachine(), sweep, placement="stream", wait_mode="spin")
    assert "upper bound" in " ".join(family.notes)


@pytest.fixture
def place(tmp_path):
    sweep = {"placement": ["inline", "stream"], "depth": [1, 8, 32]}
    return builder.write(tmp_path / "set", sweep, machine=SimulatedMachine(), repeats=3)


def test_the_command_prints_prediction_beside_measurement(place, capsys):
    assert run("--from", place, "--cores", 2, "--explain") == 0
    out = capsys.readouterr().out
    assert "prediction beside measurement: AMP (stream)" in out
    assert "residual" in out
    assert "anchor" in out
    assert "recommended: " in out
    assert "is the better choice here" in out
    assert "Buzen's convolution" in out


def test_the_command_prints_one_json_object(place, capsys):
    assert run("--from", place, "--cores", 3, "--depth", 16, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    recommended = found["advice"][0]["recommended"]
    assert 14 <= recommended["depth"] * recommended["sessions"] <= 16
    assert found["advice"][0]["candidates"][0] == found["advice"][0]["recommended"]
    assert {r["metric"] for r in found["families"][0]["residuals"]} == {
        "iops",
        "mean",
        "host_cpu",
        "total_cpu",
    }


@pytest.mark.parametrize("flags", [["--cores", "0"], ["--depth", "5000"]])
def test_flags_out_of_range_are_refused(place, flags):
    with pytest.raises(UsageError, match="is not from 1 to"):
        run("--from", place, *flags)


@pytest.fixture
def laboratory(monkeypatch):
    """A measuring side that keeps what it was asked, and whose runs a simulation makes."""
    asked = []

    class Experiment:
        @classmethod
        def from_text(cls, text, file):
            return tomllib.loads(text)

    def run_it(experiment, into):
        asked.append((experiment, into))
        rows = experiment["together"][0]
        points = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
        points = [point | {"wait_n": point["wait_n"] or None} for point in points]
        builder.write_points(
            into, points, experiment="advise", machine=SimulatedMachine(wake=4), repeats=3
        )

    for name, content in (("spec", {"Experiment": Experiment}), ("driver", {"run": run_it})):
        module = ModuleType(f"bench.lab.{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def test_without_runs_to_learn_from_a_short_one_is_made_and_thrown_away(laboratory, capsys):
    assert run("--operation", "write", "--block-bytes", "64K", "--cores", 2) == 0
    ((experiment, into),) = laboratory
    assert experiment["workload"] == {
        "operation": "write",
        "block_bytes": 65536,
        "transport": "tcp",
    }
    assert not into.exists()
    out = capsys.readouterr().out
    assert "recommended: " in out
    assert "a wake-up" in out, "the second N parts it from the rest"


def test_the_short_run_is_kept_where_it_is_wanted(laboratory, tmp_path):
    assert run("--into", tmp_path / "kept", "--json") == 0
    assert run("--from", tmp_path / "kept", "--json") == 0
    assert len(laboratory) == 1


def test_flags_that_exclude_each_other_and_no_size_are_refused(laboratory, tmp_path):
    with pytest.raises(UsageError, match="--into is for a run"):
        run("--from", tmp_path, "--into", tmp_path)
    with pytest.raises(UsageError, match="--block-bytes 'big'"):
        run("--block-bytes", "big")
    assert laboratory == []


def test_a_version_that_cannot_measure_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "bench.lab.spec", None)
    with pytest.raises(OperatorError, match="cannot measure by itself") as caught:
        run()
    assert "--from DIR" in caught.value.hint
