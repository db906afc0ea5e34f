"""Persistent reservations of one logical unit as values (SPC-4 §5.13): who is registered with which
key, and who holds what. An action takes a state and gives the next one with what others must be
told; it changes nothing itself, so that a state is adopted only after it was stored.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from iscsi.wire.sense import Asc

# What one unit remembers at most; a registration more is refused (SPC-4 §5.13.7.1).
REGISTRATIONS_MAX: Final = 1024
_LOGICAL_UNIT_SCOPE: Final = 0


class Conflict(Exception):
    """The action ends with RESERVATION CONFLICT."""


class Refused(Exception):
    """The action ends with CHECK CONDITION, ILLEGAL REQUEST and this `code` (ASC << 8 | ASCQ)."""

    def __init__(self, code: Asc) -> None:
        super().__init__(code.name)
        self.code = code


class ReservationType(IntEnum):
    """SPC-4 table 68."""

    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 8

    @property
    def is_shared(self) -> bool:
        """Whether everybody who is registered has access."""
        return self >= ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY

    @property
    def is_held_by_all(self) -> bool:
        """Whether everybody who is registered holds it."""
        return self >= ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS

    @property
    def lets_read(self) -> bool:
        """Whether the others may read."""
        return self in (
            ReservationType.WRITE_EXCLUSIVE,
            ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
            ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS,
        )


@dataclass(frozen=True, slots=True)
class Port:
    """An I_T nexus as registrations name it: it outlives the session.

    `transport_id` is the initiator port's; `relative_port` is a port of the target called `target`.
    """

    transport_id: bytes
    target: str
    relative_port: int


@dataclass(frozen=True, slots=True)
class State:
    """All there is to know of a unit's persistent reservations.

    `holder` is None where nobody, or everybody who is registered, holds the reservation.
    """

    keys: Mapping[Port, int]
    held: ReservationType | None = None
    holder: Port | None = None
    persists: bool = False  # through power loss: APTPL of the last registration
    generation: int = 0

    def holds(self, port: Port) -> bool:
        """Whether this nexus is a holder of the reservation."""
        if self.held is None:
            return False
        return port in self.keys if self.held.is_held_by_all else port == self.holder

    def has_access(self, port: Port) -> bool:
        """Whether nothing restricts this nexus."""
        if self.held is None or self.holds(port):
            return True
        return self.held.is_shared and port in self.keys


EMPTY: Final = State({})


@dataclass(frozen=True, slots=True)
class Request:
    """What a PERSISTENT RESERVE OUT asks for (SPC-4 §6.16). `others`: further nexuses to register;
    `is_listed`: some of them were listed by SPEC_I_PT.
    """

    key: int
    action_key: int = 0
    scope: int = 0
    kind: int = 0
    persists: bool = False
    others: tuple[Port, ...] = ()
    is_listed: bool = False
    destination: Port | None = None
    unregisters: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The next state, the unit attentions to raise, and the nexuses that were preempted."""

    state: State
    notices: tuple[tuple[Port, Asc], ...] = ()
    preempted: tuple[Port, ...] = ()


Action = Callable[[State, Port, Request], Outcome]


def _told(ports: Iterable[Port], code: Asc, except_port: Port) -> tuple[tuple[Port, Asc], ...]:
    return tuple((port, code) for port in ports if port != except_port)


def _check_key(state: State, port: Port, request: Request) -> None:
    if state.keys.get(port) != request.key:
        raise Conflict


def _kind_of(request: Request) -> ReservationType:
    if request.scope != _LOGICAL_UNIT_SCOPE:
        raise Refused(Asc.INVALID_FIELD_IN_CDB)
    try:
        return ReservationType(request.kind)
    except ValueError:
        raise Refused(Asc.INVALID_FIELD_IN_CDB) from None


def _released(state: State) -> State:
    return replace(state, held=None, holder=None)


def _counted(state: State) -> State:
    return replace(state, generation=(state.generation + 1) & 0xFFFFFFFF)


def _without(state: State, gone: Iterable[Port]) -> State:
    """The state when registrations end, and with them the reservation of one that held it."""
    leaving = set(gone)
    keys = {port: key for port, key in state.keys.items() if port not in leaving}
    after = replace(state, keys=keys)
    if state.held is None:
        return after
    is_over = not keys if state.held.is_held_by_all else state.holder in leaving
    return _released(after) if is_over else after


# --- registering (SPC-4 §5.13.7) -----------------------------------------------------------------


def register(state: State, port: Port, request: Request) -> Outcome:
    """REGISTER: the key that is registered must be named, 0 where none is."""
    if state.keys.get(port, 0) != request.key:
        raise Conflict
    if request.is_listed and port in state.keys and request.action_key:
        raise Refused(Asc.INVALID_FIELD_IN_CDB)
    return register_anyhow(state, port, request)


