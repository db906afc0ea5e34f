"""`ppe target`: its flags, which load nothing. `serve` runs in `iscsi.tools.target_serve`, what is
asked of a server that runs in `iscsi.tools.target_control`.
"""

import argparse
from pathlib import Path
from typing import Any, Final

from ppe import compiling, output

ACTIONS: Final = "serve|check-config|ls|stat|add|rm|resize|reload|drain"
DEFAULT_IQN: Final = "iqn.2026-01.org.ppe:ram"
DEFAULT_PORTAL: Final = "127.0.0.1:3260"
_EXAMPLES: Final = """\
examples:
  ppe target serve --ram 256M
  ppe target serve --file disk.img --size 10G --thin --portal 0.0.0.0
  ppe target serve --config target.toml   (CHAP, access rules: docs/ISCSI.md)

Without --config, --ram, --file and --null it serves 256 MiB of memory.
SIGTERM asks the sessions to log out and then ends the server; again, or
SIGINT: at once. SIGHUP reads the configuration file again and applies what
changed.
exit codes: 0 stopped in order, 1 failed, 2 wrong flags or configuration"""


class TargetCommand:
    """The `ppe target` command."""

    name = "target"
    help = "serve iSCSI LUNs, and change what a running server serves"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the actions and their flags."""
        nested = parser.add_subparsers(dest="action", required=True, metavar=ACTIONS)
        serve = nested.add_parser(
            "serve",
            help="serve LUNs until told to stop",
            description="Serve LUNs in memory, in files, or as a configuration file says.",
            epilog=_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_serve_arguments(serve)
        check = _action(nested, "check-config", "say what is wrong with a configuration file")
        check.add_argument("file", metavar="FILE", type=Path, help="a TOML file")
        output.add_json_flag(check)
        _live(nested, "ls", "list targets and LUNs of a running server")
        stat = _live(nested, "stat", "what a running server has done, session by session")
        stat.add_argument(
            "--format",
            choices=("text", "json", "prometheus"),
            default="text",
            help="how to print it (default: text)",
        )
        add = _place(_live(nested, "add", "serve one more LUN"))
        _add_units(add, "the LUN")
        _add_unit_options(add)
        add.add_argument("--max-size", metavar="SIZE", help="what a RAM LUN can be resized to")
        _place(_live(nested, "rm", "serve a LUN no more"))
        resize = _place(_live(nested, "resize", "change a LUN's size; its initiators are told"))
        resize.add_argument("--size", metavar="SIZE", required=True, help="such as 20G")
        _live(nested, "reload", "read the configuration file again, as SIGHUP does")
        _live(nested, "drain", "ask all sessions to log out, then end the server")

    def run(self, args: argparse.Namespace) -> int:
        """Do it; raises OperatorError with what to change."""
        if args.action == "serve":
            with compiling.shown():
                from iscsi.tools.target_serve import serve

                return serve(args)
        from iscsi.tools.target_control import run

        return run(args)


def _action(nested: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = nested.add_parser(name, help=text, description=text)
    return parser


def _live(nested: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser = _action(nested, name, text)
    parser.add_argument("--name", help="the server's name (default: the only one that runs)")
    parser.add_argument("--control", metavar="PATH", type=Path, help="its control socket instead")
    output.add_json_flag(parser)
    return parser


def _place(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--iqn", help="the target (default: the only one there is)")
    parser.add_argument("--lun", type=int, required=True, metavar="N", help="number of the LUN")
    return parser


class _Unit(argparse.Action):
    """Collects `--ram`, `--file` and `--null` in the order they are given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        """Append (kind, value)."""
        given = [*getattr(namespace, self.dest), (str(option).lstrip("-"), values)]
        setattr(namespace, self.dest, given)


def _add_units(parser: argparse.ArgumentParser, what: str) -> None:
    for flag, metavar, text in (
        ("--ram", "SIZE", f"{what} in memory, of this size (256M)"),
        ("--file", "PATH", f"{what} in a file or block device"),
        ("--null", "SIZE", f"{what} keeps nothing and reads as zeros; for measuring"),
    ):
        parser.add_argument(
            flag, metavar=metavar, action=_Unit, dest="units", default=[], help=text
        )


def _add_unit_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    if not any(action.dest == "size" for action in parser._actions):
        add("--size", metavar="SIZE", help="create a missing file with this size (10G)")
    add(
        "--cache",
        metavar="MODE",
        help="how files are used: writeback, writethrough, direct or directsync "
        "(default: writeback)",
    )
    add("--thin", action="store_true", help="UNMAP gives room back; files start sparse")
    add("--read-only", action="store_true", help="write-protect the LUNs")
    add("--removable", action="store_true", help="initiators may eject the medium")
    add("--block-size", type=int, metavar="N", help="512 or 4096 bytes (default: 512)")
    add("--warn-used", metavar="SHARE", help="thin: warn at this much used (80%% or a size)")
    add("--warn-free", metavar="SHARE", help="thin: warn when only this much is left (5%%, 10G)")
    add("--reservations", metavar="FILE", help="keep persistent reservations over a restart")


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `ppe target serve`."""
    add = parser.add_argument
    add("--config", metavar="FILE", type=Path, help="everything from one TOML file")
    _add_units(parser, "a LUN")
    _add_unit_options(parser)
    add(
        "--portal",
        metavar="HOST[:PORT]",
        action="append",
        default=[],
        help=f"listen here, port 0 for any; may be given again (default: {DEFAULT_PORTAL})",
    )
    add(
        "--iser",
        metavar="HOST[:PORT]",
        action="append",
        default=[],
        help="listen here for iSER over software iWARP; then an engine frames PDUs (--placement)",
    )
    add(
        "--no-mpa-crc",
        action="store_true",
        help="iSER without a CRC over its packets (MPA's), unless the initiator wants one",
    )
    add(
        "--advertise",
        metavar="HOST[:PORT]",
        action="append",
        default=[],
        help="tell discovering initiators this address instead of the portals",
    )
    add("--iqn", help=f"the target's name (default: {DEFAULT_IQN})")
    add(
        "--engine",
        metavar="NAME",
        help="an engine's name, or inline:[?idle=spin|yield|sleep] for none (default: inline:)",
    )
    add(
        "--placement",
        metavar="WHERE",
        help="what the engine does of a connection: stream, datamover (also frames PDUs and moves "
        "data) or engine (also serves READ and WRITE of --ram LUNs) (default: stream)",
    )
    add(
        "--engines",
        type=int,
        metavar="N",
        help="spread connections over N engines of one `ppe up --engines` (default: over all)",
    )
    add("--max-connections", type=int, metavar="N", help="refuse further logins (default: 256)")
    add("--name", help="name for `ppe target ls` and the others (default: the process's number)")
    add("--control", metavar="PATH", type=Path, help="the control socket's path")
    output.add_json_flag(parser)


__all__ = ["DEFAULT_IQN", "DEFAULT_PORTAL", "TargetCommand", "add_serve_arguments"]
