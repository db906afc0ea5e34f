"""Entry points of `ppe iscsi` and `ppe target`: flags here, work in modules loaded on demand."""

import argparse
from typing import Any, Final

from ppe import output

DEFAULT_ENGINE: Final = "inline:"
URL_HELP: Final = "iscsi://host[:port]/target-name/lun"


class IscsiCommand:
    """`ppe iscsi ls|inq|read|write|perf URL`."""

    name = "iscsi"
    help = "list, inspect, read, write and measure iSCSI LUNs"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the actions and their flags."""
        nested = parser.add_subparsers(
            dest="action", required=True, metavar="ls|inq|read|write|perf"
        )
        ls = _action(nested, "ls", "list a portal's targets, or a target's LUNs")
        ls.add_argument("-s", "--luns", action="store_true", help="show each target's LUNs too")
        inq = _action(nested, "inq", "show what a LUN says of itself")
        inq.add_argument("--page", type=_number, metavar="PAGE", help="a VPD page, such as 0x83")
        read = _action(nested, "read", "copy blocks to a file or stdout")
        _add_extent(read)
        read.add_argument("-o", "--output", default="-", metavar="FILE", help="- is stdout")
        write = _action(nested, "write", "copy a file or stdin to blocks")
        _add_extent(write)
        write.add_argument("input", metavar="FILE", nargs="?", default="-", help="- is stdin")
        write.add_argument("--pad", action="store_true", help="fill the last block with zeros")
        write.add_argument("--no-flush", action="store_true", help="leave data in the LUN's cache")
        perf = _action(nested, "perf", "measure a LUN under load")
        _add_perf(perf)

    def run(self, args: argparse.Namespace) -> int:
        """Do it; raises OperatorError for everything the target or the user got wrong."""
        from iscsi.tools.initiator import run

        return run(args)


class TargetCommand:
    """`ppe target serve`: see `iscsi.tools.target`."""

    name = "target"
    help = "serve iSCSI LUNs"

    def __init__(self) -> None:
        from iscsi.tools.target import TargetCommand as Real

        self._real: Any = Real()

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        self._real.prepare_parser(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Serve until told to stop."""
        return int(self._real.run(args))


def _action(nested: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = nested.add_parser(name, help=text, description=text)
    parser.add_argument("url", metavar="URL", help=URL_HELP)
    parser.add_argument(
        "--engine",
        default=DEFAULT_ENGINE,
        metavar="NAME|inline:",
        help="the engine to go through (default: one in this process)",
    )
    parser.add_argument("-i", "--initiator", metavar="IQN", help="initiator name to log in with")
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="seconds without progress"
    )
    parser.add_argument(
        "--receive",
        default="auto",
        choices=("auto", "staged", "exact", "coalesced"),
        help="how bytes are received (default: by the depth)",
    )
    if name in ("ls", "inq"):
        parser.set_defaults(depth=4)
    else:
        parser.add_argument(
            "-m", "--depth", type=int, default=32, help="commands outstanding (default: 32)"
        )
    output.add_json_flag(parser)
    return parser


def _add_extent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lba", type=_number, default=0, help="first block (default: 0)")
    parser.add_argument(
        "--blocks", type=_number, metavar="N", help="how many (default: to the end)"
    )


def _add_perf(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-b", "--blocks", type=_number, default=8, help="blocks of one command (default: 8)")
    add("-t", "--seconds", type=float, default=3.0, help="how long to measure (default: 3)")
    add("--random", action="store_true", help="random addresses instead of sequential")
    add("--write", action="store_true", help="write instead of reading; destroys data")
    add("--mix", type=int, metavar="PERCENT", help="this share of writes; destroys data")
    add("--verify", action="store_true", help="write the span first and check every block read")
    add("--lba", type=_number, default=0, help="first block of the span (default: 0)")
    add(
        "--span",
        type=_number,
        default=0,
        metavar="BLOCKS",
        help="blocks of the span (default: all)",
    )


def _number(text: str) -> int:
    return int(text, 0)
