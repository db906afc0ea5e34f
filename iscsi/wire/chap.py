"""CHAP as a login's security strategy (RFC 1994, RFC 7143 §12.1): both roles, one way and mutual.
A peer that fails learns only that it failed, and no secret is ever part of a text or a repr.
"""

import binascii
import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum, auto
from hmac import compare_digest
from types import MappingProxyType
from typing import Final

from iscsi.wire.errors import RemoteProtocolError
from iscsi.wire.keys import KEYS, parse_number
from iscsi.wire.security import AUTH_METHOD, authentication_failure
from iscsi.wire.text import MAX_VALUE_LENGTH, NONE, Pair

CHAP: Final = "CHAP"
MAX_BINARY_LENGTH: Final = 1024  # of a challenge or a response (RFC 7143 §12.1.3)
MIN_SECRET_LENGTH: Final = 12  # 96 bits; shorter secrets want IPsec below (RFC 7143 §9.2.1)
CHALLENGE_LENGTH: Final = 32
_PROOF: Final = frozenset({"CHAP_N", "CHAP_R"})
_DEMAND: Final = frozenset({"CHAP_I", "CHAP_C"})


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A hash that CHAP may use: its number with IANA ("PPP Authentication Algorithms")."""

    number: int
    name: str
    hash_name: str

    def response(self, identifier: int, secret: bytes, challenge: bytes) -> bytes:
        """The hash over identifier, secret and challenge (RFC 1994 §4.1)."""
        made = hashlib.new(self.hash_name, bytes((identifier,)), usedforsecurity=False)
        made.update(secret + challenge)
        return made.digest()


ALGORITHMS: Final[Mapping[int, Algorithm]] = MappingProxyType(
    {
        found.number: found
        for found in (
            Algorithm(5, "md5", "md5"),
            Algorithm(6, "sha1", "sha1"),
            Algorithm(7, "sha-256", "sha256"),
            Algorithm(8, "sha3-256", "sha3_256"),
        )
    }
)
ALGORITHM_NUMBERS: Final[Mapping[str, int]] = MappingProxyType(
    {found.name: number for number, found in ALGORITHMS.items()}
)
# An initiator's preference. 7 comes last although it is strong: tgt means SHA1 by it.
INITIATOR_ALGORITHMS: Final = (8, 6, 5, 7)


@dataclass(frozen=True, slots=True)
class ChapAccount:
    """A CHAP name and its secret. ValueError for what cannot be sent or hashed."""

    user: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        size = len(self.user.encode(errors="replace"))
        if not 1 <= size <= MAX_VALUE_LENGTH or "\0" in self.user:
            raise ValueError(f"a CHAP name has 1..{MAX_VALUE_LENGTH} bytes and no NUL")
        if not self.secret:
            raise ValueError(f"the CHAP secret of {self.user!r} is empty")

    @property
    def is_short(self) -> bool:
        """True for a secret below 96 bits, which a listener can find by trying."""
        return len(self.secret) < MIN_SECRET_LENGTH


def require_different(account: ChapAccount, other: ChapAccount | None) -> None:
    """ValueError if both directions use one secret, which lets a peer reflect our answers."""
    if other is not None and compare_digest(account.secret, other.secret):
        raise ValueError(
            f"CHAP names {account.user!r} and {other.user!r} share a secret: "
            "the two directions need different ones"
        )


def encode_binary(data: bytes) -> str:
    """A large binary value as hexadecimal, which every peer reads (RFC 7143 §6.1)."""
    return "0x" + data.hex()


def decode_binary(value: str) -> bytes | None:
    """1..1024 bytes from hexadecimal (0x) or base64 (0b), else None."""
    prefix, digits = value[:2].lower(), value[2:]
    try:
        if prefix == "0x":
            # An odd number of digits: some peers drop a leading zero.
            data = binascii.unhexlify("0" * (len(digits) % 2) + digits)
        elif prefix == "0b":
            data = binascii.a2b_base64(digits + "=" * (-len(digits) % 4), strict_mode=True)
        else:
            return None
    except (binascii.Error, ValueError):
        return None
    return data if 1 <= len(data) <= MAX_BINARY_LENGTH else None


def decode_algorithms(value: str) -> list[int]:
    """The numbers of a CHAP_A list, in order; what is no number is left out."""
    found = (parse_number(KEYS["CHAP_A"], item) for item in value.split(","))
    return [number for number in found if number is not None]


@dataclass(frozen=True, slots=True)
class _Demand:
    """CHAP_I and CHAP_C: what one side has to answer."""

    identifier: int
    challenge: bytes

    def pairs(self) -> list[Pair]:
        return [("CHAP_I", str(self.identifier)), ("CHAP_C", encode_binary(self.challenge))]

    @classmethod
    def made(cls, random: Callable[[int], bytes]) -> "_Demand":
        return cls(random(1)[0], random(CHALLENGE_LENGTH))

    @classmethod
    def read(cls, got: Mapping[str, str]) -> "_Demand | None":
        identifier = parse_number(KEYS["CHAP_I"], got["CHAP_I"])
        challenge = decode_binary(got["CHAP_C"])
        return None if identifier is None or challenge is None else cls(identifier, challenge)


def _proof(account: ChapAccount, algorithm: Algorithm, demand: _Demand) -> list[Pair]:
    answer = algorithm.response(demand.identifier, account.secret, demand.challenge)
    return [("CHAP_N", account.user), ("CHAP_R", encode_binary(answer))]


def _proves(
    got: Mapping[str, str], account: ChapAccount, algorithm: Algorithm, demand: _Demand
) -> bool:
    """Whether CHAP_N and CHAP_R are this account's answer, in the same time either way."""
    expected = algorithm.response(demand.identifier, account.secret, demand.challenge)
    named = compare_digest(got["CHAP_N"].encode(), account.user.encode())
    answered = compare_digest(decode_binary(got["CHAP_R"]) or b"", expected)
    return named and answered


