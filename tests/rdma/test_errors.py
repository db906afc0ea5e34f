"""The conformance suite's bad days: what a peer has no right to, dead queue pairs, memory in use, a
peer that stops reading or resets, and segments that lie. Each names the error it expects.
"""

import errno
import os
import subprocess
import sys
import textwrap
from itertools import pairwise

import numpy as np
import pytest

from host.verbs import ConnParam, RecvWr, SendWr
from host.verbs.records import ERROR
from shm.verbs import EVENT_QP_ACCESS_ERR
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    WC_LOC_PROT_ERR,
    WC_REM_ACCESS_ERR,
    WR_LOCAL_INV,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_SEND,
)
from tests.e2e.running import ROOT, wait_until
from tests.rdma.conftest import PROVIDER, iwarp_only
from tests.rdma.pairs import WAIT_S, connect, ended_by, hand_over, receive, send
from tests.rdma.raw_peer import (
    READ_RESPONSE,
    SEND,
    TERMINATE,
    WRITE,
    call,
    fpdu,
    read_request,
    tagged,
    untagged,
)

# Over RoCE only who asked is told: the other side says no and knows of no end.
TELLS_BOTH = PROVIDER != "rxe0"
# Terminates: layer << 12 | error type << 8 | code (RFC 5040 §4.8, RFC 5041 §7, RFC 5044 §8).
RDMAP_INVALID_STAG, RDMAP_BOUNDS, RDMAP_ACCESS = 0x0100, 0x0101, 0x0102
RDMAP_NOT_ASSOCIATED, RDMAP_WRAP = 0x0103, 0x0104
RDMAP_VERSION, RDMAP_OPCODE, RDMAP_CATASTROPHIC = 0x0205, 0x0206, 0x0207
DDP_INVALID_STAG, DDP_BOUNDS, DDP_NOT_ASSOCIATED, DDP_WRAP = 0x1100, 0x1101, 0x1102, 0x1103
DDP_INVALID_QN, DDP_NO_BUFFER, DDP_MSN, DDP_MO, DDP_TOO_LONG = (0x1201 + i for i in range(5))
MPA_CRC, MPA_MARKER = 0x2002, 0x2003


def reading(side, stag, at, size=8):
    """Describe a Read of a peer's memory."""
    return {"opcode": WR_RDMA_READ, "remote_addr": at, "rkey": stag}


# --- rights and bounds ---------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [WR_RDMA_WRITE, WR_RDMA_READ])
@pytest.mark.parametrize(
    ("access", "shift", "wrong_key", "codes"),
    [
        (ACCESS_LOCAL_WRITE, 0, 0, (0x0102, RDMAP_ACCESS)),
        (None, 4093, 0, (DDP_BOUNDS, RDMAP_BOUNDS)),
        (None, -1, 0, (DDP_BOUNDS, RDMAP_BOUNDS)),
        (None, 0, 1, (DDP_INVALID_STAG, RDMAP_INVALID_STAG)),
    ],
)
def test_memory_that_was_not_lent_so_is_not_touched(
    joined, opcode, access, shift, wrong_key, codes
):
    active, passive, ours, theirs = joined
    if PROVIDER == "siw0" and opcode == WR_RDMA_READ and access is not None:
        pytest.skip("siw does not check the right to read")
    rights = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_WRITE
    lent = passive.pd.reg_mr(passive.array[4096:8192], rights if access is None else access)
    before = passive.array.copy()
    active.fill(0, 8)
    where = {"remote_addr": lent.remote_addr + shift, "rkey": lent.rkey ^ wrong_key}
    send(active, ours, 0, 8, opcode=opcode, **where)
    if not passive.device.query().terminates:
        _ends_without_a_code(active, opcode)
        assert np.array_equal(passive.array, before)
        lent.dereg()
        return
    event = passive.event()
    expected = codes[opcode == WR_RDMA_READ]
    assert event.terminate in (expected, expected & 0xFFF | 0x1000, expected & 0xFFF)
    assert event.event == EVENT_QP_ACCESS_ERR
    assert event.ours
    told = active.event()
    assert (told.terminate, told.ours) == (event.terminate, False)
    if opcode == WR_RDMA_READ:
        assert active.one().status == WC_REM_ACCESS_ERR
    assert np.array_equal(passive.array, before)
    assert ours.state == theirs.state == ERROR
    lent.dereg()


