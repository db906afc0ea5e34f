"""The engine drives a verbs device: what the host posts reaches the device's queues with the names
that the device knows, its completions come back to the host, and nothing ends while the device has
it. The device is a fake; the engine, its control plane and the host's verbs are not.
"""

import errno
import os

import numpy as np
import pytest

import host
import host.inline  # compiles while tests are collected, where no timeout runs
import ppe.cycle.devices
import ppe.cycle.services.verbs
from host.verbs import Device, QpCap, RecvWr, SendWr
from host.verbs.records import ERROR, RTS
from ppe.cycle.rnic.verbs import library
from shm.jit import JIT_DISABLED
from shm.verbs import EVENT_DISCONNECTED, EVENT_QP_FATAL, EVENT_SRQ_LIMIT_REACHED
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE_WRITE,
    WC_LOC_PROT_ERR,
    WC_REM_ACCESS_ERR,
    WR_RDMA_WRITE,
    WR_SEND,
)
from tests.ppe.rnic.verbs import fake_device as fakes
from tests.ppe.rnic.verbs.fake_device import NAME, fake_device

__all__ = ["fake_device"]
SENT = 1 << 62  # the device's name of the first send of a queue pair
WAIT_S = 20
pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="the fake's functions are compiled")


class Bench:
    """A host's device over an engine in this thread."""

    def __init__(self, engine):
        self.engine = engine
        self.channel = engine.channel(work=256, events=256)
        self.rnic = Device(engine, self.channel, NAME)
        self.pd, self.cq = self.rnic.alloc_pd(), self.rnic.create_cq(64)
        self.buffer = engine.alloc(1 << 16)
        self.mr = self.pd.reg_mr(self.buffer, ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE)
        self.fake = fakes.opened(self.rnic)

    def pair(self, **options):
        """A connected queue pair, and the device's side of it."""
        qp = self.rnic.create_qp(self.pd, self.cq, cap=QpCap(8, 8), **options)
        return qp, fakes.connect(self.rnic, qp)

    def pass_once(self):
        """Let the engine take what is there."""
        self.channel.wait_n(1, timeout_s=0.001)

    def one(self):
        """The next completion."""
        self.cq.wait_n(1, timeout_s=WAIT_S)
        (wc,) = self.cq.poll_cq(1)
        return wc


@pytest.fixture
def bench(fake_device):
    """Give a device on an engine in this thread; at the end the device has nothing left."""
    with host.connect("inline:?readiness=epoll") as engine:
        made = Bench(engine)
        yield made
        if made.channel in engine._channels:
            made.rnic.close()
            assert [type(item).__name__ for item in made.fake.made] in ([], ["CompletionQueue"])
            made.channel.close()
    assert made.fake.said[-1] == "close"


def test_a_send_reaches_the_device_by_the_devices_names_and_its_completion_the_host(bench):
    qp, theirs = bench.pair()
    assert qp.state == RTS
    assert qp.post_send(SendWr(WR_SEND, [bench.mr.sge(64, 100)], wr_id=9))
    bench.pass_once()
    (posted,) = theirs.queue.posted
    region = next(item for item in bench.fake.made if isinstance(item, fakes.Region))
    assert posted.sges == [(region.address + 64, 100, region.lkey)]
    theirs.complete(SENT, byte_len=100)
    done = bench.one().check()
    assert (done.wr_id, done.qp_num) == (9, qp.qp_num)


def test_a_write_names_the_peers_memory_as_it_was_told(bench):
    qp, theirs = bench.pair()
    where = {"remote_addr": 0x7777_0000_1000, "rkey": 0xABCD01}
    assert qp.post_send(SendWr(WR_RDMA_WRITE, [bench.mr.sge(0, 8)], 1, **where))
    bench.pass_once()
    (posted,) = theirs.queue.posted
    assert (posted.send["remote_addr"], posted.send["rkey"]) == (0x7777_0000_1000, 0xABCD01)
    theirs.complete(SENT)
    bench.one().check()


def test_peers_name_memory_by_the_devices_rkey_and_the_engines_address(bench):
    region = next(item for item in bench.fake.made if isinstance(item, fakes.Region))
    assert (bench.mr.rkey, bench.mr.remote_addr) == (region.rkey, region.address)
    assert bench.mr.lkey != region.lkey  # Ours is a key of the engine's table.


