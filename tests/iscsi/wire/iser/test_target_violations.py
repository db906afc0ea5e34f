"""What an initiator can get wrong towards a target over a queue pair: each ends its command or its
connection with a reason, gives everything back, and touches no memory that it should not.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.iser.header import Hello, IserHeader, encode, encode_hello
from iscsi.wire.iser.records import IserLimits
from iscsi.wire.keys import SessionParams
from iscsi.wire.violations import Violation, describe
from shm.verbs_numbers import (
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    WC_WR_FLUSH_ERR,
)
from shm.view import address_of
from tests.iscsi.wire.full_feature import READ, WRITE, examples, memory, pattern
from tests.iscsi.wire.iser.lone import LoneInitiator
from tests.iscsi.wire.iser.pair import LENGTHS, IserTarget
from tests.iscsi.wire.split_target import end_all

MODE_SELECT = bytes((0x55,)).ljust(16, b"\0")
OPEN = SessionParams(initial_r2t=False, first_burst_length=65536)


def lone(session=None, *, hot=True, limits=None, **options):
    limits = limits or IserLimits(receives=64, remote_invalidate=True)
    side = IserTarget(
        session or SessionParams(),
        options.pop("connection", LENGTHS),
        hot=hot,
        iser_limits=limits,
        **options,
    )
    return LoneInitiator(side)


def closed_and_clean(alone):
    """The service's part once a connection is over; then nothing is left at either half."""
    side = alone.side
    end_all(side.engine.address, -104)
    while side.turn_target():
        pass
    assert all(posted.events == 1 for posted in side.posts)
    assert (side.engine_luns["under_way"] == 0).all()
    assert side.below.taken == 0


@pytest.mark.parametrize("length", [0, 1, 12, 27])
def test_a_send_shorter_than_an_iser_header_ends_the_connection(length):
    alone = lone()
    alone.send(alone.command()[:length])
    assert alone.is_ended_by(Violation.SHORT_SEND)
    closed_and_clean(alone)


@pytest.mark.parametrize("length", [28, 29, 75])
def test_a_send_shorter_than_both_headers_ends_the_connection(length):
    alone = lone()
    alone.send(alone.command()[:length])
    assert alone.is_ended_by(Violation.SHORT_SEND)


@pytest.mark.parametrize("missing", [1, 511, 512])
def test_data_beyond_its_send_ends_the_connection(missing):
    alone = lone()
    message = alone.command(scsi.write_16(0, 1), bytes(512), flags=WRITE, length=512)
    alone.send(message[:-missing])
    assert alone.is_ended_by(Violation.DATA_BEYOND_SEND)
    assert not alone.side.ram.any()
    closed_and_clean(alone)


def test_additional_header_segments_beyond_their_send_end_the_connection():
    alone = lone()
    message = bytearray(alone.command())
    message[28 + 4] = 10
    alone.send(message)
    assert alone.is_ended_by(Violation.DATA_BEYOND_SEND)


@pytest.mark.parametrize("padding", [b"", b"\0", b"\0\0\0"])
def test_padding_may_be_there_or_not(padding):
    alone = lone(hot=False)
    message = alone.command(MODE_SELECT, b"x" * 509, flags=WRITE, length=509)
    alone.send(message.rstrip(b"\0") + padding)
    (_, header, _) = alone.got()[-1]
    assert header.opcode == Opcode.SCSI_RESPONSE
    assert bytes(alone.side.served[0].data) == b"x" * 509


@pytest.mark.parametrize("first", [0x00, 0x30, 0x40, 0xF0])
def test_an_iser_header_of_another_kind_ends_the_connection(first):
    alone = lone()
    message = bytearray(alone.command())
    message[0] = first
    alone.send(message)
    assert alone.is_ended_by(Violation.ISER_OPCODE)


def test_a_send_that_invalidates_something_ends_the_connection():
    alone = lone()
    stag = alone.side.qp.register(address_of(alone.side.ram), 512, ACCESS_REMOTE_READ)
    alone.send(alone.command(), invalidate=stag)
    assert alone.is_ended_by(Violation.FOREIGN_INVALIDATE)


