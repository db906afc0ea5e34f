"""The text keys of RFC 7143 §13 (the authentication keys of §12, iSER's of RFC 7145 §6): each
declared once with its type, result function, range, default and place. Negotiation reads this table
and nothing else.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, Flag, auto
from types import MappingProxyType
from typing import Final

from iscsi.wire.text import MAX_VALUE_LENGTH, NO, NONE, REJECT, YES

DIGEST_NONE: Final = NONE
DIGEST_CRC32C: Final = "CRC32C"
SESSION_NORMAL: Final = "Normal"
SESSION_DISCOVERY: Final = "Discovery"

DEFAULT_MAX_RECV_DATA_SEGMENT_LENGTH: Final = 8192
_MIN_LENGTH: Final = 512
_MAX_LENGTH: Final = (1 << 24) - 1
_MAX_COUNT: Final = (1 << 32) - 1
# A CHAP binary value has up to 1024 bytes (RFC 7143 §12.1.3): "0x" and two digits for each.
_MAX_BINARY_VALUE: Final = 2 + 2 * 1024
_MAX_KERBEROS_VALUE: Final = 4096


class Rule(Enum):
    """How the value both sides use comes from what each of them said."""

    LIST = auto()  # the first of the offerer's list that the responder supports
    AND = auto()
    OR = auto()
    MIN = auto()
    MAX = auto()
    DECLARED = auto()  # each side says its own; there is no answer
    SECURITY = auto()  # belongs to the authentication method
    FIXED = auto()  # always gets the same answer: obsolete


class Place(Flag):
    """Where a key may appear, and when it means nothing."""

    SECURITY = auto()
    OPERATIONAL = auto()
    FULL_FEATURE = auto()
    LOGIN = SECURITY | OPERATIONAL
    ANY = LOGIN | FULL_FEATURE


class Sender(Flag):
    """Who may send a key first."""

    INITIATOR = auto()
    TARGET = auto()
    BOTH = INITIATOR | TARGET


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the table. `attribute` names the field of the parameter classes below;
    `leading_only` keys belong to the session's first connection; `normal_only` keys are
    Irrelevant in a discovery session; `offer_default` is False for keys that older peers do not
    know and that are offered only to change something; `rdma_only` keys are Irrelevant on a
    connection that is not RDMA. `choices` bounds a list, `low`..`high` without `excluded` a number;
    `answer` is what a FIXED key gets.
    """

    name: str
    rule: Rule
    place: Place
    default: str | None = None
    sender: Sender = Sender.BOTH
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()
    leading_only: bool = False
    normal_only: bool = False
    offer_default: bool = True
    rdma_only: bool = False
    excluded: tuple[int, ...] = ()
    max_value_length: int = MAX_VALUE_LENGTH
    answer: str = REJECT

    @property
    def attribute(self) -> str:
        """`MaxBurstLength` is `max_burst_length` in Python."""
        return _attribute(self.name)

    @property
    def is_number(self) -> bool:
        """True if the value is a number in low..high."""
        return self.high > 0

    @property
    def is_boolean(self) -> bool:
        """True if the value is Yes or No."""
        return self.rule in (Rule.AND, Rule.OR)

    @property
    def is_negotiated(self) -> bool:
        """True if an offer is answered with a result."""
        return self.rule in (Rule.LIST, Rule.AND, Rule.OR, Rule.MIN, Rule.MAX)


def _attribute(name: str) -> str:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    for apart, together in (("i_SCSI", "iscsi"), ("i_SER", "iser"), ("PD_Us", "PDUs")):
        spaced = spaced.replace(apart, together)
    return spaced.lower()


def _session(
    name: str, rule: Rule, default: str, low: int = 0, high: int = 0, normal_only: bool = True
) -> Key:
    """A session-wide operational key: first connection; mostly for normal sessions."""
    return Key(
        name,
        rule,
        Place.OPERATIONAL,
        default,
        low=low,
        high=high,
        leading_only=True,
        normal_only=normal_only,
    )


def _name(name: str, sender: Sender, place: Place = Place.LOGIN) -> Key:
    return Key(name, Rule.DECLARED, place, sender=sender)


def _digest(name: str) -> Key:
    return Key(name, Rule.LIST, Place.OPERATIONAL, NONE, choices=(NONE, DIGEST_CRC32C))


def _security(name: str, max_value_length: int = MAX_VALUE_LENGTH, high: int = 0) -> Key:
    return Key(name, Rule.SECURITY, Place.SECURITY, high=high, max_value_length=max_value_length)


def _fixed(name: str, answer: str) -> Key:
    return Key(name, Rule.FIXED, Place.LOGIN, answer=answer)


def _iser_length(name: str) -> Key:
    return Key(
        name,
        Rule.MIN,
        Place.LOGIN,
        str(DEFAULT_MAX_RECV_DATA_SEGMENT_LENGTH),
        low=_MIN_LENGTH,
        high=_MAX_LENGTH,
        rdma_only=True,
    )


