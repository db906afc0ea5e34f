"""`ppe iscsi pr`: persistent reservations. A registration belongs to an initiator port, that is a
name and an ISID; each host has one ISID for this, so that one call finds what another registered.
"""

import argparse
import hashlib
import socket
from typing import Any, Final

import host
from iscsi.session.blockdev import BlockDevice
from iscsi.session.core import DEFAULT_INITIATOR
from iscsi.tools.initiator import device
from ppe import output
from ppe.errors import UsageError

TYPES: Final = {
    "write-exclusive": 1,
    "exclusive-access": 3,
    "write-exclusive-registrants-only": 5,
    "exclusive-access-registrants-only": 6,
    "write-exclusive-all-registrants": 7,
    "exclusive-access-all-registrants": 8,
}
_ACTIONS: Final = {"register": 0, "reserve": 1, "release": 2, "clear": 3, "preempt": 4}
_REGISTER_AND_IGNORE: Final = 6
_PREEMPT_AND_ABORT: Final = 5
_APTPL: Final = 0x01


def pr(args: argparse.Namespace) -> int:
    """List, or change, and then list."""
    if args.isid is None:
        args.isid = isid_of(args.initiator or DEFAULT_INITIATOR)
    _check(args)
    with host.connect(args.engine) as engine, device(args, engine) as unit:
        if args.what != "list":
            _change(unit, args)
        facts = _facts(unit)
    if args.json:
        output.write_json(facts)
        return 0
    output.write(f"generation {facts['generation']}")
    for key in facts["keys"]:
        output.write(f"registered {key}")
    held = facts["reservation"]
    output.write(f"reserved by {held['key']}, {held['type']}" if held else "not reserved")
    return 0


def isid_of(initiator: str) -> int:
    """This host's ISID (type 10b, random) for an initiator name; the same at every call."""
    digest = hashlib.blake2b(f"{socket.gethostname()}/{initiator}".encode(), digest_size=5)
    return 0x80 << 40 | int.from_bytes(digest.digest(), "big")


def _check(args: argparse.Namespace) -> None:
    if args.what == "list":
        return
    if args.key is None and args.what != "register":  # The first registration has none.
        raise UsageError(f"pr {args.what} needs --key", "the key that is registered, as 0x...")
    if args.what in ("register", "preempt") and args.new_key is None:
        text = "--new-key, 0 unregisters" if args.what == "register" else "--new-key, whom to end"
        raise UsageError(f"pr {args.what} needs a second key", text)
    if args.what in ("reserve", "release", "preempt") and args.type is None:
        raise UsageError(f"pr {args.what} needs --type", ", ".join(TYPES))


def _change(unit: BlockDevice, args: argparse.Namespace) -> None:
    action = _ACTIONS[args.what]
    if args.what == "register" and args.ignore:
        action = _REGISTER_AND_IGNORE
    if args.what == "preempt" and args.abort:
        action = _PREEMPT_AND_ABORT
    unit.persistent_reserve_out(
        action,
        args.key or 0,
        args.new_key or 0,
        kind=TYPES.get(args.type, 0),
        options=_APTPL * args.persist,
    )


def _facts(unit: BlockDevice) -> dict[str, Any]:
    found, held = unit.read_keys(), unit.read_reservation()
    names = {number: name for name, number in TYPES.items()}
    reservation = None
    if held.key is not None:
        kind = names.get(held.kind, f"type {held.kind}")
        reservation = {"key": f"{held.key:#018x}", "type": kind}
    return {
        "url": unit.url,
        "generation": found.generation,
        "keys": [f"{key:#018x}" for key in found.keys],
        "reservation": reservation,
    }
