"""Bad input to a target cut in two: written data that is wrong, posts with every field out of
range, gates and units. Nothing but what a post may name is touched, and nothing is ended twice.
"""

import errno
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.wire import bhs, mover, scsi, target_posts
from iscsi.wire import target as doors
from iscsi.wire.bhs import Opcode, encode_pdu
from iscsi.wire.errors import RemoteProtocolError
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.lun import GATE_CLOSED, GATE_OPEN, GATE_READS_ONLY, Unit, write_lun
from iscsi.wire.port import copies_size, lend_copies, port_at
from iscsi.wire.target_task import target_at
from shm.view import address_of
from tests.iscsi.wire.full_feature import BLOCK, examples, memory, pattern, pdus_of
from tests.iscsi.wire.split_target import (
    Split,
    end_all,
    event_next,
    is_idle,
    notify_next,
    on_post,
    places_into,
    set_gate,
    set_unit,
    unsettled,
)

SMALL = ConnectionParams(max_recv_data_segment_length=1024)
DIGESTS = ConnectionParams(max_recv_data_segment_length=1024, header_digest=True, data_digest=True)
ASKED = SessionParams(first_burst_length=512, max_burst_length=1024, max_outstanding_r2t=2)
ITT = 77
NO_TAG = 0xFFFFFFFF
CRC_ERROR = 0x0B4705
INCORRECT_AMOUNT = 0x0B0C0D
OFFSET_ERROR = 0x0B4B05


def command_pdu(cdb, flags, length, data=b"", **fields):
    """A SCSI Command with immediate data."""
    cdb = int.from_bytes(cdb, "big")
    pdu = encode_pdu(
        Opcode.SCSI_COMMAND, data, cdb=cdb, expected_data_transfer_length=length, **fields
    )
    return pdu[:1] + bytes([pdu[1] | flags]) + pdu[2:]


class Raw(Split):
    """A target in two halves and an initiator's PDUs made by hand."""

    def command(self, cdb, flags, length, data=b"", **fields):
        fields = {"itt": ITT, "cmd_sn": 1, "final": 1} | fields
        return self.give(command_pdu(cdb, flags, length, data, **fields))

    def give(self, stream):
        """Bytes for the engine; the PDUs it sends when nothing moves any more."""
        self.engine.receive(stream)
        while self.turn_target():
            pass
        return pdus_of(self.engine.data_to_send(), self.connection)

    def data_out(self, r2t, data, **fields):
        fields = {
            "itt": ITT,
            "ttt": r2t.ttt,
            "final": 1,
            "buffer_offset": r2t.buffer_offset,
        } | fields
        return self.give(encode_pdu(Opcode.DATA_OUT, data, **fields))

    def asks(self, blocks=2):
        """Begin a WRITE; its R2Ts."""
        answers = self.command(scsi.write_10(0, blocks), bhs.FLAG_WRITE, blocks * BLOCK)
        assert all(header.opcode == Opcode.R2T for header, _ in answers)
        return [header for header, _ in answers]


def ends_with(pair, answers, sense):
    """Whether a command's answer says what was wrong with its data, and its GET did."""
    response = next(pdu for pdu in answers if pdu[0].opcode == Opcode.SCSI_RESPONSE)
    assert response[0].status == 2
    data = response[1][2:]
    assert (data[2] & 15) << 16 | data[12] << 8 | data[13] == sense
    (get,) = pair.asked(mover.GET)
    assert get.outcome == -errno.EIO
    pair.check_at_rest()


@pytest.mark.parametrize(
    ("fields", "length", "sense"),
    [
        ({"data_sn": 1}, 1024, CRC_ERROR),
        ({"buffer_offset": 512}, 1024, OFFSET_ERROR),
        ({}, 512, INCORRECT_AMOUNT),
    ],
)
def test_wrong_data_for_a_get_is_the_hosts_to_answer(fields, length, sense):
    pair = Raw(ASKED, SMALL)
    (r2t,) = pair.asks()
    before = pair.ram.copy()
    answers = pair.data_out(r2t, bytes(length), **fields)
    ends_with(pair, answers, sense)
    assert np.array_equal(pair.ram, before)


