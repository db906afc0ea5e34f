"""A target server as an operator runs it: built from settings, changed while it runs, ended in
order. The server serves in the thread that made it; everything here that changes it may be called
from any other thread, one change at a time.
"""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

from host.errors import EngineDied
from host.memory import Buffer
from iscsi.target.config import ServerConfig
from iscsi.target.live import LIVE_COUNTS, LIVE_LIMITS
from iscsi.target.opening import described, open_unit, thresholds_of
from iscsi.target.room import place_of
from iscsi.target.server import TargetServer
from iscsi.target.service import Service
from iscsi.target.settings import LunSettings, Settings, TargetSettings
from iscsi.target.thresholds import USED, Reached
from iscsi.target.units import LogicalUnit, Target
from ppe.errors import OperatorError

# What a restart is needed for, with the names a file has for it.
_FIXED: Final = ("engine", "name", "control")
_FIXED_LIMITS: Final = ("file_workers", "slow_workers", "placement", "engines", "mpa_crc")
# What of a unit can change while it is served.
_LIVE_LUN: Final = ("size", "warn_used", "warn_free")
_LAST_S: Final = 1.0  # for a change under way when the server is stopped
Say = Callable[[str], None]


class Daemon:
    """A server and what it serves. Make it and `serve` in one thread; close the engine after it."""

    def __init__(self, engine: Any, settings: Settings, say: Say) -> None:
        self.settings, self._engine, self._say = settings, engine, say
        self._started_with = settings
        self._change = threading.Lock()
        self._asked: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.reload_from: Callable[[], Settings] | None = None  # reads the file again
        self._opened: list[LogicalUnit] = []
        self._targets: dict[str, Target] = {}
        try:
            targets = tuple(self._make_target(found) for found in settings.targets)
            config = ServerConfig(
                targets,
                settings.portals,
                settings.advertise,
                access=settings.access,
                **settings.limits,
            )
            self.server = TargetServer(engine, config)
        except BaseException:
            self._close_units()
            raise
        self.service = Service(self.server)
        self.server.room.reached = self._warn
        if "NOTIFY_SOCKET" in os.environ:
            self.server.watchers.append(self.service.tick)
        self._operator = threading.Thread(target=self._operate, name="target-operator", daemon=True)

    # --- its life ----------------------------------------------------------------------------

    def serve(self) -> None:
        """Serve until stopped or drained. Raises EngineDied."""
        self._operator.start()
        try:
            self.server.serve_forever()
        finally:
            self.service.stopping()
            self._asked.put(None)
            deadline = time.monotonic() + _LAST_S
            with contextlib.suppress(EngineDied):
                while self._operator.is_alive() and time.monotonic() < deadline:
                    # What the operator asks of the server still has to be answered here.
                    self.server.step()

    def close(self) -> None:
        """End the server and close every unit."""
        self.server.close()
        self._close_units()

    def __enter__(self) -> "Daemon":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stop(self) -> None:
        """Stop serving at once. Any thread, also a signal handler."""
        self.server.stop()

    def _warn(self, unit: LogicalUnit, reached: Reached) -> None:
        """Tell the operator what the initiators are told, too."""
        usage, size = reached.usage, unit.backend.size
        what = "warn_used" if reached.threshold.resource == USED else "warn_free"
        self._say(
            f"{place_of(unit)}: {what} reached: {100 * usage.used // size} % of {size} bytes used, "
            f"{usage.available} bytes left for the rest"
        )

    def ask(self, what: Callable[[], object]) -> None:
        """Have the operator's thread do something. Any thread, also a signal handler."""
        self._asked.put(what)

    def _operate(self) -> None:
        while (what := self._asked.get()) is not None:
            try:
                what()
            except Exception as error:  # One wrong wish must not end the server.
                self._say(f"failed: {error}")

    def drain(self) -> bool:
        """Ask everybody to log out, wait `drain_s` for that, and stop. Whether all of them did."""
        self.service.stopping(self.settings.drain_s)
        try:
            return self.server.drain(self.settings.drain_s)
        finally:
            self.stop()

    # --- units -------------------------------------------------------------------------------

    def _make_target(self, found: TargetSettings) -> Target:
        units = {lun.lun: self._open(found.name, lun) for lun in found.luns}
        target = self._targets[found.name] = Target(found.name, units, found.alias or None)
        return target

    def alloc(self, size: int) -> Buffer:
        """Memory of the engine, which only the server's thread may ask for. Any thread."""
        buffer: Buffer = self._in_server(lambda: self._engine.alloc(size))
        return buffer

    def _in_server(self, function: Callable[[], Any]) -> Any:
        """Run it in the server's thread: in this one as long as there is no server."""
        server = getattr(self, "server", None)
        return function() if server is None else server.call(function)

    def _open(self, target: str, lun: LunSettings) -> LogicalUnit:
        with described(target, lun):
            unit = open_unit(self, lun)
        self._opened.append(unit)
        return unit

    def _close_unit(self, unit: LogicalUnit) -> None:
        if unit in self._opened:
            self._opened.remove(unit)
            unit.backend.close()

    def _close_units(self) -> None:
        for unit in list(self._opened):
            self._close_unit(unit)

    def add_lun(self, target: str, lun: LunSettings) -> None:
        """Serve one more unit. Raises OperatorError, KeyError, ValueError."""
        with self._change:
            self._add(target, lun)

    def _add(self, target: str, lun: LunSettings) -> None:
        unit = self._open(target, lun)
        try:
            self.server.add_unit(target, lun.lun, unit)
        except BaseException:
            self._close_unit(unit)
            raise

    def remove_lun(self, target: str, lun: int) -> None:
        """Serve a unit no more, and close it. Raises KeyError, TimeoutError."""
        with self._change:
            self._close_unit(self.server.remove_unit(target, lun))

    def resize_lun(self, target: str, lun: int, size: int) -> None:
        """Change a unit's size, in bytes. Raises KeyError, ValueError, OSError."""
        with self._change:
            self.server.resize_unit(target, lun, size)
            settings = self.settings.target(target)
            found = None if settings is None else settings.lun(lun)
            if found is not None and "%" in found.warn_used + found.warn_free:
                self._set_thresholds(target, found)

    def _set_thresholds(self, target: str, lun: LunSettings) -> None:
        unit = self._targets[target].units.get(lun.lun)
        if unit is not None and lun.thin:
            self.server.set_thresholds(target, lun.lun, thresholds_of(lun, unit))

    # --- what it serves ------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Targets, units and portals as they are now, without numbers of use."""
        known = self.server.statistics()
        return {
            "portals": known["portals"],
            "draining": known["draining"],
            "targets": [
                {
                    "name": target["name"],
                    "alias": target["alias"],
                    "sessions": target["sessions"],
                    "luns": [
                        {
                            key: unit[key]
                            for key in (
                                "lun",
                                "size",
                                "block_size",
                                "read_only",
                                "thin",
                                "write_cache",
                                "serial",
                            )
                        }
                        for unit in target["units"]
                    ],
                }
                for target in known["targets"]
            ],
        }

    # --- another file ----------------------------------------------------------------------------

    def reload(self) -> list[str]:
        """Read the file again and apply what changed in it since it was read last: a line for each
        change. A faulty file changes nothing. What is done when a change fails stays done, and the
        rest is tried again by the next reload. Raises ConfigError, OperatorError.
        """
        if self.reload_from is None:
            raise OperatorError("this server was started without a file", "use ppe target add, rm")
        self.service.reloading()
        problem = ""
        try:
            with self._change:
                return self._apply(self.reload_from())
        except Exception as error:
            problem = _message(error)
            raise
        finally:
            self.service.reloaded(problem)

    def _apply(self, wanted: Settings) -> list[str]:
        done: list[str] = []
        faults: list[str] = []
        changes = [*self._changes(wanted)]
        for what, change in changes:
            try:
                change()
                done.append(what)
            except (OperatorError, KeyError, ValueError, OSError, TimeoutError) as error:
                faults.append(f"{what}: {_message(error)}")
        faults.extend(self._fixed_changes(wanted))
        for line in done:
            self._say(f"reload: {line}")
        if faults:
            raise OperatorError("; ".join(faults), "what else changed is in force")
        return done

    def _fixed_changes(self, wanted: Settings) -> Iterator[str]:
        """What only a restart can change, in words."""
        now = self.settings
        fixed = [key for key in _FIXED if getattr(wanted, key) != getattr(now, key)]
        fixed += [key for key in _FIXED_LIMITS if wanted.limit(key) != now.limit(key)]
        for key in fixed:
            yield f"server.{key} changes only with a restart"
        for key in LIVE_COUNTS:
            most = self._started_with.limit(key)
            if wanted.limit(key) > most:
                yield f"server.{key} can be more than {most}, as at the start, only with a restart"

    def _changes(self, wanted: Settings) -> Iterator[tuple[str, Callable[[], None]]]:
        """The difference, in an order that never has a new unit wait for an old one's file."""
        now = self.settings
        for key in LIVE_LIMITS:
            is_possible = key not in LIVE_COUNTS or wanted.limit(key) <= self._started_with.limit(
                key
            )
            if is_possible and now.limit(key) != wanted.limit(key):
                what = f"server.{key} is {_shown(wanted.limit(key))} now"
                yield what, partial(self._set_limit, key, wanted)
        for old in now.targets:
            if wanted.target(old.name) is None:
                yield f"target {old.name} removed", partial(self._drop_target, old)
        for target in wanted.targets:
            before = now.target(target.name)
            if before is None:
                continue
            if before.alias != target.alias:
                yield f"target {target.name} has an alias", partial(self._set_alias, target)
            yield from self._lun_changes(before, target)
        # Whoever may not log in any more is out before there is anything new.
        if (now.access, now.drain_s) != (wanted.access, wanted.drain_s):
            yield "access rules", partial(self._set_access, wanted)
        for target in wanted.targets:
            if now.target(target.name) is None:
                yield f"target {target.name} added", partial(self._add_target, target)
        for served in set(now.portals) - set(wanted.portals):
            yield f"portal {served.portal.address} removed", partial(self._drop_portal, served)
        for served in set(wanted.portals) - set(now.portals):
            yield f"portal {served.portal.address} added", partial(self._add_portal, served)

    def _lun_changes(
        self, before: TargetSettings, after: TargetSettings
    ) -> Iterator[tuple[str, Callable[[], None]]]:
        name = after.name
        added = []
        for lun in before.luns:
            wanted = after.lun(lun.lun)
            if wanted == lun:
                continue
            if wanted is not None and _is_live(lun, wanted):
                what = "warns at other thresholds" if wanted.size == lun.size else "resized"
                yield f"{name} LUN {lun.lun} {what}", partial(self._altered, name, lun, wanted)
                continue
            yield f"{name} LUN {lun.lun} removed", partial(self._removed, name, lun)
        for lun in after.luns:
            old = before.lun(lun.lun)
            if lun != old and (old is None or not _is_live(old, lun)):
                added.append(lun)
        for lun in added:
            yield f"{name} LUN {lun.lun} added", partial(self._added, name, lun)

    def _note(self, target: TargetSettings) -> None:
        """Keep what a target is now, in its place."""
        others = tuple(found for found in self.settings.targets if found.name != target.name)
        self.settings = replace(self.settings, targets=(*others, target))

    def _named(self, name: str) -> TargetSettings:
        found = self.settings.target(name)
        assert found is not None, "only asked for targets of the settings"
        return found

    def _altered(self, name: str, old: LunSettings, new: LunSettings) -> None:
        if new.size != old.size:
            self.server.resize_unit(name, old.lun, new.size)
        self._set_thresholds(name, new)
        target = self._named(name)
        luns = tuple(new if found == old else found for found in target.luns)
        self._note(replace(target, luns=luns))

    def _removed(self, name: str, lun: LunSettings) -> None:
        with contextlib.suppress(KeyError):  # `ppe target rm` may have been there before.
            self._close_unit(self.server.remove_unit(name, lun.lun))
        target = self._named(name)
        self._note(replace(target, luns=tuple(each for each in target.luns if each != lun)))

    def _added(self, name: str, lun: LunSettings) -> None:
        self._add(name, lun)
        target = self._named(name)
        self._note(replace(target, luns=(*target.luns, lun)))

    def _set_alias(self, wanted: TargetSettings) -> None:
        def change() -> None:
            self._targets[wanted.name].alias = wanted.alias or None

        self.server.call(change)
        self._note(replace(self._named(wanted.name), alias=wanted.alias))

    def _add_target(self, found: TargetSettings) -> None:
        before = len(self._opened)
        try:
            self.server.add_target(self._make_target(found))
        except BaseException:
            for unit in self._opened[before:]:
                self._close_unit(unit)
            raise
        self._note(found)

    def _drop_target(self, old: TargetSettings) -> None:
        with contextlib.suppress(KeyError):
            target = self.server.remove_target(old.name, self.settings.drain_s)
            for unit in target.units.values():
                self._close_unit(unit)
        targets = tuple(found for found in self.settings.targets if found.name != old.name)
        self.settings = replace(self.settings, targets=targets)

    def _set_access(self, wanted: Settings) -> None:
        self.server.set_access(wanted.access)
        targets = []
        for found in self.settings.targets:
            new = wanted.target(found.name)
            targets.append(found if new is None else replace(found, access=new.access))
        self.settings = replace(
            self.settings,
            targets=tuple(targets),
            discovery=wanted.discovery,
            short_secrets=wanted.short_secrets,
            algorithms=wanted.algorithms,
            drain_s=wanted.drain_s,
        )

    def _set_limit(self, key: str, wanted: Settings) -> None:
        self.server.set_limits(**{key: wanted.limit(key)})
        if key == "advertise":
            self.settings = replace(self.settings, advertise=wanted.advertise)
        else:
            limits = {**self.settings.limits, key: wanted.limit(key)}
            self.settings = replace(self.settings, limits=limits)

    def _drop_portal(self, served: Any) -> None:
        with contextlib.suppress(KeyError):
            self.server.remove_portal(served.portal.host, served.portal.port)
        portals = tuple(found for found in self.settings.portals if found != served)
        self.settings = replace(self.settings, portals=portals)

    def _add_portal(self, served: Any) -> None:
        self.server.add_portal(served)
        self.settings = replace(self.settings, portals=(*self.settings.portals, served))


def _is_live(old: LunSettings, new: LunSettings) -> bool:
    """Whether a unit can become the other one while it is served."""
    if new.size != old.size and not new.size:
        return False
    return replace(new, **{key: getattr(old, key) for key in _LIVE_LUN}) == old


def _shown(value: Any) -> str:
    """A limit as people write it."""
    if isinstance(value, tuple):
        return ", ".join(portal.address for portal in value) or "the portals"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _message(error: Exception) -> str:
    if isinstance(error, OperatorError):
        return error.message
    if isinstance(error, KeyError):
        return str(error.args[0])
    return str(error)
