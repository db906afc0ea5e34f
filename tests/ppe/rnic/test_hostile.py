"""A peer that breaks the protocol: each way of it has its Terminate, and harms no memory."""

import pytest

from ppe.cycle.rnic.iwarp.core import CODE_MASK, ERROR, TERMINATE, TERMINATED, VIOLATION
from shm.verbs_numbers import (
    WC_BAD_RESP_ERR,
    WC_LOC_LEN_ERR,
    WC_RECV_RDMA_WITH_IMM,
    WC_REM_ACCESS_ERR,
    WC_SUCCESS,
    WC_WR_FLUSH_ERR,
    WR_RDMA_WRITE,
    WR_SEND,
)
from tests.ppe.rnic import core_door as door
from tests.ppe.rnic.fpdus import (
    atomic_request,
    atomic_response,
    fpdu,
    immediate,
    read_request,
    read_response,
    send,
    split,
    tagged,
    terminate,
    terminate_of,
    untagged,
    write,
)
from tests.ppe.rnic.victim import PATTERN, Victim

TOP = 1 << 64

# --- what a peer may say only so -----------------------------------------------------------------
# Each: what it says, the last of it being wrong, and the code of the Terminate that it gets.

TAGGED = {
    "an STag that was made up": (lambda v: [write(0xDEAD, v.lent.iova, b"x")], 0x1100),
    "an STag of 0": (lambda v: [write(0, v.lent.iova, b"x")], 0x1100),
    "a key that is wrong by one": (lambda v: [write(v.lent.key ^ 1, v.lent.iova, b"x")], 0x1100),
    "an STag that was invalidated": (lambda v: [write(v.ended.key, v.ended.iova, b"x")], 0x1100),
    "another domain's STag": (lambda v: [write(v.foreign.key, v.foreign.iova, b"x")], 0x1102),
    "memory that may only be read": (
        lambda v: [write(v.readable.key, v.readable.iova, b"x")],
        0x0102,
    ),
    "memory lent to nobody": (lambda v: [write(v.private.key, v.private.iova, b"x")], 0x0102),
    "one byte behind the end": (lambda v: [write(v.lent.key, v.lent.iova + 256, b"x")], 0x1101),
    "one byte before the start": (lambda v: [write(v.lent.key, v.lent.iova - 1, b"xx")], 0x1101),
    "across the end": (lambda v: [write(v.lent.key, v.lent.iova + 255, b"xx")], 0x1101),
    "a TO that wraps": (lambda v: [write(v.lent.key, TOP - 1, b"xx")], 0x1103),
    "a TO that wraps into the region": (
        lambda v: [write(v.high.key, TOP - 1, PATTERN + PATTERN)],
        0x1103,
    ),
    "a second segment elsewhere": (
        lambda v: [
            write(v.lent.key, v.lent.iova, b"1234", last=False),
            write(v.lent.key, v.lent.iova + 5, b"x"),
        ],
        0x1101,
    ),
    "a second segment over the first": (
        lambda v: [
            write(v.lent.key, v.lent.iova, b"1234", last=False),
            write(v.lent.key, v.lent.iova, b"x"),
        ],
        0x1101,
    ),
    "a second segment of another STag": (
        lambda v: [
            write(v.lent.key, v.lent.iova, b"1234", last=False),
            write(v.writable.key, v.lent.iova + 4, b"x"),
        ],
        0x1100,
    ),
}
RESPONSES = {
    "no request": (lambda v: [read_response(v.private.key, v.private.iova, b"x")], 0x0206),
    "another STag": (lambda v: [read_response(v.lent.key, v.read()[1], bytes(64))], 0x1100),
    "another TO": (lambda v: [read_response(*shifted(v.read(), 1), bytes(64))], 0x1101),
    "too much": (lambda v: [read_response(*v.read(), bytes(65))], 0x1101),
    "too little": (lambda v: [read_response(*v.read(), bytes(63))], 0x1101),
    "nothing": (lambda v: [read_response(*v.read())], 0x1101),
    "more in a second segment": (
        lambda v: [
            read_response(*(sink := v.read()), bytes(60), last=False),
            read_response(*shifted(sink, 60), bytes(5)),
        ],
        0x1101,
    ),
    "a gap": (
        lambda v: [
            read_response(*(sink := v.read()), bytes(30), last=False),
            read_response(*shifted(sink, 31), bytes(33)),
        ],
        0x1101,
    ),
    "a Write in the middle": (
        lambda v: [
            read_response(*v.read(), bytes(30), last=False),
            write(v.lent.key, v.lent.iova, b""),
        ],
        0x0206,
    ),
    "a response in the middle of a Write": (
        lambda v: [
            write(v.lent.key, v.lent.iova, b"", last=False),
            read_response(*v.read(), bytes(64)),
        ],
        0x0206,
    ),
    "no end, and then more": (
        lambda v: [
            read_response(*(sink := v.read()), bytes(64), last=False),
            read_response(*shifted(sink, 64), b"x"),
        ],
        0x1101,
    ),
    "an answer to an atomic": (
        lambda v: (v.add(), [read_response(v.private.key, v.private.iova + 16, bytes(8))])[1],
        0x0206,
    ),
}
SENDS = {
    "the wrong MSN": (lambda v: [send(2, b"x")], 0x1203),
    "MSN 0": (lambda v: [send(0, b"x")], 0x1203),
    "an MSN again": (lambda v: [send(1, b"x"), send(1, b"x")], 0x1203),
    "an MSN that skips one": (lambda v: [send(1, b"x"), send(3, b"x")], 0x1203),
    "an MSN in the middle": (lambda v: [send(1, b"x", last=False), send(2, b"x", mo=1)], 0x1203),
    "an offset at the start": (lambda v: [send(1, b"x", mo=1)], 0x1204),
    "a gap": (lambda v: [send(1, b"x", last=False), send(1, b"x", mo=2)], 0x1204),
    "an overlap": (lambda v: [send(1, b"xy", last=False), send(1, b"x", mo=1)], 0x1204),
    "queue 1": (lambda v: [send(1, b"x", queue=1)], 0x1201),
    "queue 4": (lambda v: [send(1, b"x", queue=4)], 0x1201),
    "a queue of 32 bits": (lambda v: [send(1, b"x", queue=0xFFFFFFFF)], 0x1201),
    "more than the buffer": (lambda v: [send(1, bytes(101))], 0x1205),
    "more in a second segment": (
        lambda v: [send(1, bytes(100), last=False), send(1, b"x", mo=100)],
        0x1205,
    ),
    "no buffer": (lambda v: [send(1), send(2), send(3)], 0x1202),
    "another kind in the middle": (
        lambda v: [send(1, b"x", last=False), send(1, b"x", mo=1, opcode=5)],
        0x0206,
    ),
    "an STag nobody has": (lambda v: [send(1, opcode=4, ulp=77)], 0x0209),
    "an STag that is over": (lambda v: [send(1, opcode=4, ulp=v.ended.key)], 0x0209),
    "another domain's STag": (lambda v: [send(1, opcode=6, ulp=v.foreign.key)], 0x0109),
    "an STag that was not lent": (lambda v: [send(1, opcode=4, ulp=v.private.key)], 0x0109),
}
REQUESTS = {
    "an STag that was made up": (lambda v: [reads(v, source=9)], 0x0100),
    "an STag that was invalidated": (lambda v: [reads(v, v.ended)], 0x0100),
    "another domain's STag": (lambda v: [reads(v, v.foreign)], 0x0103),
    "memory that may only be written": (lambda v: [reads(v, v.writable)], 0x0102),
    "memory lent to nobody": (lambda v: [reads(v, v.private)], 0x0102),
    "one byte too many": (lambda v: [reads(v, size=257)], 0x0101),
    "one byte before the start": (lambda v: [reads(v, shift=-1)], 0x0101),
    "four gibibytes": (lambda v: [reads(v, size=0xFFFFFFFF)], 0x0101),
    "a TO that wraps": (lambda v: [read_request(1, 1, 0, 512, v.high.key, TOP - 256)], 0x0104),
    "the wrong MSN": (lambda v: [reads(v, msn=2)], 0x1203),
    "queue 0": (lambda v: [read_request(1, 1, 0, 4, v.lent.key, v.lent.iova, queue=0)], 0x1201),
    "an offset": (lambda v: [read_request(1, 1, 0, 4, v.lent.key, v.lent.iova, mo=4)], 0x1204),
    "two segments": (
        lambda v: [read_request(1, 1, 0, 4, v.lent.key, v.lent.iova, last=False)],
        0x0207,
    ),
    "more than a request": (
        lambda v: [read_request(1, 1, 0, 4, v.lent.key, v.lent.iova, more=b"x")],
        0x1205,
    ),
    "more of them than agreed": (lambda v: [reads(v, msn=n) for n in range(1, 18)], 0x0207),
}
ATOMICS = {
    "an STag that was made up": (lambda v: [adds(v, stag=9)], 0x0100),
    "another domain's STag": (lambda v: [adds(v, v.foreign)], 0x0103),
    "memory without the right": (lambda v: [adds(v, v.writable)], 0x0102),
    "the end": (lambda v: [adds(v, shift=256)], 0x0101),
    "a TO that wraps": (lambda v: [adds(v, shift=TOP - v.lent.iova - 4)], 0x0104),
    "no whole word": (lambda v: [adds(v, shift=4)], 0x0207),
    "an operation that there is not": (lambda v: [adds(v, operation=3)], 0x0206),
    "the wrong MSN": (lambda v: [adds(v, msn=7)], 0x1203),
    "more than a request": (lambda v: [adds(v, more=bytes(4))], 0x1205),
    "more of them than agreed": (lambda v: [adds(v, msn=n) for n in range(1, 18)], 0x0207),
    "an answer to nothing": (lambda v: [atomic_response(1, 0, 5)], 0x0206),
    "an answer to another": (lambda v: [atomic_response(1, v.add() + 1, 5)], 0x0206),
    "an answer with the wrong MSN": (lambda v: [atomic_response(2, v.add(), 5)], 0x1203),
    "an answer to a Read": (lambda v: (v.read(), [atomic_response(1, 0, 5)])[1], 0x0206),
    "immediate data of nine bytes": (lambda v: [immediate(1, 5, more=b"x")], 0x1205),
    "immediate data with no buffer": (
        lambda v: [immediate(1, 5), immediate(2, 5), immediate(3, 5)],
        0x1202,
    ),
    "immediate data in a Send": (
        lambda v: [send(1, b"x", last=False), immediate(1, 5)],
        0x0206,
    ),
    "immediate data in two segments": (lambda v: [immediate(1, 5, last=False)], 0x0207),
}
CONTROLS = {
    "DDP version 0, tagged": (lambda v: [write(9, 0, version=0)], 0x1104),
    "DDP version 2, tagged": (lambda v: [write(9, 0, version=2)], 0x1104),
    "DDP version 3, untagged": (lambda v: [send(1, version=3)], 0x1206),
    "RDMAP version 0": (lambda v: [send(1, rdmap=0)], 0x0205),
    "RDMAP version 2, tagged": (lambda v: [write(9, 0, rdmap=2)], 0x0205),
    **{f"opcode {op}": (lambda v, op=op: [untagged(op, 0, 1)], 0x0206) for op in range(12, 16)},
    **{
        f"a tagged opcode {op}": (lambda v, op=op: [tagged(op, 9, 0, bytes(60))], 0x0206)
        for op in (1, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    },
    **{
        f"an untagged opcode {op}": (lambda v, op=op: [untagged(op, 0, 1)], 0x0206) for op in (0, 2)
    },
}


def shifted(sink, by):
    return sink[0], sink[1] + by


def reads(victim, region=None, *, size=4, shift=0, msn=1, source=None):
    region = region or victim.lent
    key = region.key if source is None else source
    return read_request(msn, 1, 0, size, key, region.iova + shift)


def adds(victim, region=None, *, shift=0, msn=1, stag=None, operation=0, more=b""):
    region = region or victim.lent
    key = region.key if stag is None else stag
    return atomic_request(msn, operation, 1, key, region.iova + shift, 1, more=more)


def cases(*tables):
    named = [
        pytest.param(say, code, id=f"{group}: {name}")
        for group, table in tables
        for name, (say, code) in table.items()
    ]
    return pytest.mark.parametrize(("say", "code"), named)


@pytest.mark.parametrize("crc", [True, False], ids=["crc", "no crc"])
@pytest.mark.parametrize("direct", [True, False], ids=["placed", "staged"])
@cases(
    ("a Write with", TAGGED),
    ("a response with", RESPONSES),
    ("a Send with", SENDS),
    ("a Read of", REQUESTS),
    ("an atomic with", ATOMICS),
    ("control bytes with", CONTROLS),
)
def test_the_stream_ends_with_the_right_code(say, code, crc, direct):
    victim = Victim(crc=crc)
    assert victim.hear(*say(victim), direct=direct) == VIOLATION | code
    assert victim.reason() == code
    assert victim.untouched("lent", "private")
    victim.end()
    assert all(region.uses == 0 for region in victim.regions.values())
    assert victim.buffers.uses == 0


def test_nothing_after_a_violation_is_believed():
    victim = Victim()
    victim.hear(write(1, 0, b"x"))
    assert victim.ask(door.TAKE, 0, 0) == 0
    victim.outcome = 0
    victim.hear(write(victim.lent.key, victim.lent.iova, b"x"), send(1, b"y"))
    assert victim.untouched()
    assert victim.completions() == []
    assert victim.try_post(WR_SEND) < 0


# --- what the Terminate quotes -------------------------------------------------------------------


def test_a_terminate_quotes_what_was_wrong():
    victim = Victim()
    wrong = write(0xBAD, 7, b"some payload")
    victim.hear(wrong)
    assert terminate_of(victim.data_to_send()) == (0x1100, 0, (len(wrong), wrong[:14]))
    victim = Victim()
    wrong = send(9, b"some payload")
    victim.hear(wrong)
    assert terminate_of(victim.data_to_send()) == (0x1203, 0, (len(wrong), wrong[:18]))
    victim = Victim()
    wrong = read_request(1, 2, 3, 4, 5, 6)
    victim.hear(wrong)
    assert terminate_of(victim.data_to_send()) == (0x0100, 1, (len(wrong), wrong))


def test_a_terminate_quotes_no_header_that_may_be_spoilt():
    victim = Victim()
    data = bytearray(fpdu(write(victim.lent.key, victim.lent.iova, b"x")))
    data[-1] ^= 1
    victim.take(data)
    assert terminate_of(victim.data_to_send()) == (0x2002, 0, b"")


# --- lengths that lie ----------------------------------------------------------------------------

SHORTEST = {0: 14, 2: 14, 1: 46, 3: 18, 4: 18, 5: 18, 6: 18, 7: 22, 8: 26, 9: 26, 10: 70, 11: 30}


@pytest.mark.parametrize("crc", [True, False])
@pytest.mark.parametrize(("opcode", "shortest"), SHORTEST.items())
def test_an_fpdu_shorter_than_its_header_is_never_read_beyond(opcode, shortest, crc):
    """A length that says less than the header needs (what siw took for a length below zero)."""
    for length in range(shortest):
        victim = Victim(crc=crc)
        is_tagged = opcode in (0, 2)
        whole = tagged(opcode, 9, 0) if is_tagged else untagged(opcode, 0, 1, bytes(60))
        victim.take(fpdu(whole[:length], crc=crc))
        assert victim.reason() == 0x2003
        assert victim.completions() == []


@pytest.mark.parametrize("crc", [True, False])
def test_an_fpdu_of_64_kib(crc):
    victim = Victim(crc=crc, receives=0)
    region = victim.rnic.region(65535)
    payload = bytes(range(251)) * 262
    victim.hear(write(region.key, region.iova, payload[: 65535 - 14]))
    assert region.bytes(0, 65521) == payload[:65521]
    victim.receive(region.piece())
    victim.hear(send(1, payload[: 65535 - 18]))
    assert victim.completion()["byte_len"] == 65517
    assert victim.outcome == 0


def test_the_very_first_fpdu_may_be_wrong():
    """What dereferenced a null pointer in siw: nothing has been received when this is."""
    for wrong in (write(9, 0, version=2), send(1, rdmap=3), untagged(15, 0, 1)):
        victim = Victim(active=False)
        victim.hear(wrong)
        assert victim.reason() in (0x1104, 0x0205, 0x0206)


# --- nothing at all ------------------------------------------------------------------------------


def test_a_write_of_nothing_names_nothing():
    victim = Victim()
    assert victim.hear(write(1, 0), write(0, TOP - 1), write(victim.readable.key, 5)) == 0
    assert victim.untouched()


def test_a_read_of_nothing_names_nothing():
    victim = Victim()
    assert victim.hear(read_request(1, 77, 88, 0, 1, 0)) == 0
    (answer,) = split(victim.data_to_send())
    assert answer == read_response(77, 88)


def test_a_send_of_nothing_takes_a_buffer():
    victim = Victim()
    victim.hear(send(1))
    assert victim.completion()["byte_len"] == 0
    victim.hear(send(2, b"", last=False), send(2))
    assert victim.completion()["byte_len"] == 0


def test_segments_of_nothing_change_nothing():
    victim = Victim()
    victim.hear(
        send(1, b"ab", last=False),
        send(1, b"", mo=2, last=False),
        write(victim.lent.key, victim.lent.iova, b"", last=False),
        write(victim.lent.key, victim.lent.iova, b"WR"),
        send(1, b"cd", mo=2),
    )
    assert victim.outcome == 0
    assert victim.completion()["byte_len"] == 4
    assert victim.buffers.bytes(0, 4) == b"abcd"
    assert victim.lent.bytes(0, 3) == b"WR\x02"


# --- sequence numbers ----------------------------------------------------------------------------


def test_msns_wrap():
    victim = Victim(receives=4)
    victim.record["rx_msn"][0] = victim.record["rx_msn"][1] = 0xFFFFFFFF
    victim.hear(send(0xFFFFFFFF), reads(victim, msn=0xFFFFFFFF), send(0), reads(victim, msn=0))
    assert victim.outcome == 0
    assert len(victim.completions()) == 2
    victim.record["tx_msn"][0] = 0xFFFFFFFF
    victim.data_to_send()
    victim.post(WR_SEND)
    victim.post(WR_SEND)
    assert [each[10:14].hex() for each in split(victim.data_to_send())] == ["ffffffff", "00000000"]


def test_reserved_bits_are_not_looked_at():
    victim = Victim()
    assert victim.hear(write(victim.lent.key, victim.lent.iova, b"WR", reserved=15)) == 0
    assert victim.lent.bytes(0, 2) == b"WR"


def test_a_send_and_a_write_may_interleave():
    victim = Victim()
    victim.hear(
        write(victim.lent.key, victim.lent.iova, b"one", last=False),
        send(1, b"first ", last=False),
        reads(victim),
        write(victim.lent.key, victim.lent.iova + 3, b"two"),
        send(1, b"second", mo=6),
    )
    assert victim.outcome == 0
    assert victim.lent.bytes(0, 6) == b"onetwo"
    assert victim.buffers.bytes(0, 12) == b"first second"


# --- what work requests learn --------------------------------------------------------------------


def test_a_wrong_response_fails_the_read_and_flushes_the_rest():
    victim = Victim()
    victim.read()
    victim.post(WR_RDMA_WRITE)
    victim.hear(read_response(victim.lent.key, 0, bytes(64)))
    found = {each["opcode"]: each for each in victim.end()}
    statuses = {opcode: each["status"] for opcode, each in found.items()}
    assert statuses == {2: WC_BAD_RESP_ERR, 1: WC_WR_FLUSH_ERR, 128: WC_WR_FLUSH_ERR}
    assert {each["vendor_err"] for each in found.values()} == {0x1100}


def test_a_message_that_is_too_long_fails_its_receive():
    victim = Victim()
    victim.hear(send(1, bytes(101)))
    statuses = [each["status"] for each in victim.end()]
    assert statuses == [WC_LOC_LEN_ERR, WC_WR_FLUSH_ERR]


def test_work_that_was_over_stays_a_success():
    victim = Victim()
    victim.post(WR_RDMA_WRITE)
    victim.data_to_send()
    victim.post(WR_RDMA_WRITE)
    victim.hear(write(1, 0, b"x"))
    statuses = [each["status"] for each in victim.end() if each["opcode"] == 1]
    assert statuses == [WC_SUCCESS, WC_WR_FLUSH_ERR]


# --- the peer's Terminate ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ("01020000", 0x0102),
        ("12 05 c000 0012", 0x1205),
        ("20 02 0000", 0x2002),
        # siw's: nibbles and bits from the other end
        ("10 02 0300", 0x0102),
        ("21 05 0300", 0x1205),
        ("11 00 0300", 0x1100),
        ("02 02 0100", 0x2002),
        ("02 06 0000", 0x0206),  # both ways exist: it is the RFC's
        ("ff ff ffff", 0xFFFF),  # neither does
    ],
)
def test_a_terminate_is_understood(payload, code):
    victim = Victim()
    data = bytes.fromhex(payload)
    assert victim.hear(untagged(7, 2, 1, data)) == TERMINATED | code
    assert victim.state == ERROR
    assert victim.data_to_send() == b""
    assert {each["vendor_err"] for each in victim.end()} == {code}


