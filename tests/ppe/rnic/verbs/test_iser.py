"""iSER over a verbs device: the datamover posts to the device's queues, names memory as the
device does, and takes what the device says; whatever ends, the device has nothing left in the end.
The device is a fake that a test speaks for; its peer is the test, too.
"""

import errno

import numpy as np
import pytest

import host
import host.inline  # compiles while tests are collected, where no timeout runs
import ppe.cycle.devices  # the same
import ppe.cycle.services.iser  # noqa: F401 - the same
from host.errors import EngineRefused
from host.verbs import Device, QpCap
from iscsi.wire import bhs
from iscsi.wire.initiator_task import SENSE_ROOM
from iscsi.wire.iser.header import ISER_HEADER_LENGTH, IserHeader, decode
from iscsi.wire.iser.message import wrap
from iscsi.wire.iser.records import IserLimits
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.mover import COMMAND, POST
from iscsi.wire.mover_spec import INITIATOR, TARGET, MoverSpec
from iscsi.wire.port import PortLimits
from ppe.cycle.services.mover_records import MOVER_WORDS
from shm.jit import JIT_DISABLED
from shm.operations import CANCELLED
from shm.verbs import EVENT_DISCONNECTED
from shm.verbs_numbers import ACCESS_LOCAL_WRITE, ACCESS_REMOTE_WRITE, WC_REM_ACCESS_ERR
from shm.view import address_of, window
from tests.ppe.rnic.verbs import doors
from tests.ppe.rnic.verbs import fake_device as fakes
from tests.ppe.rnic.verbs.fake_device import NAME, fake_device

__all__ = ["fake_device"]
SENT = 1 << 62  # the device's name of the first send of a queue pair
WAIT_S = 20
RECEIVES, TASKS = 8, 4
READ, WRITE = 0x40, 0x20  # byte 1 of a SCSI Command
LENGTH = 4096
pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="the fake's functions are compiled")


def spec_of(role=INITIATOR, registration="pool"):
    counts, sns = ((TASKS,), (1, 32, 1)) if role == INITIATOR else ((TASKS, 8192, 0), (1, 1))
    return MoverSpec(
        role,
        SessionParams(initial_r2t=True, immediate_data=False),
        ConnectionParams(max_recv_data_segment_length=8192),
        PortLimits(tx_entries=16),
        counts,
        sns,
        IserLimits(receives=RECEIVES, registration=registration),
    )


class Bench:
    """A host's connection over a queue pair of the device, and the device's side of it."""

    def __init__(self, engine):
        self.engine, self.channel = engine, engine.channel(work=256, events=256)
        self.rnic = Device(engine, self.channel, NAME)
        self.pd = self.rnic.alloc_pd()
        self.qp = self.rnic.create_qp(self.pd, self.rnic.create_cq(64), cap=QpCap(16, 16))
        self.theirs = fakes.connect(self.rnic, self.qp)
        self.fake = fakes.opened(self.rnic)
        self.home, self.data = engine.alloc(1 << 16), engine.alloc(1 << 16)

    def begin(self, spec):
        """Have the engine take the queue pair over."""
        region, offset = self.channel.name_memory(self.home.address, len(self.home))
        words = len(self.home) - MOVER_WORDS.itemsize
        place = {"home": [region, offset, len(self.home)], "words": words, "pool": 0}
        self.engine.enable_mover(self.channel, self.qp.endpoint, spec.to_message(), **place)

    def command(self, number, direction, buffer):
        """Post a command for the first bytes of a buffer."""
        post = np.zeros(1, POST)
        mine = post[0]
        mine["opcode"], mine["user_data"] = COMMAND, number + 1
        mine["address"], mine["length"] = buffer.address, LENGTH
        mine["arg1"] = number | (number + 1) << 32
        mine["arg2"] = direction | 1
        mine["more2"] = SENSE_ROOM * number
        posted = doors.post_mover(self.channel.context, self.qp.endpoint, address_of(post))
        assert posted == 1
        self.channel.wait_n(1, timeout_s=0.001)

    def event(self, number):
        """The end of a command."""
        return self.channel.complete(number + 1, timeout_s=WAIT_S)

    def sent(self):
        """What the device was given to send: header, PDU, keys, of each."""
        found = []
        for posted in self.theirs.queue.posted:
            raw = b"".join(window(at, size, "u1").tobytes() for at, size, _ in posted.sges)
            keys = {key for _, _, key in posted.sges}
            found.append((decode(raw), raw[ISER_HEADER_LENGTH:], keys))
        return found

    def answer(self, number, **fields):
        """Let a Response come into the oldest receive that the device has."""
        sns = {"stat_sn": number + 1, "exp_cmd_sn": number + 2, "max_cmd_sn": number + 33}
        message = wrap(bhs.encode_pdu(bhs.Opcode.SCSI_RESPONSE, itt=number, **sns, **fields))
        posted = self.theirs.receive_queue.posted[number]
        ((address, size, _),) = posted.sges
        assert len(message) <= size
        window(address, len(message), "u1")[:] = np.frombuffer(message, np.uint8)
        self.theirs.complete(int(posted.recv["wr_id"]), byte_len=len(message))

    def region_around(self, buffer):
        """The device's registration that the peer reaches a buffer by, and its address there."""
        at = buffer.address  # An engine in this process sees it there, too.
        (found,) = (
            each
            for each in self.fake.made
            if isinstance(each, fakes.Region) and each.access & ACCESS_REMOTE_WRITE
            if each.address <= at < each.address + each.length
        )
        return found, at

    def block(self):
        """The registration that no peer may use."""
        regions = (each for each in self.fake.made if isinstance(each, fakes.Region))
        (found,) = (each for each in regions if each.access == ACCESS_LOCAL_WRITE)
        return found