@pytest.mark.parametrize(("bits", "flags"), [(0x04, READ), (0x08, WRITE)], ids=["read", "write"])
def test_a_valid_bit_without_a_tag_ends_the_connection(bits, flags):
    alone = lone()
    cdb = scsi.read_16(0, 8) if flags == READ else scsi.write_16(0, 8)
    message = bytearray(alone.command(cdb, flags=flags, length=4096))
    message[0] |= bits
    alone.send(message)
    assert alone.is_ended_by(Violation.TAG_MISSING)


@pytest.mark.parametrize("flags", [READ, WRITE], ids=["read", "write"])
def test_data_to_move_without_a_tag_ends_the_connection(flags):
    alone = lone()
    cdb = scsi.read_16(0, 8) if flags == READ else scsi.write_16(0, 8)
    alone.send(alone.command(cdb, flags=flags, length=4096))
    assert alone.is_ended_by(Violation.TAG_MISSING)
    closed_and_clean(alone)


@pytest.mark.parametrize(
    ("tags", "flags"),
    [(IserHeader(5, 0), READ), (IserHeader(0, 0, 5, 0), WRITE), (IserHeader(5, 0), 0)],
    ids=["write tag of a read", "read tag of a write", "tag of nothing"],
)
def test_a_tag_in_the_wrong_direction_ends_the_connection(tags, flags):
    alone = lone()
    length = 512 if flags else 0
    alone.send(alone.command(tags=tags, flags=flags, length=length))
    assert alone.is_ended_by(Violation.TAG_DIRECTION)


@pytest.mark.parametrize(
    "change",
    [
        {"stag": 0x7777},
        {"base": 1},
        {"base": -1},
        {"access": ACCESS_REMOTE_READ},
        {"length": 4095},
    ],
    ids=["no such tag", "behind it", "in front of it", "no right to write", "too short"],
)
@pytest.mark.parametrize("hot", [True, False])
def test_a_tag_that_does_not_open_what_it_names_ends_the_connection(change, hot):
    alone = lone(hot=hot)
    buffer = memory(4096)
    access = change.get("access", ACCESS_REMOTE_WRITE)
    stag = alone.qp.register(address_of(buffer), change.get("length", 4096), access)
    tags = IserHeader(
        read_stag=change.get("stag", stag), read_base=address_of(buffer) + change.get("base", 0)
    )
    alone.send(alone.command(scsi.read_16(0, 8), tags=tags, length=4096))
    assert alone.side.broken < 0
    assert alone.why == describe(Violation.TAG_REFUSED)
    assert not buffer.any()
    closed_and_clean(alone)


def test_a_tag_that_was_invalidated_with_the_response_before_ends_the_connection():
    alone = lone()
    buffer = memory(4096)
    stag = alone.qp.register(address_of(buffer), 4096, ACCESS_REMOTE_WRITE)
    tags = IserHeader(read_stag=stag, read_base=address_of(buffer))
    alone.send(alone.command(scsi.read_16(0, 8), tags=tags, length=4096))
    assert [header.status for _, header, _ in alone.got()] == [0]
    alone.send(alone.command(scsi.read_16(0, 8), tags=tags, length=4096, itt=2))
    assert alone.is_ended_by(Violation.TAG_REFUSED)
    closed_and_clean(alone)


def test_a_write_whose_tag_is_wrong_leaves_the_unit_alone():
    alone = lone(SessionParams(immediate_data=False))
    alone.send(
        alone.command(scsi.write_16(0, 8), tags=IserHeader(0x55, 0), flags=WRITE, length=4096)
    )
    assert alone.is_ended_by(Violation.TAG_REFUSED)
    assert not alone.side.ram.any()
    closed_and_clean(alone)


def test_one_tag_may_serve_many_commands_where_nobody_invalidates_it():
    """As libiscsi does, whose memory is open for the whole session."""
    alone = lone(limits=IserLimits(receives=64))
    buffer = memory(1 << 16)
    stag = alone.qp.register(address_of(buffer), buffer.size, ACCESS_REMOTE_WRITE)
    alone.side.ram[:] = pattern(alone.side.ram.size)
    for number in range(8):
        tags = IserHeader(read_stag=stag, read_base=address_of(buffer) + 4096 * number)
        alone.send(alone.command(scsi.read_16(8 * number, 8), tags=tags, length=4096, itt=number))
    assert [header.status for _, header, _ in alone.got()] == [0] * 8
    assert np.array_equal(buffer[: 8 * 4096], alone.side.ram[: 8 * 4096])


