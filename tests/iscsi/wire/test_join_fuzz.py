"""Hostile bytes at both roles: never a crash, never a byte outside what a PDU may touch, and
nothing grows. A crash of compiled code ends the test run, so surviving is the first assertion.
"""

import errno

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.wire import bhs
from iscsi.wire.bhs import LAYOUTS, Opcode
from iscsi.wire.errors import RemoteProtocolError
from iscsi.wire.initiator_task import STATE_FREE, initiator_at
from iscsi.wire.initiator_task import TASK as INITIATOR_TASK
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.port import port_at
from iscsi.wire.target_task import TASK as TARGET_TASK
from iscsi.wire.target_task import target_at
from shm.view import window
from tests.iscsi.wire.full_feature import BLOCK, Joined, examples, pattern, pdus_of

FUZZ = settings(max_examples=examples(150), deadline=None)
GUARD = 64
CONNECTION = ConnectionParams(max_recv_data_segment_length=2048)
SESSION = SessionParams(
    initial_r2t=False, first_burst_length=1024, max_burst_length=2048, max_outstanding_r2t=2
)
EDGES = [0, 1, 2, 7, 511, 512, 513, 1024, 2048, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]
TO_TARGET = [Opcode(code) for code in Opcode if code < 0x20]
TO_INITIATOR = [Opcode(code) for code in Opcode if code >= 0x20]


class Attacked(Joined):
    """A pair with open reads and writes, whose every buffer has guards around it."""

    def __init__(self):
        super().__init__(SESSION, CONNECTION, window_size=8)
        self.disk_before = pattern(self.ram.size, 9)
        self.ram[:] = self.disk_before
        self.areas = []
        for index in range(4):
            area = pattern(2 * GUARD + 4 * BLOCK, index)
            self.areas.append((area, area.copy()))
            command = self.read if index % 2 else self.write
            command(100 + 10 * index, 4, area[GUARD:-GUARD], user_data=index)
        self.tags = [header.itt for header, _ in pdus_of(self.first_batch())]

    def first_batch(self):
        data = self.initiator.data_to_send()
        self.target.receive(data)
        return data

    def check(self):
        """Nothing outside the buffers changed, and every task and slot is accounted for."""
        for index, (area, before) in enumerate(self.areas):
            assert np.array_equal(area[:GUARD], before[:GUARD])
            assert np.array_equal(area[-GUARD:], before[-GUARD:])
            if index % 2 == 0:
                assert np.array_equal(area, before), "the buffer of a write was written to"
        initiator = initiator_at(self.initiator.address)[0]
        tasks = window(int(initiator["tasks"]), int(initiator["task_count"]), INITIATOR_TASK)
        free = int((tasks["state"] == STATE_FREE).sum())
        assert free == initiator["task_pool"]["free_count"]
        target = target_at(self.target.address)[0]
        tasks = window(int(target["tasks"]), int(target["task_count"]), TARGET_TASK)
        assert int((tasks["state"] == 0).sum()) == target["task_pool"]["free_count"]
        for address in (self.initiator.address, self.target.address):
            port = port_at(address)[0]
            for queue in ("ready", "events"):
                length = int(port[queue]["tail"] - port[queue]["head"])
                assert 0 <= length <= port[queue]["capacity"]

    def attack(self, end, stream):
        try:
            end.receive(stream)
        except RemoteProtocolError:
            return False
        return True


def header_fields(opcode, tags, draw):
    fields = {}
    for name, field in LAYOUTS[opcode].items():
        if name in ("data_segment_length", "total_ahs_words"):
            continue
        values = st.sampled_from([edge for edge in EDGES if edge < 1 << field.bits] or [0, 1])
        if name == "itt":
            values = st.sampled_from([*tags, 0xFFFFFFFF, 0])
        elif name in ("stat_sn", "exp_stat_sn", "cmd_sn"):
            values = st.integers(0, 12)
        elif name == "ttt":
            values = st.sampled_from([0xFFFFFFFF, 0, 1, 2, 3, 1 << 16])
        elif name == "lun":
            values = st.sampled_from([0, 0, 0, 1 << 48])
        elif field.bits >= 128:
            values = st.integers(0, (1 << field.bits) - 1)
        fields[name] = draw(values)
    return fields


@st.composite
def plausible_pdus(draw, opcodes, tags):
    """PDUs of the right types with fields at their edges, so that they get past the first check."""
    stream = b""
    for _ in range(draw(st.integers(1, 8))):
        opcode = draw(st.sampled_from(opcodes))
        data = bytes(draw(st.sampled_from([0, 0, 1, 3, 512, 1024, 2048, 2049])))
        fields = header_fields(opcode, tags, draw)
        stream += bhs.encode_pdu(opcode, data, **fields)
    return stream


@FUZZ
@given(st.binary(max_size=600), st.booleans())
def test_random_bytes_touch_nothing(data, at_target):
    pair = Attacked()
    pair.attack(pair.target if at_target else pair.initiator, data)
    pair.check()


@FUZZ
@given(st.data(), st.booleans())
def test_plausible_pdus_in_any_order_touch_only_what_they_name(data, at_target):
    pair = Attacked()
    end = pair.target if at_target else pair.initiator
    for _ in range(4):
        opcodes = TO_TARGET if at_target else TO_INITIATOR
        alive = pair.attack(end, data.draw(plausible_pdus(opcodes, pair.tags)))
        pdus_of(end.data_to_send())  # whatever it answers can be read
        if not alive:
            break
        list(end.controls())
        if at_target:
            for cold in end.cold_commands():
                end.respond(cold.task_id, data=b"answer"[: cold.expected_length])
        pair.check()
    pair.check()
    pair.initiator.fail_all(-errno.ECONNRESET)
    assert sorted(done.user_data for done in pair.initiator.completions()) == [0, 1, 2, 3]


@FUZZ
@given(st.data())
def test_a_damaged_conversation_ends_or_goes_on_and_never_hangs(data):
    pair = Attacked()
    alive = True
    for _ in range(60):
        moved = False
        for sender, receiver in ((pair.initiator, pair.target), (pair.target, pair.initiator)):
            stream = bytearray(sender.data_to_send())
            moved = moved or bool(stream)
            if stream and data.draw(st.integers(0, 3)) == 0:
                position = data.draw(st.integers(0, len(stream) - 1))
                stream[position] ^= 1 << data.draw(st.integers(0, 7))
            alive = alive and pair.attack(receiver, bytes(stream))
        if not moved or not alive:
            break
    else:
        raise AssertionError("the two ends never fall silent")
    pair.check()


@FUZZ
@given(st.binary(min_size=48, max_size=48), st.integers(1, 20))
def test_one_header_again_and_again_stays_within_bounds(header, times):
    for at_target in (True, False):
        pair = Attacked()
        end = pair.target if at_target else pair.initiator
        for _ in range(times):
            if not pair.attack(end, header):
                break
        pair.check()
