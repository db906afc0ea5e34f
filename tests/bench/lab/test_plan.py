"""Plans: the same every time, interleaved, and as readable from their file."""

import json
from collections import Counter

import pytest

from bench.lab import Experiment, plan
from bench.lab.partition import Machine
from bench.lab.plan import Plan
from bench.lab.result_files import NotResumable, write_json
from bench.lab.spec import Timing

FOUR = Machine((0, 1, 2, 3))


def experiment(**changes):
    given = {
        "timing": Timing(repeats=4, warm_up_s=0, measure_s=0.1),
        "sweep": {"depth": [1, 2, 4, 8], "placement": ["inline", "stream"]},
        "seed": 5,
    }
    return Experiment("mine", **{**given, **changes})


def test_the_same_experiment_has_the_same_plan():
    assert plan.make(experiment(), FOUR) == plan.make(experiment(), FOUR)


def test_another_seed_has_another_order_and_other_addresses_of_the_same_points():
    one, other = plan.make(experiment(), FOUR), plan.make(experiment(seed=6), FOUR)
    assert [run.point for run in one.runs] != [run.point for run in other.runs]
    assert Counter(run.point for run in one.runs) == Counter(run.point for run in other.runs)
    assert not {run.seed for run in one.runs} & {run.seed for run in other.runs}


def test_each_repeat_has_every_point_once_in_an_order_of_its_own():
    made = plan.make(experiment(), FOUR)
    rounds = [made.runs[at : at + 8] for at in range(0, 32, 8)]
    assert [{run.repeat for run in one} for one in rounds] == [{0}, {1}, {2}, {3}]
    assert all(len({run.point for run in one}) == 8 for one in rounds)
    assert len({tuple(run.point for run in one) for one in rounds}) > 1
    assert [run.id for run in made.runs] == [f"{number:04}" for number in range(32)]


def test_a_runs_addresses_do_not_depend_on_the_company_it_runs_in():
    alone = plan.make(experiment(sweep={"depth": [4]}, fixed={"placement": "stream"}), FOUR)
    among = {(run.point, run.repeat): run.seed for run in plan.make(experiment(), FOUR).runs}
    assert all(among[run.point, run.repeat] == run.seed for run in alone.runs)


def test_a_plan_read_from_its_file_is_the_plan(tmp_path):
    made = plan.make(
        experiment(sweep={"rate_per_s": [0, 100.5], "engines": [1, 9]}, impossible="skip"), FOUR
    )
    write_json(tmp_path / "plan.json", made.to_json())
    assert Plan.from_directory(tmp_path) == made


def test_the_file_says_what_the_reading_side_wants(tmp_path):
    found = plan.make(experiment(), FOUR).to_json()
    assert (found["schema"], found["experiment"], found["seed"]) == (1, "mine", 5)
    assert set(found["runs"][0]) >= {"id", "point", "repeat"}
    assert found["runs"][0]["point"]["rate_per_s"] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "nothing was begun"),
        ("{", "cannot be read"),
        ("[]", "schema None"),
        (json.dumps({"schema": 99}), "schema 99"),
        (json.dumps({"schema": 1, "runs": []}), "not one of this version"),
        (
            json.dumps(
                plan.make(experiment(), FOUR).to_json() | {"runs": [{"id": "0000", "point": {}}]}
            ),
            "not one of this version",
        ),
    ],
)
def test_a_folder_that_cannot_be_gone_on_with_says_why(tmp_path, text, said):
    if text is not None:
        (tmp_path / "plan.json").write_text(text)
    with pytest.raises(NotResumable, match=said) as caught:
        Plan.from_directory(tmp_path)
    assert caught.value.hint