def test_solicited_data_out_has_no_place_over_a_queue_pair():
    alone = lone(SessionParams(immediate_data=False))
    source = memory(4096)
    stag = alone.qp.register(address_of(source), 4096, ACCESS_REMOTE_READ)
    tags = IserHeader(stag, address_of(source))
    alone.send(alone.command(scsi.write_16(0, 8), tags=tags, flags=WRITE, length=4096))
    alone.send(alone.request(Opcode.DATA_OUT, bytes(512), itt=1, ttt=0))
    assert alone.is_ended_by(Violation.SOLICITED_DATA)


def test_less_unsolicited_data_than_was_announced_ends_its_command_alone():
    alone = lone(OPEN)
    alone.send(alone.command(scsi.write_16(0, 8), bytes(512), flags=WRITE, length=4096, final=0))
    alone.send(alone.request(Opcode.DATA_OUT, b"x" * 512, itt=1, buffer_offset=512))
    ((_, header, data),) = alone.got()
    assert (header.status, data[4]) == (2, 0x0B)
    alone.send(alone.command(itt=2))
    assert [header.itt for _, header, _ in alone.got()] == [2]
    assert alone.why is None


def test_login_after_login_and_what_no_initiator_sends_is_refused():
    alone = lone()
    pdu = bhs.encode_pdu(Opcode.LOGIN_REQUEST, immediate=1)
    alone.send(encode(IserHeader()) + pdu)
    assert alone.is_ended_by(Violation.OPCODE)


def test_a_request_that_is_unknown_is_rejected_within_the_initiator_s_receives():
    alone = lone()
    message = bytearray(alone.command())
    message[28] = 0x1E
    alone.send(message)
    ((raw, header, data),) = alone.got()
    assert header.opcode == Opcode.REJECT
    assert data == bytes(message[28:76])
    assert len(raw) + 48 + len(data) <= 28 + 48 + 128
    assert alone.why is None


def test_the_echo_of_a_ping_stays_within_the_initiator_s_receives():
    alone = lone()
    alone.send(alone.request(Opcode.NOP_OUT, b"p" * 1000, itt=7))
    ((_, header, data),) = alone.got()
    assert header.opcode == Opcode.NOP_IN
    assert data == b"p" * 128


# --- unexpected PDUs -------------------------------------------------------------------------


def test_unsolicited_data_beyond_what_was_declared_ends_the_connection():
    alone = lone(OPEN, limits=IserLimits(receives=64, own_limit=3))
    alone.send(alone.command(scsi.write_16(0, 16), flags=WRITE, length=8192, final=0))
    for number in range(3):
        data = alone.request(
            Opcode.DATA_OUT,
            bytes(512),
            itt=1,
            final=0,
            data_sn=number,
            buffer_offset=512 * number,
        )
        alone.send(data)
        assert alone.why is None
    alone.send(
        alone.request(Opcode.DATA_OUT, bytes(512), itt=1, final=0, data_sn=3, buffer_offset=1536)
    )
    assert alone.is_ended_by(Violation.UNEXPECTED_PDUS)
    closed_and_clean(alone)


def test_immediate_requests_beyond_what_was_declared_end_the_connection():
    alone = lone(hot=False, limits=IserLimits(receives=64, own_limit=2))
    alone.side.serve = lambda what: None  # nobody answers
    for number in range(2):
        alone.send(
            alone.request(Opcode.TASK_MANAGEMENT_REQUEST, itt=number, immediate=1, function=5)
        )
        assert alone.why is None
    alone.send(alone.request(Opcode.TASK_MANAGEMENT_REQUEST, itt=9, immediate=1, function=5))
    assert alone.is_ended_by(Violation.UNEXPECTED_PDUS)


def test_what_was_answered_does_not_count_any_more():
    alone = lone(OPEN, limits=IserLimits(receives=64, own_limit=2))
    for number in range(20):
        alone.send(alone.request(Opcode.NOP_OUT, itt=number, immediate=1))
        alone.send(alone.command(itt=100 + number, immediate=1))
        data = alone.command(
            scsi.write_16(0, 2), bytes(512), flags=WRITE, length=1024, itt=200 + number, final=0
        )
        alone.send(data)
        alone.send(alone.request(Opcode.DATA_OUT, bytes(512), itt=200 + number, buffer_offset=512))
        assert alone.why is None
    assert len(alone.got()) == 60


