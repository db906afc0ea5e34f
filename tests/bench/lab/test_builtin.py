"""The built-in experiments: each is a file that reads, plans on two cores, and is documented."""

from pathlib import Path

import pytest

from bench.lab import builtin, plan, points
from bench.lab.partition import Machine

TWO = Machine((0, 1))
DOCUMENT = Path(builtin.FOLDER.parent.parent.parent / "docs" / "EXPERIMENTS.md").read_text()
QUARTER_OF_AN_HOUR_S = 15 * 60


@pytest.mark.parametrize("name", builtin.names())
def test_it_says_what_it_asks_and_has_a_short_form_with_repeats_enough_for_ranks(name):
    found = builtin.find(name)
    assert found.name == name
    assert found.title
    assert found.question.endswith("?")
    assert found.shortened().timing.repeats >= 3
    assert f"| `{name}` |" in DOCUMENT


@pytest.mark.parametrize("name", builtin.names())
def test_two_cores_and_sixteen_can_run_it(name):
    for machine in (TWO, Machine(tuple(range(16)))):
        for experiment in (builtin.find(name), builtin.find(name).shortened()):
            runs = plan.make(experiment, machine).runs
            assert any(not run.refusal for run in runs)
            if experiment.impossible == "refuse":
                assert not any(run.refusal for run in runs)


def test_the_short_forms_together_are_planned_for_less_than_a_quarter_of_an_hour():
    plans = [plan.make(builtin.find(name).shortened(), TWO) for name in builtin.names()]
    assert sum(made.seconds(made.runs) for made in plans) < QUARTER_OF_AN_HOUR_S


@pytest.mark.parametrize("name", points.RULES)
def test_every_field_is_documented_with_what_it_may_be(name):
    rule = points.RULES[name]
    row = next(line for line in DOCUMENT.splitlines() if line.startswith(f"| `{name}` |"))
    assert rule.help in row
    assert rule.allowed in row
    part = DOCUMENT.partition(f"### `[{rule.table}]`")[2].partition("\n#")[0]
    assert row in part
