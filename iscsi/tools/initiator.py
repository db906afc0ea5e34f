"""`ppe iscsi ls|inq|read|write`, what all actions share, and their errors in an operator's words.

Data goes to stdout or a file, progress and errors to stderr.
"""

import argparse
import contextlib
import logging
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Final

import host
from host.errors import HostError
from iscsi.session.blockdev import BlockDevice
from iscsi.session.blockdev import open as open_device
from iscsi.session.core import DEFAULT_INITIATOR
from iscsi.session.credentials import Credentials
from iscsi.session.discovery import discover
from iscsi.session.errors import AuthError, NoSuchUnit, SessionError
from iscsi.session.initiator import InitiatorSession
from iscsi.tools.facts import fact_lines
from iscsi.tools.progress import Progress
from iscsi.tools.sizes import human
from iscsi.wire.errors import LoginRejected, ProtocolError, ScsiError
from iscsi.wire.scsi_data import VpdPage, parse_designators
from iscsi.wire.url import IscsiUrl, TargetNameError, UrlError, parse_url
from ppe import output
from ppe.errors import OperatorError, UsageError
from shm.segment import SegmentError

CHUNK: Final = 4 << 20
_ELSEWHERE: Final = {
    "perf": "iscsi.tools.initiator_perf",
    "cp": "iscsi.tools.copying",
    "readcap": "iscsi.tools.units",
    "md5sum": "iscsi.tools.units",
    "discard": "iscsi.tools.units",
    "swp": "iscsi.tools.units",
    "pr": "iscsi.tools.reserving",
}
TYPE_NAMES: Final = {
    0x00: "disk",
    0x01: "tape",
    0x05: "cd/dvd",
    0x0C: "controller",
    0x0D: "enclosure",
}


def run(args: argparse.Namespace) -> int:
    """Run the action that `args` names."""
    own = {"ls": ls, "inq": inq, "read": read, "write": write}
    with operator_errors(), logging_wanted(args.verbose):
        if args.action in own:
            return own[args.action](args)
        home = import_module(_ELSEWHERE[args.action])
        return int(getattr(home, args.action)(args))


@contextlib.contextmanager
def logging_wanted(verbose: bool) -> Iterator[None]:
    """With -v: what sessions and hosts log goes to stderr."""
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    yield


@contextlib.contextmanager
def operator_errors() -> Iterator[None]:
    """Turn what sessions, hosts and the system raise into OperatorError."""
    try:
        yield
    except TargetNameError as error:
        raise UsageError(str(error), "ppe iscsi ls iscsi://host shows what there is") from error
    except UrlError as error:
        raise UsageError(str(error)) from error
    except AuthError as error:  # It says itself what was missing.
        raise OperatorError(str(error)) from error
    except LoginRejected as error:
        raise OperatorError(
            str(error), "ppe iscsi ls lists the target names; -i sets the initiator's name"
        ) from error
    except ConnectionRefusedError as error:
        if isinstance(error, HostError):
            raise OperatorError(str(error)) from error
        raise OperatorError(
            _text(error), "is the target running there, and is that its port?"
        ) from error
    except (SessionError, ProtocolError, ScsiError, HostError, SegmentError) as error:
        raise OperatorError(str(error)) from error
    except (OSError, ValueError) as error:
        raise OperatorError(_text(error)) from error


def _text(error: Exception) -> str:
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def options(args: argparse.Namespace, url: str | None = None) -> dict[str, Any]:
    """Session options from the flags all actions share, for `url` or else the only one."""
    return {
        "credentials": credentials(args, args.url if url is None else url),
        "isid": args.isid,
        "initiator_name": args.initiator or DEFAULT_INITIATOR,
        "queue_depth": args.depth,
        "placement": args.placement,
        "receive": args.receive,
        "registration": args.registration,
        "coalesce": args.coalesce,
        "timeout_s": args.timeout,
        "login_timeout_s": min(args.timeout, 10.0),
    }


def credentials(args: argparse.Namespace, url: str) -> Credentials | None:
    """What --user and --password-file say, completed by the URL; None: they say nothing."""
    if args.password_file is None:
        if args.user is not None:
            raise UsageError("--user needs --password-file", "or write user%password@ in the URL")
        return None
    user = args.user or parse_url(url).user
    if not user:
        raise UsageError("--password-file needs a user", "--user NAME, or user@ in the URL")
    password = args.password_file.read_text().rstrip("\r\n")
    if not password:
        raise OperatorError(f"{args.password_file} is empty", "its first line is the password")
    target = parse_url(url).options
    return Credentials.of(user, password, target.get("target_user"), target.get("target_password"))