def test_requests_that_are_expected_never_count():
    alone = lone(limits=IserLimits(receives=64, own_limit=2))
    for number in range(30):
        alone.send(alone.command(itt=number))
        alone.send(alone.request(Opcode.NOP_OUT, itt=1000 + number))
    assert alone.why is None
    assert len(alone.got()) == 60


# --- Hello -----------------------------------------------------------------------------------

HELLO = IserLimits(receives=64, hello=True, depth=16)


def test_a_hello_that_nobody_asked_for_ends_the_connection():
    alone = lone()
    alone.send(encode_hello(Hello(8)))
    assert alone.is_ended_by(Violation.HELLO)


def test_a_hello_that_was_agreed_on_and_does_not_come_ends_the_connection():
    alone = lone(limits=HELLO)
    alone.send(alone.command())
    assert alone.is_ended_by(Violation.HELLO)
    assert alone.got() == []


@pytest.mark.parametrize("hello", [Hello(8, 9, 9), Hello(8, 12, 11)], ids=["too old", "too new"])
def test_a_hello_of_other_versions_ends_the_connection(hello):
    alone = lone(limits=HELLO)
    alone.send(encode_hello(hello))
    assert alone.is_ended_by(Violation.HELLO)


def test_a_second_hello_ends_the_connection():
    alone = lone(limits=HELLO)
    alone.send(encode_hello(Hello(8)))
    assert len(alone.got()) == 1
    assert alone.why is None
    alone.send(encode_hello(Hello(8)))
    assert alone.is_ended_by(Violation.HELLO)


def test_a_short_hello_ends_the_connection():
    alone = lone(limits=HELLO)
    alone.send(encode_hello(Hello(8))[:27])
    assert alone.is_ended_by(Violation.SHORT_SEND)


# --- the peer goes away ----------------------------------------------------------------------


@pytest.mark.parametrize("hot", [True, False])
def test_a_peer_that_vanishes_in_the_middle_of_an_rdma_read_leaves_nothing_behind(hot):
    alone = lone(SessionParams(immediate_data=False), hot=hot)
    tags = IserHeader(0x55, 0)
    side = alone.side
    raw = alone.command(scsi.write_16(0, 8), tags=tags, flags=WRITE, length=4096)
    alone.turn = lambda: [side.turn_all() for _ in range(4)]
    alone.send(raw)
    assert len(side.qp.sends) == 1, "the RDMA Read is posted"
    assert (side.engine_luns["under_way"] == 1).any() == hot
    side.qp.break_both(side.qp.sends.popleft(), WC_WR_FLUSH_ERR)
    side.poll()
    assert side.broken < 0
    closed_and_clean(alone)


# --- anything --------------------------------------------------------------------------------

MUTATIONS = st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), max_size=6)


@given(
    st.lists(st.tuples(MUTATIONS, st.integers(0, 40), st.booleans()), min_size=1, max_size=8),
    st.booleans(),
)
@settings(max_examples=examples(150), deadline=None)
def test_no_send_crashes_or_leaks(messages, hot):
    alone = lone(OPEN, hot=hot, limits=IserLimits(receives=64, own_limit=8))
    buffer = memory(4096)
    stag = alone.qp.register(address_of(buffer), 4096, ACCESS_REMOTE_WRITE | ACCESS_REMOTE_READ)
    for number, (changes, cut, is_read) in enumerate(messages):
        if alone.why is not None:
            break
        if is_read:
            tags = IserHeader(read_stag=stag, read_base=address_of(buffer))
            raw = alone.command(scsi.read_16(0, 8), tags=tags, length=4096, itt=number)
        else:
            tags = IserHeader(stag, address_of(buffer))
            raw = alone.command(
                scsi.write_16(0, 8), bytes(512), tags, WRITE, length=4096, itt=number
            )
        message = bytearray(raw)
        for at, value in changes:
            if at < len(message):
                message[at] = value
        alone.send(message[: len(message) - cut] if cut > 30 else message)
    closed_and_clean(alone)
