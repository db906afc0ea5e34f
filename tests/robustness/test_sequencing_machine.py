"""Serial numbers as state machines, for both roles, beginning close to where they wrap: windows,
commands that come early, late, twice or never, StatSN, and the numbers of R2T and Data-Out.
"""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import RemoteProtocolError
from iscsi.wire.keys import ConnectionParams, SessionParams
from shm.jit import JIT_DISABLED
from tests.iscsi.wire.full_feature import BLOCK, Joined, pattern, pdus_of

MASK = 0xFFFFFFFF
WINDOW = 6
STARTS = st.sampled_from([1, 0, MASK, MASK - 2, MASK - 5, 0x7FFFFFFD, 0x80000000])
SETTINGS = settings(max_examples=8 if JIT_DISABLED else 100, stateful_step_count=40, deadline=None)
# One burst of a WRITE is two PDUs of one block; two may be asked for at once.
SESSION = SessionParams(
    immediate_data=False, first_burst_length=512, max_burst_length=1024, max_outstanding_r2t=2
)
CONNECTION = ConnectionParams(max_recv_data_segment_length=512)


class TargetNumbers(RuleBasedStateMachine):
    """The target, and what its numbers have to be: `exp` is the model's ExpCmdSN."""

    @initialize(cmd_sn=STARTS, stat_sn=STARTS)
    def begin(self, cmd_sn, stat_sn):
        self.pair = Joined(SESSION, CONNECTION, cmd_sn=cmd_sn, stat_sn=stat_sn, window_size=WINDOW)
        self.pair.ram[:] = pattern(self.pair.ram.size, 3)
        self.exp, self.stat_sn, self.tag = cmd_sn, stat_sn, 0
        self.max = (cmd_sn + WINDOW - 1) & MASK
        self.early = {}  # commands that wait for earlier ones: CmdSN to (tag, place)
        self.expected = []  # tags whose answers are due, in order
        self.writes = {}

    def send(self, opcode, data=b"", **fields):
        self.pair.target.receive(bhs.encode_pdu(opcode, data, **fields))
        self.take()

    def take(self):
        for header, data in pdus_of(self.pair.target.data_to_send(), CONNECTION):
            assert (header.exp_cmd_sn - self.exp) & MASK == 0, "ExpCmdSN"
            assert (header.max_cmd_sn - self.max) & MASK < WINDOW, "MaxCmdSN goes back"
            self.max = header.max_cmd_sn
            assert (self.max - self.exp + 1) & MASK <= WINDOW, "more than the window"
            if header.opcode is Opcode.R2T:
                self.on_r2t(header)
            elif header.opcode is Opcode.SCSI_RESPONSE or header.has_status:
                assert header.stat_sn == self.stat_sn, "StatSN"
                self.stat_sn = (self.stat_sn + 1) & MASK
                self.on_answer(header, data)

    def on_answer(self, header, data):
        if header.itt in self.writes:
            write = self.writes.pop(header.itt)
            assert write["done"] == write["blocks"] or write["is_wrong"]
            assert (header.status != 0) == write["is_wrong"]
            return
        tag, lba = self.expected.pop(0)
        assert (header.itt, header.status) == (tag, 0)
        assert data == self.pair.ram[lba * BLOCK : (lba + 1) * BLOCK].tobytes()

    def on_r2t(self, header):
        write = self.writes[header.itt]
        assert header.r2t_sn == write["r2t_sn"], "R2TSN"
        assert header.stat_sn == self.stat_sn, "an R2T shows the next StatSN and takes none"
        assert header.buffer_offset == write["asked"]
        write["r2t_sn"] += 1
        write["asked"] += header.desired_data_transfer_length
        write["open"].append(
            (header.ttt, header.buffer_offset, header.desired_data_transfer_length)
        )
        assert len(write["open"]) <= SESSION.max_outstanding_r2t

    @rule(offset=st.integers(-3, WINDOW + 2), lba=st.integers(0, 200))
    def read_with_the_number(self, offset, lba):
        cmd_sn = (self.exp + offset) & MASK
        self.tag += 1
        fits = offset >= 0 and (self.max - cmd_sn) & MASK < WINDOW and cmd_sn not in self.early
        if fits:
            self.early[cmd_sn] = (self.tag, lba)
            while self.exp in self.early:
                self.expected.append(self.early.pop(self.exp))
                self.exp = (self.exp + 1) & MASK
        cdb = int.from_bytes(scsi.read_10(lba, 1), "big")
        fields = {"itt": self.tag, "cmd_sn": cmd_sn, "cdb": cdb, "read": 1}
        self.send(Opcode.SCSI_COMMAND, expected_data_transfer_length=BLOCK, **fields)
        assert not self.expected, "a command whose turn it is was not served"

    @precondition(lambda self: not self.early and len(self.writes) < 3)
    @rule(blocks=st.integers(1, 9))
    def write(self, blocks):
        if (self.max - self.exp) & MASK >= WINDOW:
            return
        self.tag += 1
        self.writes[self.tag] = {
            "blocks": blocks, "done": 0, "asked": 0, "r2t_sn": 0, "open": [], "is_wrong": False,
            "data_sn": 0,
        }  # fmt: skip
        cdb = int.from_bytes(scsi.write_10(300 + self.tag % 100, blocks), "big")
        cmd_sn, self.exp = self.exp, (self.exp + 1) & MASK
        fields = {"itt": self.tag, "cmd_sn": cmd_sn, "cdb": cdb, "write": 1}
        self.send(Opcode.SCSI_COMMAND, expected_data_transfer_length=blocks * BLOCK, **fields)

    @precondition(lambda self: any(write["open"] for write in self.writes.values()))
    @rule(choice=st.integers(0, 2), is_wrong=st.booleans())
    def data_out(self, choice, is_wrong):
        tags = [tag for tag, write in self.writes.items() if write["open"]]
        tag = tags[choice % len(tags)]
        write = self.writes[tag]
        ttt, offset, length = write["open"][0]
        size = min(length, BLOCK)
        final = size == length
        is_wrong = is_wrong and choice == 2
        write["is_wrong"] = write["is_wrong"] or is_wrong
        fields = {"itt": tag, "ttt": ttt, "final": final, "buffer_offset": offset}
        fields["data_sn"] = (write["data_sn"] + is_wrong) & MASK
        write["done"] += 1
        write["data_sn"] = 0 if final else write["data_sn"] + 1
        if final:
            write["open"].pop(0)
        else:
            write["open"][0] = (ttt, offset + size, length - size)
        self.send(Opcode.DATA_OUT, bytes(size), **fields)

    @rule()
    def a_wrong_exp_stat_sn_changes_nothing(self):
        ping = {"itt": bhs.RESERVED_TAG, "ttt": bhs.RESERVED_TAG, "immediate": 1}
        self.send(Opcode.NOP_OUT, cmd_sn=self.exp, exp_stat_sn=0xDEAD, **ping)


