"""`ppe target serve`: an iSCSI target in this process, until it is told to stop.

It says on standard error (with --json: as one object on standard output) where it listens once
initiators can log in, and not before.
"""

import argparse
import contextlib
import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from iscsi.target import portals, remote
from iscsi.target.placement import ENGINE, PLACEMENTS
from iscsi.target.settings import INLINE, Settings, load_file, parse_listen, read, read_lun
from iscsi.target.toml_reader import Faults
from iscsi.tools.target import DEFAULT_IQN, DEFAULT_PORTAL
from iscsi.wire.names import Portal
from ppe import notify, output
from ppe.config import parse_size
from ppe.errors import OperatorError, UsageError

if TYPE_CHECKING:
    from iscsi.target.daemon import Daemon  # importing it may compile for minutes

_ARENA_SIZE: Final = 16 << 20
# Flags that say what a configuration file would: not together with one.
_OF_THE_FILE: Final = {
    "engine": "--engine",
    "units": "--ram, --file, --null",
    "portal": "--portal",
    "iser": "--iser",
    "no_mpa_crc": "--no-mpa-crc",
    "advertise": "--advertise",
    "iqn": "--iqn",
    "size": "--size",
    "block_size": "--block-size",
    "cache": "--cache",
    "thin": "--thin",
    "read_only": "--read-only",
    "removable": "--removable",
    "max_connections": "--max-connections",
    "placement": "--placement",
    "engines": "--engines",
    "reservations": "--reservations",
    "warn_used": "--warn-used",
    "warn_free": "--warn-free",
}


def serve(args: argparse.Namespace) -> int:
    """Serve what the flags or the file ask for. Raises OperatorError with what to change."""
    settings = settings_of(args)
    _look_at_portals(settings)
    import host
    from host.errors import HostError
    from shm.segment import SegmentError

    notify.status("starting")
    try:
        with host.connect(settings.engine, arena_size=_ARENA_SIZE) as engine:
            return _run(engine, settings, args)
    except OperatorError:
        raise
    except (HostError, SegmentError, MemoryError) as error:
        raise OperatorError(str(error)) from error
    except OSError as error:
        raise _refused(error) from error
    except ValueError as error:
        raise UsageError(str(error)) from error


def _look_at_portals(settings: Settings) -> None:
    """Say now, before anything is compiled, that a portal cannot be listened on. Only for an engine
    of this process: one of its own may have another network.
    """
    if not settings.engine.startswith(INLINE):
        return
    for served in settings.portals:
        try:
            portals.look_at(served.portal)
        except OSError as error:
            raise _refused(error) from error


def _refused(error: OSError) -> OperatorError:
    said = error.strerror or str(error)
    return OperatorError(said, _hint(error.errno, said))


def _hint(code: int | None, said: str) -> str:
    """What to change about a portal that cannot be listened on."""
    if code == errno.EADDRINUSE:
        return "stop it, or pass another --portal"
    if code == errno.EACCES and "listen" in said:
        return "ports below 1024 are root's: pass a --portal with another one"
    return ""


def settings_of(args: argparse.Namespace) -> Settings:
    """What the flags say, or the file they name. Raises ConfigError, UsageError."""
    if args.config is None:
        return _settings_of_flags(args)
    given = [
        flag
        for name, flag in _OF_THE_FILE.items()
        if getattr(args, name) not in (None, [], "") and getattr(args, name) is not False
    ]
    if given:
        raise UsageError(f"{given[0]} and --config exclude each other", "write it into the file")
    return load_file(args.config)


def _settings_of_flags(args: argparse.Namespace) -> Settings:
    units = args.units or [("ram", "256M")]
    if args.size and not any(kind == "file" for kind, _ in units):
        raise UsageError("--size is the size of a file", "write --ram SIZE, or name a --file")
    luns = [lun_table(args, number, *unit) for number, unit in enumerate(units)]
    server: dict[str, Any] = {"engine": args.engine} if args.engine else {}
    if args.max_connections is not None:
        server["max_connections"] = args.max_connections
    if args.placement is not None:
        if args.placement not in PLACEMENTS:
            raise UsageError(
                f"--placement {args.placement!r} is no placement",
                f"{', '.join(PLACEMENTS)} are possible",
            )
        server["placement"] = args.placement
    elif args.iser:
        server["placement"] = ENGINE
    if args.no_mpa_crc:
        if not args.iser:
            raise UsageError("--no-mpa-crc is about iSER", "name a portal with --iser")
        server["mpa_crc"] = False
    if args.engines is not None:
        server["engines"] = args.engines
    for word in (*args.portal, *args.iser, *args.advertise):
        if parse_listen(word) is None:
            what = "advertised address" if word in args.advertise else "portal"
            raise UsageError(
                f"{what} {word!r} is no address", "host, host:port or [IPv6]:port are possible"
            )
    server["advertise"] = args.advertise
    plain = args.portal or ([] if args.iser else [DEFAULT_PORTAL])
    table = {
        "server": server,
        "portal": [{"listen": word} for word in plain]
        + [{"listen": word, "iser": True} for word in args.iser],
        "target": [{"name": args.iqn or DEFAULT_IQN, "lun": luns}],
    }
    return read(table, Faults("flags", {}), Path.cwd())


