"""PERSISTENT RESERVE IN and OUT (SPC-4 §6.15, §6.16): parameter data to actions on a unit's state
and back. What an action does is in `pr_state`; here nothing is decided but what a peer may send.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from iscsi.target.nexus import relative_port
from iscsi.target.scsi.command import (
    GOOD,
    RESERVATION_CONFLICT,
    Answer,
    Command,
    Reservation,
    Row,
    Rows,
    refuse,
)
from iscsi.target.scsi.pr_state import (
    Action,
    Conflict,
    Port,
    Refused,
    Request,
    clear,
    move,
    preempt,
    register,
    register_anyhow,
    release,
    reserve,
)
from iscsi.target.scsi.pr_store import initiator_port_name, parse_initiator_port
from iscsi.target.scsi.pr_unit import UnitReservations, port_of, reservations_of
from iscsi.wire.sense import Asc, SenseKey

log: Final = logging.getLogger(__name__)

PERSISTENT_RESERVE_IN: Final = 0x5E
PERSISTENT_RESERVE_OUT: Final = 0x5F
READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS = range(4)
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_ANYHOW, MOVE = range(8)

_LIST_LENGTH: Final = 24
_SPEC_I_PT, _ALL_TG_PT, _APTPL = 0x08, 0x04, 0x01  # byte 20 of the parameter list
_UNREG, _MOVE_APTPL = 0x02, 0x01  # byte 17, of REGISTER AND MOVE
_ISCSI_PORT: Final = 0x45  # TransportID format 01b: an initiator port, protocol iSCSI
_TRANSPORT_ID_MIN: Final = 24
_LIST_MAX: Final = 1 << 18
# Types this unit serves, as REPORT CAPABILITIES shows them (SPC-4 table 188).
_TYPE_MASK: Final = bytes((0xEA, 0x01))
_TYPE_MASK_VALID: Final = 0x80
_CRH, _SIP_C, _ATP_C, _PTPL_C, _PTPL_A = 0x10, 0x08, 0x04, 0x01, 0x01
_UNKNOWN: Final = refuse(Asc.INTERNAL_TARGET_FAILURE, SenseKey.HARDWARE_ERROR)


# --- PERSISTENT RESERVE IN -----------------------------------------------------------------------


def _ready(command: Command) -> UnitReservations | Answer:
    """The unit's reservations, or what keeps a PERSISTENT RESERVE from being done at all."""
    reservations = reservations_of(command.present)
    if reservations.reserved_by is not None:  # even by this very nexus (SPC-2 §5.5.1)
        return RESERVATION_CONFLICT
    return _UNKNOWN if reservations.fault is not None else reservations


def _with_head(reservations: UnitReservations, body: bytes) -> Answer:
    head = reservations.state.generation.to_bytes(4, "big") + len(body).to_bytes(4, "big")
    return Answer(data=head + body)


def _read_keys(command: Command) -> Answer:
    found = _ready(command)
    if isinstance(found, Answer):
        return found
    keys = found.state.keys.values()
    return _with_head(found, b"".join(key.to_bytes(8, "big") for key in keys))


def _read_reservation(command: Command) -> Answer:
    found = _ready(command)
    if isinstance(found, Answer):
        return found
    state = found.state
    if state.held is None:
        return _with_head(found, b"")
    key = 0 if state.holder is None else state.keys[state.holder]
    return _with_head(found, key.to_bytes(8, "big") + bytes((0, 0, 0, 0, 0, state.held, 0, 0)))


def _report_capabilities(command: Command) -> Answer:
    found = _ready(command)
    if isinstance(found, Answer):
        return found
    able = _CRH | _SIP_C | _ATP_C | (_PTPL_C if found.is_stored else 0)
    active = _TYPE_MASK_VALID | (_PTPL_A if found.state.persists else 0)
    return Answer(data=bytes((0, 8, able, active)) + _TYPE_MASK + bytes(2))


def _read_full_status(command: Command) -> Answer:
    found = _ready(command)
    if isinstance(found, Answer):
        return found
    state = found.state
    body = b""
    for port, key in state.keys.items():
        is_holder = state.holds(port)
        kind = state.held if is_holder and state.held is not None else 0
        body += key.to_bytes(8, "big") + bytes((0, 0, 0, 0, is_holder, kind, 0, 0, 0, 0))
        body += port.relative_port.to_bytes(2, "big")
        body += len(port.transport_id).to_bytes(4, "big") + port.transport_id
    return _with_head(found, body)


# --- PERSISTENT RESERVE OUT ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Parameters:
    """A parameter list, checked; `listed`: the TransportIDs of SPEC_I_PT, or the one moved to."""

    key: int
    action_key: int
    flags: int = 0
    relative_port: int = 0
    listed: tuple[bytes, ...] = field(default=())


def _list_of(command: Command) -> bytes:
    """The parameter list. Raises Refused when it has another length than the CDB says."""
    length = command.number(5, 4)
    if not _LIST_LENGTH <= length <= _LIST_MAX or length > len(command.data):
        raise Refused(Asc.PARAMETER_LIST_LENGTH_ERROR)
    return bytes(command.data[:length])


def _transport_ids(data: bytes) -> tuple[bytes, ...]:
    """TransportIDs one behind the other, in the form registrations keep. Raises Refused."""
    found = []
    while data:
        length = 4 + int.from_bytes(data[2:4], "big")
        name = initiator_port_name(data[:length])
        known = parse_initiator_port(name) if data[0] == _ISCSI_PORT else None
        if known is None or not _TRANSPORT_ID_MIN <= length <= len(data) or length % 4:
            raise Refused(Asc.INVALID_FIELD_IN_PARAMETER_LIST)
        found.append(known)
        data = data[length:]
    return tuple(found)


