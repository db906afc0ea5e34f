"""What a session asks for besides READ and WRITE: cold SCSI commands, text, task management and
logout (RFC 7143 §11.3, §11.5, §11.10, §11.14). Each request gets exactly one answer, made after
what it asks for was done.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from iscsi.target import scsi
from iscsi.target.connection import Connection
from iscsi.target.units import RamDisk, Target
from iscsi.wire import bhs, discovery, text
from iscsi.wire.bhs import (
    Header,
    LogoutReason,
    LogoutResponseCode,
    Opcode,
    TaskFunction,
    TaskFunctionResponse,
)
from iscsi.wire.errors import RejectReason, RemoteProtocolError
from iscsi.wire.keys import KEYS, parse_number
from iscsi.wire.names import Portal
from iscsi.wire.port import ControlPdu
from iscsi.wire.scsi import decode_lun
from iscsi.wire.sense import Asc, ScsiStatus, SenseKey, encode_sense
from iscsi.wire.target import ColdCommand

MAX_RECV: Final = KEYS["MaxRecvDataSegmentLength"]
_MORE_TEXT: Final = 1  # target transfer tag of a text that goes on


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a session sees of the server: its targets, portals, and the other sessions."""

    targets: Iterable[Target]
    portals: Callable[[Connection], list[Portal]]
    sessions: Callable[[], Iterable[Connection]]
    data_max: int  # of one control PDU
    cold_max: int  # of one cold command


def send(connection: Connection, opcode: Opcode, data: bytes = b"", **fields: int) -> None:
    """Send a control PDU, now or when there is a slot for it."""
    connection.unsent.append((bytes(bhs.encode(opcode, **fields)), data))
    send_waiting(connection)


def send_waiting(connection: Connection) -> None:
    """Send what waits for a slot."""
    assert connection.protocol is not None, "only the full feature phase sends control PDUs"
    while connection.unsent and connection.protocol.send_control(*connection.unsent[0]):
        connection.unsent.popleft()


def attend(connection: Connection, around: Surroundings) -> bool:
    """Serve everything that waits for Python. Whether the session asked to end.

    RemoteProtocolError: the peer broke the protocol, and the connection is to be rejected.
    """
    assert connection.protocol is not None, "only the full feature phase has requests"
    for command in connection.protocol.cold_commands():
        _serve_command(connection, command, around)
    leaves = False
    for pdu in connection.protocol.controls():
        leaves |= _serve_control(connection, pdu, around)
    return leaves


# --- SCSI ----------------------------------------------------------------------------------------


def _serve_command(connection: Connection, command: ColdCommand, around: Surroundings) -> None:
    answer = _answer(connection, command)
    data = answer.data[: around.cold_max]
    assert connection.protocol is not None, "it gave us the command"
    connection.protocol.respond(command.task_id, answer.status, data, answer.sense)


def _answer(connection: Connection, command: ColdCommand) -> scsi.Answer:
    if connection.target is None:
        raise RemoteProtocolError("a SCSI command in a discovery session")
    operation = command.cdb[0]
    if operation not in scsi.ALWAYS_SERVED or operation == scsi.REQUEST_SENSE:
        code = connection.take_attention(command.lun)
        if code is not None:
            sense = encode_sense(SenseKey.UNIT_ATTENTION, code)
            if operation == scsi.REQUEST_SENSE:
                return scsi.Answer(data=sense[: command.cdb[4]])
            return scsi.Answer(ScsiStatus.CHECK_CONDITION, sense=sense)
    answer = scsi.execute(scsi.Command(command.cdb, connection.target, command.lun))
    if answer.data and not command.flags & bhs.FLAG_READ:
        return scsi.Answer(answer.status)
    return answer


# --- control PDUs --------------------------------------------------------------------------------


def _serve_control(connection: Connection, pdu: ControlPdu, around: Surroundings) -> bool:
    header = pdu.header
    if header.opcode is Opcode.LOGOUT_REQUEST:
        return _logout(connection, header)
    if header.opcode is Opcode.TEXT_REQUEST:
        _text(connection, header, pdu.data, around)
    else:
        code = _manage_tasks(connection, header, around)
        opcode = Opcode.TASK_MANAGEMENT_RESPONSE
        send(connection, opcode, itt=header.itt, response=code)
    return False


def _logout(connection: Connection, header: Header) -> bool:
    """Answer a logout; only one that ends this connection ends it (RFC 7143 §11.15)."""
    assert connection.result is not None, "it logged in"
    assert connection.protocol is not None, "it logged in"
    code = LogoutResponseCode.CLOSED
    if header.logout_reason == LogoutReason.REMOVE_FOR_RECOVERY:
        code = LogoutResponseCode.RECOVERY_NOT_SUPPORTED
    elif header.logout_reason != LogoutReason.CLOSE_SESSION and header.cid != connection.result.cid:
        code = LogoutResponseCode.CID_NOT_FOUND
    if code is LogoutResponseCode.CLOSED:
        connection.protocol.abort_lun()
    session = connection.result.session
    send(
        connection,
        Opcode.LOGOUT_RESPONSE,
        itt=header.itt,
        response=code,
        time2wait=session.default_time2wait,
        time2retain=session.default_time2retain,
    )
    return code is LogoutResponseCode.CLOSED


