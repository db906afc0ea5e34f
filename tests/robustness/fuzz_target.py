"""Fuzzing the target without sockets: one initiator sends nonsense, another does verified input and
output on a unit of its own. One rule: whatever came, the memory that went out comes back.
"""

import random

import numpy as np

from host.memory import Buffer
from iscsi.target.backends import RamBackend
from iscsi.target.scsi import dispatch
from iscsi.target.units import LogicalUnit, Target
from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.keys import Proposal
from iscsi.wire.login import InitiatorLogin
from tests.robustness import fuzz_pdus
from tests.robustness import sim_operations as operations
from tests.robustness.links import Link, PrivateMemory
from tests.robustness.medium_model import BLOCK, Medium
from tests.robustness.sim_initiator import SimInitiator
from tests.robustness.sim_target import SimTarget
from tests.robustness.simulator import NAME, draw_proposal

BLOCKS = 256
GUARD = 4096
TURNS_MAX = 20_000
PDUS = 40
SANITIZE = 0x48  # starts a thread, and has tests of its own
RESETS = (6, 7)  # of the whole target: they would end what the neighbour asks for
FRESH = 50  # cases until the units are replaced
LIKELY = [Opcode.SCSI_COMMAND, Opcode.SCSI_COMMAND, Opcode.SCSI_COMMAND, Opcode.DATA_OUT]
LIKELY += [Opcode.NOP_OUT, Opcode.TEXT_REQUEST, Opcode.TASK_MANAGEMENT_REQUEST]
OPERATIONS = sorted({code for code, _ in dispatch.ROWS} - {SANITIZE})


class Guarded:
    """A unit in memory with guards on both sides."""

    def __init__(self, rng, **options):
        self.area = np.frombuffer(bytearray(rng.randbytes(2 * GUARD + BLOCKS * BLOCK)), np.uint8)
        self.disk = self.area[GUARD:-GUARD]
        self.before = self.area.copy()
        self.unit = LogicalUnit(
            RamBackend(Buffer(self.disk, None), thin=not options.get("read_only")), **options
        )

    def check(self):
        """Nothing around it was touched, and nothing on it if it is read-only."""
        guarded = (slice(GUARD), slice(-GUARD, None))
        if self.unit.read_only:
            guarded = (slice(None),)
        for part in guarded:
            assert np.array_equal(self.area[part], self.before[part]), "memory of nobody's business"