def _ends_without_a_code(active, opcode):
    """Over a device whose events tell no Terminate: the work request fails, or, of a Write over
    iWARP, which nobody answers, the connection ends behind it.
    """
    done = active.one()
    if opcode == WR_RDMA_READ:
        assert not done.ok
    assert active.event().terminate is None


def test_a_read_needs_the_right_to_read_which_some_stacks_forget(joined):
    active, passive, ours, _ = joined
    if PROVIDER == "siw0":
        pytest.skip("siw is one of them")
    lent = passive.pd.reg_mr(passive.array[:4096], ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE)
    send(active, ours, 0, 8, **reading(passive, lent.rkey, lent.remote_addr))
    ended_by(passive if TELLS_BOTH else active, RDMAP_ACCESS)
    assert active.one().status == WC_REM_ACCESS_ERR


def test_an_offset_near_the_end_of_all_addresses_does_not_wrap(joined):
    active, passive, ours, _ = joined
    where = {"remote_addr": (1 << 64) - 4, "rkey": passive.mr.rkey}
    send(active, ours, 0, 8, opcode=WR_RDMA_READ, **where)
    ended_by(passive, RDMAP_WRAP, RDMAP_BOUNDS)


def test_memory_of_another_protection_domain_is_not_associated(joined):
    active, passive, ours, _ = joined
    other = passive.device.alloc_pd()
    lent = other.reg_mr(passive.array[:4096], ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ)
    send(active, ours, 0, 8, **reading(passive, lent.rkey, lent.remote_addr))
    ended_by(passive if TELLS_BOTH else active, RDMAP_NOT_ASSOCIATED)


def test_a_key_that_was_taken_back_names_nothing_even_when_its_memory_is_lent_again(joined):
    active, passive, ours, _ = joined
    rights = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ
    old = passive.pd.reg_mr(passive.array[:4096], rights)
    old.dereg()
    new = passive.pd.reg_mr(passive.array[:4096], rights)
    assert new.rkey != old.rkey
    send(active, ours, 0, 8, **reading(passive, old.rkey, old.remote_addr))
    ended_by(passive, RDMAP_INVALID_STAG)
    with pytest.raises(OSError, match="Invalid argument"):
        old.dereg()


@iwarp_only
def test_keys_cannot_be_guessed_from_one_another(sides):
    active, _ = sides
    regions = [active.pd.reg_mr(active.array[:64]) for _ in range(64)]
    keys = [region.rkey for region in regions]
    assert len(set(keys)) == 64
    assert 0 not in keys
    handles = sorted(key >> 8 for key in keys)
    gaps = {later - earlier for earlier, later in pairwise(handles)}
    assert len(gaps) > 16, "handles lie at regular distances"
    assert len({key & 0xFF for key in keys}) > 16, "keys do not differ"


# --- local mistakes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "length", "wrong_key"), [(0, 8, 1), ((1 << 20) - 4, 8, 0), (-1, 8, 0)]
)
def test_a_send_from_memory_that_is_not_ours_fails_alone(joined, shift, length, wrong_key):
    active, passive, ours, theirs = joined
    bad = (active.mr.addr + shift, length, active.mr.lkey ^ wrong_key)
    assert ours.post_send(SendWr(WR_SEND, [bad], 4))
    assert active.one().status == WC_LOC_PROT_ERR
    receive(passive, theirs, 0, 8)
    send(active, ours, 0, 8)
    passive.one().check()
    active.one().check()


def test_a_receive_into_memory_that_is_read_only_fails_alone(joined):
    active, passive, ours, theirs = joined
    read_only = passive.pd.reg_mr(passive.array[:64], 0)
    assert theirs.post_recv(RecvWr([read_only.sge()], 4))
    failed = passive.one()
    assert (failed.wr_id, failed.status) == (4, WC_LOC_PROT_ERR)
    receive(passive, theirs, 0, 8)
    send(active, ours, 0, 8)
    passive.one().check()
    active.one().check()