def _iser_count(name: str, default: str) -> Key:
    """Declared; 0 means that there is no limit."""
    return Key(
        name,
        Rule.DECLARED,
        Place.LOGIN,
        default,
        low=0,
        high=_MAX_COUNT,
        excluded=(1,),
        rdma_only=True,
    )


def _iser_flag(name: str) -> Key:
    return Key(
        name, Rule.DECLARED, Place.LOGIN, NO, Sender.INITIATOR, choices=(YES, NO), rdma_only=True
    )


_ROWS: Final = (
    _name("InitiatorName", Sender.INITIATOR),
    _name("InitiatorAlias", Sender.INITIATOR, Place.ANY),
    _name("TargetName", Sender.BOTH, Place.ANY),
    _name("TargetAlias", Sender.TARGET, Place.ANY),
    _name("TargetAddress", Sender.TARGET, Place.ANY),
    Key(
        "TargetPortalGroupTag", Rule.DECLARED, Place.LOGIN, sender=Sender.TARGET, low=0, high=65535
    ),
    Key(
        "SessionType",
        Rule.DECLARED,
        Place.LOGIN,
        SESSION_NORMAL,
        Sender.INITIATOR,
        choices=(SESSION_NORMAL, SESSION_DISCOVERY),
        leading_only=True,
    ),
    Key("SendTargets", Rule.DECLARED, Place.FULL_FEATURE, sender=Sender.INITIATOR),
    Key(
        "MaxRecvDataSegmentLength",
        Rule.DECLARED,
        Place.ANY,
        str(DEFAULT_MAX_RECV_DATA_SEGMENT_LENGTH),
        low=_MIN_LENGTH,
        high=_MAX_LENGTH,
    ),
    _digest("HeaderDigest"),
    _digest("DataDigest"),
    _session("MaxConnections", Rule.MIN, "1", 1, 65535),
    _session("InitialR2T", Rule.OR, YES),
    _session("ImmediateData", Rule.AND, YES),
    _session("MaxBurstLength", Rule.MIN, "262144", _MIN_LENGTH, _MAX_LENGTH),
    _session("FirstBurstLength", Rule.MIN, "65536", _MIN_LENGTH, _MAX_LENGTH),
    _session("DefaultTime2Wait", Rule.MAX, "2", 0, 3600, normal_only=False),
    _session("DefaultTime2Retain", Rule.MIN, "20", 0, 3600, normal_only=False),
    _session("MaxOutstandingR2T", Rule.MIN, "1", 1, 65535),
    _session("DataPDUInOrder", Rule.OR, YES),
    _session("DataSequenceInOrder", Rule.OR, YES),
    # This and the two times hold in a discovery session too (RFC 7143 §13.15, §13.16, §13.20):
    # open-iscsi ends a discovery whose ErrorRecoveryLevel is answered with anything but 0.
    _session("ErrorRecoveryLevel", Rule.MIN, "0", 0, 2, normal_only=False),
    Key(
        "iSCSIProtocolLevel",
        Rule.MIN,
        Place.OPERATIONAL,
        "1",
        low=0,
        high=31,
        leading_only=True,
        normal_only=True,
        offer_default=False,
    ),
    Key(
        "TaskReporting",
        Rule.LIST,
        Place.OPERATIONAL,
        "RFC3720",
        choices=("RFC3720", "ResponseFence", "FastAbort"),
        leading_only=True,
        normal_only=True,
        offer_default=False,
    ),
    Key("AuthMethod", Rule.SECURITY, Place.SECURITY, choices=("CHAP", "SRP", "KRB5", NONE)),
    _security("CHAP_A", high=255),
    _security("CHAP_I", high=255),
    _security("CHAP_N"),
    _security("CHAP_C", _MAX_BINARY_VALUE),
    _security("CHAP_R", _MAX_BINARY_VALUE),
    # Methods that nobody here offers: their keys end an authentication, like any wrong key.
    *(_security(f"SRP_{name}", _MAX_BINARY_VALUE) for name in ("U", "GROUP", "A", "B", "M", "HM")),
    _security("SRP_s", _MAX_BINARY_VALUE),
    _security("KRB_AP_REQ", _MAX_KERBEROS_VALUE),
    _security("KRB_AP_REP", _MAX_KERBEROS_VALUE),
    # Obsolete (RFC 7143 §13.25), and still sent by clients in the field.
    *(_fixed(name, REJECT) for name in ("IFMarker", "OFMarker", "IFMarkInt", "OFMarkInt")),
    # iSER's (RFC 7145 §6): without RDMA the first is No, and the others mean nothing.
    Key(
        "RDMAExtensions",
        Rule.AND,
        Place.LOGIN,
        NO,
        leading_only=True,
        offer_default=False,
    ),
    _iser_length("InitiatorRecvDataSegmentLength"),
    _iser_length("TargetRecvDataSegmentLength"),
    _iser_count("MaxOutstandingUnexpectedPDUs", "0"),
    _iser_count("MaxAHSLength", "256"),
    _iser_flag("TaggedBufferForSolicitedDataOnly"),
    _iser_flag("iSERHelloRequired"),
)

KEYS: Final[Mapping[str, Key]] = MappingProxyType({key.name: key for key in _ROWS})


