"""An experiment's file: what it means, and what is said of one that is wrong."""

import pytest

from bench.lab import Experiment
from bench.lab.partition import Machine
from ppe.errors import ConfigError, UsageError

FOUR = Machine((0, 1, 2, 3))
TWO = Machine((0, 1))
WHOLE = """\
name = "mine"
title = "Mine"
question = "Is it?"
repeats = 3
warm_up_s = 0
measure_s = 0.5
seed = 9

[workload]
operation = "write"
block_bytes = "64K"

[partition]
shared = true

[sweep]
depth = [1, 8]

[[together]]
placement = ["inline", "datamover"]
wait_n = [0, 1]

[short]
repeats = 1
measure_s = 0.1

[short.sweep]
depth = [8]
"""


def read(text):
    return Experiment.from_text(text, "mine.toml", default_name="mine")


def faults_of(text):
    with pytest.raises(ConfigError) as caught:
        read(text)
    return caught.value.message


def points_of(experiment, machine=TWO):
    return [candidate.point for candidate in experiment.candidates(machine)]


def test_a_sweep_crosses_and_what_goes_together_is_zipped():
    found = points_of(read(WHOLE))
    assert [(p.placement, p.wait_n, p.depth) for p in found] == [
        ("inline", 0, 1),
        ("inline", 0, 8),
        ("datamover", 1, 1),
        ("datamover", 1, 8),
    ]
    assert {(p.operation, p.write_percent, p.block_bytes) for p in found} == {("write", 100, 65536)}


def test_the_short_form_takes_its_own_timing_and_values():
    short = read(WHOLE).shortened()
    assert (short.timing.repeats, short.timing.measure_s, short.timing.warm_up_s) == (1, 0.1, 0)
    assert [p.depth for p in points_of(short)] == [8, 8]


def test_an_experiment_without_a_short_form_says_what_is_missing():
    with pytest.raises(UsageError, match="no short form"):
        read('name = "mine"\n').shortened().shortened()


def test_points_that_come_to_the_same_run_once():
    text = '[partition]\nshared = true\n[sweep]\nplacement = ["inline"]\nengines = [1, 2, 3]\n'
    assert [p.engines for p in points_of(read(text), FOUR)] == [0]


def test_the_same_experiment_written_in_python_and_read_again_has_the_same_points():
    made = Experiment(
        "mine",
        fixed={"shared": True, "block_bytes": 8192, "pinned": False},
        sweep={"depth": [1, 2], "host_cores": ["0", ""]},
        together=[{"placement": ["inline", "stream"], "operation": ["read", "write"]}],
    )
    again = Experiment.from_text(made.to_toml())
    assert points_of(again) == points_of(made)
    assert (again.name, again.timing, again.seed) == (made.name, made.timing, made.seed)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("repeats = 0", ["mine.toml:1: repeats: 0 is outside 1..1000"]),
        ('repeats = "5"', ["mine.toml:1: repeats: '5' is not possible", "from 1 to 1000"]),
        ("measure_s = 0", ["mine.toml:1: measure_s: 0 is outside"]),
        ("measure_s = -1", ["mine.toml:1: measure_s: -1 is outside"]),
        ("reapeats = 5", ["mine.toml:1: reapeats: unknown key", "did you mean 'repeats'?"]),
        ('name = "a/b"', ["mine.toml:1: name: "]),
        ('impossible = "no"', ["mine.toml:1: impossible: 'no' is none of refuse, skip"]),
        ("[workload]\ndepht = 1", ["mine.toml:2: workload.depht: unknown key", "'depth'"]),
        ("[workload]\nhosts = 1", ["mine.toml:2: workload.hosts", "it stands in [partition]"]),
        ("[workload]\ndepth = 257", ["mine.toml:2: workload.depth: 257", "from 1 to 256"]),
        ("[workload]\ndepth = true", ["mine.toml:2: workload.depth: True", "a whole number"]),
        ("[workload]\ndepth = 1.5", ["mine.toml:2: workload.depth: 1.5", "a whole number"]),
        ("[workload]\nrandom = 1", ["mine.toml:2: workload.random: 1", "true or false"]),
        (
            '[workload]\nplacement = "datamove"',
            ["mine.toml:2: workload.placement", "inline, stream, datamover", "mean 'datamover'?"],
        ),
        ('[workload]\nblock_bytes = "4Q"', ["mine.toml:2: workload.block_bytes", "64K"]),
        ("[workload]\nrate_per_s = -1", ["mine.toml:2: workload.rate_per_s: -1"]),
        ('[partition]\nhost_cores = "1-"', ["mine.toml:2: partition.host_cores", "2,3"]),
        ('[partition]\nhost_cores = "3-1"', ["mine.toml:2: partition.host_cores: '3-1'"]),
        ('[partition]\nhost_cores = "0-999999999"', ["partition.host_cores"]),
        ("[workload]\nrate_per_s = nan", ["mine.toml:2: workload.rate_per_s: nan"]),
        ("measure_s = inf", ["mine.toml:1: measure_s: inf"]),
        ("[sweep]\ndepth = 4", ["mine.toml:2: sweep.depth: 4 is no list"]),
        ("[sweep]\ndepth = []", ["mine.toml:2: sweep.depth: [] is no list"]),
        ("[sweep]\ndepth = [1, 0]", ["mine.toml:2: sweep.depth: 0 is not possible"]),
        ("[sweep]\ndeep = [1]", ["mine.toml:2: sweep.deep: unknown key"]),
        (
            "[[together]]\ndepth = [1, 2]\nsessions = [1]",
            ["mine.toml:1", "depth has 2, sessions has 1"],
        ),
        (
            "[workload]\ndepth = 1\n[sweep]\ndepth = [1]",
            ["mine.toml:4: sweep.depth: it is given twice"],
        ),
        ("workload = 1", ["mine.toml:1: workload: 1 is not possible"]),
        ("[short]\nseed = 1", ["mine.toml:2: short.seed: unknown key"]),
        ("repeats = [", ["mine.toml is not TOML"]),
    ],
)
def test_a_wrong_file_is_refused_with_its_line_its_key_and_what_is_allowed(text, said):
    message = faults_of(text)
    for each in said:
        assert each in message


