"""A target server as an operator runs it: built from settings, changed while it runs, ended in
order. The server serves in the thread that made it; everything here that changes it may be called
from any other thread, one change at a time.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

from host.errors import EngineDied, HostError
from host.memory import Buffer
from iscsi.target.backends import Backend, FileBackend, NullBackend, RamBackend
from iscsi.target.backends.ram import Memory
from iscsi.target.config import ServerConfig
from iscsi.target.server import TargetServer
from iscsi.target.settings import LunSettings, Settings, TargetSettings
from iscsi.target.units import VENDOR, LogicalUnit, Target
from ppe import notify
from ppe.errors import OperatorError
from shm.segment import SegmentError

_PRODUCTS: Final = {"ram": "RAM disk", "file": "disk", "null": "null disk"}
# What a restart is needed for, with the names a file has for it.
_FIXED: Final = ("engine", "name", "control", "limits", "advertise")
_LAST_S: Final = 1.0  # for a change under way when the server is stopped
Say = Callable[[str], None]


def open_backend(memory: Memory, lun: LunSettings) -> Backend:
    """The place of a unit's blocks. Raises OSError that names it, MemoryError, SegmentError."""
    if lun.backend == "ram":
        capacity = lun.max_size or None
        return RamBackend.create(memory, lun.size, capacity=capacity, thin=lun.thin)
    if lun.backend == "null":
        return NullBackend(lun.size)
    return FileBackend(
        lun.path,
        size=lun.size or None,
        cache=lun.cache,
        thin=lun.thin,
        read_only=lun.read_only,
    )


def open_unit(memory: Memory, lun: LunSettings) -> LogicalUnit:
    """A unit over its backend, which `close_unit` closes. Raises what `open_backend` does, and
    ValueError.
    """
    backend = open_backend(memory, lun)
    try:
        return LogicalUnit(
            backend,
            block_size=lun.block_size,
            read_only=lun.read_only,
            removable=lun.removable,
            serial=lun.serial or None,
            vendor=lun.vendor or VENDOR,
            product=lun.product or _PRODUCTS[lun.backend],
            reservations_path=lun.reservations or None,
        )
    except BaseException:
        backend.close()
        raise


@contextlib.contextmanager
def described(target: str, lun: LunSettings) -> Iterator[None]:
    """Have what goes wrong with a unit say which one it is."""
    try:
        yield
    except OSError as error:
        what = error.strerror or str(error)
        place = f"{error.filename}: " if error.filename else ""
        raise OperatorError(f"{target} LUN {lun.lun}: {place}{what}") from error
    except (ValueError, MemoryError, SegmentError, HostError) as error:
        raise OperatorError(f"{target} LUN {lun.lun}: {error}") from error


class Daemon:
    """A server and what it serves. Make it and `serve` in one thread; close the engine after it."""

    def __init__(self, engine: Any, settings: Settings, say: Say) -> None:
        self.settings, self._engine, self._say = settings, engine, say
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
        self._operator = threading.Thread(target=self._operate, name="target-operator", daemon=True)

    # --- its life ----------------------------------------------------------------------------

    def serve(self) -> None:
        """Serve until stopped or drained. Raises EngineDied."""
        self._operator.start()
        try:
            self.server.serve_forever()
        finally:
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
        notify.stopping()
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
        notify.notify("RELOADING=1")
        try:
            with self._change:
                return self._apply(self.reload_from())
        finally:
            notify.notify("READY=1")

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
        faults.extend(
            f"server.{key} changes only with a restart"
            for key in _FIXED
            if getattr(wanted, key) != getattr(self.settings, key)
        )
        for line in done:
            self._say(f"reload: {line}")
        if faults:
            raise OperatorError("; ".join(faults), "what else changed is in force")
        return done

    def _changes(self, wanted: Settings) -> Iterator[tuple[str, Callable[[], None]]]:
        """The difference, in an order that never has a new unit wait for an old one's file."""
        now = self.settings
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
            if wanted is not None and wanted.size and replace(wanted, size=lun.size) == lun:
                yield f"{name} LUN {lun.lun} resized", partial(self._resized, name, lun, wanted)
                continue
            yield f"{name} LUN {lun.lun} removed", partial(self._removed, name, lun)
        for lun in after.luns:
            old = before.lun(lun.lun)
            resized = old is not None and lun.size and replace(lun, size=old.size) == old
            if lun != old and not resized:
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

    def _resized(self, name: str, old: LunSettings, new: LunSettings) -> None:
        self.server.resize_unit(name, old.lun, new.size)
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

    def _drop_portal(self, served: Any) -> None:
        with contextlib.suppress(KeyError):
            self.server.remove_portal(served.portal.host, served.portal.port)
        portals = tuple(found for found in self.settings.portals if found != served)
        self.settings = replace(self.settings, portals=portals)

    def _add_portal(self, served: Any) -> None:
        self.server.add_portal(served)
        self.settings = replace(self.settings, portals=(*self.settings.portals, served))


def _message(error: Exception) -> str:
    if isinstance(error, KeyError):
        return str(error.args[0])
    return str(error)