def test_a_receive_completes_with_its_length_and_memory_is_free_again(bench):
    qp, theirs = bench.pair()
    with bench.pd.reg_mr(bench.buffer.array[:4096]) as region:
        assert qp.post_recv(RecvWr([region.sge()], 5))
        bench.pass_once()
        with pytest.raises(OSError, match="busy") as busy:
            region.dereg()
        assert busy.value.errno == errno.EBUSY
        (posted,) = theirs.receive_queue.posted
        theirs.complete(int(posted.recv["wr_id"]), byte_len=77)
        came = bench.one().check()
        assert (came.wr_id, came.byte_len, came.is_receive) == (5, 77, True)


@pytest.mark.parametrize("shift", [1 << 16, -1])
def test_memory_out_of_bounds_fails_alone_and_never_reaches_the_device(bench, shift):
    qp, theirs = bench.pair()
    bad = (bench.mr.addr + shift, 8, bench.mr.lkey)
    assert qp.post_send(SendWr(WR_SEND, [bad], 1))
    assert qp.post_recv(RecvWr([bad], 2))
    assert [bench.one().status for _ in range(2)] == [WC_LOC_PROT_ERR] * 2
    assert theirs.queue.posted == theirs.receive_queue.posted == []
    assert qp.state == RTS


def test_the_devices_own_key_opens_nothing_to_a_client(bench):
    qp, theirs = bench.pair()
    region = next(item for item in bench.fake.made if isinstance(item, fakes.Region))
    assert qp.post_send(SendWr(WR_SEND, [(region.address, 8, region.lkey)], 1))
    assert bench.one().status == WC_LOC_PROT_ERR
    assert theirs.queue.posted == []


def test_a_failed_completion_ends_the_queue_pair_and_the_rest_comes_back_flushed(bench):
    qp, theirs = bench.pair()
    for wr_id in range(3):
        assert qp.post_send(SendWr(WR_SEND, [bench.mr.sge(0, 8)], wr_id))
    bench.pass_once()
    theirs.complete(SENT, status=WC_REM_ACCESS_ERR)
    assert bench.one().status == WC_REM_ACCESS_ERR
    assert bench.rnic.get_async_event(WAIT_S).event == EVENT_QP_FATAL
    assert qp.state == ERROR
    assert qp.post_send(SendWr(WR_SEND, [bench.mr.sge(0, 8)], 9))
    assert bench.one().flushed  # Nothing is posted to the device any more,
    assert len(theirs.queue.posted) == 3
    qp.destroy()  # and what it had comes back when it lets go.
    assert [bench.one().wr_id for _ in range(2)] == [1, 2]


def test_a_queue_pair_is_ended_at_the_device_before_its_owner_has_its_memory_back(bench):
    qp, theirs = bench.pair()
    assert qp.post_recv(RecvWr([bench.mr.sge(0, 8)], 4))
    bench.pass_once()
    assert not bench.fake.said
    own = bench.rnic.ids.new()
    assert bench.channel.post_close(qp.endpoint, own)  # Not in order: the device has it still.
    assert bench.channel.complete(own).status == -errno.EBUSY
    qp.destroy()
    assert bench.fake.said == ["disconnect", "end Connection", "flush", "end QueuePair"]
    flushed = bench.one()
    assert (flushed.wr_id, flushed.flushed) == (4, True)
    assert theirs not in bench.fake.made


def test_a_channel_that_goes_leaves_nothing_at_the_device(bench):
    qp, theirs = bench.pair()
    srq = bench.rnic.create_srq(bench.pd, 4)
    assert srq.post_recv(RecvWr([bench.mr.sge(0, 8)], 1))
    assert qp.post_send(SendWr(WR_SEND, [bench.mr.sge(0, 8)], 1))
    bench.pass_once()
    bench.channel.close()
    left = [type(item).__name__ for item in bench.fake.made]
    assert left == ["CompletionQueue"]
    ended = [what for what in bench.fake.said if what.startswith("end ")]
    assert ended.index("end QueuePair") < ended.index("end SharedReceiveQueue")
    assert ended.index("end Region") < ended.index("end Domain")
    theirs.complete(SENT)  # What the device says too late is nobody's.
    other = bench.engine.channel(work=64, events=64)
    other.wait_n(1, timeout_s=0.001)
    assert int(theirs.cq.own["strays"]) == 1
    other.close()