class Attacker:
    """What he sends, whoever carries it. `draw` and `is_open` are the carrier's."""

    def start(self, cmd_sn, params):
        """He is logged in."""
        self.digests = params.header_digest, params.data_digest
        self.cmd_sn, self.itt, self.ttts = cmd_sn, 1, [bhs.RESERVED_TAG]
        self.calm = self.draw.choice((0.5, 0.9, 0.99))

    def messages(self):
        """The attacker's PDUs, made as his session goes on."""
        for _ in range(self.draw.randrange(1, PDUS)):
            if not self.is_open:
                return
            yield self._harmless(self._pdu())

    def _known(self):
        self.cmd_sn = (self.cmd_sn + 1) & 0xFFFFFFFF
        before = (self.cmd_sn - 1) & 0xFFFFFFFF
        self.itt += 1
        return {
            "cmd_sn": lambda rng: before + rng.choice((0, 0, 0, 0, 1, -1, 7, 8)),
            "ref_cmd_sn": lambda rng: before - rng.randrange(4),
            "itt": lambda rng: rng.choice((self.itt, self.itt, self.itt, self.itt - 1, 2)),
            "referenced_task_tag": lambda rng: self.itt - rng.randrange(4),
            "ttt": lambda rng: rng.choice(self.ttts[-4:]),
            "lun": lambda rng: rng.choice((1, 1, 1, 2, 3, 4)) << 48,
            "cdb": lambda rng: int.from_bytes(cdb_of(rng), "big"),
            "final": lambda rng: rng.random() < 0.8,
            "read": lambda rng: rng.random() < 0.5,
            "write": lambda rng: rng.random() < 0.5,
            "expected_data_transfer_length": lambda rng: rng.choice(fuzz_pdus.LENGTHS),
            "buffer_offset": lambda rng: rng.choice((0, 0, 512, 1024, 4096)),
            "data_sn": lambda rng: rng.choice((0, 0, 0, 1, 2)),
            "immediate": lambda rng: rng.random() < 0.2,
            "continued": lambda rng: rng.random() < 0.2,
            "function": lambda rng: rng.randrange(1, 6),
            "logout_reason": lambda rng: rng.choice((2, 3, 1)),
        }

    def _pdu(self):
        opcodes = fuzz_pdus.TO_TARGET
        if self.draw.random() < 0.8:
            opcodes = LIKELY
        if self.draw.random() > self.calm and self.draw.random() < 0.5:
            opcodes = list(Opcode)
        return fuzz_pdus.pdu(self.draw, opcodes, self._known(), self.digests, calm=self.calm)

    def _harmless(self, stream):
        """Not at the neighbour's unit, no reset of all, and nothing that starts a thread."""
        stream = bytearray(stream)
        opcode = stream[0] & 0x3F
        if opcode in (Opcode.SCSI_COMMAND, Opcode.TASK_MANAGEMENT_REQUEST):
            if scsi.decode_lun(int.from_bytes(stream[8:16], "big")) == 0:
                stream[8:16] = (1 << 48).to_bytes(8, "big")
            if opcode == Opcode.SCSI_COMMAND and stream[32] == SANITIZE:
                stream[32] = 0
            elif opcode == Opcode.TASK_MANAGEMENT_REQUEST and stream[1] & 0x7F in RESETS:
                stream[1] ^= 0x08
        return bytes(stream)

    def _read(self, stream):
        """Every PDU it sends can be read; R2Ts give tags to go on with."""
        at = 0
        while at < len(stream):
            header = bhs.decode(stream[at : at + 48])
            length = bhs.data_segment_length(stream[at : at + 48])
            at += 48 + 4 * self.digests[0] + bhs.padded(length)
            at += 4 if length and self.digests[1] else 0
            assert at <= len(stream), "a PDU of the target is cut off"
            if header.opcode in (Opcode.R2T, Opcode.TEXT_RESPONSE, Opcode.NOP_IN):
                self.ttts.append(header.ttt)
            if header.opcode in (Opcode.SCSI_RESPONSE, Opcode.R2T, Opcode.DATA_IN):
                self.cmd_sn = header.exp_cmd_sn


