"""`ppe target ls|stat|add|rm|resize|reload|drain`: questions to a running target server over its
control socket; and `check-config`, which needs none.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from iscsi.target import remote
from iscsi.tools.sizes import human
from ppe import output
from ppe.config import parse_size
from ppe.errors import ConfigError, OperatorError, UsageError
from ppe.paths import check_name

_SESSION: Final = ("commands", "rejects", "pdus_received", "pdus_sent", "buffer_bytes")
_ROOM: Final = ("used", "available")
_UNIT: Final = ("reads", "writes", "read_bytes", "written_bytes")


def run(args: argparse.Namespace) -> int:
    """Do what `args.action` names. Raises OperatorError with what to change."""
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "check-config": check_config,
        "ls": ls,
        "stat": stat,
        "add": add,
        "rm": rm,
        "resize": resize,
        "reload": reload,
        "drain": drain,
    }
    return actions[args.action](args)


def _socket(args: argparse.Namespace) -> Path:
    """The server that is meant: by path, by name, or the only one that runs."""
    if args.control is not None:
        return Path(args.control)
    if args.name:
        return remote.socket_of(check_name(args.name))
    found = remote.running()
    if len(found) == 1:
        return found[0]
    if not found:
        raise OperatorError(
            f"no target server runs (looked in {' and '.join(map(str, remote.folders()))})",
            "start one with `ppe target serve`, or pass --control PATH",
        )
    names = ", ".join(path.name.removesuffix(remote.SUFFIX) for path in found)
    raise UsageError("several target servers run", f"--name takes {names}")


def _done(args: argparse.Namespace, answer: dict[str, Any], text: str) -> int:
    if args.json:
        output.write_json(answer)
    else:
        output.say(text)
    return 0


# --- looking ---------------------------------------------------------------------------------


def check_config(args: argparse.Namespace) -> int:
    """Say that a file is right, or everything that is wrong with it. Opens nothing it names."""
    from iscsi.target.settings import load_file
    from iscsi.target.toml_reader import SettingsError

    try:
        settings = load_file(args.file)
    except ConfigError as error:
        if args.json:
            faults = error.faults if isinstance(error, SettingsError) else [error.message]
            output.write_json({"ok": False, "faults": faults})
            return error.exit_code
        raise
    luns = sum(len(target.luns) for target in settings.targets)
    facts = {"ok": True, "targets": len(settings.targets), "luns": luns, "faults": []}
    if args.json:
        output.write_json(facts)
        return 0
    targets = output.counted(len(settings.targets), "target")
    output.write(f"{args.file}: {targets}, {output.counted(luns, 'LUN')}: no fault found")
    for target in settings.targets:
        if target.access is None:
            output.say(f"note: everybody who reaches a portal may use {target.name}")
    return 0


def ls(args: argparse.Namespace) -> int:
    """List what a server serves."""
    found = remote.ask(_socket(args), "ls")
    if args.json:
        output.write_json(found)
        return 0
    for portal in found["portals"]:
        output.write(f"portal {portal['host']}:{portal['port']}, group {portal['tag']}")
    for target in found["targets"]:
        output.write(f"{target['name']}  sessions: {target['sessions']}")
        for lun in target["luns"]:
            marks = [name for name in ("read_only", "thin") if lun[name]]
            output.write(
                f"  LUN {lun['lun']:<4} {human(lun['size']):>11}  blocks of {lun['block_size']:<5}"
                f" serial {lun['serial']}  {' '.join(marks)}".rstrip()
            )
    return 0


def stat(args: argparse.Namespace) -> int:
    """Show what a server has done."""
    found = remote.ask(_socket(args), "stat")
    if args.json or args.format == "json":
        output.write_json(found)
    elif args.format == "prometheus":
        for line in prometheus(found):
            output.write(line)
    else:
        _show(found)
    return 0


def _show(found: dict[str, Any]) -> None:
    output.write(f"pid {found['pid']}{', draining' if found['draining'] else ''}")
    output.write(output.events(found["counts"]) or "idle")
    for engine in found["engines"]:
        held = output.counted(engine["connections"], "connection")
        output.write(f"engine {engine['engine']}: {held}")
    for session in found["sessions"]:
        output.write(
            f"session {session['initiator']} from {session['peer']} to {session['target']}: "
            f"{output.counted(session['commands'], 'command')}, "
            f"{output.counted(session['rejects'], 'reject')}, engine {session['engine']}"
        )
    for target in found["targets"]:
        for unit in target["units"]:
            counted = ", ".join(
                f"{human(unit[key]) if key.endswith('bytes') else format(unit[key], ',')} "
                f"{key.replace('_bytes', '')}"
                for key in _UNIT
                if key in unit
            )
            room = "".join(f", {human(unit[key])} {key}" for key in _ROOM if key in unit)
            output.write(f"{target['name']} LUN {unit['lun']}: {counted}{room}")


def prometheus(found: dict[str, Any]) -> Iterator[str]:
    """The statistics in Prometheus' text format: counters and gauges with labels."""
    yield from _metric(
        "ppe_target_events_total",
        "counter",
        [({"event": what}, count) for what, count in found["counts"].items()],
    )
    yield from _metric(
        "ppe_target_sessions",
        "gauge",
        [({"target": target["name"]}, target["sessions"]) for target in found["targets"]],
    )
    yield from _metric(
        "ppe_target_connections",
        "gauge",
        [({"engine": str(each["engine"])}, each["connections"]) for each in found["engines"]],
    )
    for name in _SESSION:
        kind = "gauge" if name == "buffer_bytes" else "counter"
        yield from _metric(
            f"ppe_target_session_{name}{'_total' if kind == 'counter' else ''}",
            kind,
            [
                (
                    {
                        "initiator": session["initiator"],
                        "target": session["target"],
                        "isid": session["isid"],
                    },
                    session[name],
                )
                for session in found["sessions"]
            ],
        )
    units = [
        ({"target": target["name"], "lun": str(unit["lun"])}, unit)
        for target in found["targets"]
        for unit in target["units"]
    ]
    yield from _metric(
        "ppe_target_lun_size_bytes", "gauge", [(labels, unit["size"]) for labels, unit in units]
    )
    for name in _ROOM:
        yield from _metric(
            f"ppe_target_lun_{name}_bytes",
            "gauge",
            [(labels, unit[name]) for labels, unit in units if name in unit],
        )
    for name in _UNIT:
        yield from _metric(
            f"ppe_target_lun_{name}_total",
            "counter",
            [(labels, unit[name]) for labels, unit in units if name in unit],
        )