@pytest.fixture
def bench(fake_device):
    """Give a connection on an engine in this thread; at the end the device has nothing left."""
    with host.connect("inline:?readiness=epoll") as engine:
        made = Bench(engine)
        yield made
        if made.channel in engine._channels:
            made.rnic.close()
            made.channel.close()
        assert [type(item).__name__ for item in made.fake.made] in ([], ["CompletionQueue"])
    assert made.fake.said[-1] == "close"


def test_its_receives_lie_in_memory_that_no_peer_reaches(bench):
    bench.begin(spec_of())
    posted = bench.theirs.receive_queue.posted
    assert len(posted) == RECEIVES
    block = bench.block()
    for each in posted:
        ((address, size, key),) = each.sges
        assert key == block.lkey
        assert block.address <= address
        assert address + size <= block.address + block.length


@pytest.mark.parametrize("direction", [READ, WRITE])
def test_a_command_names_its_buffer_by_the_devices_rkey_and_ends_with_its_response(
    bench, direction
):
    bench.begin(spec_of())
    bench.command(0, direction, bench.data)
    ((header, pdu, _),) = bench.sent()
    region, address = bench.region_around(bench.data)
    if direction == READ:
        assert header == IserHeader(read_stag=region.rkey, read_base=address)
    else:
        assert header == IserHeader(write_stag=region.rkey, write_base=address)
    request = bhs.decode(pdu)
    assert (request.opcode, request.itt, request.cmd_sn) == (bhs.Opcode.SCSI_COMMAND, 0, 1)
    bench.theirs.complete(SENT)
    bench.answer(0)
    done = bench.event(0).check()
    assert done.length == LENGTH * (direction == READ)
    assert len(bench.theirs.receive_queue.posted) == RECEIVES + 1  # The receive is there again.


def test_memory_that_the_device_has_not_registered_fails_alone(bench):
    bench.begin(spec_of())
    with bench.engine.alloc(64 << 20) as late:  # more than a region that was there has room for
        bench.command(0, READ, late)
        assert bench.event(0).status == -errno.EFAULT
    assert bench.theirs.queue.posted == []
    bench.command(0, READ, bench.data)
    assert len(bench.theirs.queue.posted) == 1


def test_a_send_that_fails_ends_the_connection_and_every_command(bench):
    bench.begin(spec_of())
    bench.command(0, READ, bench.data)
    bench.command(1, WRITE, bench.data)
    bench.theirs.complete(SENT, status=WC_REM_ACCESS_ERR)
    assert [bench.event(number).status < 0 for number in range(2)] == [True, True]
    bench.command(2, READ, bench.data)
    assert bench.event(2).status < 0
    assert len(bench.theirs.queue.posted) == 2


def test_a_peer_that_disconnects_ends_every_command(bench):
    bench.begin(spec_of())
    bench.command(0, READ, bench.data)
    (share,) = fakes._devices(bench.rnic)._shares.values()
    share.connections.end(bench.qp.endpoint, EVENT_DISCONNECTED)
    assert bench.event(0).status == CANCELLED


def test_a_host_that_leaves_under_a_command_leaves_nothing_with_the_device(bench):
    bench.begin(spec_of())
    bench.command(0, WRITE, bench.data)
    bench.channel.close()
    assert "end QueuePair" in bench.fake.said


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (spec_of(TARGET), f"the RDMA device {NAME} the engine carries no targets"),
        (spec_of(registration="per-io"), "registration 'per-io'"),
        (spec_of(registration="window"), "registration 'window'"),
        (spec_of(registration="cache"), "registration 'cache'"),
    ],
)
def test_what_a_device_is_not_used_for_is_refused_by_name_and_the_queue_pair_stays(
    bench, spec, says
):
    with pytest.raises(EngineRefused, match=says):
        bench.begin(spec)
    bench.begin(spec_of())
    assert len(bench.theirs.receive_queue.posted) == RECEIVES


def test_a_queue_pair_that_has_something_posted_is_not_taken_over(bench):
    region = bench.pd.reg_mr(bench.data)
    assert bench.qp.post_recv(host.verbs.RecvWr([region.sge(0, 64)], 1))
    bench.channel.wait_n(1, timeout_s=0.001)
    before = len(bench.fake.made)
    with pytest.raises(EngineRefused, match="busy"):
        bench.begin(spec_of())
    assert len(bench.fake.made) == before  # What was registered for it is gone.
