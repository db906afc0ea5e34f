"""Connection management: private data, rejection, depths, and start-up by peers that misbehave."""

import pytest

from host.errors import EndOfStream, TimedOut
from host.verbs import ConnParam, MpaError, Rejected
from host.verbs.records import ERROR, RESET
from tests.rdma.conftest import PROVIDER
from tests.rdma.pairs import WAIT_S, connect, dial, receive, send
from tests.rdma.raw_peer import RawPeer, Server, call

iwarp_only = pytest.mark.skipif(PROVIDER != "iwarp", reason="about the bytes of our own start-up")
REPLY = b"MPA ID Rep Frame"


def test_private_data_and_depths_are_exchanged(sides):
    active, passive = sides
    ours, theirs = active.qp(), passive.qp()
    listener = passive.device.listen()
    seen = {}

    def answer(request):
        seen["private"] = request.private_data
        seen["depths"] = (request.responder_resources, request.initiator_depth)
        seen["peer"] = request.peer[0]
        param = ConnParam(private_data=b"answer", responder_resources=3, initiator_depth=200)
        seen["startup"] = request.accept(theirs, param)

    asked = ConnParam(private_data=b"question", responder_resources=5, initiator_depth=7)
    startup = dial(active, ours, listener, answer, asked)
    listener.close()
    assert (seen["private"], startup.private_data) == (b"question", b"answer")
    assert seen["depths"] == (7, 5)
    assert seen["peer"] == "127.0.0.1"
    assert (startup.ird, startup.ord) == (5, 3)
    assert (seen["startup"].ird, seen["startup"].ord) == (3, 5)


def test_a_rejection_carries_private_data_and_leaves_nothing(sides):
    active, passive = sides
    ours = active.qp()
    with passive.device.listen() as listener:
        with pytest.raises(Rejected) as rejected:
            dial(active, ours, listener, lambda request: request.reject(b"not today"))
        assert rejected.value.private_data == b"not today"
    assert ours.state == RESET


def test_a_request_is_answered_once(sides):
    active, passive = sides
    ours, theirs = active.qp(), passive.qp()
    requests = []

    def answer(request):
        requests.append(request)
        request.accept(theirs)

    with passive.device.listen() as listener:
        dial(active, ours, listener, answer)
    with pytest.raises(ValueError, match="accepted or rejected already"):
        requests[0].reject()


def test_a_queue_pair_is_connected_once(joined):
    _, _, ours, _ = joined
    with pytest.raises(OSError, match="connected before"):
        ours.connect(("127.0.0.1", 1))


def test_nobody_listening_is_a_refusal(sides):
    active, passive = sides
    listener = passive.device.listen()
    address = listener.address
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        active.qp().connect(address)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"responder_resources": 256}, "responder_resources 256"),
        ({"initiator_depth": -1}, "initiator_depth -1"),
        ({"revision": 3}, "revision 3"),
        ({"private_data": bytes(509)}, "508 can be sent"),
    ],
)
def test_parameters_that_cannot_be_are_refused_before_anybody_is_called(sides, wrong, says):
    active, _ = sides
    with pytest.raises(ValueError, match=says):
        active.qp().connect(("127.0.0.1", 1), ConnParam(**wrong))


def test_many_connections_of_one_listener_work_side_by_side(sides):
    active, passive = sides
    joined = []
    listener = passive.device.listen()
    for _ in range(5):
        ours, theirs = active.qp(), passive.qp()
        dial(active, ours, listener, lambda request, theirs=theirs: request.accept(theirs))
        joined.append((ours, theirs))
    listener.close()
    for i, (ours, theirs) in enumerate(joined):
        receive(passive, theirs, 64 * i, 64, wr_id=i)
        send(active, ours, 0, 8)
    assert sorted(wc.wr_id for wc in passive.take(5)) == list(range(5))
    active.take(5)


# --- the active side and what it is answered ---------------------------------------------------


@iwarp_only
@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", MpaError, "no MPA Reply"),
        (b"MPA ID Req Frame\x50\x02\x00\x04\x00\x10\x00\x10", MpaError, "no MPA Reply"),
        (REPLY + b"\x50\x02\x00\x03\x00\x10\x00", MpaError, "in 3 octets"),
        (REPLY + b"\x50\x02\xff\xff", MpaError, "65535 octets"),
        (REPLY + b"\x50\x03\x00\x04\x00\x10\x00\x10", MpaError, "revision 3"),
        (REPLY + b"\x40\x01\x00\x00", MpaError, "answers a Request of revision 2 with 1"),
        (REPLY + b"\x40\x02\x00\x00", MpaError, "leaves out IRD and ORD"),
        (REPLY + b"\x50\x02\x00\x04\x00\x10\x00\x11", MpaError, "17 outstanding reads"),
        (REPLY + b"\x50\x02\x00\x04\x80\x10\x00\x10", MpaError, "peer-to-peer"),
        (REPLY + b"\x70\x02\x00\x06\x00\x00\x00\x00no", Rejected, "rejected"),
    ],
)
def test_a_reply_that_is_none_is_refused_by_name(sides, answer, error, says):
    active, _ = sides
    ours = active.qp()
    with Server(answer) as server, pytest.raises(error, match=says):
        ours.connect(server.address)
    assert ours.state == RESET
    assert ours.endpoint == 0


@iwarp_only
def test_a_reply_that_does_not_come_ends_the_attempt_in_time(sides):
    active, _ = sides
    with Server(REPLY[:7]) as server, pytest.raises(TimedOut):
        active.qp().connect(server.address, ConnParam(timeout_s=0.3))


