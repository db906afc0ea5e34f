"""The loads of `ppe bench iscsi` against the bare server: what a run of ours tells, fixed rates."""

import pytest

import host.inline  # noqa: F401 - compiles while tests are collected, where no timeout runs
import ppe.cycle.services.datamover  # noqa: F401 - the same
from bench import iscsi_loads, iscsi_peers, iscsi_scaling
from bench.iscsi_loads import Layout, Shape
from bench.plan import Plan
from iscsi.session import blockdev, load
from iscsi.session.memory import aligned_zeros
from iscsi.session.perf import Load, LoadPlan
from shm.libc import monotonic_ns
from shm.view import address_of

SECOND_NS = 10**9


@pytest.fixture
def bare():
    server = iscsi_peers.bare_server(-1)
    try:
        with server.process.running():
            yield server
    finally:
        server.close()


@pytest.mark.slow
@pytest.mark.interop("gcc")
@pytest.mark.parametrize("placement", ["stream", "datamover"])
@pytest.mark.parametrize("depth", [1, 32])
def test_the_bare_server_answers_reads_and_writes_of_our_initiator(bare, placement, depth):
    with blockdev.open(
        bare.url, "inline:?idle=sleep", placement=placement, queue_depth=depth
    ) as device:
        assert device.size == iscsi_peers.LUN_BYTES
        assert device.block_size == iscsi_peers.BLOCK
        for blocks in (8, 128, 512):
            assert len(device.read(16, blocks)) == blocks * device.block_size
            assert device.write(16, bytes(blocks * device.block_size))


@pytest.mark.slow
@pytest.mark.interop("gcc")
@pytest.mark.parametrize("op", ["read", "write"])
def test_a_run_of_our_initiator_names_its_placement_and_what_its_engine_did(bare, op):
    bare.process.halt()
    layout = Layout(-1, -1, "sleep", "datamover")
    found = iscsi_loads.our_client(bare, layout, op, Shape(4, 4096), 0.02, is_random=True)
    assert "inline (datamover)" in found.name
    assert found.placement == "client unpinned, target unpinned; client sleeping, target spinning"
    assert found.details["engine"]["counters"]["receive_calls"] > 0
    assert found.details["engine"]["stages_us"]["receive"] > 0
    assert set(found.details["wakeups_per_io"]) == {"client", "target"}


@pytest.mark.slow
@pytest.mark.interop("gcc")
def test_a_load_at_a_fixed_rate_sends_no_command_before_it_is_due(bare):
    with blockdev.open(bare.url, "inline:?idle=sleep", queue_depth=8) as device:
        load = Load(device, LoadPlan(seconds=0.25, warm_up_s=0, random=True, rate=200))
        try:
            result = load.run()
        finally:
            load.close()
    # One at the start and one every 5 ms; how long the machine took is not asked.
    assert 1 <= result.commands <= 1 + result.seconds * 200 + 1
    assert result.read_latency.summary().count == result.reads == result.commands


@pytest.mark.slow
@pytest.mark.interop("gcc")
@pytest.mark.parametrize("client", ["stream", "datamover"])
def test_connections_share_the_commands_outstanding(bare, client):
    bare.process.halt()
    subject = iscsi_scaling.Connections(Plan(-1, -1, True), client, 0.02, lambda run: run)
    found = subject.run(bare, "read", 4)
    assert found.details["depth_of_each"] == 8
    assert len(found.details["iops_of_each"]) == 4
    assert found.value == pytest.approx(sum(found.details["iops_of_each"]))


@pytest.fixture
def paced():
    """A load of one command a second; its record and its address."""
    memory = aligned_zeros(load.LOAD.itemsize)
    address = address_of(memory)
    record = load.load_at(address)[0]
    record["interval_ns"] = SECOND_NS
    yield record, address
    del memory


def test_at_a_fixed_rate_as_many_commands_are_due_as_intervals_have_begun(paced):
    record, address = paced
    record["interval_ns"] = 1000 * SECOND_NS  # so that none begins during the test
    record["due_ns"] = monotonic_ns() + 500 * SECOND_NS
    assert load._due(address) == 0
    record["due_ns"] -= 1000 * SECOND_NS
    assert load._due(address) == 1
    record["due_ns"] -= 3000 * SECOND_NS
    assert load._due(address) == 4


def test_a_command_sent_late_began_when_it_was_due_and_so_did_the_next(paced):
    record, address = paced
    record["due_ns"] = 5 * SECOND_NS
    assert load._start_ns(address) == 5 * SECOND_NS
    assert load._start_ns(address) == 6 * SECOND_NS


def test_a_closed_loop_s_command_begins_when_it_is_sent(paced):
    record, address = paced
    record["interval_ns"] = 0
    before = monotonic_ns()
    assert before <= load._start_ns(address) <= monotonic_ns()
    assert record["due_ns"] == 0


@pytest.mark.parametrize("rate", [-1, 2e9, float("nan")])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="commands a second"):
        LoadPlan(rate=rate)


@pytest.mark.slow
@pytest.mark.interop("gcc")
@pytest.mark.parametrize("rate", [0, 200, 50_000_000])
def test_a_load_says_how_its_waits_ended_and_how_far_behind_its_rate_it_is(bare, rate):
    with blockdev.open(bare.url, "inline:?idle=sleep", queue_depth=4) as device:
        load = Load(device, LoadPlan(seconds=0.1, warm_up_s=0, random=True, rate=rate, seed=7))
        try:
            result = load.run()
        finally:
            load.close()
    assert sum(result.wait_ends.values()) == result.waits
    assert (result.behind > 0) == (result.late_ns > 0)
    if rate == 0:
        assert result.behind == 0
    if rate == 50_000_000:
        # Five million were due, and each that was not sent is counted.
        assert result.commands + result.behind >= 0.1 * rate - 1
        assert result.behind > result.commands