def register_anyhow(state: State, port: Port, request: Request) -> Outcome:
    """REGISTER AND IGNORE EXISTING KEY."""
    ports = (port, *request.others)
    if request.action_key == 0:
        return _unregister(state, port, [each for each in ports if each in state.keys], request)
    keys = {**state.keys, **dict.fromkeys(ports, request.action_key)}
    if len(keys) > REGISTRATIONS_MAX:
        raise Refused(Asc.INSUFFICIENT_REGISTRATION_RESOURCES)
    return Outcome(_counted(replace(state, keys=keys, persists=request.persists)))


def _unregister(state: State, port: Port, gone: list[Port], request: Request) -> Outcome:
    if not gone:
        return Outcome(_counted(state))
    after = _counted(replace(_without(state, gone), persists=request.persists))
    is_over = state.held is not None and after.held is None
    if is_over and state.held is not None and state.held.is_shared:
        return Outcome(after, _told(after.keys, Asc.RESERVATIONS_RELEASED, port))
    return Outcome(after)


def move(state: State, port: Port, request: Request) -> Outcome:
    """REGISTER AND MOVE: hand the reservation to another nexus (SPC-4 §5.13.8)."""
    _check_key(state, port, request)
    if state.held is None or state.held.is_held_by_all or not state.holds(port):
        raise Conflict
    destination = request.destination
    if request.action_key == 0 or destination is None or destination == port:
        raise Refused(Asc.INVALID_FIELD_IN_PARAMETER_LIST)
    keys = {**state.keys, destination: request.action_key}
    if request.unregisters:
        del keys[port]
    if len(keys) > REGISTRATIONS_MAX:
        raise Refused(Asc.INSUFFICIENT_REGISTRATION_RESOURCES)
    after = replace(state, keys=keys, holder=destination, persists=request.persists)
    return Outcome(_counted(after))


# --- reserving and releasing (SPC-4 §5.13.9, §5.13.11) -------------------------------------------


def reserve(state: State, port: Port, request: Request) -> Outcome:
    """RESERVE: asking again for what is held is no error."""
    kind = _kind_of(request)
    _check_key(state, port, request)
    if state.held is None:
        return Outcome(replace(state, held=kind, holder=None if kind.is_held_by_all else port))
    if state.held == kind and state.holds(port):
        return Outcome(state)
    raise Conflict


def release(state: State, port: Port, request: Request) -> Outcome:
    """RELEASE: only a holder's has an effect."""
    _check_key(state, port, request)
    if state.held is None or not state.holds(port):
        return Outcome(state)
    if request.scope != _LOGICAL_UNIT_SCOPE or request.kind != state.held:
        raise Refused(Asc.INVALID_RELEASE_OF_RESERVATION)
    notices: tuple[tuple[Port, Asc], ...] = ()
    if state.held.is_shared:
        notices = _told(state.keys, Asc.RESERVATIONS_RELEASED, port)
    return Outcome(_released(state), notices)


def clear(state: State, port: Port, request: Request) -> Outcome:
    """CLEAR: end the reservation and all registrations."""
    _check_key(state, port, request)
    notices = _told(state.keys, Asc.RESERVATIONS_PREEMPTED, port)
    return Outcome(_counted(_released(replace(state, keys={}))), notices)


def preempt(state: State, port: Port, request: Request) -> Outcome:
    """PREEMPT: take the reservation from those whose key is named, or only their registrations."""
    _check_key(state, port, request)
    others = [each for each in state.keys if each != port]
    is_held_by_all = state.held is not None and state.held.is_held_by_all
    if request.action_key == 0:
        if not is_held_by_all:
            raise Refused(Asc.INVALID_FIELD_IN_PARAMETER_LIST)
        return _take_over(state, port, request, others)
    named = [each for each in state.keys if state.keys[each] == request.action_key]
    if state.holder is not None and state.holder in named:
        return _take_over(state, port, request, [each for each in named if each != port])
    if not named:
        raise Conflict
    gone = tuple(each for each in named if each != port)
    notices = _told(gone, Asc.REGISTRATIONS_PREEMPTED, port)
    return Outcome(_counted(_without(state, named)), notices, gone)


def _take_over(state: State, port: Port, request: Request, gone: list[Port]) -> Outcome:
    kind = _kind_of(request)
    leaving = set(gone)
    keys = {each: key for each, key in state.keys.items() if each not in leaving}
    holder = None if kind.is_held_by_all else port
    after = _counted(replace(state, keys=keys, held=kind, holder=holder))
    notices = _told(gone, Asc.REGISTRATIONS_PREEMPTED, port)
    if kind != state.held:
        notices += _told(keys, Asc.RESERVATIONS_RELEASED, port)
    return Outcome(after, notices, tuple(gone))