@iwarp_only
def test_a_peer_that_hangs_up_before_its_reply_is_noticed(sides):
    active, _ = sides
    hang_up = Server(REPLY, then=lambda connection: connection.close())
    with hang_up as server, pytest.raises((EndOfStream, OSError)):
        active.qp().connect(server.address)


# --- the passive side and who calls it ---------------------------------------------------------


def refused_by(passive, listener, count=1):
    """Wait until the listener has dropped somebody, and return why."""

    def dropped():
        return len(listener.refused) >= count

    assert passive.device.wait_until(dropped, WAIT_S)
    return listener.refused[-1]


@iwarp_only
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n", "no MPA Request"),
        (b"MPA ID Rep Frame\x40\x02\x00\x00", "no MPA Request"),
        (b"MPA ID Req Frame\x40\x00\x00\x00", "revision 0"),
        (b"MPA ID Req Frame\x40\x02\x02\x01", "513 octets"),
        (b"MPA ID Req Frame\x60\x02\x00\x00", "bit that rejects"),
        (b"MPA ID Req Frame\x50\x02\x00\x02\x00\x00", "in 2 octets"),
        (b"MPA ID Req Frame\x50\x02\x00\x04\x80\x01\x00\x01", "peer-to-peer"),
    ],
)
def test_a_request_that_is_none_is_dropped_and_holds_up_nobody(sides, data, says):
    active, passive = sides
    with (
        passive.device.listen() as listener,
        call(listener, passive) as peer,
    ):
        peer.send(data)
        assert says in str(refused_by(passive, listener))
        peer.await_end()
        theirs = passive.qp()
        dial(active, active.qp(), listener, lambda request: request.accept(theirs))


@iwarp_only
def test_a_request_that_dribbles_is_read_to_its_end_and_one_that_stops_is_dropped(sides):
    _, passive = sides
    with passive.device.listen() as listener:
        listener.request_timeout_s = WAIT_S  # The machine may be slow.
        with call(listener, passive) as peer:
            for byte in b"MPA ID Req Frame\x50\x02\x00\x06\x00\x01\x00\x01hi":
                peer.send(bytes([byte]))
                passive.device.progress()
            request = listener.get_request(WAIT_S)
            assert request.private_data == b"hi"
            request.reject()
        listener.request_timeout_s = 0.2
        with call(listener, passive) as silent:
            silent.send(b"MPA ID Req")
            assert "in time" in str(refused_by(passive, listener))
            silent.await_end()


@iwarp_only
def test_a_peer_that_is_dropped_while_the_ring_is_full_is_closed_afterwards(sides, monkeypatch):
    _, passive = sides
    post_close, asked = passive.channel.post_close, []

    def without_room(*arguments):
        asked.append(arguments)
        return len(asked) > 3 and post_close(*arguments)

    with passive.device.listen() as listener, call(listener, passive) as peer:
        with monkeypatch.context() as patch:
            patch.setattr(passive.channel, "post_close", without_room)
            peer.send(b"GET / HTTP/1.1\r\n\r\n")
            refused_by(passive, listener)
            assert passive.device.wait_until(lambda: len(asked) > 3, WAIT_S)
        peer.await_end()


@iwarp_only
def test_somebody_who_only_knocks_leaves_nothing_behind(sides):
    _, passive = sides
    with passive.device.listen() as listener:
        for _ in range(20):
            RawPeer(listener.address).close()
        refused_by(passive, listener, 20)


@iwarp_only
def test_bytes_behind_the_request_wait_until_the_receives_are_posted(sides):
    from tests.rdma.raw_peer import SEND, fpdu, untagged

    _, passive = sides
    theirs = passive.qp()
    receive(passive, theirs, 0, 64)
    with (
        passive.device.listen() as listener,
        call(listener, passive) as peer,
    ):
        peer.start()
        peer.send(fpdu(untagged(SEND, 0, 1, b"too early, but harmless")))
        listener.get_request(WAIT_S).accept(theirs)
        came = passive.one().check()
        assert passive.array[: came.byte_len].tobytes() == b"too early, but harmless"


def test_closing_a_listener_drops_requests_that_nobody_answered(sides):
    _, passive = sides
    listener = passive.device.listen()
    with call(listener, passive) as peer:
        peer.start()
        assert passive.device.wait_until(lambda: len(listener._requests) == 1, WAIT_S)
        listener.close()
        peer.await_end()


def test_disconnecting_twice_and_destroying_twice_is_harmless(joined):
    active, _, ours, _ = joined
    ours.disconnect()
    ours.disconnect()
    assert ours.state == ERROR
    ours.destroy()
    ours.destroy()
    with pytest.raises(OSError, match="destroyed"):
        ours.connect(("127.0.0.1", 1))
    assert active.device._qps == {}


def test_a_peer_that_does_not_close_its_side_is_cut_off(sides):
    _, passive = sides
    theirs = passive.qp()
    with (
        passive.device.listen() as listener,
        call(listener, passive) as peer,
    ):
        peer.start()
        listener.get_request(WAIT_S).accept(theirs)
        receive(passive, theirs, 0, 64)
        theirs.disconnect(timeout_s=0.2)
        assert passive.one().flushed


def test_connections_can_be_made_again_and_again(sides):
    active, passive = sides
    for _ in range(10):
        ours, theirs = active.qp(), passive.qp()
        connect(active, passive, ours, theirs)
        ours.disconnect()
        ours.destroy()
        theirs.destroy()