def device(args: argparse.Namespace, engine: Any, url: str | None = None) -> BlockDevice:
    """The LUN that `url` names, or else the only one of the flags."""
    wanted = args.url if url is None else url
    unit = open_device(wanted, engine, **options(args, wanted))
    if args.verbose:
        agreed = unit.session.connection_params
        digests = [
            name
            for name, is_on in (("header", agreed.header_digest), ("data", agreed.data_digest))
            if is_on
        ]
        output.say(
            f"{unit.url}: {unit.inquiry.vendor} {unit.inquiry.product}, {human(unit.size)}, "
            f"digests: {' and '.join(digests) or 'none'}"
        )
    return unit


# --- ls ----------------------------------------------------------------------------------------


def ls(args: argparse.Namespace) -> int:
    """List targets, and LUNs where asked for or where the URL names a target."""
    url = parse_url(args.url)
    with host.connect(args.engine) as engine:
        found = discover(replace(url, target=None, lun=None), engine, **options(args))
        if url.target is not None:
            found = [target for target in found if target.name == url.target] or found
        rows = []
        for target in found:
            portals = target.portals or (url.portal,)
            row: dict[str, Any] = {"target": target.name, "portals": [str(p) for p in portals]}
            if args.luns or target.name == url.target:
                row["luns"] = _luns(engine, url, target.name, args)
            rows.append(row)
    if args.json:
        output.write_json({"portal": url.portal.address, "targets": rows})
        return 0
    for row in rows:
        output.write(f"{row['target']}  {' '.join(row['portals'])}")
        for lun in row.get("luns", ()):
            size = human(lun["size"]) if lun["size"] is not None else "-"
            output.write(
                f"  LUN {lun['lun']:<4} {lun['type']:<11} {size:>11}  "
                f"{lun['vendor']} {lun['product']}"
            )
    return 0


def _luns(
    engine: Any, url: IscsiUrl, target: str, args: argparse.Namespace
) -> list[dict[str, Any]]:
    found = []
    with InitiatorSession(engine, replace(url, target=target, lun=0), **options(args)) as session:
        for lun in session.report_luns():
            with contextlib.suppress(NoSuchUnit):
                found.append(_lun_row(session, lun))
    return found


def _lun_row(session: InitiatorSession, lun: int) -> dict[str, Any]:
    facts = session.inquiry(lun)
    row: dict[str, Any] = {
        "lun": lun,
        "type": TYPE_NAMES.get(facts.device_type, f"type {facts.device_type:#04x}"),
        "vendor": facts.vendor,
        "product": facts.product,
        "size": None,
        "block_size": None,
    }
    if facts.device_type == 0:
        with contextlib.suppress(ScsiError):
            capacity = session.read_capacity(lun)
            row["size"], row["block_size"] = (
                capacity.blocks * capacity.block_size,
                capacity.block_size,
            )
    return row


# --- inq ---------------------------------------------------------------------------------------


def inq(args: argparse.Namespace) -> int:
    """Show INQUIRY data, capacity and the pages that name the unit, or one raw VPD page."""
    with host.connect(args.engine) as engine:
        if args.page is not None:
            with InitiatorSession(engine, _unit(args.url), **options(args)) as session:
                body = session.vpd(args.page)
            if args.json:
                output.write_json({"page": args.page, "body": body.hex()})
            else:
                output.write(f"VPD page 0x{args.page:02x}: {body.hex(' ')}")
            return 0
        with device(args, engine) as unit:
            facts = _unit_facts(unit)
    if args.json:
        output.write_json(facts)
    else:
        facts["size"] = f"{facts['size']} ({human(facts['size'])})"
        for line in fact_lines(facts):
            output.write(line)
    return 0


def _unit(text: str) -> IscsiUrl:
    url = parse_url(text)
    if url.target is None:
        raise TargetNameError(f"{url} names no target")
    return url


def _unit_facts(unit: BlockDevice) -> dict[str, Any]:
    session = unit.session
    facts: dict[str, Any] = {"url": unit.url, **asdict(unit.inquiry)}
    facts.update(block_size=unit.block_size, blocks=unit.block_count, size=unit.size)
    facts["blocks_per_command"] = unit.geometry.blocks_per_command
    with contextlib.suppress(ScsiError, ProtocolError):
        pages = session.vpd(VpdPage.SUPPORTED_PAGES)
        facts["vpd_pages"] = [f"0x{page:02x}" for page in pages]
        if VpdPage.UNIT_SERIAL_NUMBER in pages:
            raw = session.vpd(VpdPage.UNIT_SERIAL_NUMBER)
            facts["serial"] = raw.decode("ascii", "replace").strip(" \0")
        if VpdPage.DEVICE_IDENTIFICATION in pages:
            found = parse_designators(session.vpd(VpdPage.DEVICE_IDENTIFICATION))
            facts["designators"] = [item.value.hex() for item in found if item.association == 0]
    facts["session"] = asdict(session.session_params)
    facts["connection"] = asdict(session.connection_params)
    return facts


