"""What must hold on every verbs device: each function is a sentence that the guest's worker runs
with the device's name and an address of it.
"""

import errno
import time
from threading import Thread

from ppe.cycle.rnic.verbs import connection
from ppe.cycle.rnic.verbs.device import Device, VerbsError
from ppe.cycle.rnic.verbs.queues import SharedReceiveQueue
from shm import verbs_numbers as c
from tests.ppe.rnic.verbs.on_device.node import (
    BUFFER,
    WAIT_S,
    Answer,
    End,
    Link,
    Memory,
    raised,
)

PORT = 7600
SIZES = (1, 3, 4096, 100_001)
FLUSHED = c.WC_WR_FLUSH_ERR


def _pattern(memory, size, seed):
    memory.data[:size] = [(seed + at * 7 + at // 251) & 0xFF for at in range(size)]


def _peer(end, start=0):
    return {"remote_addr": end.memory.address + start, "rkey": end.memory.rkey}


def sends_arrive_in_order_with_their_lengths(device, address):
    with Link(device, address, PORT) as link:
        left, right = link.left, link.right
        _pattern(left.memory, max(SIZES), 1)
        tokens = [right.receive(right.memory.piece()) for _ in (*SIZES, 0)]
        for size in (*SIZES, 0):
            left.post(c.WR_SEND, left.memory.piece(0, size))
        assert [one.token for one in left.completions(5)] == [1, 2, 3, 4, 5]
        found = right.completions(5)
        assert [one.token for one in found] == tokens
        assert [one.byte_len for one in found] == [*SIZES, 0]
        assert {one.opcode for one in found} == {c.WC_RECV}
        assert {one.qp for one in found} == {right.qp.address}
        size = max(SIZES)
        assert right.memory.bytes(0, size) == left.memory.bytes(0, size)


def gather_and_scatter_lists_keep_every_byte(device, address):
    with Link(device, address, PORT) as link:
        left, right = link.left, link.right
        _pattern(left.memory, 5000, 3)
        cuts = ((0, 1), (1, 999), (1000, 4000))
        right.receive(*(right.memory.piece(*cut) for cut in ((0, 2000), (8000, 3000))))
        left.post(c.WR_SEND, *(left.memory.piece(*cut) for cut in cuts))
        left.completion()
        assert right.completion().byte_len == 5000
        found = right.memory.bytes(0, 2000) + right.memory.bytes(8000, 3000)
        assert found == left.memory.bytes(0, 5000)


def unsignalled_sends_are_covered_by_the_next_signalled_one(device, address):
    with Link(device, address, PORT) as link:
        left, right = link.left, link.right
        for _ in range(4):
            right.receive(right.memory.piece())
        for _ in range(3):
            left.post(c.WR_SEND, left.memory.piece(0, 8), flags=0)
        right.completions(3)
        left.nothing_more()
        left.post(c.WR_SEND, left.memory.piece(0, 8))
        found = left.completions(4)
        assert [one.token for one in found] == [1, 2, 3, 4]
        assert [bool(one.flags & c.WC_UNSIGNALLED) for one in found] == [True] * 3 + [False]


def a_write_lands_where_it_was_aimed_and_nowhere_else(device, address):
    with Link(device, address, PORT) as link:
        left, right = link.left, link.right
        for size in SIZES:
            right.memory.data[:] = 0xEE
            _pattern(left.memory, size, size)
            left.post(c.WR_RDMA_WRITE, left.memory.piece(0, size), **_peer(right, 64))
            assert left.completion().opcode == c.WC_RDMA_WRITE
            right.receive(right.memory.piece(BUFFER - 1, 1))
            left.post(c.WR_SEND)  # when it is there, the write is
            left.completion()
            right.completion()
            assert right.memory.bytes(64, size) == left.memory.bytes(0, size)
            assert set(right.memory.bytes(0, 64)) == {0xEE}
            assert set(right.memory.bytes(64 + size, 64)) == {0xEE}


def a_read_fetches_what_is_there(device, address):
    with Link(device, address, PORT) as link:
        left, right = link.left, link.right
        for size in SIZES:
            _pattern(right.memory, size, size + 1)
            left.post(c.WR_RDMA_READ, left.memory.piece(32, size), **_peer(right))
            assert left.completion().opcode == c.WC_RDMA_READ
            assert left.memory.bytes(32, size) == right.memory.bytes(0, size)


def completions_of_reads_and_sends_come_in_the_order_of_the_posts(device, address):
    with Link(device, address, PORT) as link:
        left, right = link.left, link.right
        order = []
        for number in range(12):
            if number % 3 == 0:
                order.append(
                    left.post(c.WR_RDMA_READ, left.memory.piece(0, 60_000), flags=0, **_peer(right))
                )
            else:
                right.receive(right.memory.piece(200_000, 8))
                order.append(left.post(c.WR_SEND, left.memory.piece(200_000, 8)))
        found = left.completions(12)
        assert [one.token for one in found] == order
        assert [bool(one.flags & c.WC_UNSIGNALLED) for one in found] == [True, False, False] * 4


def inline_data_may_be_overwritten_at_once(device, address):
    with Link(device, address, PORT, left={"inline": 32}) as link:
        left, right = link.left, link.right
        right.receive(right.memory.piece(0, 64))
        left.memory.data[:32] = 7
        values = {"inline_address": left.memory.address, "inline_length": 32}
        left.post(c.WR_SEND, flags=c.SEND_SIGNALED | c.SEND_INLINE, **values)
        left.memory.data[:32] = 9
        left.completion()
        assert right.completion().byte_len == 32
        assert right.memory.bytes(0, 32) == bytes([7]) * 32


def a_shared_receive_queue_serves_its_queue_pairs_and_says_which(device, address):
    with Link(device, address, PORT) as link:
        right_domain = link.right.domain
        srq = SharedReceiveQueue(right_domain, 16, sges=2)
        second = End(link.device, right_domain, srq=srq)
        third = End(link.device, right_domain, srq=srq)
        lefts = [End(link.device), End(link.device)]
        _connect_all(link, address, list(zip(lefts, (second, third), strict=True)))
        for _ in range(4):
            second.receive(second.memory.piece(0, 64))
        for left in (lefts[0], lefts[1], lefts[0]):
            left.post(c.WR_SEND, left.memory.piece(0, 16))
            left.completion()
        assert [one.qp for one in second.completions(2)] == [second.qp.address] * 2
        assert third.completion().qp == third.qp.address
        for one in (second, third, *lefts):
            one.connection.disconnect()
        for one in (second, third, *lefts):
            one.close()
        srq.close()


def _connect_all(link, address, pairs):
    for left, right in pairs:
        answer = Answer(link.listener, right)
        left.connection = connection.resolve(link.channel, address, PORT)
        left.connection.connect(left.qp)
        answer.wait()


def private_data_and_depths_travel_both_ways(device, address):
    sent, answered = bytes(range(50)), b"and welcome"
    active = {"private_data": sent, "ird": 3, "ord": 5}
    passive = {"private_data": answered, "ird": 5, "ord": 3}
    with Link(device, address, PORT, active=active, passive=passive) as link:
        # InfiniBand's manager pads to the size of its messages.
        assert link.request.private_data.rstrip(b"\0") == sent
        assert link.reply.private_data.rstrip(b"\0") == answered
        assert (link.request.ird, link.request.ord) in ((5, 3), (3, 5))
        return [link.request.ird, link.request.ord, link.reply.ird, link.reply.ord]


def a_rejected_connection_says_that_it_was(device, address):
    opened = Device(device)
    end = End(opened)
    listener, channel = connection.Listener(address, PORT), connection.CmChannel()
    end.connection = connection.resolve(channel, address, PORT)

    def refuse():
        asked, _ = listener.request(WAIT_S)
        asked.reject()
        asked.close()

    thread = Thread(target=refuse, daemon=True)
    thread.start()
    error = raised(connection.ConnectionFailedError, end.connection.connect, end.qp)
    thread.join(WAIT_S)
    assert error.event.kind == connection.REJECTED
    end.close()
    listener.close()
    channel.close()
    opened.close()


def nobody_listening_is_a_clear_error(device, address):
    opened = Device(device)
    end, channel = End(opened), connection.CmChannel()
    end.connection = connection.resolve(channel, address, PORT + 1)
    error = raised(VerbsError, end.connection.connect, end.qp)
    if isinstance(error, connection.ConnectionFailedError):
        assert error.event.kind in (connection.REJECTED, connection.UNREACHABLE), error
    else:
        assert error.errno == errno.ECONNREFUSED
    end.close()
    channel.close()
    opened.close()
    return str(error)


def a_post_to_a_queue_pair_that_never_connected_is_refused(device, address):
    opened = Device(device)
    end = End(opened)
    assert end.try_post(c.WR_SEND) == -errno.ENOTCONN
    end.close()
    opened.close()


def _fails(link, status, opcode, piece, **values):
    """The active end's request fails with one of `status`; all behind it is flushed in order."""
    left = link.left
    bad = left.post(opcode, piece, **values)
    second = left.try_post(c.WR_SEND, left.memory.piece(0, 8), token=77)
    found = left.completions(1)
    found += left.rest()
    assert found[0].token == bad
    assert found[0].status in status, found
    if not second:
        # Over iWARP a Send behind the Read may have left before the Terminate came.
        after = (c.WC_SUCCESS, FLUSHED) if _is_iwarp(link) else (FLUSHED,)
        assert [one.token for one in found] == [bad, 77]
        assert found[1].status in after
    assert left.try_post(c.WR_SEND) == -errno.ENOTCONN
    return [one.status for one in found]


def _is_iwarp(link):
    """iWARP has no answer to a Write or Send: they complete when they are sent."""
    return link.device.transport == "iwarp"


def a_wrong_rkey_ends_the_connection(device, address):
    with Link(device, address, PORT) as link:
        peer = _peer(link.right) | {"rkey": link.right.memory.rkey ^ 0x5500}
        return _fails(
            link,
            (c.WC_REM_ACCESS_ERR, c.WC_REM_OP_ERR, FLUSHED),
            c.WR_RDMA_READ,
            link.left.memory.piece(0, 64),
            **peer,
        )


def a_read_beyond_the_region_ends_the_connection(device, address):
    with Link(device, address, PORT) as link:
        peer = _peer(link.right, BUFFER - 32)
        return _fails(
            link,
            (c.WC_REM_ACCESS_ERR, c.WC_REM_OP_ERR, FLUSHED),
            c.WR_RDMA_READ,
            link.left.memory.piece(0, 64),
            **peer,
        )


def a_write_with_a_wrong_rkey_changes_nothing_and_ends_the_connection(device, address):
    with Link(device, address, PORT) as link:
        left, right = link.left, link.right
        waiting = right.receive(right.memory.piece(0, 8))
        right.memory.data[:] = 0x5A
        left.memory.data[:] = 0xFF
        left.post(
            c.WR_RDMA_WRITE,
            left.memory.piece(0, 4096),
            **(_peer(right) | {"rkey": right.memory.rkey ^ 0x5500}),
        )
        (found,) = left.completions(1)
        assert found.status in ((0, FLUSHED) if _is_iwarp(link) else (c.WC_REM_ACCESS_ERR,))
        flushed = _flush(right)
        assert [(one.token, one.status) for one in flushed] == [(waiting, FLUSHED)]
        assert set(right.memory.data.tolist()) == {0x5A}
        return found.status


def _flush(end, count=1):
    """The completions that a lost connection brings, by itself or once we say that it is lost."""
    stop = time.monotonic() + 2
    while len(end._waiting) < count and time.monotonic() < stop:
        end.look()
    if len(end._waiting) < count:
        end.qp.to_error()
    return end.completions(count)


def a_message_longer_than_its_receive_is_an_error_at_the_receiver(device, address):
    with Link(device, address, PORT) as link:
        left, right = link.left, link.right
        token = right.receive(right.memory.piece(0, 16))
        left.post(c.WR_SEND, left.memory.piece(0, 64))
        (found,) = right.completions(1)
        # The manual's answer, which siw gives; rxe calls it an error of the queue pair.
        wanted = c.WC_LOC_LEN_ERR if _is_iwarp(link) else c.WC_LOC_QP_OP_ERR
        assert (found.token, found.status) == (token, wanted)


def memory_that_is_not_registered_cannot_be_sent(device, address):
    with Link(device, address, PORT) as link:
        left = link.left
        piece = (left.memory.address, 64, left.memory.lkey ^ 0x5500)
        link.right.receive(link.right.memory.piece())
        left.post(c.WR_SEND, piece)
        (found,) = left.completions(1)
        assert found.status in (c.WC_LOC_PROT_ERR, c.WC_LOC_QP_OP_ERR, c.WC_LOC_ACCESS_ERR)
        return found.status


def disconnecting_flushes_what_is_posted(device, address):
    with Link(device, address, PORT) as link:
        left, right = link.left, link.right
        tokens = [right.receive(right.memory.piece()) for _ in range(3)]
        left.connection.disconnect()
        event = link.listener.channel.next_event(WAIT_S)
        assert event.kind == connection.DISCONNECTED
        found = _flush(right, 3)
        assert [(one.token, one.status) for one in found] == [(t, FLUSHED) for t in tokens]


def what_the_device_cannot_do_is_refused_at_the_post(device, address):
    with Link(device, address, PORT) as link:
        left, right = link.left, link.right
        refused = [
            opcode
            for opcode in (*range(11), c.WR_ATOMIC_SWAP, c.WR_IMMEDIATE)
            if opcode > 31 or not link.device.opcodes >> opcode & 1
        ]
        assert {c.WR_ATOMIC_SWAP, c.WR_IMMEDIATE, 10} <= set(refused)
        for opcode in refused:
            assert left.try_post(opcode) == -errno.EOPNOTSUPP, opcode
        right.receive(right.memory.piece())
        left.post(c.WR_SEND, left.memory.piece(0, 4))  # the queue pair is none the worse for it
        left.completion()
        return refused


def memory_windows_and_paging_on_demand_are_told_as_they_are(device, address):
    with Device(device) as opened:
        return [sorted(opened.window_types), opened.has_odp, opened.transport]


def an_empty_shared_receive_queue_raises_its_event(device, address):
    with Link(device, address, PORT) as link:
        srq = SharedReceiveQueue(link.right.domain, 16)
        right, left = End(link.device, link.right.domain, srq=srq), End(link.device)
        _connect_all(link, address, [(left, right)])
        for _ in range(3):
            right.receive(right.memory.piece(0, 64))
        srq.arm(2)
        for _ in range(2):
            left.post(c.WR_SEND, left.memory.piece(0, 4))
            left.completion()
        right.completions(2)
        found = link.device.wait_async(WAIT_S)
        assert found is not None, "no event"
        kind, element = found
        assert (kind, element) == (15, srq.pointer)  # IBV_EVENT_SRQ_LIMIT_REACHED
        for one in (left, right):
            one.connection.disconnect()
            one.close()
        srq.close()


def a_region_that_is_refused_says_what_may_be_the_matter(device, address):
    with Device(device) as opened:
        end = End(opened)
        # The manual wants LOCAL_WRITE with it.
        error = raised(VerbsError, Memory, end.domain, 4096, c.ACCESS_REMOTE_WRITE)
        assert "ulimit -l" in str(error)
        end.close()