def test_more_data_than_was_asked_for_goes_nowhere():
    pair = Raw(ASKED, SMALL)
    pair.ram[:] = pattern(pair.ram.size)
    before = pair.ram.copy()
    (r2t,) = pair.asks(1)
    assert r2t.desired_data_transfer_length == BLOCK
    answers = pair.data_out(r2t, bytes(BLOCK + 4))
    ends_with(pair, answers, INCORRECT_AMOUNT)
    assert np.array_equal(pair.ram[BLOCK:], before[BLOCK:])
    assert pair.data_out(r2t, bytes(BLOCK)) == []  # what comes late is thrown away
    pair.check_at_rest()


def test_a_wrong_data_digest_ends_the_get():
    pair = Split(ASKED, DIGESTS)
    pair.submit(scsi.write_10(0, 2), bhs.FLAG_WRITE, pattern(2 * BLOCK))
    pair.engine.receive(pair.initiator.data_to_send())
    pair.turn_target()
    pair.initiator.receive(pair.engine.data_to_send())
    stream = bytearray(pair.initiator.data_to_send())
    stream[-10] ^= 1
    pair.engine.receive(bytes(stream))
    done = pair.one()
    assert done.status == 2
    (get,) = pair.asked(mover.GET)
    assert get.outcome == -errno.EIO
    pair.check_at_rest()


@pytest.mark.parametrize("ttt", [0, 5, 1 << 16, NO_TAG])
@pytest.mark.parametrize("stage", ["host's turn", "asked for", "answered"])
def test_data_with_a_tag_nobody_gave_touches_nothing(ttt, stage):
    pair = Raw(ASKED, SMALL, host_hot=stage != "host's turn")
    pair.serve = lambda command: None
    answers = pair.command(scsi.write_10(0, 2), bhs.FLAG_WRITE, 0 if stage == "answered" else 1024)
    before = pair.ram.copy()
    if stage == "asked for" and answers[0][0].ttt == ttt:
        ttt += 1
    pair.give(encode_pdu(Opcode.DATA_OUT, bytes(512), itt=ITT, ttt=ttt, final=1))
    assert np.array_equal(pair.ram, before)
    pair.give(encode_pdu(Opcode.DATA_OUT, bytes(512), itt=ITT + 1, ttt=ttt, final=1))
    assert np.array_equal(pair.ram, before)


def test_wrong_unsolicited_data_is_answered_below_and_never_shown():
    session = SessionParams(initial_r2t=False, first_burst_length=1024, max_burst_length=1024)
    pair = Raw(session, SMALL, host_hot=False)
    assert pair.command(bytes([0x55]) + bytes(15), bhs.FLAG_WRITE, 2048, final=0) == []
    wrong = encode_pdu(Opcode.DATA_OUT, bytes(512), itt=ITT, ttt=NO_TAG, final=1, data_sn=3)
    ((response, _),) = pair.give(wrong)
    assert (response.opcode, response.status) == (Opcode.SCSI_RESPONSE, 2)
    assert not pair.notified
    assert not pair.posts
    pair.check_at_rest()


@pytest.mark.parametrize("hot", [False, True], ids=["host", "engine"])
def test_data_that_changes_while_it_is_sent_keeps_its_digest(hot):
    pair = Split(ASKED, DIGESTS, hot=hot)
    copies = memory(copies_size(1024, 16))
    lend_copies(pair.engine.address, address_of(copies), 1024, 16)
    pair.ram[:] = 1
    back = np.zeros(8 * BLOCK, np.uint8)
    pair.read(0, 8, back)
    pair.engine.receive(pair.initiator.data_to_send())
    pair.turn_target()
    assert doors.tx_next(pair.engine.address) > 0
    pair.ram[:] = 2
    assert pair.one().status == 0
    assert (back == 1).all()
    pair.check_at_rest()


# --- gates, units, fences --------------------------------------------------------------------