def test_all_faults_of_a_file_are_told_at_once():
    message = faults_of("repeats = 0\n[workload]\ndepth = 0\n[sweep]\nsize = [1]\n")
    assert message.startswith("3 faults:")
    assert all(f"mine.toml:{line}:" in message for line in (1, 3, 5))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.toml: No such file"):
        Experiment.from_toml(tmp_path / "gone.toml")


@pytest.mark.parametrize(
    ("fixed", "key", "why"),
    [
        ({"placement": "stream", "transport": "iser"}, "placement", "no byte stream"),
        ({"transport": "iser", "digests": "header"}, "digests", "none or both"),
        ({"transport": "iser", "target": "tgt"}, "target", "no iSER"),
        ({"registration": "pool"}, "registration", "iser"),
        ({"wait_n": 33}, "wait_n", "more than the depth of 32"),
        ({"wait_n": 2, "placement": "stream"}, "wait_n", "an event is no command"),
        ({"wait_n": 2, "placement": "inline"}, "wait_n", "datamover"),
        ({"engines": 0}, "engines", "at least 1"),
        ({"block_bytes": 1000}, "block_bytes", "no multiple of 512"),
        ({"block_bytes": 4096, "span_bytes": 512}, "span_bytes", "no room"),
        ({"host_cores": "0-1"}, "host_cores", "2 cores for 1 hosts"),
        ({"hosts": 2}, "hosts", "2 hosts share 1 sessions"),
        ({"operation": "mix", "write_percent": 100}, "write_percent", "1 to 99"),
        ({"wait_mode": "spin", "sessions": 2}, "wait_mode", "measure the scheduler"),
    ],
)
def test_values_that_do_not_go_together_are_refused_before_anything_runs(fixed, key, why):
    experiment = Experiment("mine", fixed={"shared": True, **fixed})
    with pytest.raises(ConfigError, match=why) as caught:
        experiment.candidates(FOUR)
    assert caught.value.message.startswith(f"mine: {key}: ")
    assert f"{next(iter(fixed))} = " in caught.value.hint or "shared = " in caught.value.hint


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[workload]\ndepth = 1\nwait_n = 2\n", "mine, line 3: wait_n: "),
        ("[sweep]\nwait_n = [99]\n", "mine, line 2: wait_n: "),
        ("[[together]]\ndepth = [1]\nwait_n = [9]\n", "mine, line 3: wait_n: "),
        ("[sweep]\nengines = [9]\n", "mine, line 2: engines: "),
        ("", "mine: shared: "),  # what is missing has no line
    ],
)
def test_what_does_not_go_together_is_told_with_the_line_to_change(text, where):
    with pytest.raises(ConfigError) as caught:
        read(text).candidates(TWO)
    assert caught.value.message.startswith(where)


def test_a_value_that_cannot_be_is_refused_from_python_too():
    with pytest.raises(ConfigError, match="depth: 0 is not possible"):
        Experiment("mine", fixed={"depth": 0})
    with pytest.raises(UsageError, match="no field 'depht'"):
        Experiment("mine", sweep={"depht": [1]})
    with pytest.raises(ConfigError, match="differ in length"):
        Experiment("mine", together=[{"depth": [1], "sessions": [1, 2]}])


def test_more_runs_than_a_plan_can_number_are_refused():
    experiment = Experiment("mine", fixed={"shared": True}, sweep={"wait_us": range(10_000)})
    with pytest.raises(ConfigError, match="more than 9999 runs"):
        experiment.candidates(FOUR)