class InitiatorNumbers(RuleBasedStateMachine):
    """The initiator, against a target by hand: `cmd_sn` is the number it must use next."""

    @initialize(cmd_sn=STARTS, stat_sn=STARTS)
    def begin(self, cmd_sn, stat_sn):
        self.pair = Joined(SESSION, CONNECTION, cmd_sn=cmd_sn, stat_sn=stat_sn, window_size=WINDOW)
        self.wire = self.pair.initiator
        self.cmd_sn, self.stat_sn = cmd_sn, stat_sn
        self.max = (cmd_sn + WINDOW - 1) & MASK
        self.exp = cmd_sn
        self.open, self.is_over = {}, False
        self.submitted = 0

    @property
    def is_window_open(self):
        return (self.max - self.cmd_sn) & MASK < 1 << 31

    @precondition(lambda self: not self.is_over and len(self.open) < 40)
    @rule()
    def submit(self):
        self.submitted += 1
        buffer = np.zeros(BLOCK, np.uint8)
        tag = self.pair.read(self.submitted % 100, 1, buffer, user_data=self.submitted)
        assert (tag is not None) == self.is_window_open
        if tag is None:
            return
        ((header, _),) = pdus_of(self.wire.data_to_send(), CONNECTION)
        assert header.cmd_sn == self.cmd_sn, "CmdSN"
        assert header.exp_stat_sn == self.stat_sn, "ExpStatSN"
        assert header.itt == tag
        self.cmd_sn = (self.cmd_sn + 1) & MASK
        self.open[tag] = self.submitted

    def numbers(self, max_cmd_sn):
        return {"exp_cmd_sn": self.cmd_sn, "max_cmd_sn": max_cmd_sn}

    @precondition(lambda self: self.open and not self.is_over)
    @rule(choice=st.integers(0, 50), grow=st.integers(-2, 3))
    def answer(self, choice, grow):
        tag = list(self.open)[choice % len(self.open)]
        number = self.open.pop(tag)
        offered = (self.max + grow) & MASK
        if grow > 0 and (offered - self.cmd_sn + 1) & MASK <= 2 * WINDOW:
            self.max = offered
        elif grow > 0:
            offered = self.max
        self.wire.receive(
            bhs.encode_pdu(
                Opcode.SCSI_RESPONSE, itt=tag, stat_sn=self.stat_sn, **self.numbers(offered)
            )
        )
        self.stat_sn = (self.stat_sn + 1) & MASK
        (done,) = self.wire.completions()
        assert (done.user_data, done.result) == (number, 0)

    @precondition(lambda self: not self.is_over)
    @rule()
    def a_ping_shows_the_number_and_takes_none(self):
        self.wire.receive(
            bhs.encode_pdu(
                Opcode.NOP_IN, itt=bhs.RESERVED_TAG, ttt=9, stat_sn=self.stat_sn,
                **self.numbers(self.max),
            )
        )  # fmt: skip
        ((header, _),) = pdus_of(self.wire.data_to_send(), CONNECTION)
        assert (header.opcode, header.ttt, header.immediate) == (Opcode.NOP_OUT, 9, 1)
        assert header.cmd_sn == self.cmd_sn

    @precondition(lambda self: self.open and not self.is_over)
    @rule(step=st.sampled_from([1, 2, MASK, 1 << 31]))
    def a_wrong_stat_sn_ends_the_connection(self, step):
        stat_sn = (self.stat_sn + step) & MASK
        pdu = bhs.encode_pdu(
            Opcode.SCSI_RESPONSE, itt=next(iter(self.open)), stat_sn=stat_sn,
            **self.numbers(self.max),
        )  # fmt: skip
        try:
            self.wire.receive(pdu)
        except RemoteProtocolError:
            self.is_over = True
        else:
            raise AssertionError("a StatSN out of order was taken")

    @precondition(lambda self: self.is_over)
    @rule()
    def then_nothing_is_taken_any_more(self):
        with pytest.raises(RemoteProtocolError):
            self.pair.read(0, 1, np.zeros(BLOCK, np.uint8))

    @invariant()
    def nothing_ends_by_itself(self):
        if hasattr(self, "wire"):
            assert not list(self.wire.completions())


TestTargetNumbers = TargetNumbers.TestCase
TestTargetNumbers.settings = SETTINGS
TestInitiatorNumbers = InitiatorNumbers.TestCase
TestInitiatorNumbers.settings = SETTINGS
