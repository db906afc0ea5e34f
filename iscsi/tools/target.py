"""`ppe target serve`: a RAM-backed iSCSI target in this process, until it is told to stop.

It says on standard error (with --json: as one object on standard output) where it listens once
initiators can log in, and not before.
"""

import argparse
import errno
import os
import signal
from typing import Any, Final

from iscsi.target.config import ServerConfig
from iscsi.target.units import BLOCK_SIZES, RamDisk, Target
from iscsi.wire.names import DEFAULT_PORT, Portal, parse_address
from ppe import output
from ppe.config import parse_size
from ppe.errors import OperatorError, UsageError

DEFAULT_IQN: Final = "iqn.2026-01.org.ppe:ram"
DEFAULT_PORTAL: Final = f"127.0.0.1:{DEFAULT_PORT}"
INLINE: Final = "inline:"
_ARENA_SIZE: Final = 16 << 20


class TargetCommand:
    """The `ppe target` command; its one sub-command is `serve`."""

    name = "target"
    help = "serve iSCSI LUNs"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare `serve` and its flags."""
        nested = parser.add_subparsers(dest="action", required=True, metavar="serve")
        serve = nested.add_parser("serve", help="serve RAM-backed LUNs", description=self.help)
        add_serve_arguments(serve)

    def run(self, args: argparse.Namespace) -> int:
        """Serve until SIGINT or SIGTERM; 0 when stopped in order."""
        return serve(args)


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `ppe target serve`."""
    add = parser.add_argument
    add(
        "--ram",
        metavar="SIZE",
        action="append",
        default=[],
        help="a LUN of this size (256M); give it again for LUN 1, 2 and so on",
    )
    add(
        "--portal",
        metavar="HOST[:PORT]",
        action="append",
        default=[],
        help=f"listen here, port 0 for any; may be given again (default: {DEFAULT_PORTAL})",
    )
    add(
        "--advertise",
        metavar="HOST[:PORT]",
        action="append",
        default=[],
        help="tell discovering initiators this address instead of the portals",
    )
    add("--iqn", default=DEFAULT_IQN, help=f"the target's name (default: {DEFAULT_IQN})")
    add(
        "--engine",
        default=INLINE,
        metavar="NAME",
        help=f"an engine's name, or {INLINE}[?idle=spin|yield|sleep] for none (default: {INLINE})",
    )
    add("--block-size", type=int, choices=BLOCK_SIZES, default=512, help="bytes (default: 512)")
    add("--read-only", action="store_true", help="write-protect the LUNs")
    add(
        "--max-connections",
        type=int,
        default=256,
        metavar="N",
        help="refuse further logins (default: 256)",
    )
    output.add_json_flag(parser)


def _portals(words: list[str], what: str) -> tuple[Portal, ...]:
    found = []
    for word in words:
        # Port 0 is no address of a target, but a way to ask for any free port.
        host, colon, port = word.rpartition(":")
        portal = parse_address(host if colon and port == "0" else word)
        if portal is None:
            raise UsageError(
                f"{what} {word!r} is no address", "host, host:port or [IPv6]:port are possible"
            )
        found.append(Portal(portal.host, 0) if colon and port == "0" else portal)
    return tuple(found)


def serve(args: argparse.Namespace) -> int:
    """Serve what the flags ask for. Raises OperatorError with what to change."""
    words = args.portal or [DEFAULT_PORTAL]
    listen, advertise = _portals(words, "portal"), _portals(args.advertise, "advertised address")
    try:
        sizes = [parse_size(word) for word in args.ram or ["256M"]]
    except ValueError as error:
        raise UsageError(f"--ram: {error}", "for example --ram 256M") from error
    import host
    from host.errors import HostError
    from shm.segment import SegmentError

    try:
        with host.connect(args.engine, arena_size=_ARENA_SIZE) as engine:
            units = {
                number: RamDisk(engine.alloc(size), args.block_size, args.read_only)
                for number, size in enumerate(sizes)
            }
            target = Target(args.iqn, units)
            config = ServerConfig(
                (target,), listen, advertise, max_connections=args.max_connections
            )
            return _run(engine, config, args.json)
    except (HostError, SegmentError, MemoryError) as error:
        raise OperatorError(str(error)) from error
    except OSError as error:
        hint = "stop it, or pass another --portal" if error.errno == errno.EADDRINUSE else ""
        raise OperatorError(error.strerror or str(error), hint) from error
    except ValueError as error:
        raise UsageError(str(error)) from error


def _run(engine: Any, config: ServerConfig, as_json: bool) -> int:
    from iscsi.target.server import TargetServer

    with TargetServer(engine, config) as server:
        handlers = {
            number: signal.signal(number, lambda *_: server.stop())
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            _say_ready(config, server.bound, as_json)
            server.serve_forever()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        output.say("stopped: " + ", ".join(f"{n} {what}" for what, n in server.counts.items()))
    return 0


def _say_ready(config: ServerConfig, bound: list[tuple[str, int]], as_json: bool) -> None:
    portals = [Portal(host, port).address for host, port in bound]
    urls = [
        f"iscsi://{portals[0]}/{target.name}/{lun}"
        for target in config.targets
        for lun in target.units
    ]
    if as_json:
        ports = [{"host": host, "port": port} for host, port in bound]
        output.write_json({"ready": True, "pid": os.getpid(), "portals": ports, "urls": urls})
    else:
        output.say(f"ready: {', '.join(urls)} (pid {os.getpid()})")
