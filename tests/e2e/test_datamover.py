"""No client of the datamover service harms the engine: whatever it posts, asks or takes away, each
operation the engine accepted has one completion, and afterwards nothing of it is left.
"""

import contextlib
import errno
import random

import pytest

from iscsi.wire.bhs import Opcode
from iscsi.wire.mover_spec import TARGET, MoverSpec
from iscsi.wire.port import PortLimits
from iscsi.wire.violations import Violation
from shm.operations import (
    CANCEL,
    CLOSE,
    EVENT_WINDOW,
    MOVER_ANSWER,
    MOVER_COMMAND,
    MOVER_CONTROL,
    MOVER_FENCE,
    MOVER_FIRST,
    MOVER_LAST,
    MOVER_RECEIVE,
    MOVER_UNIT,
    NOP,
    RECEIVE,
    SEND,
    SHUTDOWN,
)
from tests.e2e.mover_client import (
    CONNECTION,
    DATA_SIZE,
    HEADER,
    HOME_SIZE,
    READ,
    SESSION,
    TASKS,
    WRITE,
    MoverClient,
    spec,
)
from tests.e2e.raw import ACCEPT, RawChannel
from tests.e2e.running import RunningEngine, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
EDGES = (-1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63))
HALF = 1 << 15
CONTROL_OVERFLOW = int(Violation.CONTROL_OVERFLOW)


@pytest.fixture
def hostile(engine):
    """A client of the session's engine."""
    with MoverClient(engine) as client:
        yield client


def assert_works(client, endpoint, target, index=0):
    """One READ on this endpoint brings its data."""
    number = client.command(endpoint, index)
    header, _ = target.pdu()
    assert header.itt == 0x10000 | index
    data = bytes([index + 1]) * (1 << 16)
    target.data(header.itt, data)
    assert client.outcome(number) == 0
    assert client.data_bytes[index << 16 : (index + 1) << 16] == data


# --- posts -----------------------------------------------------------------------------------


def test_a_command_on_memory_that_is_not_lent_is_refused(hostile, engine):
    endpoint, target = hostile.mover()
    lies = [{"offset": edge} for edge in (*EDGES, DATA_SIZE, DATA_SIZE - 1)]
    lies += [{"length": length} for length in (DATA_SIZE + 1, 2**31, 2**32 - 1)]
    lies += [{"offset": 1, "length": DATA_SIZE}]
    lies += [{"region": hostile.data + (1 << 16)}, {"region": 0}, {"region": 0xFFFFFFFF}]
    with MoverClient(engine) as other:
        lies += [{"region": other.data}, {"region": other.home}]
        for lie in lies:
            assert hostile.outcome(hostile.command(endpoint, **lie)) == -errno.EFAULT, lie
            status = hostile.outcome(hostile.lend(endpoint, **lie))
            assert status == -errno.EFAULT, lie
    assert hostile.outcome(hostile.lend(endpoint, length=0)) == -errno.EFAULT
    assert_works(hostile, endpoint, target)
    assert hostile.end(endpoint) == 0


def test_a_command_that_cannot_be_is_refused(hostile):
    endpoint, target = hostile.mover()
    lies = [{"slots": 1}, {"arg2": READ | WRITE}, {"arg2": 0}, {"arg2": READ | 1 << 20}]
    lies += [{"arg1": 0x10000 | TASKS}, {"arg1": 0xFFFFFFFF}, {"arg2": 0xFFFFFFFF}]
    lies += [{"more": (0x28, 0, edge)} for edge in (*EDGES, HOME_SIZE, HOME_SIZE - 255)]
    lies += [{"arg2": READ | 8 << 8, "more": (0x28, 0, 0, edge)} for edge in (*EDGES, HOME_SIZE)]
    for lie in lies:
        assert hostile.outcome(hostile.command(endpoint, **lie)) == -errno.EINVAL, lie
    for edge in (*EDGES, HOME_SIZE, HOME_SIZE - 64 + 1):
        number = hostile.post(MOVER_CONTROL, endpoint, more=(edge,))
        assert hostile.outcome(number) == -errno.EINVAL, edge
    for length in (2049, 2**31, 2**32 - 1):
        number = hostile.post(MOVER_CONTROL, endpoint, more=(HEADER,), arg2=length)
        assert hostile.outcome(number) == -errno.EMSGSIZE, length
    assert_works(hostile, endpoint, target)
    assert hostile.end(endpoint) == 0