def test_a_gate_decides_who_serves_a_unit_from_the_next_command_on():
    pair = Split(ASKED, SMALL, hot=True)
    block = np.zeros(BLOCK, np.uint8)
    for gate, reads, writes in (
        (GATE_CLOSED, 1, 1),
        (GATE_READS_ONLY, 0, 1),
        (GATE_OPEN, 0, 0),
    ):
        set_gate(pair.target.address, 0, gate)
        set_gate(pair.target.address, 0, gate)
        assert unsettled(pair.target.address) == 1
        pair.run()
        assert unsettled(pair.target.address) == 0
        pair.notified.clear()
        pair.read(0, 1, block)
        pair.one()
        assert len(pair.notified) == reads
        pair.write(0, 1, block)
        pair.one()
        assert len(pair.notified) == reads + writes
    pair.check_at_rest()


def test_a_unit_is_idle_when_nothing_uses_its_memory_any_more():
    pair = Split(ASKED, SMALL, hot=True)
    luns = address_of(pair.engine_luns)
    back = np.zeros(8 * BLOCK, np.uint8)
    assert is_idle(luns, 2, 0)
    pair.write(0, 2, pattern(2 * BLOCK))
    pair.engine.receive(pair.initiator.data_to_send())
    assert not is_idle(luns, 2, 0), "its data is to come"
    address, size = address_of(pair.ram), pair.ram.size
    unit = (address, size, BLOCK, pair.blocks, 0)
    assert set_unit(luns, 2, 0, *unit, 1, 0, 0, 0) == 0, "it can be closed as it is"
    assert set_unit(luns, 2, 0, *unit[:3], 5, 0, 0, 0, 0, 0) == -errno.EBUSY
    assert set_unit(luns, 2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0) == -errno.EBUSY
    assert pair.one().status == 0
    assert is_idle(luns, 2, 0)
    pair.read(0, 8, back)
    pair.one()
    assert len(pair.notified) == 1, "it is closed: the host serves it"
    assert set_unit(luns, 2, 0, *unit, 0, 0, 0, 0) == 0
    pair.read(0, 8, back)
    pair.engine.receive(pair.initiator.data_to_send())
    assert doors.tx_next(pair.engine.address) > 0
    assert not is_idle(luns, 2, 0), "its data is sent from where it lies"
    pair.run()
    assert is_idle(luns, 2, 0)
    assert np.array_equal(back, pair.ram[: 8 * BLOCK])
    assert set_unit(luns, 2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0) == 0
    list(pair.initiator.completions())
    pair.check_at_rest()


def test_an_aborted_write_of_the_engine_leaves_its_unit_idle():
    pair = Split(ASKED, SMALL, hot=True)
    luns = address_of(pair.engine_luns)
    pair.write(0, 2, pattern(2 * BLOCK))
    pair.engine.receive(pair.initiator.data_to_send())
    pair.target.abort_lun(0)
    pair.turn_target()
    (abort,) = pair.asked(mover.ABORT)
    assert abort.outcome == 0
    assert is_idle(luns, 2, 0)
    before = pair.ram.copy()
    pair.run()
    assert np.array_equal(pair.ram, before)
    pair.check_at_rest()


WORDS = st.one_of(
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.sampled_from([0, 1, 2, 512, 513, -1, 1 << 31, 1 << 32, (1 << 63) - 1, -(1 << 63)]),
)


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(WORDS, min_size=9, max_size=9), WORDS)
def test_no_unit_is_larger_than_its_memory(words, lun):
    pair = memory(256)
    luns = address_of(pair)
    before = pair.copy()
    length, size, blocks, only, state, map_, map_length, grain = words[:8]
    outcome = set_unit(
        luns, 2, lun, 4096, length, size, blocks, only, state, map_, map_length, grain
    )
    if outcome < 0:
        assert np.array_equal(pair, before)
        return
    assert 0 <= lun < 2
    assert 0 <= size * blocks <= length
    assert map_ == 0 or (size * blocks + grain - 1) // grain <= map_length


# --- hostile posts ---------------------------------------------------------------------------

