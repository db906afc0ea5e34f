"""The clock of cores, on a made-up cpufreq: held for a while, put back, refused with the reason."""

import pytest

from bench.lab import Experiment, frequency
from bench.lab.partition import Machine, divide
from bench.lab.points import Impossible, Point

HIGHEST, LOWEST = 3_000_000, 1_000_000
FIRST = {
    "cpuinfo_min_freq": LOWEST,
    "cpuinfo_max_freq": HIGHEST,
    "scaling_min_freq": 1_200_000,
    "scaling_max_freq": 2_800_000,
}


class Cpufreq:
    """Two cores' folders below a directory."""

    def __init__(self, root):
        self.root = root
        for core in (0, 1):
            self.folder(core).mkdir(parents=True)
            for name, khz in FIRST.items():
                (self.folder(core) / name).write_text(f"{khz}\n")

    def folder(self, core):
        return self.root / f"cpu{core}" / "cpufreq"

    def limits(self, core):
        return tuple(
            int((self.folder(core) / f"scaling_{name}_freq").read_text()) for name in ("min", "max")
        )


@pytest.fixture
def cpufreq(tmp_path):
    return Cpufreq(tmp_path)


def test_the_clock_is_held_inside_the_block_and_put_back_after_it(cpufreq):
    with frequency.held((0, 1), 50, cpufreq.root) as hz:
        assert hz == 1.5e9
        assert [cpufreq.limits(core) for core in (0, 1)] == [(1_500_000, 1_500_000)] * 2
    assert [cpufreq.limits(core) for core in (0, 1)] == [(1_200_000, 2_800_000)] * 2


def fail_at(cpufreq, percent):
    """A run that fails while the clock is held."""
    with frequency.held((0,), percent, cpufreq.root):
        assert cpufreq.limits(0) == (HIGHEST, HIGHEST)
        raise RuntimeError


def test_it_is_put_back_when_the_run_fails(cpufreq):
    with pytest.raises(RuntimeError):
        fail_at(cpufreq, 100)
    assert cpufreq.limits(0) == (1_200_000, 2_800_000)


def test_what_was_set_is_put_back_when_another_core_cannot_be_set(cpufreq):
    (cpufreq.folder(1) / "cpuinfo_max_freq").unlink()
    with pytest.raises(FileNotFoundError), frequency.held((0, 1), 50, cpufreq.root):
        pytest.fail("core 1 cannot be set")
    assert cpufreq.limits(0) == (1_200_000, 2_800_000)


def test_no_core_is_set_below_its_lowest_and_none_at_all_for_nothing(cpufreq):
    with frequency.held((0,), 10, cpufreq.root) as hz:
        assert hz == LOWEST * 1000
    with frequency.held((0,), 0, cpufreq.root) as hz:
        assert hz is None
        assert cpufreq.limits(0) == (1_200_000, 2_800_000)


def test_a_machine_without_cpufreq_says_so_before_anything_runs(cpufreq):
    assert frequency.refusal((0, 1), cpufreq.root) == ""
    why = frequency.refusal((0, 7), cpufreq.root)
    assert why.startswith(f"core 7 has no {cpufreq.folder(7)}")
    point = Point(frequency_percent=50).settled()
    with pytest.raises(Impossible, match="core 7 has no") as caught:
        divide(point, Machine((0, 1, 2, 3), no_frequency=why))
    assert caught.value.key == "frequency_percent"
    divide(point, Machine((0, 1, 2, 3), no_frequency=""))


def test_points_at_a_clock_that_cannot_be_set_are_recorded_and_the_others_run():
    given = Experiment("mine", sweep={"frequency_percent": [0, 50]}, impossible="skip")
    here = Machine((0, 1, 2, 3), no_frequency="there is no cpufreq")
    assert [one.refusal for one in given.candidates(here)] == [
        "",
        "frequency_percent: there is no cpufreq",
    ]