def test_a_tag_in_use_is_refused(hostile):
    endpoint, target = hostile.mover()
    number = hostile.command(endpoint)
    assert hostile.outcome(hostile.command(endpoint)) == -errno.EEXIST
    assert hostile.outcome(hostile.ping(endpoint, 0)) == -errno.EEXIST
    header, _ = target.pdu()
    target.data(header.itt, bytes(1 << 16))
    assert hostile.outcome(number) == 0
    assert hostile.end(endpoint) == 0


def test_operations_of_other_services_and_roles_are_refused(hostile):
    endpoint, target = hostile.mover()
    plain, _ = hostile.connect()
    listener, _ = hostile.channel.listen()
    pool = hostile.pool()
    sane = {"region": hostile.data, "length": 64}
    for opcode in range(MOVER_FIRST, MOVER_LAST + 1):
        for where in (plain, listener):
            assert hostile.outcome(hostile.post(opcode, where, **sane)) == -errno.EINVAL
        if opcode != MOVER_RECEIVE:
            assert hostile.outcome(hostile.post(opcode, pool, **sane)) == -errno.EINVAL
        assert hostile.outcome(hostile.post(opcode, 0x7FFF0000, **sane)) == -errno.EBADF
    for opcode in (MOVER_UNIT, MOVER_FENCE, MOVER_ANSWER, MOVER_LAST):
        assert hostile.outcome(hostile.post(opcode, endpoint, **sane)) < 0
    for opcode in (SEND, RECEIVE):
        status = hostile.outcome(hostile.post(opcode, endpoint, slots=1, **sane))
        assert status == -errno.EINVAL
        assert hostile.outcome(hostile.post(opcode, pool, slots=1, **sane)) < 0
    for opcode in (ACCEPT, SHUTDOWN):
        assert hostile.outcome(hostile.post(opcode, pool, slots=1)) < 0
    assert hostile.outcome(hostile.post(ACCEPT, endpoint, slots=1)) == -errno.EINVAL
    assert_works(hostile, endpoint, target)
    for one in (endpoint, plain, listener, pool):
        assert hostile.end(one) == 0


def test_a_pool_may_be_the_first_thing_an_engine_hears_of_the_datamover(tmp_path):
    with RunningEngine(tmp_path) as engine, MoverClient(engine) as client:
        pool = client.pool()
        number = client.lend(pool)
        assert client.outcome(client.post(NOP, 0, slots=1)) == 0
        client.post(CLOSE, pool, slots=1, user_data=1)
        assert client.collect(2) == {number: -errno.ECANCELED, 1: 0}
        assert engine.is_alive


# --- asking for it ---------------------------------------------------------------------------


def test_a_connection_is_taken_over_only_by_its_owner_once_and_when_nothing_is_posted(
    hostile, engine
):
    endpoint, target = hostile.connect()
    listener, _ = hostile.channel.listen()
    pool = hostile.pool()
    second = RawChannel(hostile.client)
    with MoverClient(engine) as other:
        theirs, _ = other.connect()
        their_pool = other.pool()
        wrong = [
            {"endpoint": 0}, {"endpoint": 0x7FFF0000 | endpoint & 0xFFFF}, {"endpoint": listener},
            {"endpoint": pool}, {"endpoint": theirs}, {"channel": other.channel.number},
            {"channel": 0}, {"channel": second.number}, {"home": [other.home, 0, HOME_SIZE]},
            {"home": [hostile.home, 1, HOME_SIZE]}, {"home": [hostile.home, 0, 2 * HOME_SIZE]},
            {"home": [hostile.home, 4, HOME_SIZE - 8]},
            {"home": [hostile.home, 0, 0]}, {"words": HOME_SIZE - 63}, {"words": 1},
            {"words": HOME_SIZE}, {"pool": their_pool}, {"pool": endpoint}, {"pool": 0x7FFF0000},
            {"role": TARGET}, {"layout": 1},
        ]  # fmt: skip
        for changes in wrong:
            answer = hostile.enable(endpoint, **changes)
            assert "error" in answer, changes
    number = hostile.post(RECEIVE, endpoint, slots=1, region=hostile.data, length=64)
    assert "busy" in hostile.enable(endpoint)["error"].lower()
    hostile.post(CANCEL, endpoint, slots=1, arg0=number, user_data=1)
    assert hostile.collect(2) == {number: -errno.ECANCELED, 1: 0}
    assert "error" not in hostile.enable(endpoint)
    assert "busy" in hostile.enable(endpoint)["error"].lower()
    assert_works(hostile, endpoint, target)
    for one in (endpoint, listener, pool):
        assert hostile.end(one) == 0