GUARD = 4096
OPCODES = [
    mover.GET,
    mover.ANSWER,
    mover.CONTROL,
    mover.ABORT,
    mover.DONE,
    mover.GATE,
    mover.CANCEL,
    mover.COMMAND,
    0,
    -1,
]
EDGES = [0, 1, 2, 3, 512, 513, 1024, 4032, 4096, -1, 1 << 31, 1 << 32, (1 << 63) - 1, -(1 << 63)]
CDBS = [scsi.write_10(1, 4), scsi.read_10(1, 4), bytes([0x55]) + bytes(15), scsi.inquiry()]


class Attacked(Raw):
    """An engine half whose host says anything, and the memory around what it may touch."""

    def __post_init__(self):
        super().__post_init__()
        whole = np.full(2 * GUARD + 8192, 0xEE, np.uint8)
        self.area, self.whole = whole[GUARD:-GUARD], whole  # what `address` and `length` name
        self.area[:] = 0
        self.homes = np.full(2 * GUARD + 4096, 0xEE, np.uint8)
        self.own_home = self.homes[GUARD:-GUARD]
        self.own_home[:] = 0
        self.ids = [0]
        self.handle = 0
        self.open = set()
        self.out = []

    def say(self, fields):
        """One post; its event may come at once or later, but once."""
        post = np.zeros(1, mover.POST)
        for name, value in fields.items():
            post[0][name] = value
        self.handle += 1
        outcome = on_post(
            self.engine.address,
            address_of(post),
            address_of(self.own_home),
            self.own_home.size,
            self.handle,
        )
        assert outcome <= 1
        if outcome == 1:
            self.open.add(self.handle)
        self.take_events()
        return outcome

    def take_events(self):
        while event_next(self.engine.address, address_of(self.event)):
            self.open.remove(int(self.event[0]["user_data"]))
        buffer = np.zeros(1 << 16, np.uint8)
        while notify_next(
            self.engine.address, address_of(buffer), buffer.size, address_of(self.event)
        ):
            self.ids.append(int(self.event[0]["arg0"]))

    def check(self):
        assert (self.whole[:GUARD] == 0xEE).all()
        assert (self.whole[-GUARD:] == 0xEE).all()
        assert (self.homes[:GUARD] == 0xEE).all()
        assert (self.homes[-GUARD:] == 0xEE).all()
        assert not self.own_home.any(), "the engine writes nothing there"
        mine = target_at(self.engine.address)[0]
        tasks = self.tasks(self.engine)
        assert int((tasks["state"] == 0).sum()) == mine["task_pool"]["free_count"]
        port = port_at(self.engine.address)[0]
        for queue in (port["ready"], port["events"]):
            assert 0 <= int(queue["tail"] - queue["head"]) <= queue["capacity"]
        lower = target_posts.lower_at(int(mine["lower"]))[0]
        for name in ("notices", "ended", "sending", "waiting"):
            queue = lower[name]
            assert 0 <= int(queue["tail"] - queue["head"]) <= queue["capacity"]
        assert lower["open_posts"] == len(self.open)
        for _, data in self.out:
            assert b"\xee" * 8 not in data, "memory of somebody else was sent"


def any_word(rng):
    return rng.choice(EDGES) if rng.random() < 0.6 else rng.randrange(-(1 << 63), 1 << 63)


def any_pdu(pair, rng, cmd_sn):
    """Nothing, a command, or data for one."""
    choice, itt = rng.randrange(3), rng.randrange(10)
    if choice == 0:
        return b""
    if choice == 1:
        flags = rng.choice([bhs.FLAG_WRITE, bhs.FLAG_READ])
        return command_pdu(rng.choice(CDBS), flags, 2048, final=1, itt=itt, cmd_sn=cmd_sn)
    ttt = rng.choice([0, 1, 2, 1 << 16, NO_TAG])
    offset = rng.choice([0, 1024])
    return encode_pdu(
        Opcode.DATA_OUT, b"\x55" * 1024, itt=itt, ttt=ttt, buffer_offset=offset, final=1
    )


