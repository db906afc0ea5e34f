"""What a session asks for besides READ and WRITE: cold SCSI commands, text, task management and
logout (RFC 7143 §11.3, §11.5, §11.10, §11.14). Each request gets exactly one answer, made after
what it asks for was done.
"""

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from iscsi.target import scsi, task_management, turns
from iscsi.target.announce import Announcement
from iscsi.target.backends import Medium
from iscsi.target.connection import Connection, Phase
from iscsi.target.keepalive import Step
from iscsi.target.text_exchange import Refused
from iscsi.target.units import LogicalUnit, Target
from iscsi.wire import bhs, discovery, text
from iscsi.wire.bhs import (
    Header,
    LogoutReason,
    LogoutResponseCode,
    Opcode,
)
from iscsi.wire.errors import RejectReason, RemoteProtocolError
from iscsi.wire.keys import KEYS, parse_number
from iscsi.wire.names import Portal
from iscsi.wire.port import ControlPdu
from iscsi.wire.sense import ScsiStatus
from iscsi.wire.target import ColdCommand
from iscsi.wire.target_task import STATE_COLD, TASK_SIZE, target_at, task_at

log: Final = logging.getLogger(__name__)

MAX_RECV: Final = KEYS["MaxRecvDataSegmentLength"]
# Control PDUs that wait for a place in the transmit queue: a peer that asks and never reads.
UNSENT_MAX: Final = 256
# How long a command waits for the rest of others' WRITEs; then it ends with BUSY.
WRITES_WAIT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a session sees of the server: its targets, portals, and the other sessions."""

    targets: Iterable[Target]
    portals: Callable[[Connection], list[Portal]]
    may_see: Callable[[Connection, str], bool]
    sessions: Callable[[], Iterable[Connection]]
    end: Callable[[Connection], None]  # after everything that is made was sent
    data_max: int  # of one control PDU
    cold_max: int  # of one cold command
    submit: Callable[[Callable[[], object], Callable[["Future[Any]"], None]], None]  # slow ones
    look_at: Callable[[Connection], None]  # send what was made for it
    alone: Callable[[Medium, Callable[[], None]], None]  # run when nobody works on a file
    run_when: Callable[[Callable[[], bool], Callable[[], None]], None]  # (is it due, what to run)


def send(connection: Connection, opcode: Opcode, data: bytes = b"", **fields: int) -> None:
    """Send a control PDU, now or when there is a slot for it."""
    connection.unsent.append((bytes(bhs.encode(opcode, **fields)), data))
    send_waiting(connection)


def announce(connection: Connection, what: Announcement) -> None:
    """Send an Async Message (RFC 7143 §11.9)."""
    send(connection, Opcode.ASYNC_MESSAGE, what.data, async_event=what.event, **what.fields)


def keep_alive(connection: Connection, now_ns: int) -> Step:
    """Ask a silent initiator for a sign of life, if that is due."""
    step = connection.keepalive.step(connection.signs, now_ns)
    if step is Step.ASK and not connection.unsent:
        ask_for_life(connection)
    return step


def ask_for_life(connection: Connection) -> None:
    """A NOP-In that is to be answered: then all that was sent before it is known to be out."""
    send(connection, Opcode.NOP_IN, ttt=connection.keepalive.next_tag())


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
        if not leaves:  # nothing is answered behind a Logout Response
            leaves = _serve_control(connection, pdu, around)
    if len(connection.unsent) + len(connection.managed) > UNSENT_MAX:
        raise RemoteProtocolError("an initiator that asks and does not read the answers")
    return leaves or settle(connection, around)


# --- SCSI ----------------------------------------------------------------------------------------


def _serve_command(
    connection: Connection, command: ColdCommand, around: Surroundings, *, is_fenced: bool = False
) -> None:
    """`is_fenced`: what comes before it at engines and of lost sessions is over."""
    if connection.target is None:
        raise RemoteProtocolError("a SCSI command in a discovery session")
    assert connection.protocol is not None, "it gave us the command"
    if not is_fenced and (is_over := _what_comes_before(connection, command)):
        _serve_behind(connection, command, is_over, around)
        return
    if turns.must_wait(connection, command):
        turns.wait(
            connection, command, around.run_when, partial(_serve_late, connection, command, around)
        )
        return
    asked = scsi.Command(
        command.cdb,
        connection.target,
        command.lun,
        connection.nexus,
        command.data,
        command.expected_length,
        command.flags,
        abandoned=partial(_is_abandoned, connection, command),
    )
    if command.flags & bhs.FLAG_WRITE and len(command.data) < command.expected_length:
        answer = scsi.INVALID_FIELD  # more than the maximum transfer length of VPD page B0
    elif scsi.is_slow(asked):
        refused = scsi.admit(asked)
        if refused is None:
            _serve_slowly(connection, command, asked, around)
            return
        answer = refused
    elif _is_half_written(asked) or _may_be_torn(asked):
        _serve_behind_writes(connection, command, asked, around)
        return
    elif (medium := _to_find_at_rest(asked)) is not None:
        _serve_alone(connection, command, asked, medium, around)
        return
    else:
        answer = scsi.execute(asked)
    _give_in_time(connection, command, asked.unit, answer, around)


def _give_in_time(
    connection: Connection,
    command: ColdCommand,
    unit: LogicalUnit | None,
    answer: scsi.Answer,
    around: Surroundings,
) -> None:
    """Answer now, or when what the command ended is over."""
    give = partial(give_answer, connection, command, unit, answer, around)
    if answer.is_over is None or answer.is_over():
        give()
    else:
        connection.managed.append(task_management.LateAnswer(answer.is_over, give))


def _serve_late(connection: Connection, command: ColdCommand, around: Surroundings) -> None:
    """Serve a command that had to wait for its turn."""
    _serve_command(connection, command, around, is_fenced=True)
    around.look_at(connection)


def _what_comes_before(connection: Connection, command: ColdCommand) -> Callable[[], bool] | None:
    """Whether that is over which comes before a command at its unit, if there is any: for an
    ORDERED one what an engine does there by itself, and for all the commands of a lost session that
    had the unit to itself. What comes meanwhile is this process' to serve, and so waits its turn.
    """
    assert connection.target is not None, "discovery sessions were sent away"
    unit = None if command.lun is None else connection.target.units.get(command.lun)
    if unit is None:
        return None
    is_fenced = None
    if turns.is_ordered(command) and unit.is_served_by_engine:
        is_fenced = unit.fence()
    elif not unit.reservations.is_being_left:
        return None
    return lambda: not unit.reservations.is_being_left and (is_fenced is None or is_fenced())


def _serve_behind(
    connection: Connection,
    command: ColdCommand,
    is_over: Callable[[], bool],
    around: Surroundings,
) -> None:
    """Serve a command when what comes before it is over."""
    protocol = connection.protocol
    assert protocol is not None, "it gave us the command"
    protocol.pin(command)
    deadline = time.monotonic() + turns.ORDER_WAIT_S

    def is_due() -> bool:
        late = time.monotonic() >= deadline
        return late or is_over() or _is_abandoned(connection, command)

    def serve() -> None:
        if not protocol.unpin(command) or connection.phase is Phase.CLOSING:
            return  # aborted meanwhile
        if is_over():
            _serve_late(connection, command, around)
        else:
            protocol.respond(command.task_id, ScsiStatus.BUSY)
            around.look_at(connection)

    around.run_when(is_due, serve)


def _is_abandoned(connection: Connection, command: ColdCommand) -> bool:
    """Whether a command that a worker is busy with was aborted, or its session is lost."""
    if connection.phase is Phase.CLOSING or connection.protocol is None:
        return True
    mine = target_at(connection.protocol.address)[0]
    task = task_at(int(mine["tasks"]) + TASK_SIZE * (command.task_id & 0xFFFF))[0]
    return bool(task["state"] != STATE_COLD)  # we have not answered it


def _to_find_at_rest(asked: scsi.Command) -> Medium | None:
    """The file on which workers are busy, if this command looks at it or changes it."""
    medium = None if asked.unit is None else asked.unit.backend.medium
    if medium is None or not medium.jobs:
        return None
    row = scsi.row_of(asked.cdb)
    return medium if isinstance(row, scsi.Row) and row.access is not scsi.Access.NONE else None


def _serve_alone(
    connection: Connection,
    command: ColdCommand,
    asked: scsi.Command,
    medium: Medium,
    around: Surroundings,
) -> None:
    """Do a command when no worker is busy with its file; its data stays where it is until then."""
    protocol = connection.protocol
    assert protocol is not None, "it gave us the command"
    protocol.pin(command)

    def serve() -> None:
        if protocol.unpin(command) and connection.phase is not Phase.CLOSING:  # still wanted
            give_answer(connection, command, asked.unit, scsi.execute(asked), around)
            around.look_at(connection)

    around.alone(medium, serve)


def _is_half_written(asked: scsi.Command) -> bool:
    """Whether a command is to find blocks whole of which a WRITE has written a part so far."""
    whole = _blocks_found_whole(asked)
    return whole is not None and asked.unit is not None and asked.unit.is_half_written(*whole)


def _blocks_found_whole(asked: scsi.Command) -> tuple[int, int] | None:
    """The blocks (first, count) that a command is to find whole, if it has such."""
    row = scsi.row_of(asked.cdb)
    return row.whole(asked) if isinstance(row, scsi.Row) and row.whole is not None else None


def _may_be_torn(asked: scsi.Command) -> bool:
    """Whether a command is to find blocks whole that an engine may be writing at this moment."""
    if asked.unit is None or not asked.unit.is_served_by_engine:
        return False
    return _blocks_found_whole(asked) is not None


def _serve_behind_writes(
    connection: Connection, command: ColdCommand, asked: scsi.Command, around: Surroundings
) -> None:
    """Do a command when the WRITEs are over that have written a part of its blocks, or of which an
    engine may place data there at any moment. Meanwhile new ones come to the cold code, which
    writes all of their data at once: so this ends. The unit opens only when the command is done.
    """
    protocol, unit = connection.protocol, asked.present
    assert protocol is not None, "it gave us the command"
    protocol.pin(command)
    unit.awaiting_writes += 1
    unit.refresh_gate()
    is_over = unit.fence(_blocks_found_whole(asked))
    deadline = time.monotonic() + WRITES_WAIT_S

    def may_run() -> bool:
        return is_over() and not _is_half_written(asked)

    def is_due() -> bool:
        if time.monotonic() >= deadline or _is_abandoned(connection, command):
            return True
        return may_run()

    def serve() -> None:
        try:
            if protocol.unpin(command) and connection.phase is not Phase.CLOSING:
                answer = scsi.execute(asked) if may_run() else scsi.BUSY
                _give_in_time(connection, command, asked.unit, answer, around)
                around.look_at(connection)
        finally:
            unit.awaiting_writes -= 1
            unit.refresh_gate()

    around.run_when(is_due, serve)


def _serve_slowly(
    connection: Connection, command: ColdCommand, asked: scsi.Command, around: Surroundings
) -> None:
    """Have a worker do a command that was admitted; its data stays where it is until then."""
    protocol = connection.protocol
    assert protocol is not None, "it gave us the command"
    protocol.pin(command)

    def done(future: "Future[scsi.Answer]") -> None:
        if not protocol.unpin(command):
            return  # aborted meanwhile
        error = future.exception() if not future.cancelled() else None
        if error is not None:
            log.error("command %s failed", command.cdb.hex(), exc_info=error)
        answer = scsi.BUSY if future.cancelled() or error else future.result()
        _give_in_time(connection, command, asked.unit, answer, around)
        around.look_at(connection)

    around.submit(lambda: scsi.finish(asked), done)


def give_answer(
    connection: Connection,
    command: ColdCommand,
    unit: LogicalUnit | None,
    answer: scsi.Answer,
    around: Surroundings,
) -> None:
    """Answer a cold command: as much data as the initiator expects, sense in the unit's format.

    The residual is made of what the command wanted to move (RFC 7143 §11.4.5).
    """
    assert connection.protocol is not None, "it gave us the command"
    data, moved = answer.data, answer.moved
    if data and not command.flags & bhs.FLAG_READ:
        data = b""
    elif data:
        moved = len(data) if moved is None else moved
        data = data[: command.expected_length]
    if len(data) > around.cold_max:
        answer, data = scsi.BUSY, b""
    sense = answer.encoded_sense(descriptor=unit is not None and unit.descriptor_sense)
    connection.protocol.respond(command.task_id, answer.status, data, sense, moved=moved)


# --- control PDUs --------------------------------------------------------------------------------


def _serve_control(connection: Connection, pdu: ControlPdu, around: Surroundings) -> bool:
    header = pdu.header
    try:
        if header.opcode is Opcode.LOGOUT_REQUEST:
            return _logout(connection, header)
        if header.opcode is Opcode.TEXT_REQUEST:
            _text(connection, header, pdu.data, around)
            return False
    except Refused as refused:
        log.info("%s: %s", connection, refused)
        send(connection, Opcode.REJECT, pdu.raw, reject_reason=refused.reason)
    else:
        done = task_management.manage(connection, header, around.sessions())
        connection.managed.append(done)
    return False


def settle(connection: Connection, around: Surroundings) -> bool:
    """Answer what ended tasks on which nobody works any more, in the order of the requests.

    Whether the session is to end.
    """
    leaves = False
    while connection.managed and connection.managed[0].is_over:
        done = connection.managed.popleft()
        if isinstance(done, task_management.LateAnswer):
            done.give()
            continue
        if isinstance(done, task_management.Asking):
            done = done.answered
        opcode = Opcode.TASK_MANAGEMENT_RESPONSE
        more = done.additional
        send(connection, opcode, itt=done.itt, response=done.response, additional_response=more)
        for session in done.ends:
            if session is connection:
                leaves = True
            else:
                around.end(session)
    return leaves


def _logout(connection: Connection, header: Header) -> bool:
    """Answer a logout; only one that ends this connection ends it (RFC 7143 §11.15)."""
    assert connection.result is not None, "it logged in"
    assert connection.protocol is not None, "it logged in"
    if header.logout_reason not in set(LogoutReason):
        raise Refused(RejectReason.INVALID_PDU_FIELD, "a logout for a reason there is none of")
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


# --- text ----------------------------------------------------------------------------------------


def _text(connection: Connection, header: Header, data: bytes, around: Surroundings) -> None:
    """A Text Request: a new one, a further piece of one, or the call for our next piece."""
    limit = min(around.data_max, int(connection.port["peer_max_recv_data_segment_length"]))
    reply = connection.texts.request(
        header, data, lambda pairs: _answer_text(connection, pairs, around), limit
    )
    send(
        connection,
        Opcode.TEXT_RESPONSE,
        reply.data,
        itt=header.itt,
        ttt=reply.ttt,
        final=int(reply.final),
        continued=int(reply.continued),
    )


def _answer_text(connection: Connection, pairs: list[text.Pair], around: Surroundings) -> bytes:
    answers = b""
    for key, value in pairs:
        if key == discovery.SEND_TARGETS:
            answers += _send_targets(connection, value, around)
        elif key == MAX_RECV.name:
            length = parse_number(MAX_RECV, value)
            if length is None:
                answers += text.encode([(key, text.REJECT)])
            elif any(len(waits) > length for _, waits in connection.unsent):
                raise RemoteProtocolError("a segment length below what already waits for it")
            else:
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
        if (
            what == target.name
            or (what == discovery.SEND_TARGETS_ALL and own is None)
            or (not what and target is own)
        )
        and around.may_see(connection, target.name)
    ]
    portals = tuple(around.portals(connection))
    return discovery.build_response(
        discovery.DiscoveredTarget(target.name, portals) for target in wanted
    )


def reject(connection: Connection, reason: RejectReason) -> None:
    """Send a Reject with the header that was received last (RFC 7143 §11.17)."""
    header = connection.last_header()
    send(connection, Opcode.REJECT, header, reject_reason=reason)