NONSENSE = (None, True, -1, 0, 1.5, "x", [], {}, [1], 2**31, 2**32, 2**63, 2**64, -(2**63))


def leaves(message, path=()):
    """The path of every field of a message of plain values."""
    for name, value in message.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))


def test_every_field_of_the_request_may_be_nonsense(hostile):
    endpoint, target = hostile.connect()
    sane = {**spec(), "home": [hostile.home, 0, HOME_SIZE], "words": 32768, "pool": 0}
    taken = 0
    for path in leaves(sane):
        for nonsense in (*NONSENSE, "absent"):
            message = {**sane, **{name: dict(value) for name, value in sane.items()
                                  if isinstance(value, dict)}}  # fmt: skip
            place = message
            for name in path[:-1]:
                place = place[name]
            if nonsense == "absent":
                del place[path[-1]]
            else:
                place[path[-1]] = nonsense
            message = {"channel": hostile.channel.number, "endpoint": endpoint, **message}
            answer, _ = hostile.client.call("mover", **message)
            assert isinstance(answer.get("error", ""), str)
            if "error" not in answer:  # It was not nonsense after all.
                taken += 1
                assert hostile.end(endpoint) == 0
                endpoint, target = hostile.connect()
    assert 0 < taken < 100
    assert "error" not in hostile.enable(endpoint)
    assert_works(hostile, endpoint, target)
    assert hostile.end(endpoint) == 0


# --- memory and buffers ----------------------------------------------------------------------


def test_memory_that_is_in_use_is_not_given_back(hostile):
    endpoint, target = hostile.mover()
    assert not hostile.unregister(hostile.home)
    number = hostile.command(endpoint)
    header, _ = target.pdu()
    assert not hostile.unregister(hostile.data)
    target.send(Opcode.DATA_IN, bytes(HALF), counted=False, stat_sn=0, itt=header.itt, final=0)
    assert not hostile.unregister(hostile.data)
    late = hostile.cancel(endpoint, header.itt)
    assert hostile.collect(2) == {number: -errno.ECANCELED, late: 0}
    assert hostile.unregister(hostile.data)
    assert hostile.end(endpoint) == 0
    assert hostile.unregister(hostile.home)


def test_memory_taken_away_under_a_transfer_ends_its_client_alone(engine):
    import os

    with MoverClient(engine) as client, MoverClient(engine) as other:
        endpoint, target = client.mover()
        good, its = other.mover()
        client.command(endpoint)
        header, _ = target.pdu()
        for descriptor in client.files[:2]:
            os.ftruncate(descriptor, 0)
        with contextlib.suppress(ConnectionError):
            target.data(header.itt, bytes(1 << 16))
            assert target.is_closed()
        assert_works(other, good, its)


def test_a_buffer_that_is_too_small_ends_the_connection(hostile):
    endpoint, target = hostile.mover()
    lent = hostile.lend(endpoint, length=47)
    number = hostile.command(endpoint)
    target.pdu()
    target.news(1)
    assert hostile.collect(2) == {lent: -errno.EMSGSIZE, number: -errno.EMSGSIZE}
    assert hostile.outcome(hostile.lend(endpoint)) == -errno.EMSGSIZE
    assert hostile.end(endpoint) == 0


def test_without_a_lent_buffer_commands_go_on(hostile):
    endpoint, target = hostile.mover()
    for event in (1, 2):
        target.news(event)
    for index in range(3):
        assert_works(hostile, endpoint, target, index)
    numbers = [hostile.lend(endpoint, offset=DATA_SIZE - 4096 * n) for n in (2, 1)]
    assert hostile.collect(2) == dict.fromkeys(numbers, 0)
    at = [hostile.data_bytes[DATA_SIZE - 4096 * n + 36] for n in (2, 1)]
    assert at == [1, 2], "in the order they came"
    assert hostile.end(endpoint) == 0


def test_more_pdus_than_the_engine_keeps_end_the_connection(hostile):
    endpoint, target = hostile.mover()
    number = hostile.command(endpoint)
    target.pdu()
    with contextlib.suppress(ConnectionError):
        for _ in range(40):
            target.news(1)
    assert hostile.collect(1)[number] == CONTROL_OVERFLOW
    assert hostile.end(endpoint) == 0


