"""Gather lists of a client of the datamover service: what it has not lent, what cannot be, and what
it changes or takes away meanwhile harm nobody; good ones bring every byte to its place.
"""

import errno
import random
import struct

import pytest

from iscsi.wire.bhs import Opcode
from iscsi.wire.mover import VECTOR_SHIFT, VECTORS_MAX
from tests.e2e.mover_client import DATA_SIZE, HOME_SIZE, READ, WRITE, MoverClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
EDGES = (-1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63))
LISTS = 8192  # where in `home` the lists lie
TOTAL = 1 << 16


@pytest.fixture
def hostile(engine):
    with MoverClient(engine) as client:
        yield client


def gather(client, endpoint, entries, index=0, *, flags=READ, total=None, count=None, at=LISTS,
           **changes):  # fmt: skip
    """Post a COMMAND whose data lies in (region, offset, length) entries: its user_data."""
    packed = b"".join(struct.pack("<3q", *entry) for entry in entries)
    if 0 <= at <= HOME_SIZE - len(packed):
        client.home_bytes[at : at + len(packed)] = packed
    total = sum(entry[2] for entry in entries) % 2**62 if total is None else total
    count = len(entries) if count is None else count
    fields = {
        "region": 0,
        "offset": 0,
        "length": 0,
        "arg2": flags | count << VECTOR_SHIFT,
        "more": (0x28, 0, 256 * index, 0, at, total),
        **changes,
    }
    return client.command(endpoint, index, **fields)


def assert_works(client, endpoint, target, index=0):
    """One READ into three pieces of this memory, back to front, brings its data."""
    base = index << 16
    entries = [(client.data, base + 40000, 25536), (client.data, base, 30001),
               (client.data, base + 30001, 9999)]  # fmt: skip
    number = gather(client, endpoint, entries, index)
    header, _ = target.pdu()
    assert header.itt == 0x10000 | index
    assert header.expected_data_transfer_length == TOTAL
    data = random.Random(index).randbytes(TOTAL)
    half = data[:50000], data[50000:]
    sn = {"itt": header.itt, "counted": False, "stat_sn": 0}
    target.send(Opcode.DATA_IN, half[0], final=0, **sn)
    target.data(header.itt, half[1], data_sn=1, buffer_offset=50000)
    assert client.outcome(number) == 0
    found = client.data_bytes[base : base + TOTAL]
    assert found[40000:] + found[:40000] == data


def test_entries_of_memory_that_is_not_lent_are_refused(hostile, engine):
    endpoint, target = hostile.mover()
    good = (hostile.data, 0, 4096)
    with MoverClient(engine) as other:
        lies = [(hostile.data, edge, 4096) for edge in (*EDGES, DATA_SIZE, DATA_SIZE - 4095)]
        lies += [(region, 8192, 4096) for region in (0, 0xFFFFFFFF, 1 << 40, 2**63 - 1)]
        lies += [(hostile.data + (1 << 16), 8192, 4096), (other.data, 8192, 4096)]
        lies += [(other.home, 0, 4096), (hostile.data, 8192, DATA_SIZE)]
        for lie in lies:
            for entries in ([lie], [good, lie], [lie, good]):
                outcome = hostile.outcome(gather(hostile, endpoint, entries, total=8192))
                assert outcome == -errno.EFAULT, entries
    assert_works(hostile, endpoint, target)
    assert hostile.end(endpoint) == 0


def test_lists_that_cannot_be_are_refused(hostile):
    endpoint, target = hostile.mover()
    pair = [(hostile.data, 0, 4096), (hostile.data, 8192, 4096)]
    lies = [{"total": total} for total in (0, 8191, 8193, *EDGES)]
    lies += [{"at": at} for at in (*EDGES, HOME_SIZE, HOME_SIZE - 47)]
    lies += [{"count": count} for count in (3, VECTORS_MAX + 1, 4095)]
    lies += [{"flags": READ | WRITE}, {"flags": 0}]
    lies += [{"region": hostile.data, "length": 8192}]
    for lie in lies:
        hostile.home_bytes[LISTS : LISTS + 200] = bytes(200)
        assert hostile.outcome(gather(hostile, endpoint, pair, **lie)) == -errno.EINVAL, lie
    for entry in ((0, 0), (8192, 0), (8192, -4096), (4095, 4096), (0, 1)):
        entries = [(hostile.data, 0, 4096), (hostile.data, *entry)]
        assert hostile.outcome(gather(hostile, endpoint, entries)) == -errno.EINVAL, entry
    assert_works(hostile, endpoint, target)
    assert hostile.end(endpoint) == 0


