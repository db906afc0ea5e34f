"""Fuzzing the initiator without sockets: a target that answers open commands, and then anything.
One rule: a byte outside the buffer of a READ is never written, and every command ends once.
"""

import errno
import random

import numpy as np

from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import RemoteProtocolError
from iscsi.wire.initiator import InitiatorConnection, InitiatorLimits
from iscsi.wire.keys import ConnectionParams
from iscsi.wire.login import LoginResult
from iscsi.wire.port import PortLimits
from iscsi.wire.sense import decode_sense
from shm.view import address_of
from tests.robustness import fuzz_pdus
from tests.robustness.links import PrivateMemory
from tests.robustness.simulator import draw_proposal

GUARD = 256
BLOCK = 512
PDUS = 40
LIMITS = InitiatorLimits(task_count=16, port=PortLimits(16, 16, 2048))
TURNS_MAX = 2000
FLAGS = (bhs.FLAG_READ, bhs.FLAG_WRITE, 0)


class InitiatorFuzz:
    """The initiator under attack, with some commands open."""

    name = "initiator"

    def __init__(self, seed):
        self.memory = PrivateMemory()
        self.pdus = 0

    def begin(self, case_seed):
        """A connection just after its login."""
        self.draw = draw = random.Random(case_seed)
        digests = draw.random() < 0.3
        session = draw_proposal(draw).session
        params = ConnectionParams(header_digest=digests, data_digest=digests)
        cmd_sn, stat_sn = draw.choice((1, 0xFFFFFFFE)), draw.choice((1, 0xFFFFFFF8))
        login = LoginResult(
            session=session,
            connection=params,
            initiator_name="iqn.2026-01.org.example:i",
            target_name="iqn.2026-01.org.example:t",
            isid=1,
            tsih=1,
            cid=0,
            cmd_sn=cmd_sn,
            max_cmd_sn=(cmd_sn + 15) & 0xFFFFFFFF,
            stat_sn=stat_sn,
        )
        self.digests, self.stat_sn, self.cmd_sn = (digests, digests), stat_sn, cmd_sn
        self.block = self.memory.alloc(InitiatorConnection.size(login, LIMITS))
        self.wire = InitiatorConnection(self.block.address, login, LIMITS)
        self.areas, self.tags, self.ended, self.alive = [], [], [], True
        self.progress, self.numbers, self.open = {}, {}, set()
        self.calm = draw.choice((0.5, 0.9, 0.98))
        for number in range(6):
            self._ask(number)
        self._drain()

    def _ask(self, number):
        size, flags = self.draw.choice((1, 512, 2048, 20_000)), FLAGS[number % 3]
        area = np.frombuffer(bytearray(self.draw.randbytes(2 * GUARD + size)), np.uint8)
        cdb = (scsi.read_10 if flags == bhs.FLAG_READ else scsi.write_10)(0, -(-size // BLOCK))
        length = size if flags else 0
        tag = self.wire.submit(0, cdb, flags, length, address_of(area) + GUARD, number)
        assert tag is not None, "there is a place for it"
        self.areas.append((area, area.copy(), flags))
        self.tags.append((tag, length, flags))
        self.open.add(tag)

    def _drain(self):
        """All that it wants to send."""
        for _ in range(TURNS_MAX):
            if not self.wire.data_to_send():
                return
        raise AssertionError("the initiator never falls silent")

    # --- the attack ------------------------------------------------------------------------

    def messages(self):
        """Answers, right or wrong."""
        for _ in range(self.draw.randrange(1, PDUS)):
            if not self.alive:
                return
            yield self._pdu()

    def _pdu(self):
        rng, odd = self.draw, self.draw.random() > self.calm
        if odd:
            opcodes = fuzz_pdus.TO_INITIATOR
        else:
            opcodes = [Opcode.DATA_IN, Opcode.R2T, Opcode.SCSI_RESPONSE, Opcode.NOP_IN]
        opcode = rng.choice(opcodes)
        wanted = {Opcode.DATA_IN: bhs.FLAG_READ, Opcode.R2T: bhs.FLAG_WRITE}.get(opcode)
        fits = [each for each in self.tags if each[2] == wanted and each[0] in self.open]
        tag, length, _ = rng.choice(fits or self.tags)
        at = self.progress.get(tag, 0)
        data = b""
        if opcode is Opcode.DATA_IN:
            data = rng.randbytes(min(max(length - at, 0), rng.choice((1, 512, 4096))))
        elif opcode is Opcode.SCSI_RESPONSE and rng.random() < 0.5:
            sense = rng.randbytes(rng.choice((0, 1, 7, 8, 18, 252, 253)))
            claim = rng.choice((0, 1, 255, 65535)) if odd else min(len(sense), 252)
            data = claim.to_bytes(2, "big") + sense
        if odd and rng.random() < 0.5:
            data = None
        known = self._odd(length, at) if odd else {}
        known = self._right(tag, at, length, opcode) | known
        return fuzz_pdus.pdu(rng, [opcode], known, self.digests, data=data, calm=self.calm)

    def _right(self, tag, at, length, opcode):
        """What the initiator checks, as it has to be."""
        left = length - at
        itt = bhs.RESERVED_TAG if opcode is Opcode.NOP_IN else tag
        return {
            "itt": lambda rng: itt,
            "stat_sn": lambda rng: self.stat_sn,
            "exp_cmd_sn": lambda rng: self.cmd_sn + 6,
            "max_cmd_sn": lambda rng: self.cmd_sn + 20,
            "data_sn": lambda rng: self.numbers.get(tag, 0),
            "r2t_sn": lambda rng: self.numbers.get(tag, 0),
            "buffer_offset": lambda rng: at,
            "desired_data_transfer_length": lambda rng: max(0, min(left, 512)),
            "status": lambda rng: rng.choice((0, 2, 8, 0x18, 0x28)),
            "response": lambda rng: 0,
            "has_status": lambda rng: 0,
            "final": lambda rng: 1,
            "ttt": lambda rng: 5,
            "async_event": lambda rng: rng.choice((0, 1, 2, 3, 4, 5, 255)),
        }

    def _odd(self, length, at):
        """One of them otherwise."""
        (name,) = self.draw.choices(
            ("itt", "stat_sn", "data_sn", "r2t_sn", "buffer_offset", "has_status", "final", "ttt",
             "desired_data_transfer_length", "response", "max_cmd_sn")
        )  # fmt: skip
        values = (0, 1, 2, 5, length, length + 1, length - 1, at + 1, 0xFFFFFFFF, 0x7FFFFFFF)
        return {name: lambda rng: rng.choice(values)}

    def _follow(self, message):
        """What the initiator now expects, if it took the message."""
        opcode, tag = message[0] & 0x3F, int.from_bytes(message[16:20], "big")
        length = int.from_bytes(message[5:8], "big")
        if opcode == Opcode.DATA_IN:
            self.progress[tag] = self.progress.get(tag, 0) + length
            self.numbers[tag] = self.numbers.get(tag, 0) + 1
        elif opcode == Opcode.R2T:
            asked = int.from_bytes(message[44:48], "big")
            self.progress[tag] = self.progress.get(tag, 0) + asked
            self.numbers[tag] = self.numbers.get(tag, 0) + 1
        counted = (Opcode.SCSI_RESPONSE, Opcode.TEXT_RESPONSE, Opcode.LOGOUT_RESPONSE)
        counted += (Opcode.TASK_MANAGEMENT_RESPONSE, Opcode.ASYNC_MESSAGE, Opcode.REJECT)
        if opcode in counted or (opcode == Opcode.DATA_IN and message[1] & 1):
            self.stat_sn = (int.from_bytes(message[24:28], "big") + 1) & 0xFFFFFFFF

    def feed(self, message):
        """Have the initiator take one message."""
        self.pdus += 1
        try:
            self.wire.receive(message)
        except RemoteProtocolError:
            self.alive = False
        if self.alive:
            self._drain()
        for done in self.wire.completions():
            assert 0 <= done.received <= 20_000
            decode_sense(done.sense)
            self.ended.append(done.user_data)
            self.open.discard(done.itt)
        for pdu in self.wire.controls():
            assert len(pdu.data) <= 2048
        if self.alive and len(message) >= bhs.BHS_LENGTH:
            self._follow(message)

    def end(self):
        """The connection is over: all commands have ended once, and nothing else was touched."""
        self.wire.fail_all(-errno.ECONNRESET)
        self.ended += [done.user_data for done in self.wire.completions()]
        numbers = sorted(number for number in self.ended if number or self.tags)
        assert numbers == list(range(len(self.tags))), numbers
        for area, before, flags in self.areas:
            inside = slice(GUARD, -GUARD)
            assert np.array_equal(area[:GUARD], before[:GUARD]), "before a buffer"
            assert np.array_equal(area[-GUARD:], before[-GUARD:]), "behind a buffer"
            if flags != bhs.FLAG_READ:
                assert np.array_equal(area[inside], before[inside]), "the buffer of a write"
        self.block.free()
        assert self.memory.out == 0
