"""SendTargets (RFC 7143 §13.3 and appendix C): the list of targets a discovery returns, built by
the target role and read by the initiator role, with bounds on what a peer can make us keep.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from iscsi.wire import text
from iscsi.wire.errors import LocalProtocolError, RemoteProtocolError
from iscsi.wire.names import Portal, name_fault, parse_address

SEND_TARGETS: Final = "SendTargets"
SEND_TARGETS_ALL: Final = "All"
TARGET_NAME: Final = "TargetName"
TARGET_ADDRESS: Final = "TargetAddress"
MAX_TARGETS: Final = 16384
MAX_PORTALS: Final = 64  # of one target
MAX_RESPONSE_LENGTH: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class DiscoveredTarget:
    """A target and its portals; no portals means the address the discovery itself used."""

    name: str
    portals: tuple[Portal, ...] = ()


def build_request(what: str = SEND_TARGETS_ALL) -> bytes:
    """Text of a SendTargets request: `All` (discovery sessions only), a target name, or ''."""
    return text.encode([(SEND_TARGETS, what)])


def parse_request(pairs: Iterable[text.Pair]) -> str | None:
    """The SendTargets value among the pairs of a Text Request, or None if there is none."""
    return next((value for key, value in pairs if key == SEND_TARGETS), None)


def build_response(targets: Iterable[DiscoveredTarget]) -> bytes:
    """Records of TargetName and its TargetAddress lines; cut it with `text.split` as needed.

    LocalProtocolError for a name the initiator would have to refuse.
    """
    pairs: list[text.Pair] = []
    for target in targets:
        fault = name_fault(target.name, strict=False)
        if fault:
            raise LocalProtocolError(f"target {target.name!r}: {fault}")
        pairs.append((TARGET_NAME, target.name))
        pairs += [(TARGET_ADDRESS, str(portal)) for portal in target.portals]
    return text.encode(pairs)


def accumulator() -> text.Accumulator:
    """An accumulator whose bound fits a SendTargets response."""
    return text.Accumulator(MAX_RESPONSE_LENGTH)


def parse_response(data: bytes, max_targets: int = MAX_TARGETS) -> list[DiscoveredTarget]:
    """Targets of a complete SendTargets text; repeated names are joined, in order.

    RemoteProtocolError for an address before any name, a name or address with control
    characters or of a wrong form, or more targets or portals than the bounds.
    Other keys are ignored.
    """
    found: dict[str, list[Portal]] = {}
    current: list[Portal] | None = None
    for key, value in text.decode(data):
        if key == TARGET_NAME:
            current = _add_target(found, value, max_targets)
        elif key == TARGET_ADDRESS:
            _add_portal(current, value)
    return [DiscoveredTarget(name, tuple(portals)) for name, portals in found.items()]


def _add_target(found: dict[str, list[Portal]], name: str, max_targets: int) -> list[Portal]:
    fault = name_fault(name, strict=False)
    if fault:
        raise RemoteProtocolError(f"SendTargets: TargetName {name!r}: {fault}")
    if name not in found and len(found) >= max_targets:
        raise RemoteProtocolError(f"SendTargets: more than {max_targets} targets")
    return found.setdefault(name, [])


def _add_portal(portals: list[Portal] | None, value: str) -> None:
    if portals is None:
        raise RemoteProtocolError("SendTargets: TargetAddress before any TargetName")
    if len(portals) >= MAX_PORTALS:
        raise RemoteProtocolError(f"SendTargets: more than {MAX_PORTALS} portals of one target")
    portal = parse_address(value)
    if portal is None:
        raise RemoteProtocolError(f"SendTargets: malformed TargetAddress {value!r}")
    if portal not in portals:
        portals.append(portal)
