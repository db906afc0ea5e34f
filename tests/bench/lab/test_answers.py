"""AMP against SMP: the right pairs, every one reported, and an answer whichever way it goes."""

import pytest

from bench.lab import answers, load
from tests.bench.lab import builder

SWEEP = {
    "placement": ["inline", "stream", "datamover"],
    "operation": ["read", "write"],
    "block_bytes": [8192, 65536],
}


def faster(factor, cost=1.0):
    """A machine on which every asymmetric placement is that many times as fast."""
    return builder.Machine(
        iops=lambda point: 40_000 * (1 if point["placement"] == "inline" else factor),
        host_us=lambda point: 20.0 * (1 if point["placement"] == "inline" else cost / 2),
        engine_us=lambda point: 10.0 * cost,
    )


def duels(tmp_path, machine, repeats=5, sweep=SWEEP, **fixed):
    place = builder.write(tmp_path / "set", sweep, machine=machine, repeats=repeats, **fixed)
    return answers.duels(load(place))


def test_every_asymmetric_point_meets_the_symmetric_one_of_its_workload(tmp_path):
    found = duels(tmp_path, faster(2))
    assert len(found) == 8
    for duel in found:
        smp, amp = duel.smp[0].point, duel.amp[0].point
        assert smp["placement"] == "inline" != amp["placement"]
        assert (smp["operation"], smp["block_bytes"]) == (amp["operation"], amp["block_bytes"])
    assert found[0].workload == "read, 8 KiB"
    assert [found[0].amp_label, found[-1].amp_label] == ["AMP (datamover)", "AMP (stream)"]


def test_the_nearest_symmetric_setting_is_the_rival(tmp_path):
    sweep = {"placement": ["inline", "stream"], "wait_mode": ["spin", "sleep"]}
    found = duels(tmp_path, faster(2), sweep=sweep)
    assert len(found) == 2
    assert all(d.smp[0].point["wait_mode"] == d.amp[0].point["wait_mode"] for d in found)


def test_the_symmetric_rival_has_as_many_cores(tmp_path):
    """One host beside an engine uses two cores: so does the rival, with two hosts."""
    sweep = {"placement": ["inline", "stream"], "hosts": [1, 2, 3], "sessions": [4]}
    found = duels(tmp_path, faster(2), sweep=sweep)
    assert [(d.amp[0].point["hosts"], d.smp[0].point["hosts"]) for d in found] == [
        (1, 2),
        (2, 3),
        (3, 3),
    ]


@pytest.mark.parametrize(
    ("factor", "cost", "speed", "total"),
    [
        (1.5, 1.6, "AMP wins", "SMP wins"),
        (0.7, 0.7, "SMP wins", "AMP wins"),
        (1.0, 1.0, "AMP and SMP are the same", "AMP and SMP are the same"),
    ],
)
def test_the_answer_goes_whichever_way_the_figures_go(tmp_path, factor, cost, speed, total):
    found = duels(tmp_path, faster(factor, cost), repeats=8)
    said = answers.headline(found)
    by_speed, by_cost = said.split("By cost")
    assert speed in by_speed
    assert total in by_cost


def test_a_mixed_answer_says_that_it_depends(tmp_path):
    machine = builder.Machine(
        iops=lambda p: (
            40_000 if p["placement"] == "inline" else 60_000 if p["operation"] == "read" else 20_000
        )
    )
    said = answers.headline(duels(tmp_path, machine))
    assert (
        "it depends on the workload: AMP is better in 4, the same in 0 and worse in 4 of 8" in said
    )


def test_a_wide_scatter_is_not_called_the_same(tmp_path):
    machine = builder.Machine(noise=0.5)
    said = answers.headline(duels(tmp_path, machine, repeats=6))
    assert "the repeats do not tell" in said or "scatter too much to tell" in said
    assert "AMP and SMP are the same" not in said


def test_the_summary_carries_the_uncertainty(tmp_path):
    said = answers.summary(duels(tmp_path, faster(1.5)), "iops")
    assert said.startswith("Operations a second: AMP is better in 8 of 8 comparisons")
    assert "×" in said
    assert "[" in said


def test_what_was_not_measured_is_said_and_not_averaged(tmp_path):
    machine = builder.Machine(omit=("cpu",))
    found = duels(tmp_path, machine)
    assert "not measured on both sides" in answers.summary(found, "total_cpu")
    assert "By cost" in answers.headline(found)
    assert "nothing can be said" in answers.headline(found)


def test_two_repeats_carry_no_answer(tmp_path):
    assert "too few repeats" in answers.headline(duels(tmp_path, faster(3), repeats=2))


def test_three_repeats_carry_one_by_ranks(tmp_path):
    found = duels(tmp_path, faster(3), repeats=3)
    assert {duel.verdict("iops") for duel in found} == {"better"}
    assert found[0].ratio("iops").confidence == pytest.approx(0.9)


def test_without_a_symmetric_run_there_is_no_answer_and_it_is_said(tmp_path):
    found = duels(tmp_path, faster(1), sweep={"placement": ["stream"]})
    assert found == []
    assert "not answered here" in answers.headline(found)
