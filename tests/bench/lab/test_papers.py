"""The papers' numbers as cited data, and their formula put through their own tables."""

import pytest

from bench.lab import papers

WORKLOADS = ["write_64k", "read_64k"]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_formula_makes_the_cycles_of_table_2_from_table_1(workload):
    smp, amp = papers.table_1(workload, "smp"), papers.table_1(workload, "amp")
    found = papers.improvement(smp, amp)
    printed = papers.table_2(workload)
    assert {name: round(100 * share, 1) for name, share in found.items()} == printed


@pytest.mark.parametrize("workload", WORKLOADS)
def test_without_idle_in_the_total_it_would_not(workload):
    smp, amp = papers.table_1(workload, "smp"), papers.table_1(workload, "amp")
    smp.pop("idle")
    assert round(100 * papers.improvement(smp, amp)["total"], 1) > papers.table_2(workload)["total"]


@pytest.mark.parametrize("counter", ["l2_misses", "clears"])
def test_the_other_columns_do_not_follow_from_table_1_as_the_data_file_says(counter):
    smp = papers.table_1("write_64k", "smp", counter)
    amp = papers.table_1("write_64k", "amp", counter)
    printed = papers.table_2("write_64k", counter)["total"]
    assert abs(100 * papers.improvement(smp, amp)["total"] - printed) > 10


@pytest.mark.parametrize(
    ("workload", "mode", "cpu", "total"),
    [
        ("write_64k", "smp", 0, 31_588_077),
        ("write_64k", "smp", 1, 25_068_077),
        ("write_64k", "amp", 0, 10_273_905),
        ("write_64k", "amp", 1, 18_968_762),
        ("read_64k", "smp", 0, 30_010_000),
        ("read_64k", "smp", 1, 25_172_540),
        ("read_64k", "amp", 0, 9_433_524),
        ("read_64k", "amp", 1, 20_243_905),
    ],
)
def test_the_rows_of_table_1_add_up_to_the_totals_it_prints(workload, mode, cpu, total):
    rows = papers.data()["eta"]["table_1"][workload][mode]
    found = sum(cpus[cpu][0] for name, cpus in rows.items() if name != "idle")
    assert abs(found - total) <= 8  # the table was rounded line by line


def test_the_bins_of_the_paper_add_up_to_our_layers():
    bins = papers.table_1("read_64k", "amp")
    ours = papers.as_our_layers(bins)
    assert set(ours) == {"scsi", "iscsi", "queues", "tcp", "copies", "others", "idle"}
    assert sum(ours.values()) == sum(bins.values())
    assert ours["tcp"] == bins["tcp"] + bins["kernel"] + bins["driver"]


def test_every_claim_names_its_source_and_place():
    for experiment in papers.sources():
        for claim in papers.claims(experiment):
            assert claim.where in claim.cited
            assert papers.sources()[experiment]["short"] in claim.cited
        assert papers.not_printed(experiment)


def test_a_layer_that_only_one_side_has_counts():
    found = papers.improvement({"tcp": 80, "idle": 20}, {"tcp": 40, "rdma": 10})
    assert found == {"tcp": 0.4, "rdma": -0.1, "total": pytest.approx(0.3)}
    with pytest.raises(ValueError, match="add up to nothing"):
        papers.improvement({"tcp": 0}, {"tcp": 1})