def test_a_bad_receive_on_a_shared_queue_is_told_to_its_owner(sides):
    _, passive = sides
    srq = passive.device.create_srq(passive.pd, 4)
    assert srq.post_recv(RecvWr([(passive.mr.addr, 8, 0x1234)], 6))
    assert passive.device.wait_until(lambda: len(srq.failed) == 1, WAIT_S)
    assert (srq.failed[0].wr_id, srq.failed[0].status) == (6, WC_LOC_PROT_ERR)
    assert srq.posted == 0


@pytest.mark.parametrize(
    ("access", "number"),
    [(ACCESS_REMOTE_WRITE, errno.EINVAL), (1 << 19, errno.EINVAL)],
)
def test_rights_that_do_not_go_together_are_refused(sides, access, number):
    active, _ = sides
    with pytest.raises(OSError, match=os.strerror(number)):
        active.pd.reg_mr(active.buffer, access)


def test_memory_that_the_engine_does_not_share_cannot_be_registered(sides):
    active, _ = sides
    with pytest.raises(ValueError, match="not shared with the engine"):
        active.pd.reg_mr(np.zeros(64, np.uint8))
    with pytest.raises(ValueError, match="gaps"):
        active.pd.reg_mr(active.array[::2])


def test_a_local_invalidate_of_nothing_fails(joined):
    active, _, ours, _ = joined
    assert ours.post_send(SendWr(WR_LOCAL_INV, invalidate_rkey=0x12345678))
    assert not active.one().ok


def test_opcodes_that_are_none_are_refused(joined):
    _, _, ours, _ = joined
    with pytest.raises(OSError, match="no work request's opcode"):
        ours.post_send(SendWr(99))


# --- queue pairs that are not, or no more --------------------------------------------------------


def test_a_queue_pair_that_is_not_connected_takes_no_sends(sides):
    active, _ = sides
    with pytest.raises(OSError, match="in RESET takes no work request"):
        active.qp().post_send(SendWr(WR_SEND))


def test_work_posted_to_a_dead_queue_pair_comes_back_flushed(joined):
    active, passive, ours, theirs = joined
    theirs.destroy()
    active.event()
    assert ours.state == ERROR
    send(active, ours, 0, 8, wr_id=11)
    receive(active, ours, 0, 8, wr_id=12)
    send(active, ours, 0, 8, wr_id=13, flags=0)
    flushed = active.take(3)
    assert [wc.wr_id for wc in flushed] == [11, 12, 13]
    assert all(wc.flushed for wc in flushed)
    assert passive.cq.poll_cq() == []


def test_a_destroyed_queue_pair_takes_nothing(joined):
    active, _, ours, _ = joined
    receive(active, ours, 0, 8, wr_id=3)
    ours.destroy()
    assert active.one().flushed
    for post in (lambda: ours.post_send(SendWr(WR_SEND)), lambda: ours.post_recv(RecvWr())):
        with pytest.raises(OSError, match="was destroyed"):
            post()


def test_everything_outstanding_comes_back_in_order_when_the_peer_dies(joined):
    active, passive, ours, theirs = joined
    for wr_id in range(4):
        receive(active, ours, 0, 8, wr_id=wr_id)
    theirs.destroy()
    flushed = active.take(4)
    assert [wc.wr_id for wc in flushed] == [0, 1, 2, 3]
    assert all(wc.flushed for wc in flushed)
    assert passive.cq.poll_cq() == []


@iwarp_only
def test_dying_with_reads_in_flight_flushes_them(sides):
    active, passive = sides
    ours, theirs = active.qp(), passive.qp()
    with (
        passive.device.listen() as listener,
        call(listener, passive) as peer,
    ):
        peer.start()
        listener.get_request(WAIT_S).accept(theirs)
        peer.reply()
        receive(passive, theirs, 0, 8)
        peer.send(fpdu(untagged(SEND, 0, 1)))  # The active side's first message.
        passive.one().check()
        for wr_id in range(3):
            send(passive, theirs, 0, 8, wr_id=wr_id, opcode=WR_RDMA_READ, remote_addr=0, rkey=1)
        for msn in (1, 2, 3):
            assert peer.next_ulpdu()[1] & 15 == 1
            assert msn
        with pytest.raises(OSError, match="busy"):
            passive.mr.dereg()
        peer.reset()
        flushed = passive.take(3)
        assert [wc.wr_id for wc in flushed] == [0, 1, 2]
        assert all(wc.flushed for wc in flushed)
    assert ours.endpoint == 0


