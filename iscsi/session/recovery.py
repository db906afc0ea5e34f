"""Making a lost connection again: pauses, portals in turn, login, a look at whether the unit is
still the one it was; then the commands that wait go out. It gives up by the user's limit, and at
once for what no repetition puts right.
"""

from collections.abc import Iterator
from dataclasses import replace
from random import Random
from time import monotonic_ns
from typing import Any, Final

from host.errors import EngineForbidden, EngineMismatch, HostError
from iscsi.session import unit
from iscsi.session.core import SessionCore
from iscsi.session.errors import (
    AuthError,
    CommandTimeout,
    ConnectionLost,
    NoSuchUnit,
    ReservationLost,
    TransportError,
    UnitChanged,
)
from iscsi.session.options import Timeouts, nanoseconds
from iscsi.session.outcome import CommandResult
from iscsi.session.steps import Sleep, Steps
from iscsi.wire.errors import LoginRejected, LoginStatus, RemoteProtocolError, ScsiError
from iscsi.wire.names import Portal, parse_address
from iscsi.wire.url import IscsiUrl

# A peer that breaks the protocol again after each login will do so for ever.
FRUITLESS_MAX: Final = 4
# An attempt gets that long, however little of the user's limit is left.
ATTEMPT_LEAST_NS: Final = 1_000_000_000
# Statuses of a target that is starting: it listens before it is configured.
_NOT_YET: Final = (
    LoginStatus.TARGET_NOT_FOUND,
    LoginStatus.TOO_MANY_CONNECTIONS,
    LoginStatus.SESSION_DOES_NOT_EXIST,
)
RETRIED: Final = (
    TransportError,
    CommandTimeout,
    LoginRejected,
    RemoteProtocolError,
    NoSuchUnit,
    ScsiError,
    OSError,
)


class Express:
    """The session as recovery sees it: its commands pass all that wait."""

    def __init__(self, core: SessionCore) -> None:
        self._core = core

    @property
    def url(self) -> IscsiUrl:
        """Which target and unit."""
        return self._core.url

    @property
    def timeouts(self) -> Timeouts:
        """The session's, as far as they end before the attempt does."""
        left_s = max((self._core.recover_until_ns - monotonic_ns()) / 1e9, 0.001)
        return replace(self._core.timeouts, command_s=min(self._core.timeouts.command_s, left_s))

    def command(
        self, cdb: bytes, *, length: int = 0, data: Any = b"", lun: int | None = None
    ) -> Steps[CommandResult]:
        """One SCSI command, ahead of all others."""
        return self._core.command(cdb, length=length, data=data, lun=lun, express=True)

    def pass_over(self, error: ScsiError, lun: int | None = None) -> None:
        """`Procedures.pass_over`."""
        self._core.pass_over(error, lun)


class Episode:
    """One loss and all that follows from it until a command ends well again, or, where none waited,
    until a connection has lasted. The time that a connection lasts is not counted.
    """

    def __init__(self, core: SessionCore, random: Random) -> None:
        recovery = core.options.recovery
        self._core = core
        self.completions = core.worker.hot("completions")
        self.deadline = monotonic_ns() + nanoseconds(recovery.limit_s)
        self._lasts_ns = nanoseconds(min(recovery.maximum_s, recovery.limit_s))
        self._connected_at, self._is_idle = 0, False
        self.pauses: Iterator[float] = recovery.pauses(random)
        self.fruitless = 0
        self.is_first = True

    def pause(self) -> None:
        """There is a connection."""
        self._connected_at, self._is_idle = monotonic_ns(), self._core.is_idle

    def goes_on(self) -> bool:
        """There is none any more: whether this is still about the same loss."""
        lasted = monotonic_ns() - self._connected_at if self._connected_at else 0
        self.deadline, self._connected_at = self.deadline + lasted, 0
        is_same = self._core.worker.hot("completions") == self.completions
        return is_same and not (self._is_idle and lasted >= self._lasts_ns)


