"""What one client of the datamover service may take from the others: the engine's memory, up to a
limit that its refusal names, and the engine's time, of which a visit has a bounded share.
"""

import socket
from dataclasses import asdict
from pathlib import Path

import google_crc32c
import pytest

from iscsi.wire import bhs
from iscsi.wire.bhs import Opcode
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.tx import AHEAD_MAX
from ppe.cycle.records import SPANS_MAX
from ppe.cycle.services.mover_io import BYTES_PER_VISIT
from tests.e2e.mover_client import DATA_SIZE, WORDS, WRITE, MoverClient, spec
from tests.e2e.running import RunningEngine, environment_of, wait_until
from tests.e2e.test_datamover import assert_works

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
TASKS = 64
READ_FIRST = 4
TX_PDUS = WORDS + 8
# What a socket that nobody reads holds: its send buffer, and a little at the other end.
SOCKET_BYTES_MAX = int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2]) + (1 << 18)
IMMEDIATE = asdict(
    SessionParams(
        initial_r2t=False,
        immediate_data=True,
        first_burst_length=DATA_SIZE,
        max_burst_length=DATA_SIZE,
    )
)
DIGEST = asdict(
    ConnectionParams(
        data_digest=True,
        max_recv_data_segment_length=DATA_SIZE,
        peer_max_recv_data_segment_length=DATA_SIZE,
    )
)


def test_one_client_has_its_share_of_the_engines_memory_and_no_more(tmp_path):
    with (
        RunningEngine(tmp_path, "--limit-client-connection-bytes", "4M") as engine,
        environment_of(engine),
        MoverClient(engine) as greedy,
        MoverClient(engine) as other,
    ):
        large = spec(512)
        held = []
        while True:
            endpoint, _ = greedy.connect()
            answer = greedy.enable(endpoint, **large)
            if "error" in answer:
                break
            held.append(endpoint)
            assert len(held) < 100, "nothing was refused"
        assert "a client's connections of datamovers may take 4 MiB" in answer["error"]
        assert "--limit-client-connection-bytes" in answer["error"]
        assert held, "not one connection fits"
        for _ in held:
            other.mover(**large)
        assert greedy.end(held.pop()) == 0
        assert "error" not in greedy.enable(endpoint, **large), "what was given back can be had"


def take_write(target, data):
    """Take one WRITE with all its data and their digest: its header."""
    header = bhs.decode(target.read(bhs.BHS_LENGTH))
    assert target.read(len(data)) == data
    assert target.read(4) == google_crc32c.value(data).to_bytes(4, "little")
    return header


def made(client):
    """PDUs that the engine has made for the client's connection."""
    return int.from_bytes(client.home_bytes[TX_PDUS : TX_PDUS + 8], "little")


def test_a_visit_makes_no_more_digests_than_a_transport_takes(engine):
    """Sixty-four WRITEs with a mebibyte of immediate data each, to a target that reads little."""
    with MoverClient(engine, work=256, events=256) as client, MoverClient(engine) as neighbour:
        data = bytes(range(256)) * (DATA_SIZE // 256)
        client.data_bytes[:] = data
        limits = {**spec(TASKS, tx_entries=TASKS), "session": IMMEDIATE, "connection": DIGEST}
        endpoint, target = client.mover(**limits)
        target.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        numbers = [
            client.command(endpoint, index, flags=WRITE, offset=0, length=DATA_SIZE)
            for index in range(TASKS)
        ]
        near, its_target = neighbour.mover()
        assert_works(neighbour, near, its_target)  # behind the last of the posts
        before = made(client)
        assert before < TASKS // 4, "the socket is full, and all the others wait"
        headers = [take_write(target, data) for _ in range(READ_FIRST)]
        wait_until(lambda: made(client) > before, "a visit when the socket takes more")
        assert_works(neighbour, near, its_target, 1)
        waiting = (made(client) - READ_FIRST) * DATA_SIZE
        assert waiting <= SOCKET_BYTES_MAX + BYTES_PER_VISIT + AHEAD_MAX + DATA_SIZE
        assert waiting < SPANS_MAX // 2 * DATA_SIZE, "as much as one call has spans for"
        headers += [take_write(target, data) for _ in range(TASKS - READ_FIRST)]
        for header in headers:
            target.send(Opcode.SCSI_RESPONSE, itt=header.itt, final=1)
        assert client.collect(TASKS) == dict.fromkeys(numbers, 0)
        assert client.end(endpoint) == 0
        assert neighbour.end(near) == 0
