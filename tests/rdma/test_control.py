"""What the control plane grants and refuses, what a hostile client posts, and what host and engine
call the same.
"""

import dataclasses
import subprocess
import sys

import pytest

import host
from host.doors import post_plain
from host.errors import EngineRefused
from host.verbs import ConnParam, RecvWr, doors
from host.verbs.records import RTS
from shm import operations, verbs
from shm import verbs_numbers as constants
from shm.qp_spec import QpSpec
from tests.e2e.running import ROOT
from tests.rdma.conftest import PROVIDER
from tests.rdma.pairs import receive, send

pytestmark = pytest.mark.skipif(PROVIDER != "iwarp", reason="the engine's own RNIC")


@pytest.mark.parametrize("name", [name for name in vars(constants) if name.startswith("WR_")])
def test_each_work_request_has_an_opcode_of_its_own_on_the_ring(name):
    wanted = getattr(constants, name)
    opcode = verbs.ring_opcode(wanted)
    assert operations.RDMA_FIRST <= opcode < operations.RDMA_RECEIVE
    assert verbs.wr_opcode_of(opcode) == wanted


# --- the description of a queue pair -------------------------------------------------------------


def test_a_description_survives_its_journey():
    spec = QpSpec(domain=5, srq=6, active=False, ird=3, mulpdu=1400)
    assert QpSpec.from_message(spec.to_message()) == spec


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ird": 256}, "ird 256"),
        ({"ord": -1}, "ord -1"),
        ({"mulpdu": 127}, "mulpdu 127"),
        ({"mulpdu": 65536}, "mulpdu 65536"),
        ({"sq_depth": 0}, "sq_depth 0"),
        ({"rq_depth": 1 << 20}, "rq_depth"),
        ({"rtr": 3}, "rtr 3"),
        ({"crc": 1}, "another type"),
        ({"domain": "1"}, "another type"),
        ({"domain": 1 << 40}, "domain"),
        ({"more": 1}, "incomplete"),
    ],
)
def test_a_description_that_cannot_be_is_refused_by_name(change, says):
    with pytest.raises(ValueError, match=says):
        QpSpec.from_message({**QpSpec().to_message(), **change})


@pytest.mark.parametrize("message", [None, [], 7, {}, {"ird": 1}])
def test_what_is_no_description_is_refused(message):
    with pytest.raises(ValueError, match="incomplete"):
        QpSpec.from_message(message)


# --- the control plane ---------------------------------------------------------------------------


@pytest.fixture
def connected(sides):
    """Give a side and two connected stream endpoints of it."""
    side = sides[0]
    listener, port = side.channel.listen("127.0.0.1", 0)
    client = side.channel.connect("127.0.0.1", port)
    server, _ = side.channel.accept(listener, timeout_s=10)
    side.channel.close_endpoint(listener)
    yield side, client
    for endpoint in (client, server):
        side.channel.close_endpoint(endpoint)