def test_endpoints_of_a_pool_have_its_buffers_in_turn(hostile):
    pool = hostile.pool()
    ends = [hostile.mover(pool=pool) for _ in range(3)]
    for endpoint, target in ends:
        target.news(1)
        target.news(2)
        assert_works(hostile, endpoint, target)  # So both have come.
    order = []
    for _ in range(6):
        number = hostile.lend(pool)
        done = hostile.channel.poll(20)
        assert (done["user_data"], done["status"]) == (number, 0)
        order.append((done["endpoint"], hostile.data_bytes[DATA_SIZE - 4096 + 36]))
    names = [endpoint for endpoint, _ in ends]
    assert sorted(order[:3]) == sorted((name, 1) for name in names)
    assert sorted(order[3:]) == sorted((name, 2) for name in names)
    for endpoint, _ in ends:
        assert hostile.outcome(hostile.lend(endpoint)) == -errno.EINVAL, "it has a pool"
    assert hostile.end(pool) == -errno.EBUSY
    for endpoint, target in ends:
        target.news(3)  # They end while they wait.
        assert hostile.end(endpoint) == 0
    assert hostile.end(pool) == 0


def test_a_pool_outlives_endpoints_that_end_in_its_line(hostile):
    pool = hostile.pool()
    ends = [hostile.mover(pool=pool) for _ in range(4)]
    for endpoint, target in ends:
        target.news(1)
        assert_works(hostile, endpoint, target)
    for which in (1, 3):  # from the middle and from the end
        assert hostile.end(ends[which][0]) == 0
    seen = set()
    for _ in range(2):
        hostile.lend(pool)
        seen.add(hostile.channel.poll(20)["endpoint"])
    assert seen == {ends[0][0], ends[2][0]}
    for which in (0, 2):
        assert hostile.end(ends[which][0]) == 0
    assert hostile.end(pool) == 0


def test_units_that_a_connection_serves_keep_their_table_and_memory(hostile):
    answer, _ = hostile.client.call("table", channel=hostile.channel.number, count=2)
    table = answer["table"]
    unit = {"region": hostile.data, "arg1": DATA_SIZE, "more": (512,)}
    assert hostile.outcome(hostile.post(MOVER_UNIT, table, **unit)) == 0
    served = MoverSpec(
        TARGET, SESSION, CONNECTION, PortLimits(control_slots=64), (32, 65536, 2), (1, 1)
    ).to_message()
    endpoint, _ = hostile.mover(**served, table=table)
    assert not hostile.unregister(hostile.data)
    assert hostile.end(table) == -errno.EBUSY, "the connection would go on with its memory"
    assert hostile.end(endpoint) == 0
    assert not hostile.unregister(hostile.data)
    assert hostile.end(table) == 0
    assert hostile.unregister(hostile.data)
    assert hostile.unregister(hostile.home)


# --- ends ------------------------------------------------------------------------------------


def under_way(client):
    """A connection with a read half here, a write, a command of each stage, a ping and buffers."""
    endpoint, target = client.mover()
    numbers = [client.command(endpoint, 0)]
    header, _ = target.pdu()
    numbers.append(client.command(endpoint, 1, flags=WRITE))
    write, _ = target.pdu()
    pdu = target.encode(Opcode.DATA_IN, bytes(1 << 16), itt=header.itt, counted=False, final=0)
    target.stream.sendall(pdu[:HALF])
    numbers.append(client.command(endpoint, 2))
    numbers.append(client.ping(endpoint, 3))
    numbers += [client.lend(endpoint), client.lend(endpoint)]
    return endpoint, target, numbers, write


def close(client, endpoint, target):
    client.post(CLOSE, endpoint, slots=1, user_data=1)


def hang_up(client, endpoint, target):
    target.stream.shutdown(2)
    target.stream.close()


def garbage(client, endpoint, target):
    target.stream.sendall(b"\x3f" * (1 << 16))


@pytest.mark.parametrize("how", [close, hang_up, garbage])
def test_in_mid_transfer_every_operation_ends_once(hostile, how):
    endpoint, target, numbers, _ = under_way(hostile)
    how(hostile, endpoint, target)
    extra = [1] if how is close else []
    found = hostile.collect(len(numbers) + len(extra))
    assert sorted(found) == sorted([*numbers, *extra])
    assert all(found[number] < 0 for number in numbers), found
    assert hostile.channel.poll(0.05) is None, "more completions than operations"
    if how is not close:
        assert hostile.outcome(hostile.command(endpoint)) < 0
        assert hostile.end(endpoint) == 0
    assert hostile.unregister(hostile.data)
    assert hostile.unregister(hostile.home)