def _manage_tasks(
    connection: Connection, header: Header, around: Surroundings
) -> TaskFunctionResponse:
    assert connection.protocol is not None, "it gave us the request"
    if connection.target is None:
        raise RemoteProtocolError("task management in a discovery session")
    if header.function == TaskFunction.ABORT_TASK:
        found = connection.protocol.abort_task(header.referenced_task_tag)
        return TaskFunctionResponse.COMPLETE if found else TaskFunctionResponse.TASK_DOES_NOT_EXIST
    if header.function not in (TaskFunction.ABORT_TASK_SET, TaskFunction.LOGICAL_UNIT_RESET):
        return TaskFunctionResponse.NOT_SUPPORTED
    lun = decode_lun(header.lun)
    unit = None if lun is None else connection.target.units.get(lun)
    if lun is None or unit is None:
        return TaskFunctionResponse.LUN_DOES_NOT_EXIST
    if header.function == TaskFunction.ABORT_TASK_SET:
        connection.protocol.abort_lun(lun)
    else:
        _reset(unit, around)
    return TaskFunctionResponse.COMPLETE


def _reset(unit: RamDisk, around: Surroundings) -> None:
    """End the tasks of every session for one unit, and tell each of them (SAM-5 §6.3.3)."""
    for session in around.sessions():
        if session.target is None or session.protocol is None:
            continue
        for number, known in session.target.units.items():
            if known is unit:
                session.protocol.abort_lun(number)
                session.raise_attention(number, Asc.DEVICE_RESET_OCCURRED)


# --- text ----------------------------------------------------------------------------------------


def _text(connection: Connection, header: Header, data: bytes, around: Surroundings) -> None:
    """A Text Request: a new one, a further piece of one, or the call for our next piece."""
    if connection.text_rest:
        if data or header.ttt != _MORE_TEXT:
            raise RemoteProtocolError("a new text before the end of the last")
    elif header.final and header.continued:
        raise RemoteProtocolError("a text with both F and C set")
    else:
        whole = connection.text.add(data, continued=bool(header.continued))
        answers = b"" if whole is None else _answer_text(connection, text.decode(whole), around)
        if whole is None:
            send(connection, Opcode.TEXT_RESPONSE, itt=header.itt, ttt=_MORE_TEXT, final=0)
            return
        limit = min(around.data_max, int(connection.port["peer_max_recv_data_segment_length"]))
        connection.text_rest.extend(text.split(answers, limit))
    piece, continued = connection.text_rest.popleft()
    is_last = not continued and bool(header.final)
    send(
        connection,
        Opcode.TEXT_RESPONSE,
        piece,
        itt=header.itt,
        ttt=bhs.RESERVED_TAG if is_last else _MORE_TEXT,
        final=int(is_last),
        continued=int(continued),
    )


def _answer_text(connection: Connection, pairs: list[text.Pair], around: Surroundings) -> bytes:
    answers = b""
    for key, value in pairs:
        if key == discovery.SEND_TARGETS:
            answers += _send_targets(connection, value, around)
        elif key == MAX_RECV.name:
            length = parse_number(MAX_RECV, value)
            if length is None:
                raise RemoteProtocolError(f"{key}={value} is out of range")
            connection.port["peer_max_recv_data_segment_length"] = length
        elif value not in text.REFUSALS:
            refusal = text.REJECT if key in KEYS else text.NOT_UNDERSTOOD
            answers += text.encode([(key, refusal)])
    return answers


def _send_targets(connection: Connection, what: str, around: Surroundings) -> bytes:
    """Targets this session may ask for (RFC 7143 appendix C): all only in a discovery session."""
    own = connection.target
    if what == discovery.SEND_TARGETS_ALL and own is not None:
        return text.encode([(discovery.SEND_TARGETS, text.REJECT)])
    wanted = [
        target
        for target in around.targets
        if what == target.name
        or (what == discovery.SEND_TARGETS_ALL and own is None)
        or (not what and target is own)
    ]
    portals = tuple(around.portals(connection))
    return discovery.build_response(
        discovery.DiscoveredTarget(target.name, portals) for target in wanted
    )


def reject(connection: Connection, reason: RejectReason) -> None:
    """Send a Reject with the header that was received last (RFC 7143 §11.17)."""
    header = connection.last_header()
    send(connection, Opcode.REJECT, header, reject_reason=reason)