def test_the_records_of_its_queues_stay_until_a_channel_is_detached(bench, monkeypatch):
    """The engine flushes them when it ends the channel's endpoints."""
    qp, _ = bench.pair()
    devices, port = bench.engine._rnics._devices, bench.engine._port
    (share,) = devices._shares.values()
    detach, seen = port.detach, []

    def watched(number):
        seen.extend(kept for channel, kept in devices._departed if channel == number)
        detach(number)

    monkeypatch.setattr(port, "detach", watched)
    bench.channel.close()
    assert seen == [share]
    assert devices._departed == []
    assert qp.endpoint not in share.objects.qps


def test_a_shared_queue_serves_its_queue_pair_and_says_when_it_runs_low(bench):
    srq = bench.rnic.create_srq(bench.pd, 4)
    qp, theirs = bench.pair(srq=srq)
    assert srq.post_recv(RecvWr([bench.mr.sge(0, 8)], 6))
    srq.set_limit(2)
    bench.pass_once()
    hold = next(item for item in bench.fake.made if isinstance(item, fakes.SharedReceiveQueue))
    (posted,) = hold.queue.posted
    theirs.complete(int(posted.recv["wr_id"]), byte_len=3)
    assert (bench.one().check().qp_num, srq.posted) == (qp.qp_num, 0)
    bench.fake.async_events.append((EVENT_SRQ_LIMIT_REACHED, hold.pointer))
    os.eventfd_write(bench.fake.async_descriptor, 1)
    event = bench.rnic.get_async_event(WAIT_S)
    assert (event.event, event.qp) == (EVENT_SRQ_LIMIT_REACHED, srq)
    with pytest.raises(OSError, match="limit of 5"):
        srq.set_limit(5)


def test_an_asynchronous_error_of_the_device_ends_the_queue_pair_it_names(bench):
    qp, theirs = bench.pair()
    other, _ = bench.pair()
    bench.fake.async_events.append((EVENT_QP_FATAL, theirs.pointer))
    os.eventfd_write(bench.fake.async_descriptor, 1)
    event = bench.rnic.get_async_event(WAIT_S)
    assert (event.event, event.qp, event.terminate) == (EVENT_QP_FATAL, qp, None)
    assert (qp.state, other.state) == (ERROR, RTS)
    assert bench.fake.said.count("flush") == 1


def test_a_disconnect_waits_for_what_was_posted(bench):
    qp, theirs = bench.pair()
    assert qp.post_send(SendWr(WR_SEND, [bench.mr.sge(0, 8)], 1))
    bench.pass_once()
    qp.disconnect(timeout_s=0.05)  # The device does not say that it was sent: it is cut off.
    assert qp.state == ERROR
    assert bench.one().flushed
    second, theirs = bench.pair()
    assert second.post_send(SendWr(WR_SEND, [bench.mr.sge(0, 8)], 2))
    bench.pass_once()
    theirs.complete(SENT)
    second.disconnect(timeout_s=0.05)
    assert bench.one().check().wr_id == 2


def test_a_sleeping_engine_asks_for_an_event_and_takes_those_that_came(bench):
    _, theirs = bench.pair()
    bench.channel.wait_n(1, timeout_s=0.05)
    assert int(theirs.cq.state["asked"]) == 1  # for every completion, not for solicited ones alone
    os.eventfd_write(theirs.cq.event_descriptor, 2)
    bench.channel.wait_n(1, timeout_s=0.05)
    assert int(theirs.cq.own["events"]) == 2


def test_objects_that_others_rest_on_stay(bench):
    srq = bench.rnic.create_srq(bench.pd, 4)
    bench.pair(srq=srq)
    for endpoint in (srq.endpoint, bench.pd.handle):
        with pytest.raises(OSError, match=r"rest on it|use this") as busy:
            bench.rnic.provider.destroy_endpoint(endpoint)
        assert busy.value.errno == errno.EBUSY