def test_a_list_that_is_changed_after_it_was_posted_changes_nothing(hostile):
    endpoint, target = hostile.mover()
    entries = [(hostile.data, 65536, 100), (hostile.data, 0, 8092)]
    number = gather(hostile, endpoint, entries)
    header, _ = target.pdu()
    hostile.home_bytes[LISTS : LISTS + 48] = b"\xff" * 48
    data = random.Random(1).randbytes(8192)
    target.data(header.itt, data)
    assert hostile.outcome(number) == 0
    assert hostile.data_bytes[65536:65636] + hostile.data_bytes[:8092] == data
    assert hostile.data_bytes[8092:65536] == bytes(65536 - 8092)
    assert hostile.end(endpoint) == 0


def test_memory_of_an_open_list_is_not_given_back(hostile):
    endpoint, target = hostile.mover()
    more, descriptor, _ = hostile.client.region(1 << 16)
    hostile.files.append(descriptor)
    number = gather(hostile, endpoint, [(hostile.data, 0, 4096), (more, 4096, 4096)])
    header, _ = target.pdu()
    assert not hostile.unregister(more)
    assert not hostile.unregister(hostile.data)
    late = hostile.cancel(endpoint, header.itt)
    assert hostile.collect(2) == {number: -errno.ECANCELED, late: 0}
    assert hostile.unregister(more)
    assert hostile.outcome(gather(hostile, endpoint, [(more, 0, 4096)])) == -errno.EFAULT
    assert hostile.unregister(hostile.data)
    assert hostile.end(endpoint) == 0


def test_written_pieces_leave_in_their_order(hostile):
    endpoint, target = hostile.mover()
    data = random.Random(2).randbytes(20000)
    hostile.data_bytes[300_000:310_000], hostile.data_bytes[5:10_005] = data[:10000], data[10000:]
    entries = [(hostile.data, 300_000, 10000), (hostile.data, 5, 10000)]
    number = gather(hostile, endpoint, entries, flags=WRITE)
    header, immediate = target.pdu()
    assert immediate == b""
    target.send(Opcode.R2T, counted=False, itt=header.itt, ttt=7, buffer_offset=0,
                desired_data_transfer_length=20000)  # fmt: skip
    found = b""
    while len(found) < 20000:
        header, piece = target.pdu()
        assert (header.opcode, header.ttt, header.buffer_offset) == (Opcode.DATA_OUT, 7, len(found))
        found += piece[: header.data_segment_length]
        assert bool(header.final) is (len(found) == 20000)
    assert found == data
    target.send(Opcode.SCSI_RESPONSE, itt=header.itt)
    assert hostile.outcome(number) == 0
    assert hostile.end(endpoint) == 0


def any_entries(rng, client, other):
    """Entries of a list: sane ones now and then, so that some commands get further."""
    count = rng.choice((1, 2, 3, VECTORS_MAX))
    if rng.random() < 0.3:
        step = DATA_SIZE // count
        return [(client.data, step * n, rng.choice((1, 512, 4096))) for n in range(count)]
    return [
        (
            rng.choice((client.data, client.data, client.home, other.data)),
            rng.choice((0, 1, 4096, rng.randrange(DATA_SIZE), rng.choice(EDGES))),
            rng.choice((1, 512, 4096, 0, -1, rng.choice(EDGES))),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_any_lists_end_once_each_and_harm_nobody(engine, seed):
    rng = random.Random(seed)
    with MoverClient(engine, work=256, events=256) as client, MoverClient(engine) as other:
        endpoint, target = client.mover()
        good, its = other.mover()
        posted = set()
        for number in range(100):
            entries = any_entries(rng, client, other)
            total = rng.choice((sum(entry[2] for entry in entries) % 2**62, 512, -1))
            posted.add(
                gather(
                    client,
                    endpoint,
                    entries,
                    number % 16,
                    flags=rng.choice((READ, WRITE)),
                    total=total if number % 3 else None,
                    at=rng.choice((LISTS, LISTS, LISTS, 0, HOME_SIZE - 24 * len(entries), *EDGES)),
                )
            )
            if number % 16 == 15:
                assert_works(other, good, its, number // 16)
        target.stream.close()
        found = client.collect(len(posted))
        assert set(found) == posted
        assert set(found.values()) >= {-errno.EFAULT, -errno.EINVAL}
        assert set(found.values()) - {-errno.EFAULT, -errno.EINVAL}, "no list was ever taken"
        assert client.unregister(client.data)
