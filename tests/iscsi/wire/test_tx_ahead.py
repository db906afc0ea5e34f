"""How much is made before anybody takes it: a digest reads all of its data, so one look for bytes
to send is work for a bounded number of them, however much a peer or a host asked for.
"""

import numpy as np
import pytest

from iscsi.wire import initiator as initiator_doors
from iscsi.wire import target as target_doors
from iscsi.wire import tx
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.port import port_at
from iscsi.wire.tx import AHEAD_MAX
from shm.jit import entry
from tests.iscsi.wire.full_feature import BLOCK, Joined, bytes_at, pattern
from tests.iscsi.wire.split_initiator import end_all

SEGMENT = AHEAD_MAX // 4
BLOCKS = SEGMENT // BLOCK
COMMANDS = 12
LONG = SessionParams(max_burst_length=SEGMENT, first_burst_length=SEGMENT, initial_r2t=False)
CONNECTIONS = [
    ConnectionParams(max_recv_data_segment_length=SEGMENT, data_digest=digest)
    for digest in (False, True)
]


@entry("void(intp, int64)")
def take_back(conn, length):
    tx.take_back(conn, length)


def joined(connection):
    return Joined(LONG, connection, blocks=COMMANDS * BLOCKS)


def asked_for_all(connection):
    """Both ends with a READ of everything on its way to the target, whose answers are not made."""
    ends = joined(connection)
    ends.ram[:] = pattern(ends.ram.size)
    ends.buffers = [np.zeros(SEGMENT, np.uint8) for _ in range(COMMANDS)]
    for number, buffer in enumerate(ends.buffers):
        ends.read(number * BLOCKS, BLOCKS, buffer, user_data=number)
    ends.target.receive(ends.initiator.data_to_send())
    return ends


def made(connection):
    """How many PDUs stand in a connection's line."""
    port = port_at(connection.address)[0]
    return int(port["tx_made"] - port["tx_sent"])


def take_span(doors, connection):
    """Take the next span: its bytes."""
    conn = connection.address
    length = doors.tx_next(conn)
    data = bytes_at(int(port_at(conn)[0]["span_address"]), length)
    doors.tx_take(conn, length)
    return data


@pytest.mark.parametrize("connection", CONNECTIONS, ids=["plain", "data digest"])
def test_a_target_makes_no_more_than_is_taken_soon(connection):
    ends = asked_for_all(connection)
    for _ in range(3):  # Asking again makes nothing more.
        assert target_doors.tx_next(ends.target.address) > 0
        assert made(ends.target) == AHEAD_MAX // SEGMENT
    stream = b""
    while data := take_span(target_doors, ends.target):
        stream += data
    assert made(ends.target) == COMMANDS, "nothing was sent yet, but all of it was taken"
    target_doors.tx_done(ends.target.address, len(stream))
    ends.initiator.receive(stream)
    done = {done.user_data: done for done in ends.initiator.completions()}
    assert sorted(done) == list(range(COMMANDS))
    assert {each.status for each in done.values()} == {0}
    assert np.array_equal(np.concatenate(ends.buffers), ends.ram)


@pytest.mark.parametrize("connection", CONNECTIONS, ids=["plain", "data digest"])
def test_an_initiator_makes_no_more_than_is_taken_soon(connection):
    ends = joined(connection)
    wanted = pattern(ends.ram.size)
    for number in range(COMMANDS):
        data = wanted[number * SEGMENT : (number + 1) * SEGMENT]
        ends.write(number * BLOCKS, BLOCKS, data, user_data=number)
    assert initiator_doors.tx_next(ends.initiator.address) > 0
    assert made(ends.initiator) == AHEAD_MAX // SEGMENT
    assert len(ends.finish()) == COMMANDS
    assert np.array_equal(ends.ram, wanted)


def test_every_span_taken_makes_room_for_what_it_held():
    ends = asked_for_all(CONNECTIONS[1])
    limit = AHEAD_MAX // SEGMENT
    taken = 0
    while made(ends.target) < COMMANDS:
        taken += len(take_span(target_doors, ends.target))
        assert made(ends.target) <= limit + taken // SEGMENT


def test_a_pdu_taken_in_part_counts_with_the_rest():
    ends = asked_for_all(CONNECTIONS[0])
    conn = ends.target.address
    before = made(ends.target), target_doors.tx_next(conn)
    assert before[0] == 0
    target_doors.tx_take(conn, 48)
    assert target_doors.tx_next(conn) == SEGMENT
    target_doors.tx_take(conn, SEGMENT - 1)
    assert target_doors.tx_next(conn) == 1
    assert made(ends.target) == AHEAD_MAX // SEGMENT + 1


@pytest.mark.parametrize("connection", CONNECTIONS, ids=["plain", "data digest"])
def test_what_the_transport_did_not_take_is_sent_once_and_counts_again(connection):
    ends = asked_for_all(connection)
    conn = ends.target.address
    stream = b""
    while offered := take_span(target_doors, ends.target) + take_span(target_doors, ends.target):
        ahead = int(port_at(conn)[0]["tx_ahead"])
        sent = offered[: len(offered) // 2 + 1]
        target_doors.tx_done(conn, len(sent))
        take_back(conn, len(offered) - len(sent))
        assert port_at(conn)[0]["tx_ahead"] == ahead + len(offered) - len(sent)
        stream += sent
    assert port_at(conn)[0]["tx_ahead"] == 0
    ends.initiator.receive(stream)
    assert [done.status for done in ends.initiator.completions()] == [0] * COMMANDS
    assert np.array_equal(np.concatenate(ends.buffers), ends.ram)


def test_a_connection_that_is_over_has_nothing_ahead():
    """Its memory may be looked at again, and nothing is left that would be sent."""
    ends = joined(CONNECTIONS[1])
    for number in range(COMMANDS):
        ends.write(number * BLOCKS, BLOCKS, pattern(SEGMENT), user_data=number)
    conn = ends.initiator.address
    take_span(initiator_doors, ends.initiator)
    assert port_at(conn)[0]["tx_ahead"] > 0
    end_all(conn, -5)
    assert port_at(conn)[0]["tx_ahead"] == 0
    assert made(ends.initiator) == 0
