"""Entry points of `ppe iscsi` and `ppe target`: flags here, work in modules loaded on demand."""

import argparse
from pathlib import Path
from typing import Any, Final

from iscsi.tools.arguments import number, seconds
from iscsi.tools.target import TargetCommand
from iscsi.wire.iser.registration import REGISTRATIONS
from ppe import compiling, output

DEFAULT_ENGINE: Final = "inline:"
URL_HELP: Final = "iscsi://host[:port]/target-name/lun, or iser://..."


_EPILOG: Final = """\
credentials: user%password@ in the URL, --user and --password-file, or
LIBISCSI_CHAP_USERNAME and LIBISCSI_CHAP_PASSWORD; the target's own as
?target_user= and &target_password=, or LIBISCSI_CHAP_TARGET_USERNAME and
LIBISCSI_CHAP_TARGET_PASSWORD.

exit codes: 0 done, 1 failed, 2 wrong flags, 130 interrupted"""


class IscsiCommand:
    """`ppe iscsi ACTION URL`."""

    name = "iscsi"
    help = "list, inspect, read, write, copy and measure iSCSI LUNs"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the actions and their flags."""
        parser.epilog = _EPILOG
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        nested = parser.add_subparsers(
            dest="action",
            required=True,
            metavar="ls|inq|readcap|read|write|cp|perf|md5sum|discard|pr|swp",
        )
        ls = _action(nested, "ls", "list a portal's targets, or a target's LUNs")
        ls.add_argument("-s", "--luns", action="store_true", help="show each target's LUNs too")
        inq = _action(nested, "inq", "show what a LUN says of itself")
        inq.add_argument("--page", type=number, metavar="PAGE", help="a VPD page, such as 0x83")
        _action(nested, "readcap", "show a LUN's size, block sizes and provisioning")
        read = _action(nested, "read", "copy blocks to a file or stdout")
        _add_extent(read)
        read.add_argument("-o", "--output", default="-", metavar="FILE", help="- is stdout")
        write = _action(nested, "write", "copy a file or stdin to blocks")
        _add_extent(write)
        write.add_argument("input", metavar="FILE", nargs="?", default="-", help="- is stdin")
        _add_writing(write)
        _add_cp(nested)
        _add_perf(_action(nested, "perf", "measure a LUN under load"))
        md5sum = _action(nested, "md5sum", "print the digest of a LUN's bytes")
        _add_extent(md5sum)
        md5sum.add_argument(
            "--algorithm",
            choices=("md5", "sha1", "sha256", "sha512"),
            default="md5",
            help="which digest (default: md5)",
        )
        discard = _action(nested, "discard", "give blocks of a thin LUN back (UNMAP)")
        discard.add_argument("range", metavar="FIRST+COUNT", nargs="?", help="which blocks")
        discard.add_argument("--all", action="store_true", help="every block")
        discard.add_argument("--yes", action="store_true", help="yes, destroy what is there")
        _add_pr(nested)
        swp = _action(nested, "swp", "show or set the software write protection of a LUN")
        swp.add_argument(
            "state", metavar="on|off", nargs="?", choices=("on", "off"), help="left out: show it"
        )

    def run(self, args: argparse.Namespace) -> int:
        """Do it; raises OperatorError for everything the target or the user got wrong."""
        with compiling.shown():
            from iscsi.tools.initiator import run

            return run(args)


def _add_writing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pad", action="store_true", help="fill the last block with zeros")
    parser.add_argument("--no-flush", action="store_true", help="leave data in the cache")


def _add_cp(nested: Any) -> None:
    text = "copy LUN to file, file to LUN or LUN to LUN; empty parts stay empty"
    parser = _shared(nested, "cp", text)
    parser.add_argument("source", metavar="FROM", help=f"a file, or {URL_HELP}")
    parser.add_argument("destination", metavar="TO", help="the same; a file is made anew")
    parser.add_argument("--verify", action="store_true", help="read both again and compare")
    parser.add_argument("--no-sparse", action="store_true", help="copy empty parts as data too")
    _add_writing(parser)


def _add_pr(nested: Any) -> None:
    parser = _action(nested, "pr", "persistent reservations: list them or change them")
    add = parser.add_argument
    add(
        "what",
        metavar="list|register|reserve|release|preempt|clear",
        choices=("list", "register", "reserve", "release", "preempt", "clear"),
        help="what to do",
    )
    add("--key", type=number, help="the key this host registered")
    add("--new-key", type=number, metavar="KEY", help="to register, or of whom to preempt")
    add("--type", metavar="TYPE", choices=_types(), help=", ".join(_types()))
    add("--ignore", action="store_true", help="register whatever was registered before")
    add("--abort", action="store_true", help="preempt and abort the other's commands")
    add("--persist", action="store_true", help="keep it when the target restarts (APTPL)")


def _types() -> tuple[str, ...]:
    each = ("write-exclusive", "exclusive-access")
    return tuple(
        f"{kind}{whom}" for whom in ("", "-registrants-only", "-all-registrants") for kind in each
    )


def _action(nested: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser = _shared(nested, name, text)
    parser.add_argument("url", metavar="URL", help=URL_HELP)
    return parser


def _shared(nested: Any, name: str, text: str) -> argparse.ArgumentParser:
    """An action with the flags that all have."""
    parser: argparse.ArgumentParser = nested.add_parser(name, help=text, description=text)
    parser.add_argument(
        "--engine",
        default=DEFAULT_ENGINE,
        metavar="NAME|inline:",
        help="the engine to go through (default: one in this process)",
    )
    parser.add_argument("-i", "--initiator", metavar="IQN", help="initiator name to log in with")
    isid = "made of host and initiator name" if name == "pr" else "a random one"
    parser.add_argument("--isid", type=number, metavar="N", help=f"ISID (default: {isid})")
    parser.add_argument("--user", metavar="NAME", help="CHAP name, with --password-file")
    parser.add_argument(
        "--password-file", type=Path, metavar="FILE", help="the CHAP password is its only line"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=30.0,
        metavar="S",
        help="seconds without progress (default: 30)",
    )
    parser.add_argument(
        "--placement",
        default="auto",
        choices=("auto", "stream", "datamover"),
        help="who frames PDUs: this process, or the engine with one event per command",
    )
    parser.add_argument(
        "--coalesce",
        type=int,
        default=0,
        metavar="N",
        help="completions a wait over a datamover is for (default: half the depth)",
    )
    parser.add_argument(
        "--registration",
        default="auto",
        choices=("auto", *REGISTRATIONS),
        help="how buffers are opened to an iSER target (default: per-io)",
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
    parser.add_argument("--lba", type=number, default=0, help="first block (default: 0)")
    parser.add_argument("--blocks", type=number, metavar="N", help="how many (default: to the end)")


def _add_perf(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-b", "--blocks", type=number, default=8, help="blocks of one command (default: 8)")
    add("-t", "--seconds", type=seconds, default=3.0, help="how long to measure (default: 3)")
    add("--random", action="store_true", help="random addresses instead of sequential")
    add("--write", action="store_true", help="write instead of reading; destroys data")
    add("--mix", type=int, metavar="PERCENT", help="this share of writes; destroys data")
    add("--verify", action="store_true", help="write the span first and check every block read")
    add("--lba", type=number, default=0, help="first block of the span (default: 0)")
    add(
        "--span",
        type=number,
        default=0,
        metavar="BLOCKS",
        help="blocks of the span (default: all)",
    )


__all__ = ["IscsiCommand", "TargetCommand"]
