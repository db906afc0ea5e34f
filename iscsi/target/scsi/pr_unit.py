"""What one logical unit has reserved, by PERSISTENT RESERVE or by RESERVE(6), and whom that stops.
Only the server's thread changes it; a change is stored before it is adopted, and the gates of
compiled code are shut before the command that changed something is answered.
"""

import logging
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

from iscsi.target.nexus import Nexus
from iscsi.target.scsi import pr_store
from iscsi.target.scsi.command import Command, Reservation
from iscsi.target.scsi.pr_state import EMPTY, Action, Outcome, Port, Refused, Request, State
from iscsi.target.units import LogicalUnit
from iscsi.wire.sense import Asc

log: Final = logging.getLogger(__name__)


def port_of(nexus: Nexus, relative_port: int | None = None) -> Port:
    """How registrations name this nexus, or the same initiator port at another port of ours."""
    target = "" if nexus.target is None else nexus.target.name
    return Port(nexus.transport_id, target, relative_port or nexus.relative_port)


class UnitReservations:
    """The reservations of `unit`. `fault` says why a stored state could not be read: then whatever
    a reservation could forbid conflicts, for everybody, until the file is mended or removed.
    """

    def __init__(self, unit: LogicalUnit) -> None:
        self._unit = unit
        self._path = None if unit.reservations_path is None else Path(unit.reservations_path)
        self._reserved_by: Nexus | None = None
        self._lost: list[Nexus] = []  # whose commands somebody still works on
        self._left_by: Nexus | None = None  # lost while it had the unit, and not yet ended
        self._is_file_unknown = False
        self.state: State = EMPTY
        self.fault: str | None = None
        try:
            if self._path is not None:
                self.state = pr_store.load(self._path)
        except pr_store.StoreError as error:
            self.fault = str(error)
            log.error("reservations are unknown, so the unit is not served: %s", self.fault)

    # --- whom it stops -------------------------------------------------------------------------

    def conflicts(self, command: Command, kind: Reservation) -> bool:
        """Whether this command ends with RESERVATION CONFLICT (SPC-4 §5.13.1, SPC-2 §5.5.1)."""
        if kind is Reservation.ALWAYS_ALLOWED:
            return False
        if self._reserved_by is not None:
            return self._reserved_by is not command.nexus
        if kind is Reservation.PERSISTENT_ALLOWED:
            return False
        if self.fault is not None:
            return True
        held = self.state.held
        if held is None or (kind is Reservation.READ_LIKE and held.lets_read):
            return False
        return not self.state.has_access(port_of(command.nexus))

    def restricts(self, nexus: Nexus) -> bool:
        """Whether any READ or WRITE of this nexus may conflict."""
        if self.fault is not None:
            return True
        if self._reserved_by is not None:
            return self._reserved_by is not nexus
        return self.is_being_left or not self.state.has_access(port_of(nexus))

    # --- PERSISTENT RESERVE --------------------------------------------------------------------

    @property
    def is_stored(self) -> bool:
        """Whether it can survive a restart (PTPL_C)."""
        return self._path is not None

    def act(self, nexus: Nexus, action: Action, request: Request) -> Outcome:
        """Do a PERSISTENT RESERVE OUT. Raises Conflict, Refused, or OSError if it cannot be stored;
        then nothing has changed.
        """
        if request.persists and not self.is_stored:
            raise Refused(Asc.INVALID_FIELD_IN_PARAMETER_LIST)
        outcome = action(self.state, port_of(nexus), request)
        self._store(outcome.state)
        self.state = outcome.state
        self._unit.refresh_nexuses()
        for each, lun in self.nexuses():
            for port, code in outcome.notices:
                if port_of(each) == port:
                    each.raise_attention(lun, code)
        return outcome

    def _store(self, state: State) -> None:
        before = self.state
        was = (before.keys, before.held, before.holder) if before.persists else None
        now = (state.keys, state.held, state.holder) if state.persists else None
        if self._path is not None and (was != now or self._is_file_unknown):
            self._is_file_unknown = True  # until all of it succeeded
            pr_store.save(self._path, state)
            self._is_file_unknown = False

    def abort(self, ports: Collection[Port]) -> Callable[[], bool]:
        """End the tasks of these nexuses (PREEMPT AND ABORT), and of those that are lost but still
        worked for: whoever is fenced may have lost its connection just before. What is returned
        says whether nothing of it reaches the medium any more.
        """
        ended: list[tuple[Nexus, int | None]] = [
            (nexus, lun) for nexus, lun in self.nexuses() if port_of(nexus) in ports
        ]
        ended += [(nexus, None) for nexus in self._lost]
        for nexus, lun in ended:
            nexus.abort_tasks(lun)
        return lambda: not any(nexus.aborted_work(lun) for nexus, lun in ended)

    def nexuses(self) -> Iterator[tuple[Nexus, int]]:
        """Every nexus of the unit that is there now, with the LUN it knows the unit by."""
        for target, lun in self._unit.places:
            for nexus in list(target.nexuses):
                yield nexus, lun

    # --- RESERVE(6) and its end ------------------------------------------------------------------

    @property
    def reserved_by(self) -> Nexus | None:
        """Who holds the unit by RESERVE(6)."""
        return self._reserved_by

    def reserve(self, nexus: Nexus | None) -> None:
        """Give the unit to a nexus (SPC-2 §7.25), or with None to everybody."""
        if self._reserved_by is not nexus:
            self._reserved_by = nexus
            self._unit.refresh_nexuses()

    def nexus_lost(self, nexus: Nexus) -> None:
        """A session ended: its RESERVE(6) ends, its registrations stay (SPC-4 §5.13.1)."""
        self._lost = [each for each in (*self._lost, nexus) if each.jobs]
        if self._reserved_by is nexus:
            self._left_by = None if nexus.tasks is None else nexus
            self.reserve(None)

    @property
    def is_being_left(self) -> bool:
        """Whether commands of a lost nexus that had the unit to itself may still be worked on.
        Whoever finds the unit free is to find all of them over.
        """
        return self._left_by is not None

    def nexus_ended(self, nexus: Nexus) -> None:
        """Nothing of a lost nexus is worked on any more."""
        if self._left_by is nexus:
            self._left_by = None
            self._unit.refresh_nexuses()

    def reset(self) -> None:
        """The unit was reset: a RESERVE(6) ends, persistent reservations stay (SAM-5 §6.3.3)."""
        self.reserve(None)


def reservations_of(unit: LogicalUnit) -> UnitReservations:
    """The reservations of a unit, for the commands of this package."""
    found = unit.reservations
    assert isinstance(found, UnitReservations), "a unit makes them itself"
    return found
