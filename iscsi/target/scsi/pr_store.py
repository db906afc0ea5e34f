"""A unit's persistent reservations in a file, to survive a restart (APTPL, SPC-4 §5.13.5). A file
is replaced whole or not at all, and one that cannot be read is an error, never an empty one.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Final

from iscsi.target.nexus import transport_id
from iscsi.target.scsi.pr_state import EMPTY, REGISTRATIONS_MAX, Port, ReservationType, State

_FORMAT: Final = "persistent-reservations-1"
_KEY_MAX: Final = (1 << 64) - 1
_PORT_MAX: Final = (1 << 16) - 1
_FILE_MAX: Final = 4 << 20
_NAME: Final = re.compile(r"(?P<name>[^\0]{1,223}),i,0x(?P<isid>[0-9a-fA-F]{1,12})")
_TRANSPORT_ID_HEADER: Final = 4


class StoreError(Exception):
    """The file is there but does not say what was reserved; the text names file and fault."""


def initiator_port_name(port: bytes) -> str:
    """The name within an iSCSI TransportID: the initiator's name, ",i,0x" and the ISID."""
    return port[_TRANSPORT_ID_HEADER:].rstrip(b"\0").decode(errors="replace")


def parse_initiator_port(name: str) -> bytes | None:
    """The TransportID of an initiator port's name; None if it is none."""
    found = _NAME.fullmatch(name)
    return found and transport_id(found["name"], int(found["isid"], 16))


def load(path: Path) -> State:
    """The state that was saved, EMPTY if there is no file. Raises StoreError."""
    try:
        with path.open("rb") as file:
            raw = file.read(_FILE_MAX + 1)
    except FileNotFoundError:
        return EMPTY
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    try:
        document = json.loads(raw)
        body = document["reservations"]
        if document["format"] != _FORMAT:
            raise StoreError(f"{path}: of another version: {document['format']!r}")
        if document["digest"] != _digest(body):
            raise StoreError(f"{path}: the digest is wrong: the file is damaged or was edited")
        return _decode(body)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise StoreError(f"{path}: not a file of persistent reservations: {error!r}") from error


def save(path: Path, state: State) -> None:
    """Replace the file and make it durable before returning. Raises OSError; then either the old
    one or the new one is there, whole.
    """
    body = _encode(state)
    document = {"format": _FORMAT, "digest": _digest(body), "reservations": body}
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    """Make a rename durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(body: Any) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.blake2b(canonical, digest_size=16).hexdigest()


def _encode(state: State) -> dict[str, Any]:
    """What survives: the generation does not (SPC-4 §6.15.2), nor anything without APTPL."""
    if not state.persists:
        return {"type": 0, "holder": None, "registrations": []}
    ports = list(state.keys)
    return {
        "type": int(state.held or 0),
        "holder": None if state.holder is None else ports.index(state.holder),
        "registrations": [
            {
                "key": f"0x{state.keys[port]:016x}",
                "initiator_port": initiator_port_name(port.transport_id),
                "target": port.target,
                "relative_port": port.relative_port,
            }
            for port in ports
        ],
    }


def _decode(body: Any) -> State:
    """Raises ValueError and such for anything `_encode` does not make."""
    rows = body["registrations"]
    keys = dict(map(_registration, rows))
    if len(keys) != len(rows) or len(keys) > REGISTRATIONS_MAX:
        raise ValueError("registrations twice, or too many of them")
    held = ReservationType(body["type"]) if body["type"] else None
    has_holder = held is not None and not held.is_held_by_all
    if has_holder != (body["holder"] is not None) or (held is not None and not keys):
        raise ValueError("a reservation without its holder")
    holder = None if body["holder"] is None else list(keys)[range(len(keys))[body["holder"]]]
    return State(keys, held, holder, persists=bool(keys))


def _registration(row: Any) -> tuple[Port, int]:
    key, relative_port = int(row["key"], 16), int(row["relative_port"])
    name, target = parse_initiator_port(row["initiator_port"]), row["target"]
    if name is None or not isinstance(target, str):
        raise ValueError("no name of a port")
    if not 0 < key <= _KEY_MAX or not 0 < relative_port <= _PORT_MAX:
        raise ValueError("a number out of range")
    return Port(name, target, relative_port), key