def value_limit(name: str) -> int:
    """Longest value accepted for a key, in bytes; unknown keys get the general limit."""
    key = KEYS.get(name)
    return MAX_VALUE_LENGTH if key is None else key.max_value_length


_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}")


def parse_number(key: Key, value: str) -> int | None:
    """A decimal or 0x hexadecimal number in the key's range, else None (RFC 7143 §6.1)."""
    if not _NUMBER.fullmatch(value):
        return None
    number = int(value, 16) if value[:2] in ("0x", "0X") else int(value)
    return number if key.low <= number <= key.high and number not in key.excluded else None


def is_valid(key: Key, value: str) -> bool:
    """True if `value` is admissible as one value of this key."""
    if key.is_number:
        return parse_number(key, value) is not None
    if key.is_boolean:
        return value in (YES, NO)
    return not key.choices or value in key.choices


def combine(key: Key, offered: str, ours: str) -> str | None:
    """The responder's answer to an offer, given its own value; None if there is none (Reject).

    For LIST both are comma lists, and the answer is the first offered one that we support.
    """
    if key.rule is Rule.LIST:
        supported = ours.split(",")
        return next((value for value in offered.split(",") if value in supported), None)
    if not is_valid(key, offered):
        return None
    if key.rule in (Rule.AND, Rule.OR):
        deciding = NO if key.rule is Rule.AND else YES
        return deciding if deciding in (offered, ours) else offered
    theirs, mine = parse_number(key, offered), parse_number(key, ours)
    assert theirs is not None, "validated above"
    assert mine is not None, f"our own {key.name}={ours} is out of range"
    return str(min(theirs, mine) if key.rule is Rule.MIN else max(theirs, mine))


def is_answer(key: Key, offered: str, answer: str) -> bool:
    """True if `answer` can result from our offer under the key's rule."""
    if key.rule is Rule.LIST:
        return answer in offered.split(",")
    return is_valid(key, answer) and combine(key, offered, answer) == plain(key, answer)


def plain(key: Key, value: str) -> str:
    """An admissible value in its plain form: a number in decimal without leading zeros."""
    return str(parse_number(key, value)) if key.is_number else value


@dataclass(frozen=True, slots=True)
class SessionParams:
    """What a session agreed on, or what one side wants of it. Lengths in bytes, times in seconds.
    The defaults are the RFC's.
    """

    max_connections: int = 1
    initial_r2t: bool = True
    immediate_data: bool = True
    max_burst_length: int = 262144
    first_burst_length: int = 65536
    default_time2wait: int = 2
    default_time2retain: int = 20
    max_outstanding_r2t: int = 1
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True
    error_recovery_level: int = 0
    iscsi_protocol_level: int = 1
    task_reporting: str = "RFC3720"
    rdma_extensions: bool = False


@dataclass(frozen=True, slots=True)
class IserParams:
    """What one side declares for a connection over RDMA (RFC 7145 §6): how many unexpected PDUs it
    has receives for at most and how many bytes of AHS (0: no limit), and an initiator, whether its
    tags name solicited data only, and whether it begins with a Hello. The defaults are the RFC's.
    """

    max_outstanding_unexpected_pdus: int = 0
    max_ahs_length: int = 256
    tagged_buffer_for_solicited_data_only: bool = False
    iser_hello_required: bool = False


@dataclass(frozen=True, slots=True)
class ConnectionParams:
    """What one connection agreed on. Digests take effect after the login's last PDU.

    `max_recv_data_segment_length` bounds what we receive, the `peer_` one what we send.
    """

    max_recv_data_segment_length: int = DEFAULT_MAX_RECV_DATA_SEGMENT_LENGTH
    peer_max_recv_data_segment_length: int = DEFAULT_MAX_RECV_DATA_SEGMENT_LENGTH
    header_digest: bool = False
    data_digest: bool = False


@dataclass(frozen=True, slots=True)
class Proposal:
    """What one side brings to the negotiation. Digest lists are in order of preference. With
    `iser` the connection is RDMA, and the other two lengths count instead of the first one.
    """

    session: SessionParams = SessionParams(initial_r2t=False, first_burst_length=262144)
    max_recv_data_segment_length: int = 262144
    header_digest: tuple[str, ...] = (DIGEST_NONE,)
    data_digest: tuple[str, ...] = (DIGEST_NONE,)
    iser: IserParams | None = None
    initiator_recv_data_segment_length: int = DEFAULT_MAX_RECV_DATA_SEGMENT_LENGTH
    target_recv_data_segment_length: int = DEFAULT_MAX_RECV_DATA_SEGMENT_LENGTH

    @property
    def rdma_extensions(self) -> bool:
        """Whether the connection is RDMA."""
        return self.iser is not None

    def text(self, key: Key) -> str:
        """This side's value of a key as it goes into text."""
        places = (self, self.iser or IserParams(), self.session)
        place = next(each for each in places if hasattr(each, key.attribute))
        own = getattr(place, key.attribute)
        if isinstance(own, bool):
            return YES if own else NO
        return ",".join(own) if isinstance(own, tuple) else str(own)