def lun_table(args: argparse.Namespace, number: int, kind: str, value: str) -> dict[str, Any]:
    """The flags of a LUN as its table in a file. Raises UsageError."""
    table: dict[str, Any] = {
        "lun": number,
        "backend": kind,
        "read_only": args.read_only,
        "removable": args.removable,
    }
    if args.block_size is not None:
        table["block_size"] = args.block_size
    if args.thin and kind != "null":
        table["thin"] = True
    for key in ("reservations", "warn_used", "warn_free"):
        if getattr(args, key):
            table[key] = getattr(args, key)
    if kind == "file":
        table["path"] = value
        table |= {key: getattr(args, key) for key in ("size", "cache") if getattr(args, key)}
    else:
        if args.cache:
            raise UsageError("--cache is about files", "name a --file, or leave it out")
        table["size"] = value
    with _sized("--size" if kind == "file" else f"--{kind}"):
        parse_size(table.get("size") or "1")
    return table


@contextlib.contextmanager
def _sized(flag: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{flag}: {error}", f"for example {flag} 256M") from error


def _run(engine: Any, settings: Settings, args: argparse.Namespace) -> int:
    from iscsi.target.daemon import Daemon

    with Daemon(engine, settings, output.say) as daemon:
        if args.config is not None:
            daemon.reload_from = lambda: load_file(args.config)
        with _control(daemon, settings, args) as path, _signals(daemon):
            _say_ready(daemon, path, args.json)
            daemon.serve()
        counts = output.events(daemon.server.counts)
        output.say(f"stopped: {counts}" if counts else "stopped")
    return 0


@contextlib.contextmanager
def _signals(daemon: "Daemon") -> Iterator[None]:
    """SIGTERM drains, a second one and SIGINT stop at once, SIGHUP reads the file again."""
    asked: list[int] = []

    def end(number: int, _: object) -> None:
        asked.append(number)
        if number == signal.SIGTERM and len(asked) == 1:
            daemon.ask(daemon.drain)
        else:
            daemon.stop()

    handlers: dict[int, Any] = {signal.SIGINT: end, signal.SIGTERM: end}
    if daemon.reload_from is not None:
        handlers[signal.SIGHUP] = lambda *_: daemon.ask(lambda: _reload(daemon))
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reload(daemon: "Daemon") -> None:
    try:
        done = daemon.reload()
    except OperatorError as error:
        output.complain("ppe target serve: reload", error.message, error.hint)
        return
    output.say(f"reload: {output.counted(len(done), 'change')}")


@contextlib.contextmanager
def _control(
    daemon: "Daemon", settings: Settings, args: argparse.Namespace
) -> Iterator[Path | None]:
    """The control socket while the server serves; a server without a name of its own does without
    one where there is no run directory.
    """
    name = args.name or settings.name
    wanted = args.control or (Path(settings.control) if settings.control else None)
    with contextlib.ExitStack() as stack:
        path = None
        try:
            path = wanted or remote.folder(make=True) / f"{_checked(name)}{remote.SUFFIX}"
            stack.enter_context(remote.ControlSocket(path, handlers(daemon)))
        except OperatorError:
            if name or wanted:
                raise
            path = None
        yield path


def _checked(name: str) -> str:
    from ppe.paths import check_name

    return check_name(name or f"pid-{os.getpid()}")


def handlers(daemon: "Daemon") -> dict[str, remote.Handler]:
    """What can be asked over the control socket."""
    folder = Path("/")  # `ppe target add` makes paths absolute.

    def add(words: dict[str, Any]) -> None:
        lun = read_lun(words["lun"], "add", folder)
        daemon.add_lun(_target(daemon, words), lun)

    def drain(_: dict[str, Any]) -> dict[str, bool]:
        # The answer has to be there before the process is gone.
        daemon.ask(daemon.drain)
        return {"draining": True}

    return {
        "ls": lambda _: daemon.describe(),
        "stat": lambda _: {"pid": os.getpid(), **daemon.server.statistics()},
        "add": add,
        "rm": lambda words: daemon.remove_lun(_target(daemon, words), int(words["lun"])),
        "resize": lambda words: daemon.resize_lun(
            _target(daemon, words), int(words["lun"]), int(words["size"])
        ),
        "reload": lambda _: daemon.reload(),
        "drain": drain,
    }


def _target(daemon: "Daemon", words: dict[str, Any]) -> str:
    """The target that is meant: the one named, or the only one."""
    names = [target["name"] for target in daemon.describe()["targets"]]
    wanted = words.get("iqn")
    if wanted is None and len(names) == 1:
        return str(names[0])
    if wanted not in names:
        what = f"there is no target called {wanted}" if wanted else "there are several targets"
        raise OperatorError(what, f"--iqn takes {', '.join(names)}")
    return str(wanted)


def _say_ready(daemon: "Daemon", control: Path | None, as_json: bool) -> None:
    bound = daemon.server.bound
    urls = [
        f"{scheme}://{address}/{target.name}/{lun.lun}"
        for scheme, address in _first_of_each_kind(daemon)
        for target in daemon.settings.targets
        for lun in target.luns
    ]
    daemon.service.ready()
    if as_json:
        ports = [{"host": host, "port": port} for host, port in bound]
        found = {"ready": True, "pid": os.getpid(), "portals": ports, "urls": urls}
        output.write_json({**found, "control": None if control is None else str(control)})
    else:
        output.say(f"ready: {', '.join(urls)} (pid {os.getpid()})")


def _first_of_each_kind(daemon: "Daemon") -> list[tuple[str, str]]:
    """Scheme and address of the first portal over TCP, and of the first over RDMA."""
    found: dict[str, str] = {}
    for served, address in zip(daemon.settings.portals, daemon.server.bound, strict=True):
        found.setdefault("iser" if served.rdma else "iscsi", Portal(*address).address)
    return list(found.items())
