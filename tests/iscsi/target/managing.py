"""What tests of task management and reservations do with a session of plain sockets."""

from iscsi.wire import scsi
from iscsi.wire.bhs import Opcode, TaskFunctionResponse
from iscsi.wire.sense import ScsiStatus, decode_sense, split_sense
from tests.iscsi.target.reserving import parameters
from tests.iscsi.target.serving import BLOCK, HOST

SECOND = HOST + "2"
COMPLETE = TaskFunctionResponse.COMPLETE
RESERVE_6 = bytes((0x16, 0, 0, 0, 0, 0))
CONFLICT = ScsiStatus.RESERVATION_CONFLICT


def ask(session, function, lun=0, *, immediate=1, **fields):
    """Send a request; returns its tag."""
    return session.request(
        Opcode.TASK_MANAGEMENT_REQUEST,
        function=function,
        immediate=immediate,
        lun=scsi.encode_lun(lun),
        **fields,
    )


def answer(session):
    """The response that comes next."""
    header, _ = session.take()
    assert header.opcode is Opcode.TASK_MANAGEMENT_RESPONSE, header
    return TaskFunctionResponse(header.response)


def manage(session, function, lun=0, **fields):
    ask(session, function, lun, **fields)
    return answer(session)


def run(session, cdb, data=b"", *, lun=0):
    """The status and sense code of a command that moves nothing to the initiator."""
    session.command(cdb.ljust(16, b"\0"), data, lun=lun, length=len(data), write=int(bool(data)))
    header, sense = session.take()
    assert header.opcode is Opcode.SCSI_RESPONSE, header
    found = decode_sense(split_sense(sense))
    return header.status, found and found.code


def begin_write(session, lba, blocks, lun=0):
    """A WRITE that waits for its data: its tag and CmdSN, and the R2T."""
    cmd_sn = session.cmd_sn
    tag = session.command(scsi.write_10(lba, blocks), lun=lun, length=blocks * BLOCK, write=1)
    header, _ = session.take()
    assert header.opcode is Opcode.R2T
    return tag, cmd_sn, header


def finish_write(session, tag, r2t, data):
    session.give(Opcode.DATA_OUT, data, itt=tag, ttt=r2t.ttt, buffer_offset=0, data_sn=0, final=1)


def blocks(serving, lba, count):
    return serving.disk.array[lba * BLOCK : (lba + count) * BLOCK].tobytes()


def out(session, action, key, action_key=0, kind=0, lun=0):
    data = parameters(key, action_key)
    cdb = bytes((0x5F, action, kind, 0, 0)) + len(data).to_bytes(4, "big") + b"\0"
    return run(session, cdb, data, lun=lun)[0]
