"""Cores: who gets which, and what is refused before anything runs."""

import pytest

from bench.lab import Experiment
from bench.lab.partition import Cores, Machine, divide
from bench.lab.points import Impossible, Point
from ppe.errors import ConfigError

ONE, TWO, FOUR = Machine((0,)), Machine((0, 1)), Machine((0, 1, 2, 3))
EIGHT = Machine(tuple(range(8)), frozenset({2, 3}))


def cores_of(machine=FOUR, **fields):
    return divide(Point(**fields).settled(), machine)


def places(cores):
    return cores.engine, cores.host, cores.target


@pytest.mark.parametrize(
    ("machine", "fields", "expected"),
    [
        (FOUR, {}, ((3,), (0,), (1,))),
        (FOUR, {"engines": 2}, ((2, 3), (0,), (1,))),
        (FOUR, {"hosts": 2, "sessions": 2}, ((3,), (0, 1), (2,))),
        (FOUR, {"placement": "inline"}, ((), (0,), (1,))),
        (FOUR, {"engine_cores": "1", "host_cores": "2", "target_cores": "0"}, ((1,), (2,), (0,))),
        (FOUR, {"target_on": "host", "shared": True}, ((3,), (0,), (0,))),
        (FOUR, {"target_on": "engine", "shared": True, "idle": "yield"}, ((3,), (0,), (3,))),
        (FOUR, {"pinned": False, "shared": True}, ((3,), (0, 1, 2), (0, 1, 2))),
        (FOUR, {"pinned": False, "shared": True, "target_cores": "1"}, ((3,), (0, 1, 2), (1,))),
        (TWO, {"shared": True}, ((1,), (0,), (0,))),
        (TWO, {"placement": "inline"}, ((), (0,), (1,))),
        (ONE, {"shared": True, "idle": "sleep"}, ((0,), (0,), (0,))),
        (EIGHT, {"isolated": True}, ((3,), (0,), (1,))),
        (EIGHT, {"engines": 3}, ((2, 3, 7), (0,), (1,))),
    ],
)
def test_every_part_gets_its_cores(machine, fields, expected):
    assert places(cores_of(machine, **fields)) == expected


def test_a_result_file_says_where_everything_was_and_what_was_shared():
    found = cores_of(TWO, shared=True)
    assert found.to_json() == {
        "engine": [1],
        "host": [0],
        "target": [0],
        "shared": True,
        "isolated": False,
    }
    assert found.all == (0, 1)
    assert not cores_of(FOUR).shared
    assert cores_of(EIGHT).isolated


@pytest.mark.parametrize(
    ("machine", "fields", "key", "why"),
    [
        (TWO, {}, "shared", "core 0 is used twice, by host and target: say shared = true"),
        (FOUR, {"host_cores": "2", "target_cores": "2"}, "shared", "core 2 is used twice"),
        (FOUR, {"host_cores": "3"}, "idle", "core 3 has engine and host"),
        (FOUR, {"host_cores": "3", "shared": True}, "idle", "spins leaves its core to nobody"),
        (FOUR, {"host_cores": "7"}, "host_cores", "core 7 is not among"),
        (FOUR, {"engine_cores": "9"}, "engine_cores", "core 9 is not among"),
        (FOUR, {"engines": 5}, "engines", "5 engines want 5 cores, and there are 4"),
        (FOUR, {"engines": 4}, "engines", "leave no core for the hosts"),
        (FOUR, {"hosts": 4, "sessions": 4}, "hosts", "there are 3 of 0, 1, 2, 3"),
        (TWO, {"target_on": "own"}, "target_on", "no core of 0, 1 is left for a target"),
        (
            FOUR,
            {"placement": "inline", "target_on": "engine", "shared": True},
            "target_on",
            "inline has no engine",
        ),
        (FOUR, {"isolated": True}, "isolated", "core 3 is not isolated"),
        (EIGHT, {"isolated": True, "engines": 3}, "isolated", "core 7 is not isolated"),
        (TWO, {"shared": True, "wait_mode": "spin"}, "wait_mode", "shares its core"),
        (ONE, {"shared": True}, "engines", "leave no core"),
    ],
)
def test_an_impossible_partition_names_the_field_and_the_reason(machine, fields, key, why):
    with pytest.raises(Impossible, match=why) as caught:
        cores_of(machine, **fields)
    assert caught.value.key == key


def test_an_experiment_with_an_impossible_point_is_refused_whole():
    experiment = Experiment("mine", fixed={"shared": True}, sweep={"engines": [1, 2]})
    with pytest.raises(ConfigError, match="mine: engines: 2 spinning engines") as caught:
        experiment.candidates(TWO)
    assert "engines = 2" in caught.value.hint


def test_an_experiment_that_skips_records_what_is_impossible_and_why():
    experiment = Experiment(
        "mine", fixed={"shared": True}, sweep={"engines": [1, 2]}, impossible="skip"
    )
    possible, other = experiment.candidates(TWO)
    assert (possible.point.engines, possible.refusal) == (1, "")
    assert other.point.engines == 2
    assert other.refusal.startswith("engines: 2 spinning engines leave no core")


def test_an_experiment_none_of_whose_points_can_run_is_refused_though_it_skips():
    experiment = Experiment("mine", fixed={"engines": 8, "shared": True}, impossible="skip")
    with pytest.raises(ConfigError, match="no point can run here"):
        experiment.candidates(TWO)


def test_this_machine_has_the_cores_this_process_may_use():
    here = Machine.here()
    assert here.usable
    assert isinstance(divide(Point(placement="inline", shared=True).settled(), here), Cores)