def test_shutdown_waits_for_what_is_to_be_sent_whatever_is_cancelled(hostile):
    endpoint, target = hostile.mover()
    number = hostile.command(endpoint, 0, flags=WRITE)
    write, _ = target.pdu()
    hostile.data_bytes[: 1 << 16] = b"w" * (1 << 16)
    shut = hostile.post(SHUTDOWN, endpoint, slots=1)
    assert hostile.outcome(shut) == 0  # Nothing was to be sent.
    assert target.read(0) == b""
    assert target.stream.recv(1) == b"", "the engine closed its direction"
    target.send(Opcode.SCSI_RESPONSE, itt=write.itt)
    assert hostile.outcome(number) == 0
    assert hostile.end(endpoint) == 0


def test_cancels_of_everything_at_any_time_end_each_command_once(hostile):
    endpoint, target = hostile.mover()
    numbers, cancels = [], []
    for index in range(8):
        numbers.append(hostile.command(endpoint, index, flags=WRITE if index % 2 else READ))
        cancels.append(hostile.cancel(endpoint, 0x10000 | index))
        cancels.append(hostile.cancel(endpoint, 0x10000 | index))
    found = hostile.collect(24)
    assert {found[number] for number in numbers} == {-errno.ECANCELED}
    assert {found[number] for number in cancels[::2]} == {0}
    assert {found[number] for number in cancels[1::2]} == {-errno.ENOENT}
    assert [target.pdu()[0].cmd_sn for _ in range(8)] == list(range(1, 9))
    assert hostile.end(endpoint) == 0


@pytest.mark.parametrize("seed", range(6))
def test_any_posts_to_any_endpoints_end_once_each(engine, seed):
    """With a target that says anything at all; some of it is sane, so that some gets further."""
    rng = random.Random(seed)
    with MoverClient(engine, work=256, events=256) as client:
        pool = client.pool()
        ends = [client.mover(), client.mover(pool=pool), client.mover()]
        places = [endpoint for endpoint, _ in ends] + [pool, client.channel.listen()[0]]
        posted, done = set(), {}
        for _ in range(400):
            opcode = rng.choice(
                (*range(MOVER_FIRST, MOVER_LAST + 1), MOVER_COMMAND, MOVER_COMMAND, MOVER_CONTROL,
                 MOVER_RECEIVE, MOVER_RECEIVE, CANCEL, SEND, NOP)
            )  # fmt: skip
            number = client.post(
                opcode, rng.choice((*places[:4], *places)), slots=rng.choice((1, 2, 2, 2)),
                flags=rng.choice((0, 0, 1 << 8)), region=rng.choice((client.data, client.home, 0)),
                offset=rng.choice((0, 4096, 65536, *EDGES)),
                length=rng.choice((0, 47, 512, 65536, 2**32 - 1)),
                arg0=rng.choice((0, 1, *EDGES)),
                arg1=rng.choice((0x10000 | rng.randrange(18), rng.getrandbits(62), 0)),
                arg2=rng.choice((READ, WRITE, 0, 48, rng.getrandbits(32))),
                more=[rng.choice((0, 40, 4096, 65536, *EDGES)) for _ in range(6)],
            )  # fmt: skip
            posted.add(number)
            if rng.random() < 0.1:
                _, target = rng.choice(ends)
                with contextlib.suppress(OSError):
                    target.stream.send(
                        rng.choice((
                            target.encode(Opcode.ASYNC_MESSAGE, itt=0xFFFFFFFF),
                            target.encode(Opcode.SCSI_RESPONSE, itt=0x10000 | rng.randrange(16)),
                            target.encode(
                                Opcode.DATA_IN, bytes(512), itt=0x10000 | rng.randrange(16),
                                counted=False, final=0,
                            ),
                            rng.randbytes(48),
                        ))
                    )  # fmt: skip
            while len(posted) - len(done) > 60:
                event = client.channel.poll(0.02)
                if event is None:
                    break
                if not event["flags"] & 1:
                    assert event["user_data"] not in done, f"twice: {event}"
                    done[event["user_data"]] = event["status"]
            if len(posted) - len(done) > 100:
                break  # So many stay open, and the ring of events is only so long.
        for number, place in enumerate(places):
            client.post(CLOSE, place, slots=1, user_data=number)
            if place == pool:
                client.post(CLOSE, place, slots=1, user_data=90)
        posted |= {*range(len(places)), 90}
        while len(done) < len(posted):
            event = client.next()
            assert event is not None, f"without a completion: {posted - set(done)}"
            assert event["user_data"] not in done, f"twice: {event}"
            done[event["user_data"]] = event["status"]
        assert set(done) == posted
        assert client.unregister(client.home)
        assert client.unregister(client.data)


