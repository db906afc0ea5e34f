"""One side of a parameter negotiation (RFC 7143 §6.2): what it offers, how it answers, and what
was agreed at the end. Each key is settled once; every rule comes from the table in `keys`.
"""

from typing import Any, Final

from iscsi.wire.errors import LocalProtocolError, RemoteProtocolError
from iscsi.wire.keys import (
    DIGEST_CRC32C,
    KEYS,
    ConnectionParams,
    IserParams,
    Key,
    Place,
    Proposal,
    Rule,
    Sender,
    SessionParams,
    combine,
    is_answer,
    is_valid,
    parse_number,
    plain,
)
from iscsi.wire.text import IRRELEVANT, NO, NONE, NOT_UNDERSTOOD, REFUSALS, REJECT, YES, Pair

_MAX_RECV: Final = KEYS["MaxRecvDataSegmentLength"]
# Repeated by clients in the field in each stage; harmless while the value stays the same.
_MAY_REPEAT: Final = frozenset({"InitiatorName", "TargetName", "SessionType", "InitiatorAlias"})


class Negotiation:
    """Collects offers, answers and declarations of one login.

    `receive` takes the peer's pairs and returns ours; `offer` returns what to ask for unasked.
    """

    __slots__ = (
        "_agreed",
        "_answered",
        "_discovery",
        "_leading",
        "_offered",
        "_peer",
        "_proposal",
        "declared",
    )

    def __init__(self, peer: Sender, proposal: Proposal, *, leading: bool = True) -> None:
        self._peer = peer
        self._proposal = proposal
        self._leading = leading
        self._discovery = False
        self._offered: dict[str, str] = {}
        self._agreed: dict[str, str] = {}
        self._answered: set[str] = set()
        self.declared: dict[str, str] = {}
        """What the peer declared, by key name."""
        for key in KEYS.values():
            mine = proposal.text(key) if key.is_negotiated or key is _MAX_RECV else None
            if mine is not None and not all(is_valid(key, v) for v in mine.split(",")):
                raise LocalProtocolError(f"{key.name}={mine} is not allowed")
        digests = proposal.header_digest + proposal.data_digest
        if proposal.rdma_extensions and set(digests) != {NONE}:
            raise LocalProtocolError("over RDMA there are no digests (RFC 7145 §6)")

    def set_discovery(self) -> None:
        """From now on, keys of normal sessions are Irrelevant and not offered."""
        self._discovery = True

    def offer_all(self) -> list[Pair]:
        """Everything an initiator negotiates in the operational stage, and its declaration."""
        keys = [
            key for key in self._open_keys() if key.offer_default or self._ours(key) != key.default
        ]
        return [*self.declarations(), *(self._offer(key) for key in keys)]

    def offer_needed(self) -> list[Pair]:
        """Offers for keys nobody mentioned whose RFC default this side could not accept."""
        return [self._offer(key) for key in self._open_keys() if not self._accepts_default(key)]

    def declarations(self) -> list[Pair]:
        """Our MaxRecvDataSegmentLength; over RDMA, where it means nothing (RFC 7145 §6), what of
        iSER's keys differs from their defaults.
        """
        text = self._proposal.text
        if not self._is_rdma:
            return [(_MAX_RECV.name, text(_MAX_RECV))]
        ours = Sender.BOTH ^ self._peer
        keys = [key for key in KEYS.values() if key.rdma_only and key.rule is Rule.DECLARED]
        return [
            (key.name, text(key)) for key in keys if key.sender & ours and text(key) != key.default
        ]

    def receive(self, pairs: list[Pair], place: Place) -> list[Pair]:
        """Take the peer's pairs; returns the answers owed, in order.

        RemoteProtocolError for a key said twice, an answer its offer does not allow, or a
        declaration out of range.
        """
        # FirstBurstLength is bounded by MaxBurstLength, so that one is settled first.
        order = sorted(pairs, key=lambda pair: pair[0] == "FirstBurstLength")
        return [answer for pair in order for answer in self._receive(*pair, place)]

    def close(self) -> None:
        """End the negotiation: what was never answered takes its obvious value.

        RFC 7143 §6.2.2 lets a peer stay silent when our offer decides a boolean; any other silence
        means the default, and RemoteProtocolError if that is no use here.
        """
        for name in self._offered.keys() - self._agreed.keys():
            key, offer = KEYS[name], self._offered[name]
            decides = key.is_boolean and offer == (YES if key.rule is Rule.OR else NO)
            self._receive_answer(key, offer if decides else NOT_UNDERSTOOD)

    def require_defaults(self) -> None:
        """For a login that skips the operational stage: RemoteProtocolError unless every
        key left at its default is acceptable here.
        """
        for key in self._open_keys():
            if not self._accepts_default(key):
                raise RemoteProtocolError(f"{key.name} has to be negotiated, and was skipped")

    @property
    def has_open_offers(self) -> bool:
        """True while an offer of ours has no answer."""
        return bool(self._offered.keys() - self._agreed.keys())

    def session_params(self) -> SessionParams:
        """The session's values: agreed, or else the RFC's default."""
        found = {
            key.attribute: _value(key, self._agreed[key.name])
            for key in KEYS.values()
            if key.is_negotiated and key.leading_only and key.name in self._agreed
        }
        params = SessionParams(**found)  # type: ignore[arg-type]
        # RFC 7145 §6.3: Irrelevant in a discovery session, and so LIO says.
        if self._is_rdma and not params.rdma_extensions and not self._discovery:
            raise RemoteProtocolError("RDMAExtensions=Yes was not agreed on, and this is RDMA")
        longest = min(params.first_burst_length, params.max_burst_length)
        return SessionParams(**{**found, "first_burst_length": longest})  # type: ignore[arg-type]

    def connection_params(self) -> ConnectionParams:
        """The connection's values."""
        if self._is_rdma:
            names = ("InitiatorRecvDataSegmentLength", "TargetRecvDataSegmentLength")
            initiator, target = (
                int(self._agreed.get(name) or KEYS[name].default or "0") for name in names
            )
            is_initiator = self._peer is Sender.TARGET
            return (
                ConnectionParams(initiator, target)
                if is_initiator
                else ConnectionParams(target, initiator)
            )
        peer = parse_number(_MAX_RECV, self.declared.get(_MAX_RECV.name, _MAX_RECV.default or ""))
        assert peer is not None, "range was checked on receipt"
        return ConnectionParams(
            self._proposal.max_recv_data_segment_length,
            peer,
            self._agreed.get("HeaderDigest") == DIGEST_CRC32C,
            self._agreed.get("DataDigest") == DIGEST_CRC32C,
        )

    def iser_params(self) -> IserParams | None:
        """What the peer declared for a connection over RDMA; None over TCP."""
        if not self._is_rdma:
            return None
        names = {KEYS[name].attribute: KEYS[name] for name in self.declared if KEYS[name].rdma_only}
        found = {attribute: self.declared[key.name] for attribute, key in names.items()}
        values: dict[str, Any] = {
            attribute: text == YES if names[attribute].choices else _value(names[attribute], text)
            for attribute, text in found.items()
        }
        return IserParams(**values)

    @property
    def _is_rdma(self) -> bool:
        return self._proposal.rdma_extensions

    def _open_keys(self) -> list[Key]:
        return [
            key
            for key in KEYS.values()
            if key.is_negotiated
            and key.name not in self._offered
            and key.name not in self._agreed
            and not (self._discovery and key.normal_only)
            and (self._leading or not key.leading_only)
            and (self._is_rdma or not key.rdma_only)
        ]

    def _offer(self, key: Key) -> Pair:
        self._offered[key.name] = self._ours(key)
        return key.name, self._offered[key.name]

    def _ours(self, key: Key) -> str:
        """Our value; FirstBurstLength never above the MaxBurstLength in force (RFC 7143 §13.14)."""
        mine = self._proposal.text(key)
        if key.name != "FirstBurstLength":
            return mine
        burst = KEYS["MaxBurstLength"]
        bound = self._agreed.get(burst.name) or self._offered.get(burst.name) or burst.default
        return str(min(int(mine), int(bound or mine)))

    def _accepts_default(self, key: Key) -> bool:
        assert key.default is not None, "negotiated keys have defaults"
        return combine(key, key.default, self._ours(key)) == key.default

    def _receive(self, name: str, value: str, place: Place) -> list[Pair]:
        """Take one pair; returns the answer owed, if any."""
        key = KEYS.get(name)
        if key is None:
            return self._answer_once(name, value, NOT_UNDERSTOOD)
        if name in self._offered and name not in self._agreed:
            self._receive_answer(key, value)
            return []
        if name in self._agreed:
            raise RemoteProtocolError(f"{name} was negotiated already")
        if not (key.place & place and key.sender & self._peer):
            return [] if value in REFUSALS else [(name, REJECT)]
        if key.rule is Rule.FIXED:
            return self._answer_once(name, value, key.answer)
        if key.rdma_only and not self._is_rdma:
            return self._answer_once(name, value, IRRELEVANT)
        if key.rule is Rule.DECLARED:
            self._receive_declaration(key, value)
            return []
        return [self._answer_offer(key, value)]

    def _answer_once(self, name: str, value: str, answer: str) -> list[Pair]:
        """The answer to a key that nothing is agreed about."""
        if name in self._answered:
            raise RemoteProtocolError(f"{name} was sent already")
        self._answered.add(name)
        # A refusal of a key that we never sent must not be answered for ever.
        return [] if value in REFUSALS else [(name, answer)]

    def _receive_answer(self, key: Key, value: str) -> None:
        if value in REFUSALS:
            excused = value == IRRELEVANT and self._is_irrelevant(key)
            if not excused and not self._accepts_default(key):
                raise RemoteProtocolError(
                    f"the peer answered {key.name}={value}, and its default is no use here"
                )
            assert key.default is not None, "negotiated keys have defaults"
            self._agreed[key.name] = key.default
        elif is_answer(key, self._offered[key.name], value):
            # Numbers in plain decimal, whichever form the peer chose.
            self._agreed[key.name] = plain(key, value)
        else:
            raise RemoteProtocolError(
                f"{key.name}={value} does not answer the offer {self._offered[key.name]}"
            )

    def _is_irrelevant(self, key: Key) -> bool:
        """Whether nothing depends on a key, so that its default is as good as any value."""
        if key.name != "FirstBurstLength":
            return self._discovery and key.normal_only
        needs_r2t = self._agreed.get("InitialR2T", YES) == YES
        return needs_r2t and self._agreed.get("ImmediateData", YES) == NO

    def _receive_declaration(self, key: Key, value: str) -> None:
        before = self.declared.get(key.name)
        if before is not None and not (before == value and key.name in _MAY_REPEAT):
            raise RemoteProtocolError(f"{key.name} was declared already")
        # SessionType is judged by the login, which has a status of its own for it.
        if key.name != "SessionType" and not is_valid(key, value):
            raise RemoteProtocolError(f"{key.name}={value} is out of range")
        self.declared[key.name] = value

    def _answer_offer(self, key: Key, value: str) -> Pair:
        if (self._discovery and key.normal_only) or (key.leading_only and not self._leading):
            return self._settle(key.name, IRRELEVANT)
        answer = combine(key, value, self._ours(key))
        if answer is None and not self._accepts_default(key):
            raise RemoteProtocolError(
                f"{key.name}={value} leaves the default, which is no use here"
            )
        return self._settle(key.name, REJECT if answer is None else answer)

    def _settle(self, name: str, answer: str) -> Pair:
        """Record what we answered; a refusal leaves the key at its default."""
        default = KEYS[name].default
        self._agreed[name] = (default or "") if answer in REFUSALS else answer
        return name, answer


def _value(key: Key, text: str) -> int | bool | str:
    if key.is_boolean:
        return text == YES
    number = parse_number(key, text) if key.is_number else None
    return text if number is None else number