# --- read and write ----------------------------------------------------------------------------


def _extent(unit: BlockDevice, args: argparse.Namespace) -> int:
    blocks = max(unit.block_count - args.lba, 1) if args.blocks is None else args.blocks
    unit.geometry.check(args.lba, blocks)
    return int(blocks)


def _summary(unit: BlockDevice, args: argparse.Namespace, done: int) -> dict[str, Any]:
    return {"url": unit.url, "lba": args.lba, "blocks": done // unit.block_size, "bytes": done}


def read(args: argparse.Namespace) -> int:
    """Copy blocks to a file or stdout. A file that could not be filled is left as it is."""
    if args.json and args.output == "-":
        raise UsageError("--json and the data cannot both go to stdout", "name a file with -o")
    with host.connect(args.engine) as engine, device(args, engine) as unit:
        size = _extent(unit, args) * unit.block_size
        progress = Progress(size)
        step = max(CHUNK // unit.block_size, 1) * unit.block_size
        with _output(args.output) as sink, unit.alloc(min(step, size)) as buffer:
            for at in range(0, size, step):
                piece = buffer.array[: min(step, size - at)]
                unit.readinto(args.lba + at // unit.block_size, piece)
                sink.write(piece.data)
                progress.show(at + piece.nbytes)
        progress.end()
        summary = _summary(unit, args, size)
    if args.json:
        output.write_json(summary)
    return 0


def write(args: argparse.Namespace) -> int:
    """Copy a file or stdin to blocks, and flush the unit's cache."""
    with host.connect(args.engine) as engine, device(args, engine) as unit:
        room = _extent(unit, args) * unit.block_size
        step = max(CHUNK // unit.block_size, 1) * unit.block_size
        done = 0
        with _input(args.input) as source, unit.alloc(step) as buffer:
            length = _length(source)
            if length is not None:
                _check_fits(length, room, args, unit.block_size)
            progress = Progress(room if length is None else length)
            while length := _fill(source, buffer.array.data, args.pad, unit.block_size):
                if done + length > room:
                    raise _too_long(room, args, f"{human(done)} were written")
                unit.write(args.lba + done // unit.block_size, buffer.array[:length])
                done += length
                progress.show(done)
        if not args.no_flush:
            unit.flush()
        progress.end()
        summary = _summary(unit, args, done)
    if args.json:
        output.write_json(summary)
    else:
        output.say(f"{human(done)} written at block {args.lba}")
    return 0


def _fill(source: BinaryIO, into: memoryview, pad: bool, block_size: int) -> int:
    """Read until the memory is full or the source ends. Bytes, in whole blocks."""
    length = 0
    while length < len(into):
        came = source.readinto(into[length:])  # type: ignore[attr-defined]
        if not came:
            break
        length += came
    over = length % block_size
    if over and not pad:
        raise _ends_within(over, block_size)
    if over:
        into[length : length + block_size - over] = bytes(block_size - over)
        length += block_size - over
    return length


def _length(source: BinaryIO) -> int | None:
    """Bytes that a file has left; None where that shows at its end only, as of a pipe."""
    about = os.fstat(source.fileno())
    return about.st_size - source.tell() if stat.S_ISREG(about.st_mode) else None


def _check_fits(length: int, room: int, args: argparse.Namespace, block_size: int) -> None:
    """Refuse data before any of it is written. Raises OperatorError."""
    over = length % block_size
    if over and not args.pad:
        raise _ends_within(over, block_size)
    if length > room:
        raise _too_long(room, args, "nothing was written")


def _ends_within(over: int, block_size: int) -> OperatorError:
    return OperatorError(
        f"the data ends {over} bytes into a block of {block_size}",
        "--pad fills the last block with zeros",
    )


def _too_long(room: int, args: argparse.Namespace, so_far: str) -> OperatorError:
    return OperatorError(
        f"the data is longer than the {human(room)} from block {args.lba} on",
        f"{so_far}; cut it, for example with `head -c`",
    )


@contextlib.contextmanager
def _output(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with Path(name).open("wb") as sink:
        yield sink


@contextlib.contextmanager
def _input(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    with Path(name).open("rb") as source:
        yield source


__all__ = ["CHUNK", "device", "operator_errors", "options", "run"]