def test_an_object_of_another_channel_is_nobodys(bench):
    other = bench.engine.channel(work=64, events=64)
    second = Device(bench.engine, other, NAME)
    with pytest.raises(OSError, match="no object") as bad:
        second.provider.destroy_endpoint(bench.pd.handle)
    assert bad.value.errno == errno.EBADF
    with pytest.raises(OSError, match="no protection domain"):
        second.provider.ask("srq", domain=bench.pd.handle, depth=4)
    other.close()


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"do": "fly"}, "nothing that a verbs device does"),
        ({"do": "srq", "domain": "x", "depth": 4}, "domain is 'x'"),
        ({"do": "srq", "domain": -1, "depth": 4}, "domain is -1"),
        ({"do": "resolve", "host": 7, "port": 1}, "host is 7"),
        ({"do": "connect", "id": 1, "private": "zz", "ird": 1, "ord": 1}, "hexadecimal"),
        ({"do": "connect", "id": 99, "private": "", "ird": 1, "ord": 1}, "no connection 99"),
        ({"do": "unlisten", "id": 99}, "no listener 99"),
        ({"do": "retire", "endpoint": 1 << 40}, "no object"),
        ({"do": "register", "domain": 1, "region": 1, "offset": 0, "length": 1 << 60, "iova": 0,
          "access": 1}, "not shared with the engine"),
    ],
)  # fmt: skip
def test_a_message_that_is_none_is_refused_with_its_reason(bench, message, said):
    with pytest.raises(OSError, match=said):
        bench.rnic.provider.ask(message.pop("do"), **message)


def test_rights_that_cannot_be_are_refused_before_the_device_is_asked(bench):
    before = len(bench.fake.made)
    with pytest.raises(OSError, match="Invalid argument"):
        bench.pd.reg_mr(bench.buffer, ACCESS_REMOTE_WRITE)
    with pytest.raises(ValueError, match="not shared with the engine"):
        bench.pd.reg_mr(np.zeros(64, np.uint8))
    assert len(bench.fake.made) == before


def test_a_queue_deeper_than_the_device_allows_is_refused(bench):
    with pytest.raises(OSError, match=r"depth 1025 is outside 1\.\.1024"):
        bench.rnic.create_srq(bench.pd, 1025)


def test_an_event_of_the_connection_manager_ends_a_queue_pair(bench):
    qp, _ = bench.pair()
    (share,) = bench.engine._rnics.devices._shares.values()
    share.connections.end(qp.endpoint, EVENT_DISCONNECTED)
    event = bench.rnic.get_async_event(WAIT_S)
    assert (event.event, event.qp) == (EVENT_DISCONNECTED, qp)
    assert "flush" in bench.fake.said


@pytest.mark.parametrize(
    ("allowed", "name", "number", "said"),
    [
        ((), "rxe0", errno.EACCES, r"it drives none: start it with `ppe up --rdma-devices rxe0`"),
        (("siw0",), "rxe0", errno.EACCES, "it drives siw0"),
        (None, "nowhere0", errno.ENODEV, "this machine has no RDMA device 'nowhere0'"),
    ],
)
def test_a_device_that_an_engine_does_not_drive_is_refused_by_name(allowed, name, number, said):
    devices = ppe.cycle.devices.Devices(None, 1 << 20, 1 << 20, allowed)
    told = devices.call(2, 1, {"do": "open", "device": name})
    assert told["errno"] == number
    assert said in told["why"]


def test_a_machine_without_the_device_says_so_to_the_host():
    with (
        host.connect("inline:") as engine,
        engine.channel() as channel,
        pytest.raises(OSError, match="has no RDMA device 'nowhere0'") as missing,
    ):
        Device(engine, channel, "nowhere0")
    assert missing.value.errno == errno.ENODEV


def test_without_pyverbs_the_device_is_refused_with_what_to_install(fake_device, monkeypatch):
    missing = library.Library(library.MISSING, "pyverbs is not installed", library.APT_FIX)

    def fail(name):
        raise library.NoVerbsError(missing)

    monkeypatch.setattr("ppe.cycle.device_objects.verbs.Device", fail)
    with (
        host.connect("inline:") as engine,
        engine.channel() as channel,
        pytest.raises(OSError, match="pyverbs is not installed: apt-get install"),
    ):
        Device(engine, channel, NAME)