def any_post(pair, rng):
    """A post whose `address` and `length` name memory of its client, and nothing else is right."""
    start = rng.randrange(pair.area.size + 1)
    post = {name: any_word(rng) for name in ("arg0", "arg1", "arg2", "more0", "flags")}
    post["opcode"] = rng.choice(OPCODES)
    post["address"] = rng.choice([0, address_of(pair.area) + start, address_of(pair.area) + start])
    post["length"] = min(rng.choice([0, 512, 2048, 8192]), pair.area.size - start)
    if rng.random() < 0.7:
        post["arg0"] = rng.choice(pair.ids)
    if rng.random() < 0.5:
        post["arg1"] = 0
    return post


@pytest.mark.parametrize("hot", [False, True], ids=["host", "engine"])
@settings(max_examples=examples(150), deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_posts_with_any_fields_touch_nothing_but_what_they_name(hot, seed):
    session = SessionParams(initial_r2t=False, first_burst_length=1024, max_burst_length=2048)
    rng = random.Random(seed)
    pair = Attacked(session, SMALL, hot=hot, window_size=8, blocks=16)
    for _ in range(40):
        cmd_sn = int(target_at(pair.engine.address)[0]["exp_cmd_sn"])
        try:
            pair.engine.receive(any_pdu(pair, rng, cmd_sn))
        except RemoteProtocolError:
            break
        pair.say(any_post(pair, rng))
        if rng.random() < 0.5:
            pair.out += pdus_of(pair.engine.data_to_send())
        pair.check()
    end_all(pair.engine.address, -errno.ECONNRESET)
    pair.take_events()
    assert not pair.open
    pair.check()
    assert pair.say({"opcode": mover.GET}) == -errno.ECONNRESET


def test_control_pdus_that_find_no_slot_wait_and_end_in_order():
    pair = Attacked(ASKED, SMALL, window_size=8)
    header = bhs.encode(Opcode.NOP_IN, ttt=5)
    pair.own_home[:48] = np.frombuffer(header, np.uint8)
    outcomes = [pair.say({"opcode": mover.CONTROL}) for _ in range(20)]
    slots = int(port_at(pair.engine.address)[0]["control_count"])
    assert outcomes == [0] * slots + [1] * (20 - slots)
    assert len(pair.open) == 20 - slots
    sent = 0
    while pair.open:
        sent += len(pdus_of(pair.engine.data_to_send()))
        pair.take_events()
    sent += len(pdus_of(pair.engine.data_to_send()))
    assert sent == 20


def test_a_control_slot_is_given_back_once():
    pair = Attacked(ASKED, SMALL)
    pair.engine.receive(encode_pdu(Opcode.TEXT_REQUEST, b"a=b", itt=1, ttt=NO_TAG, cmd_sn=1))
    assert pair.say({"opcode": mover.DONE, "arg0": pair.ids[-1]}) == -errno.ENOENT, "not shown"
    (slot,) = pair.ids[1:]
    window = int(target_at(pair.engine.address)[0]["max_cmd_sn"])
    assert pair.say({"opcode": mover.DONE, "arg0": slot}) == 0
    assert pair.say({"opcode": mover.DONE, "arg0": slot}) == -errno.ENOENT
    assert int(target_at(pair.engine.address)[0]["max_cmd_sn"]) == window + 1


def test_only_memory_that_a_get_still_fills_is_named():
    pair = Raw(ASKED, SMALL)
    (r2t, *_) = pair.asks(4)
    start = address_of(pair.ram)
    assert places_into(pair.engine.address, start, start + 1)
    assert places_into(pair.engine.address, start + 4 * BLOCK - 1, start + 4 * BLOCK)
    assert not places_into(pair.engine.address, start + 4 * BLOCK, start + 5 * BLOCK)
    assert not places_into(pair.engine.address, start - 1, start)
    pair.data_out(r2t, bytes(1024))
    assert not places_into(pair.engine.address, start, start + 1024)


def test_a_thin_unit_of_the_engine_marks_what_was_written():
    pair = Split(ASKED, SMALL, hot=True)
    allocation = np.zeros(pair.blocks, np.uint8)
    unit = Unit(address_of(pair.ram), BLOCK, pair.blocks, False, address_of(allocation), BLOCK)
    write_lun(address_of(pair.engine_luns), unit)
    pair.write(5, 3, pattern(3 * BLOCK))
    pair.one()
    assert allocation.nonzero()[0].tolist() == [5, 6, 7]