# --- memory in use -------------------------------------------------------------------------------


def test_memory_in_use_is_not_deregistered(joined):
    active, passive, ours, theirs = joined
    region = passive.pd.reg_mr(passive.array[:64])
    assert theirs.post_recv(RecvWr([region.sge()], 1))
    hand_over(theirs)
    with pytest.raises(OSError, match="busy") as busy:
        region.dereg()
    assert busy.value.errno == errno.EBUSY
    send(active, ours, 0, 8)
    passive.one().check()
    active.one().check()
    region.dereg()


def test_a_domain_in_use_is_not_given_back(joined):
    active, _, _, _ = joined
    with pytest.raises(OSError, match="rest on this protection domain") as busy:
        active.pd.dealloc()
    assert busy.value.errno == errno.EBUSY


def test_a_completion_queue_in_use_is_not_given_back(joined):
    active, _, _, _ = joined
    with pytest.raises(OSError, match="1 queue pairs use"):
        active.cq.destroy()


@pytest.mark.parametrize("depth", [0, 1 << 20])
def test_a_completion_queue_is_no_deeper_than_its_channel(sides, depth):
    active, _ = sides
    with pytest.raises(ValueError, match="completion queue of"):
        active.device.create_cq(depth)


# --- the peer's transport ------------------------------------------------------------------------


@pytest.fixture
def raw(sides):
    """Give a passive side, its queue pair with one receive used up, and the raw peer."""
    _, passive = sides
    theirs = passive.qp()
    with (
        passive.device.listen() as listener,
        call(listener, passive) as peer,
    ):
        peer.start()
        listener.get_request(WAIT_S).accept(theirs, ConnParam(responder_resources=2))
        peer.reply()
        yield passive, theirs, peer


@iwarp_only
def test_a_peer_that_stops_reading_stops_only_its_own_connection(sides):
    active, passive = sides
    theirs = passive.qp()
    with passive.device.listen() as listener:
        with call(listener, passive, receive_buffer=4096) as peer:
            peer.start()
            listener.get_request(WAIT_S).accept(theirs)
            peer.reply()
            receive(passive, theirs, 0, 8)
            peer.send(fpdu(untagged(SEND, 0, 1)))
            passive.one().check()
            for wr_id in range(32):  # 32 MiB: more than both sockets keep.
                send(passive, theirs, 0, 1 << 20, wr_id=wr_id)
            ours, others = active.qp(), passive.qp()
            connect(active, passive, ours, others)
            receive(passive, others, 0, 8, wr_id=99)
            send(active, ours, 0, 8)
            active.one().check()
            while (came := passive.one()).wr_id != 99:
                came.check()
            assert theirs.record[0]["sq_posted"] > theirs.record[0]["sq_done"]
            theirs.destroy()
        passive.device.progress()
        left = passive.cq.poll_cq()
        assert left
        assert all(wc.flushed for wc in left)


@iwarp_only
def test_a_reset_is_an_asynchronous_error_and_flushes(raw):
    passive, theirs, peer = raw
    receive(passive, theirs, 0, 8, wr_id=5)
    peer.reset()
    event = passive.event()
    assert event.qp is theirs
    assert event.status == -errno.ECONNRESET or event.terminate is None
    assert passive.one().flushed
    assert theirs.state == ERROR


@iwarp_only
def test_a_stream_that_ends_inside_a_segment_is_an_error(raw):
    passive, theirs, peer = raw
    receive(passive, theirs, 0, 64, wr_id=5)
    peer.send(fpdu(untagged(SEND, 0, 1, b"x" * 32))[:20])
    peer.close()
    assert passive.event().name == "QP fatal"
    assert passive.one().flushed
    assert theirs.state == ERROR