class _Step(Enum):
    """What a side waits for next."""

    METHOD = auto()
    ALGORITHM = auto()
    CHALLENGE = auto()
    PROOF = auto()
    DONE = auto()


class PeerNotAuthenticated(RemoteProtocolError):
    """The target did not prove that it is the one that was meant, or asked for the wrong proof."""


class InitiatorChap:
    """The initiator's side. With `target` the target has to prove that it knows that account,
    and the method None is not offered; without, a target that wants no proof is taken.

    Raises ValueError for equal secrets and for algorithms that are not known.
    """

    is_required = True

    def __init__(
        self,
        account: ChapAccount,
        target: ChapAccount | None = None,
        *,
        algorithms: Sequence[int] = INITIATOR_ALGORITHMS,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        require_different(account, target)
        if not algorithms or any(number not in ALGORITHMS for number in algorithms):
            raise ValueError(f"CHAP algorithms {list(algorithms)}: choose from {list(ALGORITHMS)}")
        self._account, self._target = account, target
        self._algorithms = tuple(algorithms)
        self._algorithm = ALGORITHMS[self._algorithms[0]]
        self._random = random
        self._demand: _Demand | None = None
        self._step = _Step.METHOD

    @property
    def is_complete(self) -> bool:
        """True when nothing is left to prove, on either side."""
        return self._step is _Step.DONE

    @property
    def wants_transit(self) -> bool:
        """True once our proof is given; the target's may come with its consent."""
        return self._step in (_Step.PROOF, _Step.DONE)

    def offer(self) -> list[Pair]:
        """CHAP, and None if the target need not prove anything."""
        return [(AUTH_METHOD, CHAP if self._target else f"{CHAP},{NONE}")]

    def receive(self, pairs: list[Pair]) -> list[Pair]:
        """Take the target's next keys and return ours. Raises PeerNotAuthenticated."""
        got = dict(pairs)
        if len(got) != len(pairs):
            raise PeerNotAuthenticated("the target said a CHAP key twice")
        match self._step:
            case _Step.METHOD:
                return self._on_method(got)
            case _Step.CHALLENGE:
                return self._on_challenge(got)
            case _Step.PROOF:
                return self._on_proof(got)
        if got:
            raise PeerNotAuthenticated(f"the target sent {_names(got)} after the authentication")
        return []

    def _on_method(self, got: Mapping[str, str]) -> list[Pair]:
        self._expect(got, {AUTH_METHOD})
        chosen = got[AUTH_METHOD]
        if chosen == NONE and self._target is None:
            self._step = _Step.DONE
            return []
        if chosen != CHAP:
            raise PeerNotAuthenticated(f"the target chose AuthMethod={chosen}, not {CHAP}")
        self._step = _Step.CHALLENGE
        return [("CHAP_A", ",".join(map(str, self._algorithms)))]

    def _on_challenge(self, got: Mapping[str, str]) -> list[Pair]:
        self._expect(got, {"CHAP_A", *_DEMAND})
        number = parse_number(KEYS["CHAP_A"], got["CHAP_A"])
        if number is None or number not in self._algorithms:
            raise PeerNotAuthenticated(f"the target chose CHAP_A={got['CHAP_A']}, not offered")
        demand = _Demand.read(got)
        if demand is None:
            raise PeerNotAuthenticated("the target's CHAP_I or CHAP_C is malformed or too long")
        self._algorithm = ALGORITHMS[number]
        answers = _proof(self._account, self._algorithm, demand)
        if self._target is None:
            self._step = _Step.DONE
            return answers
        self._demand = _Demand.made(self._random)
        if compare_digest(self._demand.challenge, demand.challenge):
            raise PeerNotAuthenticated("both sides would ask the same challenge")
        self._step = _Step.PROOF
        return answers + self._demand.pairs()

    def _on_proof(self, got: Mapping[str, str]) -> list[Pair]:
        self._expect(got, _PROOF)
        assert self._demand is not None, "our challenge went out before"
        assert self._target is not None, "only a target with an account is challenged"
        ours = ChapAccount(self._target.user, self._account.secret)
        if _proves(got, ours, self._algorithm, self._demand):
            raise PeerNotAuthenticated("the target answers with our own secret")
        if not _proves(got, self._target, self._algorithm, self._demand):
            raise PeerNotAuthenticated("the target did not prove who it is: its CHAP is wrong")
        self._step = _Step.DONE
        return []

    def _expect(self, got: Mapping[str, str], names: Set[str]) -> None:
        if set(got) != names:
            raise PeerNotAuthenticated(
                f"the target sent {_names(got)} where {_names(names)} was due"
            )


def _names(keys: Iterable[str]) -> str:
    return ", ".join(sorted(keys)) or "nothing"


class TargetChap:
    """The target's side. `accounts` may log in; `own` proves us to an initiator that asks for it.
    With `required` False an initiator may also choose the method None.

    Every failure is Login Status 0x0201 and nothing more. ValueError for equal secrets.
    """

    def __init__(
        self,
        accounts: Sequence[ChapAccount],
        own: ChapAccount | None = None,
        *,
        required: bool = True,
        algorithms: Sequence[int] = tuple(ALGORITHMS),
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        for account in accounts:
            require_different(account, own)
        self._accounts = {account.user: account for account in accounts}
        self._own = own
        self._algorithms = frozenset(algorithms) & ALGORITHMS.keys()
        self._random = random
        self._step = _Step.METHOD
        self._demand: _Demand | None = None
        self._algorithm = ALGORITHMS[5]
        self.is_required = required
        self.user: str | None = None
        """The CHAP name that was proved."""

    @property
    def is_complete(self) -> bool:
        """True when the initiator proved itself, or need not."""
        waits = self._step is _Step.METHOD and not self.is_required
        return waits or self._step is _Step.DONE

    def receive(self, pairs: list[Pair]) -> list[Pair]:
        """Take the initiator's next keys and return ours. Raises LoginRejected 0x0201."""
        got = dict(pairs)
        if len(got) != len(pairs):
            raise authentication_failure("a CHAP key said twice")
        match self._step:
            case _Step.METHOD:
                return self._on_method(got) if got else []
            case _Step.ALGORITHM:
                return self._on_algorithms(got)
            case _Step.PROOF:
                return self._on_proof(got)
        if got:
            raise authentication_failure(f"{_names(got)} after the authentication")
        return []

    def _on_method(self, got: Mapping[str, str]) -> list[Pair]:
        _expect_from_initiator(got, {AUTH_METHOD})
        possible = (CHAP,) if self.is_required else (CHAP, NONE)
        chosen = next((item for item in got[AUTH_METHOD].split(",") if item in possible), None)
        if chosen is None:
            raise authentication_failure(f"AuthMethod={got[AUTH_METHOD]} offers no {CHAP}")
        self._step = _Step.ALGORITHM if chosen == CHAP else _Step.DONE
        return [(AUTH_METHOD, chosen)]

    def _on_algorithms(self, got: Mapping[str, str]) -> list[Pair]:
        _expect_from_initiator(got, {"CHAP_A"})
        offered = decode_algorithms(got["CHAP_A"])
        number = next((number for number in offered if number in self._algorithms), None)
        if number is None:
            raise authentication_failure(f"CHAP_A={got['CHAP_A']} has nothing for us")
        self._algorithm = ALGORITHMS[number]
        self._demand = _Demand.made(self._random)
        self._step = _Step.PROOF
        return [("CHAP_A", str(number)), *self._demand.pairs()]

    def _on_proof(self, got: Mapping[str, str]) -> list[Pair]:
        mutual = "CHAP_I" in got or "CHAP_C" in got
        _expect_from_initiator(got, _PROOF | _DEMAND if mutual else _PROOF)
        self._check(got)
        self._step, self.user = _Step.DONE, got["CHAP_N"]
        return self._prove(got) if mutual else []

    def _check(self, got: Mapping[str, str]) -> None:
        assert self._demand is not None, "our challenge went out before"
        known = self._accounts.get(got["CHAP_N"])
        # An unknown name takes as long as a wrong secret.
        account = known or ChapAccount(got["CHAP_N"] or "-", b"unknown")
        proved = _proves(got, account, self._algorithm, self._demand)
        if known is None or not proved:
            raise authentication_failure(f"CHAP of {got['CHAP_N']!r} failed")

    def _prove(self, got: Mapping[str, str]) -> list[Pair]:
        """Answer the initiator's challenge, unless it is our own or nobody gave us an account."""
        assert self._demand is not None, "our challenge went out before"
        demand = _Demand.read(got)
        if demand is None:
            raise authentication_failure("CHAP_I or CHAP_C is malformed or too long")
        if compare_digest(demand.challenge, self._demand.challenge):
            raise authentication_failure("our own challenge came back")
        if self._own is None:
            raise authentication_failure("mutual CHAP is asked for, and we have no account for it")
        return _proof(self._own, self._algorithm, demand)


def _expect_from_initiator(got: Mapping[str, str], names: Set[str]) -> None:
    if set(got) != names:
        raise authentication_failure(f"{_names(got)} where {_names(names)} was due")