def _basic(command: Command, action: int) -> _Parameters:
    """The basic parameter list (SPC-4 §6.16.3)."""
    raw = _list_of(command)
    flags = raw[20]
    if flags & _SPEC_I_PT == 0:
        if len(raw) != _LIST_LENGTH:
            raise Refused(Asc.PARAMETER_LIST_LENGTH_ERROR)
        listed: tuple[bytes, ...] = ()
    elif action != REGISTER:
        raise Refused(Asc.INVALID_FIELD_IN_PARAMETER_LIST)
    else:
        length = int.from_bytes(raw[24:28], "big")
        if len(raw) < 28 or 28 + length != len(raw):
            raise Refused(Asc.PARAMETER_LIST_LENGTH_ERROR)
        listed = _transport_ids(raw[28:])
    key, action_key = (int.from_bytes(raw[at : at + 8], "big") for at in (0, 8))
    return _Parameters(key, action_key, flags, listed=listed)


def _moving(command: Command) -> _Parameters:
    """The parameter list of REGISTER AND MOVE (SPC-4 §6.16.4)."""
    raw = _list_of(command)
    if _LIST_LENGTH + int.from_bytes(raw[20:24], "big") != len(raw):
        raise Refused(Asc.PARAMETER_LIST_LENGTH_ERROR)
    listed = _transport_ids(raw[_LIST_LENGTH:])
    if len(listed) != 1:
        raise Refused(Asc.INVALID_FIELD_IN_PARAMETER_LIST)
    key, action_key = (int.from_bytes(raw[at : at + 8], "big") for at in (0, 8))
    return _Parameters(key, action_key, raw[17], int.from_bytes(raw[18:20], "big"), listed)


def _relative_ports(command: Command) -> set[int]:
    """The ports of the target that a registration can name."""
    return {command.nexus.relative_port, *map(relative_port, command.target.portal_groups())}


def _request(command: Command, action: int) -> Request:
    """What the command asks for, in the words of `pr_state`. Raises Refused."""
    scope, kind = command.cdb[2] >> 4, command.cdb[2] & 0x0F
    own = port_of(command.nexus)
    if action == MOVE:
        asked = _moving(command)
        if asked.relative_port not in _relative_ports(command):
            raise Refused(Asc.INVALID_FIELD_IN_PARAMETER_LIST)
        destination = Port(asked.listed[0], own.target, asked.relative_port)
        return Request(
            asked.key,
            asked.action_key,
            persists=bool(asked.flags & _MOVE_APTPL),
            destination=destination,
            unregisters=bool(asked.flags & _UNREG),
        )
    asked = _basic(command, action)
    others: tuple[Port, ...] = ()
    persists = False
    if action in (REGISTER, REGISTER_ANYHOW):  # the others ignore these bits
        persists = bool(asked.flags & _APTPL)
        ports = {own.relative_port}
        if asked.flags & _ALL_TG_PT:
            ports = _relative_ports(command)
        named = [Port(each, own.target, n) for each in asked.listed for n in sorted(ports)]
        alike = [port_of(command.nexus, n) for n in sorted(ports) if n != own.relative_port]
        others = tuple(dict.fromkeys(each for each in (*alike, *named) if each != own))
    return Request(
        asked.key, asked.action_key, scope, kind, persists, others, is_listed=bool(asked.listed)
    )


_ACTIONS: Final[Mapping[int, Action]] = {
    REGISTER: register,
    RESERVE: reserve,
    RELEASE: release,
    CLEAR: clear,
    PREEMPT: preempt,
    PREEMPT_AND_ABORT: preempt,
    REGISTER_ANYHOW: register_anyhow,
    MOVE: move,
}


def _out(command: Command) -> Answer:
    """Do a service action; PREEMPT AND ABORT also ends the tasks of those it preempts."""
    found = _ready(command)
    if isinstance(found, Answer):
        return found
    action = command.cdb[1] & 0x1F
    try:
        outcome = found.act(command.nexus, _ACTIONS[action], _request(command, action))
    except Conflict:
        return RESERVATION_CONFLICT
    except Refused as refused:
        return refuse(refused.code)
    except OSError as error:
        log.error("reservations could not be stored: %s", error)
        return _UNKNOWN
    if action == PREEMPT_AND_ABORT:
        return Answer(is_over=found.abort(outcome.preempted))
    return GOOD


ROWS: Final[Rows] = {
    **{
        (PERSISTENT_RESERVE_IN, action): Row(
            run,
            f"{action:02x}0000000000ffff00",
            (7, 2),
            needs_medium=False,
            reservation=Reservation.ALWAYS_ALLOWED,
            during_sanitize=True,
        )
        for action, run in (
            (READ_KEYS, _read_keys),
            (READ_RESERVATION, _read_reservation),
            (REPORT_CAPABILITIES, _report_capabilities),
            (READ_FULL_STATUS, _read_full_status),
        )
    },
    **{
        (PERSISTENT_RESERVE_OUT, action): Row(
            _out,
            f"{action:02x}ff0000ffffffff00",
            needs_medium=False,
            reservation=Reservation.ALWAYS_ALLOWED,
            during_sanitize=True,
            is_for_writers=True,
        )
        for action in _ACTIONS
    },
}
