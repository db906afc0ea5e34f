"""A session that does wrong things, and the table of them: what each one is, and its outcome.
The tests that go through it are in test_negative.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest

from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import AhsType, Opcode, TaskFunction
from iscsi.wire.errors import RejectReason
from iscsi.wire.keys import Proposal, SessionParams
from iscsi.wire.sense import Asc, decode_sense, split_sense
from tests.iscsi.target.serving import BLOCK, Raw

NO_TAG = bhs.RESERVED_TAG
READ_0 = scsi.read_10(0, 1)
WRITE_AT = 4096  # blocks nobody else looks at
ANSWER_S = 10
# What an initiator may send unasked, and in one burst, is small here so that a test need not be.
SESSION = SessionParams(
    initial_r2t=False, first_burst_length=2048, max_burst_length=2048, max_outstanding_r2t=2
)
SOLICITED = SessionParams(
    initial_r2t=True, immediate_data=False, first_burst_length=2048, max_burst_length=2048
)


class Wrong(Raw):
    """A session that does wrong things. Its numbers are always the next ones."""

    def __init__(self, serving, session=SESSION, **options):
        super().__init__(serving.port, timeout=ANSWER_S)
        self.serving = serving
        options.setdefault("proposal", Proposal(session))
        self.log_in(isid=0x4000_0000_0009, **options)
        self.clear_attention()

    def pdu(self, opcode=Opcode.SCSI_COMMAND, data=b"", segments=b"", **fields):
        """Send one PDU as it is told; one that is told no CmdSN takes the next."""
        has_number = opcode not in (Opcode.DATA_OUT, Opcode.SNACK_REQUEST)
        if has_number and "cmd_sn" not in fields:
            fields["cmd_sn"] = self.cmd_sn
            self.cmd_sn += not fields.get("immediate")
        fields = {"itt": 0x100 + self.itt, **fields}
        self.itt += 1
        header = bhs.encode(
            opcode,
            data_segment_length=len(data),
            total_ahs_words=len(segments) // 4,
            **fields,
        )
        self.socket.sendall(bytes(header) + segments + data + bytes(-len(data) % 4))
        return fields["itt"]

    def scsi(self, cdb=READ_0, data=b"", length=0, **fields):
        return self.pdu(
            data=data,
            cdb=int.from_bytes(cdb, "big"),
            expected_data_transfer_length=length,
            **fields,
        )

    def begin_write(self, length=2048, data=b"", **fields):
        cdb = scsi.write_10(WRITE_AT, length // BLOCK)
        return self.scsi(cdb, data, length, write=1, **fields)

    def asked_write(self, length=2048):
        """A write that the target has asked data for; the fields its Data-Out has."""
        itt = self.begin_write(length)
        r2t, _ = self.take()
        assert r2t.opcode is Opcode.R2T, r2t
        return {"itt": itt, "ttt": r2t.ttt}

    def data_out(self, length, **fields):
        self.pdu(Opcode.DATA_OUT, bytes(length), **fields)

    # --- outcomes ---

    def is_rejected(self, reason):
        header, data = self.take()
        assert (header.opcode, header.reject_reason) == (Opcode.REJECT, reason), header
        assert len(data) == bhs.BHS_LENGTH
        return data

    def fails(self, code):
        header, data = self.take()
        assert (header.opcode, header.status) == (Opcode.SCSI_RESPONSE, 2), header
        assert decode_sense(split_sense(data)).code == code

    def works(self):
        """What was sent before had its outcome: the next answer is that of this ping, then data."""
        self.pdu(Opcode.NOP_OUT, b"still there", itt=0x77)
        header, data = self.take()
        assert (header.opcode, header.itt, data) == (Opcode.NOP_IN, 0x77, b"still there"), header
        assert self.read(0, 1) == self.serving.disk.array[:BLOCK].tobytes()


@dataclass(frozen=True)
class Outcome:
    """What a wrong thing leads to; the session goes on but after CLOSE."""

    kind: str
    code: int = 0

    def check(self, wrong):
        if self.kind == "reject":
            wrong.is_rejected(self.code)
        elif self.kind == "check condition":
            wrong.fails(self.code)
        elif self.kind == "close":
            assert wrong.is_closed()
            return
        wrong.works()


def rejects(reason):
    return Outcome("reject", reason)


def fails(code):
    return Outcome("check condition", code)


IGNORED = Outcome("ignore")
CLOSED = Outcome("close")
FIELD = rejects(RejectReason.INVALID_PDU_FIELD)
PROTOCOL = rejects(RejectReason.PROTOCOL_ERROR)
UNSUPPORTED = rejects(RejectReason.COMMAND_NOT_SUPPORTED)
UNEXPECTED = fails(Asc.UNEXPECTED_UNSOLICITED_DATA)
AMOUNT = fails(Asc.INCORRECT_AMOUNT_OF_DATA)
CRC = fails(Asc.PROTOCOL_SERVICE_CRC_ERROR)
OFFSET = fails(0x4B05)


@dataclass(frozen=True)
class Case:
    """One wrong thing: `what` does it to a fresh session."""

    what: Any
    outcome: Outcome
    session: SessionParams = field(default=SESSION)


def segment(kind, body, length=None):
    whole = (len(body) if length is None else length).to_bytes(2, "big") + bytes((kind,)) + body
    return whole + bytes(-len(whole) % 4)


def long_cdb(more):
    return segment(AhsType.EXTENDED_CDB, b"\0" + more)


def raw_header(opcode, **changes):
    def send(wrong):
        header = bytearray(bhs.BHS_LENGTH)
        header[0], header[1] = opcode, 0x80
        header[16:20] = (0x123).to_bytes(4, "big")
        header[24:28] = wrong.cmd_sn.to_bytes(4, "big")
        for at, value in changes.values():
            header[at] = value
        wrong.socket.sendall(header)

    return send


def duplicate_tag(wrong):
    itt = wrong.begin_write(2048)
    wrong.take()
    wrong.scsi(length=BLOCK, read=1, itt=itt)


def twice(wrong):
    wrong.scsi(length=BLOCK, read=1)
    assert wrong.data_in()
    wrong.scsi(length=BLOCK, read=1, cmd_sn=wrong.cmd_sn - 1)


def text(data, **fields):
    return lambda wrong: wrong.pdu(Opcode.TEXT_REQUEST, data, **fields)


def concurrent_text(wrong):
    wrong.pdu(Opcode.TEXT_REQUEST, b"X-a", itt=1, final=0, continued=1)
    assert wrong.take()[0].ttt != NO_TAG
    wrong.pdu(Opcode.TEXT_REQUEST, b"X-a=b\0", itt=2)


def pdu(*words, **fields):
    return lambda wrong: wrong.pdu(*words, **fields)


def command(*words, **fields):
    return lambda wrong: wrong.scsi(*words, **fields)


def unsolicited(length, **fields):
    def send(wrong):
        itt = wrong.begin_write(4096, bytes(512), final=0)
        wrong.data_out(length, **{"itt": itt, "buffer_offset": 512, **fields})

    return send


def asked(length, **fields):
    return lambda wrong: wrong.data_out(length, **{**wrong.asked_write(), **fields})


def overlap(wrong):
    names = wrong.asked_write()
    wrong.data_out(1024, final=0, **names)
    wrong.data_out(1536, buffer_offset=512, data_sn=1, **names)


def hole(wrong):
    names = wrong.asked_write()
    wrong.data_out(512, final=0, **names)
    wrong.data_out(1024, buffer_offset=1024, data_sn=1, **names)


def lost_data_out(wrong):
    names = wrong.asked_write()
    wrong.data_out(512, final=0, **names)
    wrong.data_out(1024, buffer_offset=512, data_sn=2, **names)


def sent_twice(wrong):
    names = wrong.asked_write()
    for _ in range(2):
        wrong.data_out(1024, final=0, **names)
    wrong.data_out(1024, buffer_offset=1024, data_sn=1, **names)


def after_its_end(wrong):
    names = wrong.asked_write()
    wrong.data_out(2048, **names)
    assert wrong.take()[0].status == 0
    wrong.data_out(2048, **names)


COMMANDS = {
    "no direction but a length": Case(command(length=BLOCK), FIELD),
    "both directions": Case(command(length=BLOCK, read=1, write=1), UNSUPPORTED),
    "the reserved tag": Case(command(length=BLOCK, read=1, itt=NO_TAG), FIELD),
    "a tag in use": Case(duplicate_tag, rejects(RejectReason.TASK_IN_PROGRESS), SOLICITED),
    "a read that announces data": Case(command(length=BLOCK, read=1, final=0), FIELD),
    "a reserved attribute": Case(command(length=BLOCK, read=1, attribute=6), FIELD),
    "ACA without an ACA condition": Case(command(length=BLOCK, read=1, attribute=4), fails(0x0E03)),
    "an unknown operation": Case(command(b"\xff" + bytes(15)), fails(Asc.INVALID_OPERATION_CODE)),
    "a unit there is none of": Case(
        command(length=BLOCK, read=1, lun=7 << 48), fails(Asc.LUN_NOT_SUPPORTED)
    ),
    "a LUN field of no known form": Case(
        command(length=BLOCK, read=1, lun=0xFFFF << 48), fails(Asc.LUN_NOT_SUPPORTED)
    ),
    "a read past the end": Case(
        command(scsi.read_16(2**63, 1), length=BLOCK, read=1), fails(Asc.LBA_OUT_OF_RANGE)
    ),
    "data with a read": Case(command(READ_0, bytes(4), BLOCK, read=1), UNEXPECTED),
    "data with a command of no direction": Case(command(READ_0, bytes(4)), UNEXPECTED),
    "immediate data not agreed on": Case(
        lambda wrong: wrong.begin_write(BLOCK, bytes(BLOCK)), UNEXPECTED, SOLICITED
    ),
    "immediate data beyond the first burst": Case(
        lambda wrong: wrong.begin_write(4096, bytes(2052)), AMOUNT
    ),
    "immediate data beyond the length": Case(
        lambda wrong: wrong.begin_write(BLOCK, bytes(BLOCK + 4)), AMOUNT
    ),
    "data announced against the agreement": Case(
        lambda wrong: wrong.begin_write(2048, final=0), UNEXPECTED, SOLICITED
    ),
}
NUMBERS = {
    "one before the window": Case(twice, IGNORED),
    "the first behind the window": Case(
        lambda wrong: wrong.scsi(length=BLOCK, read=1, cmd_sn=wrong.cmd_sn + 8), IGNORED
    ),
    "half the circle away": Case(
        lambda wrong: wrong.scsi(length=BLOCK, read=1, cmd_sn=wrong.cmd_sn ^ 1 << 31), IGNORED
    ),
    "a ping outside the window": Case(
        lambda wrong: wrong.pdu(Opcode.NOP_OUT, b"x", cmd_sn=wrong.cmd_sn + 100), IGNORED
    ),
    "a write with its data outside the window": Case(
        lambda wrong: wrong.begin_write(BLOCK, b"w" * BLOCK, cmd_sn=wrong.cmd_sn + 100), IGNORED
    ),
}
SEGMENTS = {
    "255 words of nothing": Case(command(length=BLOCK, read=1, segments=bytes(1020)), FIELD),
    "a length beyond the total": Case(command(segments=segment(1, bytes(5), 600)), FIELD),
    "an unknown type": Case(command(segments=segment(9, bytes(5))), FIELD),
    "a CDB of 261 bytes": Case(command(segments=long_cdb(bytes(245))), FIELD),
    "a bidirectional read length": Case(
        command(segments=segment(AhsType.BIDI_READ_LENGTH, bytes(5))), UNSUPPORTED
    ),
    "a long CDB of an unknown command": Case(
        command(b"\x7f" + bytes(15), segments=long_cdb(bytes(16))),
        fails(Asc.INVALID_OPERATION_CODE),
    ),
    "behind a ping": Case(pdu(Opcode.NOP_OUT, segments=long_cdb(bytes(4))), FIELD),
    "behind a Data-Out": Case(pdu(Opcode.DATA_OUT, segments=long_cdb(bytes(4))), CLOSED),
}
DATA = {
    "an unknown tag": Case(asked(2048, itt=0x9999), rejects(RejectReason.INVALID_PDU_FIELD)),
    "an unknown tag, unasked": Case(pdu(Opcode.DATA_OUT, bytes(512), itt=0x9999), IGNORED),
    "an unknown target tag": Case(asked(512, ttt=0x4321), FIELD),
    "beyond what was asked for": Case(asked(2052), AMOUNT),
    "far beyond the length": Case(asked(2048, buffer_offset=2**32 - 512), OFFSET),
    "before what was asked for": Case(
        lambda wrong: wrong.data_out(2048, buffer_offset=512, **wrong.asked_write(4096)), OFFSET
    ),
    "an overlap": Case(overlap, OFFSET),
    "a hole": Case(hole, OFFSET),
    "a DataSN that is not the first": Case(asked(2048, data_sn=1), CRC),
    "a DataSN left out": Case(lost_data_out, CRC),
    "one PDU twice": Case(sent_twice, CRC),
    "no F bit at the end": Case(asked(2048, final=0), AMOUNT),
    "an F bit before the end": Case(asked(1024), AMOUNT),
    "nothing with an F bit": Case(asked(0), AMOUNT),
    "unasked beside what was asked for": Case(
        lambda wrong: (
            wrong.data_out(512, itt=(names := wrong.asked_write())["itt"]),
            wrong.data_out(2048, **names),
        ),
        UNEXPECTED,
    ),
    "after the command's end": Case(after_its_end, FIELD),
    "unsolicited beyond the first burst": Case(unsolicited(2048), AMOUNT),
    "unsolicited without its F bit": Case(unsolicited(1536, final=0), AMOUNT),
    "unsolicited with a wrong offset": Case(unsolicited(1536, buffer_offset=0), OFFSET),
    "unsolicited with a wrong DataSN": Case(unsolicited(1536, data_sn=5), CRC),
}
for name, case in DATA.items():
    if not name.startswith("unsolicited"):
        DATA[name] = Case(case.what, case.outcome, SOLICITED)
REQUESTS = {
    "SNACK": Case(pdu(Opcode.SNACK_REQUEST), rejects(RejectReason.SNACK_REJECT)),
    "an opcode of no request": Case(raw_header(0x1C), UNSUPPORTED),
    "a vendor's opcode": Case(raw_header(0x1E), UNSUPPORTED),
    "a target's opcode": Case(raw_header(Opcode.SCSI_RESPONSE), UNSUPPORTED),
    "a login": Case(pdu(Opcode.LOGIN_REQUEST), CLOSED),
    "task management of an unknown task": Case(
        lambda wrong: (
            wrong.pdu(
                Opcode.TASK_MANAGEMENT_REQUEST,
                function=TaskFunction.ABORT_TASK,
                referenced_task_tag=0x4444,
                ref_cmd_sn=wrong.cmd_sn - 1,
                immediate=1,
            ),
            wrong.take()[0].response == 1 or pytest.fail("it says that it ended a task"),
        ),
        IGNORED,
    ),
    "logout of an unknown connection": Case(
        lambda wrong: (
            wrong.pdu(Opcode.LOGOUT_REQUEST, logout_reason=1, cid=77),
            wrong.take()[0].response == 1 or pytest.fail("it has no such connection"),
        ),
        IGNORED,
    ),
    "logout for recovery": Case(
        lambda wrong: (
            wrong.pdu(Opcode.LOGOUT_REQUEST, logout_reason=2),
            wrong.take()[0].response == 2 or pytest.fail("recovery is not supported"),
        ),
        IGNORED,
    ),
    "logout for no known reason": Case(pdu(Opcode.LOGOUT_REQUEST, logout_reason=3), FIELD),
    "the answer to a question nobody asked": Case(
        pdu(Opcode.NOP_OUT, b"data", itt=NO_TAG, ttt=5, immediate=1), IGNORED
    ),
}
TEXTS = {
    "no equals sign": Case(text(b"SendTargets\0"), PROTOCOL),
    "no NUL": Case(text(b"SendTargets="), PROTOCOL),
    "a key of 64 bytes": Case(text(b"X-" + b"a" * 62 + b"=b\0"), PROTOCOL),
    "a value of 300 bytes": Case(text(b"X-a=" + b"b" * 300 + b"\0"), PROTOCOL),
    "F and C": Case(text(b"X-a=b\0", continued=1), PROTOCOL),
    "C and nothing": Case(text(b"", continued=1, final=0), PROTOCOL),
    "a tag that continues nothing": Case(text(b"X-a=b\0", ttt=5), FIELD),
    "a second one beside the first": Case(concurrent_text, PROTOCOL),
    "more than is kept": Case(text(b"X-a=" + bytes(2000)), FIELD),
}
EVERY = {
    f"{table}: {name}": case
    for table, cases in (
        ("command", COMMANDS),
        ("number", NUMBERS),
        ("segments", SEGMENTS),
        ("data", DATA),
        ("request", REQUESTS),
        ("text", TEXTS),
    )
    for name, case in cases.items()
}
