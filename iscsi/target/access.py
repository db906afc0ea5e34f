"""Who may use which target: by initiator name, source address and CHAP account, as plain data. The
first grant that fits an initiator decides; what no grant fits is refused (RFC 7143 §11.13.5).
"""

import ipaddress
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from iscsi.wire.chap import (
    ALGORITHMS,
    MIN_SECRET_LENGTH,
    ChapAccount,
    TargetChap,
    require_different,
)
from iscsi.wire.errors import LoginRedirected, LoginStatus
from iscsi.wire.login import LoginIdentity, refusal
from iscsi.wire.names import parse_address
from iscsi.wire.security import TargetNone, TargetSecurity

log: Final = logging.getLogger(__name__)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where a target lives instead: `host[:port][,tag]`. Raises ValueError."""

    address: str
    permanent: bool = False

    def __post_init__(self) -> None:
        if parse_address(self.address) is None:
            raise ValueError(f"redirect to {self.address!r}: expected host[:port] or [IPv6][:port]")


@dataclass(frozen=True, slots=True)
class Grant:
    """Lets initiators in whose name fits one of `initiators` (`*` and `?` as in file names) and,
    if there are `addresses`, whose source address lies in one (`10.0.0.0/8`, `::1`).

    With `accounts` they prove one of them by CHAP; where it is not `required` they may also come
    without. `own` is what we prove to those that ask. Raises ValueError.
    """

    initiators: tuple[str, ...] = ("*",)
    addresses: tuple[str, ...] = ()
    accounts: tuple[ChapAccount, ...] = ()
    own: ChapAccount | None = None
    required: bool = True
    read_only: bool = False
    _networks: tuple[Network, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.initiators:
            raise ValueError("a grant needs an initiator name, or * for all")
        networks = tuple(ipaddress.ip_network(text, strict=False) for text in self.addresses)
        object.__setattr__(self, "_networks", networks)
        if self.own is not None and not self.accounts:
            raise ValueError(f"{self.own.user!r} proves us to nobody: mutual CHAP needs accounts")
        names = [account.user for account in self.accounts]
        if len(set(names)) != len(names):
            raise ValueError(f"a CHAP name is given twice: {', '.join(sorted(names))}")
        for account in self.accounts:
            require_different(account, self.own)

    def admits(self, initiator: str, address: str) -> bool:
        """Whether this grant is about an initiator that comes from an address."""
        # iSCSI names compare without case: both sides ought to send them folded (RFC 3722).
        name = initiator.lower()
        if not any(fnmatchcase(name, pattern.lower()) for pattern in self.initiators):
            return False
        if not self._networks:
            return True
        source = _parse_source(address)
        return source is not None and any(source in network for network in self._networks)

    def secrets(self) -> Iterable[ChapAccount]:
        """Every account of this grant."""
        return self.accounts if self.own is None else (*self.accounts, self.own)


def _parse_source(text: str) -> Address | None:
    """A peer's address; an IPv4 one that came through an IPv6 socket is IPv4."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


EVERYBODY: Final = (Grant(),)


@dataclass(frozen=True, slots=True)
class TargetAccess:
    """Who may use one target. `redirect` sends those who may to another portal."""

    grants: tuple[Grant, ...] = EVERYBODY
    redirect: Redirect | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """An initiator that may try: how it proves itself, and what it may do."""

    security: TargetSecurity
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Access to every target of a server, by name; `default` is for those that have no entry.

    `discovery` says who may ask for the list of targets. Secrets below 96 bits are a ValueError
    unless `short_secrets` (RFC 7143 §9.2.1), and then a warning.
    """

    targets: Mapping[str, TargetAccess] = field(default_factory=dict)
    default: TargetAccess = field(default_factory=TargetAccess)
    discovery: tuple[Grant, ...] = EVERYBODY
    short_secrets: bool = False
    algorithms: tuple[int, ...] = tuple(ALGORITHMS)

    def __post_init__(self) -> None:
        known = ", ".join(f"{number} ({found.name})" for number, found in ALGORITHMS.items())
        if not self.algorithms or not ALGORITHMS.keys() >= set(self.algorithms):
            raise ValueError(f"CHAP algorithms {self.algorithms}: choose from {known}")
        for grant in self._grants():
            for account in grant.secrets():
                self._check_length(account)

    def _grants(self) -> Iterable[Grant]:
        for access in (*self.targets.values(), self.default):
            yield from access.grants
        yield from self.discovery

    def _check_length(self, account: ChapAccount) -> None:
        if not account.is_short:
            return
        fault = (
            f"the CHAP secret of {account.user!r} has {len(account.secret)} bytes; "
            f"{MIN_SECRET_LENGTH} are the least that withstands guessing"
        )
        if not self.short_secrets:
            raise ValueError(f"{fault} (short_secrets allows it)")
        log.warning("%s", fault)

    def authorize(self, identity: LoginIdentity, address: str) -> Admission:
        """Judge an initiator by name and source address, before any proof.

        Raises LoginRejected (0x0202) or LoginRedirected.
        """
        name = identity.target_name
        access = TargetAccess(self.discovery) if name is None else self._access(name)
        grant = _first(access.grants, identity.initiator_name, address)
        if grant is None:
            raise refusal(
                LoginStatus.AUTHORIZATION_FAILURE,
                f"{identity.initiator_name} from {address} has no grant for {name or 'discovery'}",
            )
        if access.redirect is not None:
            raise LoginRedirected(access.redirect.address, permanent=access.redirect.permanent)
        return Admission(self._security(grant), grant.read_only)

    def is_visible(self, target_name: str, initiator: str, address: str) -> bool:
        """Whether SendTargets tells an initiator of a target: it does if a login is possible."""
        return _first(self._access(target_name).grants, initiator, address) is not None

    def grant_of_session(self, target_name: str, initiator: str, address: str) -> Grant | None:
        """What a session that is there already may do; None if it would not get in here now."""
        access = self._access(target_name)
        return None if access.redirect else _first(access.grants, initiator, address)

    def _access(self, target_name: str) -> TargetAccess:
        return self.targets.get(target_name, self.default)

    def _security(self, grant: Grant) -> TargetSecurity:
        if not grant.accounts:
            return TargetNone()
        return TargetChap(
            grant.accounts, grant.own, required=grant.required, algorithms=self.algorithms
        )


def _first(grants: Iterable[Grant], initiator: str, address: str) -> Grant | None:
    return next((grant for grant in grants if grant.admits(initiator, address)), None)