class TargetFuzz(Attacker):
    """The target under attack at LUNs 1 to 3; its neighbour has LUN 0."""

    name = "target"

    def __init__(self, seed):
        rng = random.Random(f"target {seed}")
        self.memory = PrivateMemory()
        self.disks = [Guarded(rng) for _ in range(2)]
        self.disks += [Guarded(rng, read_only=True), Guarded(rng, block_size=4096, removable=True)]
        units = {lun: each.unit for lun, each in enumerate(self.disks)}
        self.medium = Medium(self.disks[0].disk)
        server = draw_proposal(rng)
        digests = ("None", "CRC32C")
        self.server = SimTarget(
            Target(NAME, units),
            self.memory,
            proposal=Proposal(server.session, 8192, digests, digests),
            window=8,
        )
        self.rng = rng
        self.neighbour = SimInitiator(
            "iqn.2026-01.org.example:n", NAME, 7, self.memory, proposal=Proposal(), cmd_sn=1
        )
        self.server.accept(self.neighbour.connect(0), 0)
        self.asked = self.cases = self.pdus = 0
        self.neighbourly()
        self.held = self.memory.out

    # --- the neighbour ---------------------------------------------------------------------

    def neighbourly(self):
        """The neighbour writes, reads and compares, and all is well."""
        for _ in range(3):
            self.asked += 1
            blocks = self.rng.randrange(1, 20)
            lba = self.rng.randrange(BLOCKS - blocks - 1)
            (kind,) = self.rng.choices(operations.KINDS, operations.WEIGHTS)
            self.neighbour.add(kind(self.rng, self.asked, self.medium, lba, blocks))
        for _ in range(TURNS_MAX):
            if self.neighbour.is_idle:
                break
            self.neighbour.submit(0)
            self.neighbour.send(1 << 20)
            self.turn()
            link = self.neighbour.link
            assert link.far_open, "the neighbour's connection is gone"
            self.neighbour.receive(link.take(link.down, 1 << 20), 0)
            assert not self.neighbour.reap()
        assert self.neighbour.is_idle, "the neighbour waits in vain"

    def turn(self):
        """Everything the server has to do now. Whether anything moved."""
        moved = 0
        while self.server.jobs:
            self.server.work()
        for session in list(self.server.sessions):
            data = session.link.take(session.link.up, 1 << 20)
            if data:
                self.server.receive(session, data)
            self.server.attend(session, 1)
            if session in self.server.sessions:
                moved += self.server.send(session, 1 << 20)
            moved += len(data)
        return moved

    # --- the attack ------------------------------------------------------------------------

    def begin(self, case_seed):
        """Log the attacker in; what he draws is the case's."""
        self.draw = random.Random(case_seed)
        self.link = Link()
        self.server.accept(self.link, 0)
        proposal = draw_proposal(self.draw)
        cmd_sn = self.draw.choice((1, 0xFFFFFFFE, self.draw.getrandbits(32)))
        login = InitiatorLogin(
            "iqn.2026-01.org.example:a", NAME, isid=9, proposal=proposal, cmd_sn=cmd_sn
        )
        login.start()
        while not login.done:
            self.link.up += login.data_to_send()
            self.turn()
            header = self.link.take(self.link.down, bhs.BHS_LENGTH)
            login.receive_pdu(header, self.link.take(self.link.down, login.segment_length(header)))
        self.start(cmd_sn, login.result.connection)

    @property
    def is_open(self):
        """Whether he can still send."""
        return self.link.far_open

    def feed(self, message):
        """Have the target take one message, and look at what it says to it."""
        self.pdus += 1
        self.link.up += message
        for _ in range(TURNS_MAX):
            if not self.turn():
                break
        else:
            raise AssertionError("the target never falls silent")
        self._read(self.link.take(self.link.down, 1 << 24))

    def end(self):
        """The attacker hangs up: everything is as before."""
        self.link.cut()
        for session in [each for each in self.server.sessions if each.link is self.link]:
            self.server.close(session)
        self.cases += 1
        for disk in self.disks:
            disk.check()
        if self.cases % 10 == 0:
            self.neighbourly()
            self.medium.check_all(self.disks[0].disk)
        if self.cases % FRESH == 0:
            for disk in self.disks[1:]:
                disk.unit.reset()
                disk.unit.load()
        assert self.server.buffers.taken == 0, "a data buffer is not given back"
        assert self.memory.out == self.held, "memory is not given back"


def cdb_of(rng):
    """A CDB: of a served command with a low address, or any."""
    if rng.random() < 0.1:
        return rng.randbytes(16)
    code = rng.choice(OPERATIONS)
    if rng.random() < 0.5:
        code = rng.choice((0x28, 0x2A, 0x88, 0x8A, 0x12, 0xA0))
    cdb = bytearray(16)
    cdb[0] = code
    if rng.random() < 0.5:
        cdb[1:] = rng.randbytes(15)
    else:
        cdb[1] = rng.choice((0, 0, 0, 1, 2, 0x10, 0x12, rng.getrandbits(8)))
        for at in (5, 7, 8, 9, 13):
            cdb[at] = rng.choice((0, 0, 1, 4, 8, rng.getrandbits(8)))
    return bytes(cdb)