class Recovery:
    """Recovers one session. `facts` is what its unit was when it was opened."""

    def __init__(self, core: SessionCore) -> None:
        self._core = core
        self._random = Random()
        self._episode: Episode | None = None
        self._portals = [core.url.portal, *_parse_portals(core.options.portals)]
        self._next = 0
        self.facts: unit.UnitFacts | None = None

    def add_portals(self, portals: list[Portal]) -> None:
        """More addresses of the same target, as discovery names them."""
        self._portals += [portal for portal in portals if portal not in self._portals]

    def recovering(self) -> Steps[None]:
        """Make the connection again. Raises why that is given up; the session is over then."""
        core = self._core
        if self._episode is None or not self._episode.goes_on():
            self._episode = Episode(core, self._random)
        episode, error = self._episode, core.down or ConnectionLost("there is no connection")
        core.is_recovering = True
        try:
            while True:
                self._check(episode, error)
                yield Sleep(self._pause(episode, error))
                least_ns = monotonic_ns() + ATTEMPT_LEAST_NS
                core.recover_until_ns = max(episode.deadline, least_ns)
                try:
                    with core.worker.load_suspended():
                        yield from self._attempt()
                except RETRIED as failed:
                    if _is_final(failed):
                        raise
                    error = failed
                    self._drop(failed)
                    continue
                core.recoveries += 1
                episode.pause()
                core.worker.open_gate()
                return
        except BaseException as final:
            self._episode = None  # Whoever broke it off may come back much later.
            self._drop(final)
            raise
        finally:
            core.is_recovering, core.recover_until_ns = False, 0

    def _attempt(self) -> Steps[None]:
        self._core.revive()
        portal = self._portals[self._next % len(self._portals)]
        self._next += 1
        yield from self._core.logging_in(portal)
        self._next -= 1  # This one is good: begin with it the next time.
        express = Express(self._core)
        if self.facts is not None:
            self.facts = yield from unit.examine_again(express, self.facts)
        elif self._core.url.lun is not None:
            yield from unit.answers(express)
        if self._core.down is not None:
            raise self._core.down  # It came together with the last answer.

    def _drop(self, error: BaseException) -> None:
        """Hang up on an attempt that failed."""
        core = self._core
        core.down = core.down or (
            error if isinstance(error, Exception) else ConnectionLost("a login was interrupted")
        )
        core.let_go()

    def _check(self, episode: Episode, error: Exception) -> None:
        """Raise if enough was tried, or there is nothing to come back to."""
        if self._core.reserved:
            raise ReservationLost(
                f"the reservation of LUN {min(self._core.reserved)} ended with the connection: "
                f"{error}"
            )
        if _is_final(error):
            raise error
        if isinstance(error, RemoteProtocolError):
            episode.fruitless += 1
            if episode.fruitless >= FRUITLESS_MAX:
                raise error
        if monotonic_ns() > episode.deadline:
            raise _given_up(error, f"{self._core.options.recovery.limit_s:g} s")

    def _pause(self, episode: Episode, error: Exception) -> float:
        try:
            pause = next(episode.pauses)
        except StopIteration:
            raise _given_up(error, f"{self._core.options.recovery.tries} logins") from None
        if episode.is_first or self._core.pause_s:
            asked, self._core.pause_s, episode.is_first = self._core.pause_s, 0, False
        else:
            asked = 0.0
        # No pause of ours outlasts the limit; what the target asks for is kept.
        left = max(episode.deadline - monotonic_ns(), 0) / 1e9
        return max(min(pause, left), asked)


def _is_final(error: BaseException) -> bool:
    """Whether trying again is of no use."""
    if isinstance(error, (AuthError, UnitChanged, EngineForbidden, EngineMismatch)):
        return True
    if isinstance(error, LoginRejected):
        return not error.is_retryable and error.status not in _NOT_YET
    return isinstance(error, HostError) and not isinstance(error, OSError)


def _given_up(error: Exception, after: str) -> Exception:
    """The last error, with the news that no further login is tried."""
    text = f"{error} (gave up after {after})"
    if isinstance(error, (ConnectionLost, CommandTimeout, RemoteProtocolError)):
        return type(error)(text)
    return ConnectionLost(text)


def _parse_portals(texts: Any) -> list[Portal]:
    found = []
    for text in texts:
        portal = parse_address(text)
        if portal is None:
            raise ValueError(f"portal {text!r}: expected host[:port]")
        found.append(portal)
    return found