@pytest.mark.parametrize("size", [4, 5, 22, 52, 53, 1000])
def test_a_terminate_of_any_length_ends_the_stream(size):
    victim = Victim()
    payload = b"\x02\x06\x00\x00" + b"\xee" * (size - 4)
    assert victim.hear(untagged(7, 2, 1, payload)) == TERMINATED | 0x0206


def test_a_terminate_ends_the_stream_whatever_its_numbers():
    for queue, code in ((2, TERMINATED | 0x0206), (0, VIOLATION | 0x1201)):
        victim = Victim()
        assert victim.hear(untagged(7, queue, 99, b"\x02\x06\x00\x00", mo=5)) == code


def test_a_second_terminate_is_not_heard():
    victim = Victim()
    victim.hear(terminate(0, 2, 6))
    assert victim.outcome & CODE_MASK == 0x0206
    victim.outcome = 0
    assert victim.hear(terminate(1, 1, 0)) == 0
    assert int(victim.record["terminated"]) & CODE_MASK == 0x0206


def test_a_peers_terminate_fails_the_read_it_is_about():
    victim = Victim(receives=0)
    victim.post(WR_RDMA_WRITE)
    victim.read()
    victim.post(WR_SEND)
    victim.hear(terminate(0, 1, 2))
    statuses = [each["status"] for each in victim.end()]
    assert statuses == [WC_SUCCESS, WC_REM_ACCESS_ERR, WC_WR_FLUSH_ERR]