def enable(side, endpoint, **change):
    """Ask for a queue pair."""
    spec = dataclasses.replace(QpSpec(domain=side.pd.handle), **change).to_message()
    return side.engine.rdma(side.channel, "enable", endpoint=endpoint, spec=spec)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        ({"do": "cake"}, "nothing that an RNIC does"),
        ({"do": "srq", "domain": 1, "depth": 0}, "depth 0"),
        ({"do": "srq", "domain": 1, "depth": 10}, "Bad file descriptor"),
        ({"do": "srq", "domain": -1, "depth": 10}, "no number"),
        ({"do": "srq", "domain": "x", "depth": 10}, "no number"),
        ({"do": "enable", "endpoint": 3, "spec": {}}, "incomplete"),
        ({"do": "enable", "endpoint": None, "spec": QpSpec().to_message()}, "no number"),
        ({"do": "enable", "endpoint": 0, "spec": QpSpec().to_message()}, "number"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_reason(sides, ask, says):
    side = sides[0]
    with pytest.raises(EngineRefused, match=says):
        side.engine.rdma(side.channel, **ask)


def test_a_queue_pair_needs_a_connection_and_a_domain_of_its_own_channel(sides, connected):
    side, client = connected
    other = sides[1]
    for change, says in (
        ({"domain": other.pd.handle}, "Bad file descriptor"),
        ({"domain": client}, "Bad file descriptor"),
        ({"srq": client}, "Bad file descriptor"),
        ({"srq": side.pd.handle}, "Bad file descriptor"),
    ):
        with pytest.raises(EngineRefused, match=says):
            enable(side, client, **change)
    for wrong in (client + (1 << 16), side.pd.handle):
        with pytest.raises(EngineRefused, match=r"Bad file descriptor|not connected"):
            enable(side, wrong)


def test_a_connection_becomes_a_queue_pair_once_and_no_stream_any_more(connected):
    side, client = connected
    enable(side, client)
    with pytest.raises(EngineRefused, match="busy"):
        enable(side, client)
    with side.engine.alloc(64) as buffer:
        for post in (side.channel.post_send, side.channel.post_recv):
            assert post(client, buffer, 5)
            with pytest.raises(OSError, match="Invalid argument"):
                side.channel.complete(5).check()


def test_a_receive_queue_of_another_domain_is_refused(connected):
    side, client = connected
    other = side.device.alloc_pd()
    srq = side.device.create_srq(other, 4)
    with pytest.raises(EngineRefused, match="Invalid argument"):
        enable(side, client, srq=srq.endpoint)


def test_a_domain_with_queues_on_it_is_not_closed(joined):
    active, _, _, _ = joined
    with pytest.raises(OSError, match="others rest on it"):
        active.device.provider.destroy_endpoint(active.pd.handle)


# --- hostile posts -------------------------------------------------------------------------------


def test_operations_on_endpoints_of_the_wrong_kind_are_refused(joined):
    active, _, ours, _ = joined
    context = active.channel.context
    for opcode, endpoint in (
        (operations.RDMA_SEND, active.pd.handle),
        (operations.RDMA_START, active.pd.handle),
        (operations.RDMA_REGISTER, ours.endpoint),
        (operations.RDMA_ALLOC_MW, ours.endpoint),
        (operations.RDMA_START, ours.endpoint),  # It has begun.
        (operations.RDMA_SEND, 0x7FFF_FFFF),
        (operations.MOVER_COMMAND, ours.endpoint),
        (operations.RDMA_LAST, ours.endpoint),
        (operations.RDMA_DEREGISTER, active.pd.handle),
    ):
        assert post_plain(context, opcode, 0, endpoint, 5, 0) == 1
        assert active.channel.complete(5).status < 0
    assert ours.state == RTS


def test_rdma_on_a_stream_is_refused(connected):
    side, client = connected
    for opcode in (operations.RDMA_SEND, operations.RDMA_RECEIVE, operations.RDMA_START):
        assert post_plain(side.channel.context, opcode, 0, client, 5, 0) == 1
        assert side.channel.complete(5).status < 0


def test_a_work_request_without_the_slots_it_needs_fails_alone(joined):
    active, passive, ours, theirs = joined
    for opcode in (operations.RDMA_ATOMIC_SWAP, operations.RDMA_BIND_MW):
        ours.record[0]["sq_posted"] += 1
        active.cq.record[0]["posted"] += 1
        assert post_plain(active.channel.context, opcode, 0, ours.endpoint, 5, 0) == 1
    for opcode in (constants.WR_SEND, constants.WR_RDMA_READ):  # Two slots, and one piece.
        where = active.mr.addr, active.mr.lkey, passive.mr.remote_addr, passive.mr.rkey
        assert doors.post_pair(ours.qp, opcode, constants.SEND_SIGNALED, 5, *where, 0, 0) == 1
    receive(passive, theirs, 0, 8)
    send(active, ours, 0, 8, wr_id=6)
    found = active.take(5)
    assert sorted(wc.ok for wc in found) == [False] * 4 + [True]
    passive.one().check()


def test_the_keys_of_another_client_open_nothing(sides):
    first, second = sides
    queue = second.device.create_srq(second.pd, 4)
    stolen = (first.mr.addr, 8, first.mr.lkey)
    assert queue.post_recv(RecvWr([stolen], 1))
    assert second.device.wait_until(lambda: len(queue.failed) == 1, 30)
    assert not queue.failed[0].ok


def test_registration_looks_at_the_whole_range(sides):
    side = sides[0]
    size = side.buffer.array.nbytes
    context = side.channel.context
    for address, length in ((side.buffer.address, 1 << 40), (0x1000, 8), (-8, 16)):
        posted = doors.post_register(
            context, side.pd.handle, 5, address, length, side.buffer.address, 1
        )
        assert posted < 0
    assert size == 1 << 20


# --- what is loaded ------------------------------------------------------------------------------


def test_an_engine_without_queue_pairs_never_loads_them():
    code = (
        "import sys, host\n"
        "with host.connect('inline:') as engine, engine.channel() as channel:\n"
        "    channel.post_nop(1); channel.complete(1)\n"
        "    loaded = [m for m in sys.modules if m.startswith('ppe.cycle.rnic.iwarp')]\n"
        "    assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_engine_is_made_ready_for_iser_before_anybody_comes():
    with host.connect("inline:") as engine, engine.channel() as channel:
        assert engine._port.tables.engine[0]["iser"] == 0
        assert engine.rdma(channel, "iser") == {}
        assert engine._port.tables.engine[0]["iser"] != 0


def test_the_parameters_of_a_connection_are_looked_at_on_both_sides():
    with pytest.raises(ValueError, match="initiator_depth 300"):
        ConnParam(initiator_depth=300).wishes()
    assert ConnParam().wishes().ird == 16