def test_a_client_that_dies_in_mid_transfer_leaves_nothing(engine):
    for _ in range(5):
        with MoverClient(engine) as client:
            _, target, _, _ = under_way(client)
            client.client.close()
            assert target.is_closed()


def test_a_client_that_dies_with_a_pool_and_waiting_endpoints_leaves_nothing(engine):
    with MoverClient(engine) as client:
        pool = client.pool()
        targets = [client.mover(pool=pool)[1] for _ in range(3)]
        for target in targets:
            target.news(1)
        client.client.close()
        assert all(target.is_closed() for target in targets)


def test_a_full_event_ring_loses_nothing(engine):
    with MoverClient(engine, work=64, events=16) as client:
        endpoint, target = client.mover()
        numbers = [client.command(endpoint, index) for index in range(15)]
        answered = 0
        while answered < 8:  # The engine takes no more than it has room to answer.
            header, _ = target.pdu()
            target.data(header.itt, bytes(1 << 16))
            answered += 1
        found = client.collect(8)
        while answered < 15:
            header, _ = target.pdu()
            target.data(header.itt, bytes(1 << 16))
            answered += 1
        found |= client.collect(7)
        assert found == dict.fromkeys(numbers, 0)
        assert client.end(endpoint) == 0


def test_a_window_that_opens_is_told_even_when_no_command_ends(hostile):
    for first in (1, 0x80000000, 0xFFFFFFFF):
        endpoint, target = hostile.mover(sns=[first, first, 1])
        number = hostile.command(endpoint, 0, arg1=0x10000 | (first << 32) - (first >> 31 << 64))
        header, _ = target.pdu()
        after, limit = (first + 1) & 0xFFFFFFFF, (first + 4) & 0xFFFFFFFF
        target.send(
            Opcode.NOP_IN, counted=False, itt=0xFFFFFFFF, ttt=0xFFFFFFFF,
            exp_cmd_sn=after, max_cmd_sn=limit,
        )  # fmt: skip
        told = hostile.channel.poll(20)
        assert told["opcode"] == EVENT_WINDOW
        assert told["endpoint"] == endpoint
        assert told["arg0"] & (1 << 64) - 1 == after | limit << 32
        target.data(header.itt, bytes(1 << 16), exp_cmd_sn=after, max_cmd_sn=limit)
        assert hostile.outcome(number) == 0
        assert hostile.end(endpoint) == 0


def test_operations_and_memory_are_there_again_after_many_connections(tmp_path):
    """A table of 64 operations and a client's share of memory would not last if any leaked."""
    with RunningEngine(tmp_path, "--limit-operations", "64") as engine:
        before = engine.levels()
        with MoverClient(engine) as client:
            for round_ in range(30):
                endpoint, target, numbers, _ = under_way(client)
                (close, hang_up, garbage)[round_ % 3](client, endpoint, target)
                extra = 1 if round_ % 3 == 0 else 0
                found = client.collect(len(numbers) + extra)
                assert -errno.ENOBUFS not in found.values()
                if not extra:
                    assert client.end(endpoint) == 0
                client.targets.pop().stream.close()
        engine.assert_settles_at(before)


def test_a_full_table_of_operations_refuses_and_recovers(tmp_path):
    with RunningEngine(tmp_path, "--limit-operations", "64") as engine:
        with MoverClient(engine, work=256, events=256) as client:
            endpoint, target = client.mover()
            lent = [client.lend(endpoint) for _ in range(64)]
            assert client.outcome(client.command(endpoint)) == -errno.ENOBUFS
            assert client.outcome(client.lend(endpoint)) == -errno.ENOBUFS
            target.news(1)
            assert client.outcome(lent[0]) == 0
            assert_works(client, endpoint, target)
            client.post(CLOSE, endpoint, slots=1, user_data=1)
            found = client.collect(64)
            assert set(found) == {*lent[1:], 1}
        assert wait_until(lambda: engine.levels()["clients"] == 0, "the client to be gone")