# --- extensions nobody agreed on -----------------------------------------------------------------


@pytest.mark.parametrize("opcode", [8, 9, 10, 11, 12])
def test_rfc_7306_is_unexpected_where_it_was_not_agreed(opcode):
    victim = Victim(extensions=False)
    victim.hear(untagged(opcode, 0, 1, bytes(60)))
    assert victim.reason() == 0x0206


def test_immediate_data_leaves_the_buffer_alone():
    victim = Victim()
    victim.hear(immediate(1, 0x1122334455667788, solicited=True))
    found = victim.completion()
    assert (found["opcode"], found["imm"]) == (WC_RECV_RDMA_WITH_IMM, 0x1122334455667788)
    assert victim.buffers.bytes() == bytes(1000)


# --- memory that goes away -----------------------------------------------------------------------


def test_a_buffer_that_was_invalidated_takes_no_message():
    victim = Victim()
    victim.rnic.memory(door.INVALIDATE, victim.buffers.key, 5)
    victim.hear(send(1, b"x"))
    assert victim.outcome == VIOLATION
    assert victim.state == TERMINATE
    assert victim.buffers.bytes() == bytes(1000)


def test_a_sink_that_was_invalidated_takes_no_response():
    victim = Victim()
    sink = victim.read()
    victim.rnic.memory(door.INVALIDATE, victim.private.key, 5)
    victim.hear(read_response(*sink, b"x" * 64))
    assert victim.reason() == 0x1100
    assert victim.untouched()


def test_memory_in_use_outlives_its_stag():
    """A segment has begun, a response is queued: neither may be pulled away from below them."""
    victim = Victim()
    data = fpdu(write(victim.lent.key, victim.lent.iova, b"y" * 100))
    victim.take(data[:50])
    assert victim.lent.uses == 1
    assert victim.rnic.memory(door.DEREGISTER, victim.lent.key, 7) < 0
    victim.take(data[50:])
    assert victim.lent.uses == 0
    victim.hear(reads(victim))
    assert victim.lent.uses == 1
    victim.data_to_send()
    assert victim.lent.uses == 0
    assert victim.rnic.memory(door.DEREGISTER, victim.lent.key, 7) == 0


def test_the_end_lets_go_of_what_was_under_way():
    victim = Victim()
    victim.hear(reads(victim))
    victim.take(fpdu(write(victim.lent.key, victim.lent.iova, b"y" * 100))[:50])
    assert victim.lent.uses == 2
    victim.end()
    assert victim.lent.uses == 0