# --- segments that lie ---------------------------------------------------------------------------


def stag_of(side):
    """Name the side's memory for a raw peer."""
    return side.mr.rkey


LIES = {
    "a ULPDU of no bytes": (lambda side: fpdu(b""), MPA_MARKER),
    "a ULPDU shorter than its header": (lambda side: fpdu(untagged(SEND, 0, 1)[:9]), MPA_MARKER),
    "a wrong checksum": (lambda side: fpdu(untagged(SEND, 0, 1), spoilt=True), MPA_CRC),
    "DDP version 0": (
        lambda side: fpdu(untagged(SEND, 0, 1, control=0x40)),
        0x1206,
    ),
    "an opcode that does not exist": (lambda side: fpdu(untagged(15, 0, 1)), RDMAP_OPCODE),
    "a tagged Send": (lambda side: fpdu(tagged(SEND, stag_of(side), side.mr.addr)), RDMAP_OPCODE),
    "an untagged Write": (lambda side: fpdu(untagged(WRITE, 0, 1)), RDMAP_OPCODE),
    "queue number 4": (lambda side: fpdu(untagged(SEND, 4, 1)), DDP_INVALID_QN),
    "a skipped message": (lambda side: fpdu(untagged(SEND, 0, 2)), DDP_MSN),
    "a gap in a message": (lambda side: fpdu(untagged(SEND, 0, 1, b"x", offset=8)), DDP_MO),
    "more than the receive holds": (
        lambda side: fpdu(untagged(SEND, 0, 1, bytes(65))),
        DDP_TOO_LONG,
    ),
    "no receive at all": (
        lambda side: fpdu(untagged(SEND, 0, 1)) + fpdu(untagged(SEND, 0, 2)),
        DDP_NO_BUFFER,
    ),
    "an STag of nothing": (
        lambda side: fpdu(tagged(WRITE, 0x01020304, side.mr.addr, b"x")),
        DDP_INVALID_STAG,
    ),
    "a Write beyond its region": (
        lambda side: fpdu(tagged(WRITE, stag_of(side), side.mr.addr + (1 << 20), b"x")),
        DDP_BOUNDS,
    ),
    "a Write that wraps": (
        lambda side: fpdu(tagged(WRITE, stag_of(side), (1 << 64) - 4, bytes(8))),
        DDP_WRAP,
    ),
    "64 KiB beyond its region": (
        lambda side: fpdu(
            tagged(WRITE, stag_of(side), side.mr.addr + (1 << 20) - 1000, bytes(65_500))
        ),
        DDP_BOUNDS,
    ),
    "a Read Response that nobody asked for": (
        lambda side: fpdu(tagged(READ_RESPONSE, stag_of(side), side.mr.addr, b"x")),
        None,
    ),
    "more Reads than were granted": (
        lambda side: b"".join(
            fpdu(read_request(msn, 1, 0, 1 << 19, stag_of(side), side.mr.addr))
            for msn in range(1, 9)
        ),
        None,
    ),
}


@iwarp_only
@pytest.mark.parametrize("lie", LIES)
def test_a_segment_that_lies_is_answered_by_a_terminate(raw, lie):
    passive, theirs, peer = raw
    segment, code = LIES[lie]
    receive(passive, theirs, 0, 64, wr_id=5)
    before = passive.array[64:].copy()
    peer.send(segment(passive))
    came = peer.await_terminate()
    if code is not None:
        assert came == code
    peer.await_end()
    event = passive.event()
    assert (event.terminate, event.ours) == (came, True)
    assert theirs.state == ERROR
    assert not passive.one().ok or lie == "no receive at all"
    assert np.array_equal(passive.array[64:], before)


@iwarp_only
def test_a_terminate_of_the_peer_is_told_with_its_code(raw):
    passive, theirs, peer = raw
    receive(passive, theirs, 0, 64, wr_id=5)
    peer.send(fpdu(untagged(TERMINATE, 2, 1, bytes([0x01, 0x02, 0, 0]))))
    event = passive.event()
    assert (event.terminate, event.ours) == (RDMAP_ACCESS, False)
    assert passive.one().flushed
    assert theirs.query().terminate_received & 0xFFFF == RDMAP_ACCESS