def _metric(name: str, kind: str, rows: list[tuple[dict[str, str], int]]) -> Iterator[str]:
    if not rows:
        return
    yield f"# TYPE {name} {kind}"
    for labels, value in rows:
        shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        yield f"{name}{{{shown}}} {value}"


def _escaped(text: str) -> str:
    return str(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


# --- changing --------------------------------------------------------------------------------


def add(args: argparse.Namespace) -> int:
    """Serve one more LUN."""
    from iscsi.target.settings import read_lun
    from iscsi.tools.target_serve import lun_table

    if len(args.units) != 1:
        raise UsageError("which LUN?", "one of --ram SIZE, --file PATH and --null SIZE")
    ((kind, value),) = args.units
    table = lun_table(args, args.lun, kind, value)
    if args.max_size:
        table["max_size"] = args.max_size
    read_lun(table, "flags", Path.cwd())
    for key in ("path", "reservations"):
        if key in table:
            table[key] = str(Path.cwd() / table[key])
    remote.ask(_socket(args), "add", iqn=args.iqn, lun=table)
    return _done(args, {"added": args.lun}, f"LUN {args.lun} is served")


def rm(args: argparse.Namespace) -> int:
    """Serve a LUN no more."""
    remote.ask(_socket(args), "rm", iqn=args.iqn, lun=args.lun)
    return _done(args, {"removed": args.lun}, f"LUN {args.lun} is served no more")


def resize(args: argparse.Namespace) -> int:
    """Change a LUN's size."""
    try:
        size = parse_size(args.size)
    except ValueError as error:
        raise UsageError(f"--size: {error}", "for example --size 20G") from error
    remote.ask(_socket(args), "resize", iqn=args.iqn, lun=args.lun, size=size)
    text = f"LUN {args.lun} has {human(size)} now"
    return _done(args, {"resized": args.lun, "size": size}, text)


def reload(args: argparse.Namespace) -> int:
    """Have the server read its file again."""
    changes = remote.ask(_socket(args), "reload")
    text = "\n".join(changes) or "nothing changed"
    return _done(args, {"changes": changes}, text)


def drain(args: argparse.Namespace) -> int:
    """Have the server end when its sessions are gone."""
    remote.ask(_socket(args), "drain")
    return _done(args, {"draining": True}, "the server ends when its sessions are gone")