@iwarp_only
def test_a_segment_of_64_kib_lands_whole(raw):
    passive, theirs, peer = raw
    data = np.arange(65_500, dtype=np.uint32).astype(np.uint8).tobytes()
    receive(passive, theirs, 0, 0)
    peer.send(fpdu(tagged(WRITE, stag_of(passive), passive.mr.addr + 100, data)))
    peer.send(fpdu(untagged(SEND, 0, 1)))
    passive.one().check()
    assert passive.array[100:65_600].tobytes() == data


@iwarp_only
def test_a_segment_may_come_byte_by_byte(raw):
    passive, theirs, peer = raw
    receive(passive, theirs, 0, 64)
    for byte in fpdu(untagged(SEND, 0, 1, b"piecemeal")):
        peer.send(bytes([byte]))
        passive.channel.wait_n(1, timeout_s=0.001)
    came = passive.one().check()
    assert passive.array[: came.byte_len].tobytes() == b"piecemeal"


# --- a client that is killed ---------------------------------------------------------------------

CLIENT = textwrap.dedent("""
    import sys, time
    import host
    from host.verbs import ConnParam, Device, QpCap, RecvWr, SendWr
    from shm.verbs_numbers import WR_RDMA_READ
    name, port = sys.argv[1], int(sys.argv[2])
    engine = host.connect(name)
    channel = engine.channel(work=1024, events=1024)
    device = Device(engine, channel)
    pd, cq = device.alloc_pd(), device.create_cq(256)
    srq = device.create_srq(pd, 8)
    mr = pd.reg_mr(engine.alloc(1 << 20), 7)
    window = pd.alloc_mw()
    qp = device.create_qp(pd, cq, cap=QpCap(64, 64))
    for i in range(8):
        qp.post_recv(RecvWr([mr.sge(0, 64)], i))
        srq.post_recv(RecvWr([mr.sge(0, 64)], i))
    qp.connect(("127.0.0.1", port), ConnParam())
    for i in range(8):
        qp.post_send(SendWr(WR_RDMA_READ, [mr.sge(0, 1000)], i, remote_addr=0, rkey=1))
    print("ready", flush=True)
    time.sleep(600)
""")


@pytest.mark.skipif(PROVIDER != "iwarp", reason="the daemon's own RNIC")
def test_a_client_that_is_killed_with_reads_in_flight_leaves_nothing(daemon, sides):
    _, passive = sides
    theirs = passive.qp()
    before = daemon.levels()
    listener = passive.device.listen()
    child = subprocess.Popen(
        [sys.executable, "-c", CLIENT, daemon.name, str(listener.port)],
        cwd=ROOT,
        env=daemon.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        listener.get_request(120).accept(theirs)
        listener.close()
        wait_until(lambda: child.stdout.readline() == "ready\n", "the client", 120)
    finally:
        child.kill()
        child.wait(WAIT_S)
        child.stdout.close()
    passive.event()
    theirs.destroy()
    daemon.assert_settles_at(before)


def test_an_engine_that_dies_is_noticed_and_everything_comes_back_flushed(tmp_path):
    import contextlib

    import host
    from host.errors import EngineDied
    from tests.e2e.running import RunningEngine, environment_of
    from tests.rdma.pairs import two_sides

    with contextlib.ExitStack() as stack:
        running = stack.enter_context(RunningEngine(tmp_path))
        stack.enter_context(environment_of(running))
        engine = stack.enter_context(host.connect(running.name))
        active, passive = stack.enter_context(two_sides(engine, PROVIDER))
        ours, theirs = active.qp(), passive.qp()
        connect(active, passive, ours, theirs)
        receive(active, ours, 0, 8, wr_id=77)
        running.kill()
        wait_until(lambda: not active.channel.is_running, "the engine's death")
        flushed = active.one()
        assert (flushed.wr_id, flushed.flushed) == (77, True)
        with pytest.raises(EngineDied):
            active.cq.wait_n(1, timeout_s=5)
