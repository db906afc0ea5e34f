"""The target's side of the Login phase (RFC 7143 §6.3.1; status codes §11.13.5). It answers every
Login Request with exactly one Login Response, and the first PDU of any other kind with silence.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from iscsi.wire import bhs, text
from iscsi.wire.bhs import Header, Opcode
from iscsi.wire.errors import (
    LocalProtocolError,
    LoginRedirected,
    LoginRejected,
    LoginStatus,
    ProtocolError,
    RemoteProtocolError,
)
from iscsi.wire.keys import (
    SESSION_DISCOVERY,
    SESSION_NORMAL,
    Proposal,
    Sender,
    SessionParams,
)
from iscsi.wire.login_common import VERSION, LoginIdentity, LoginMachine, LoginResult, Stage
from iscsi.wire.names import name_fault
from iscsi.wire.negotiation import Negotiation
from iscsi.wire.security import TargetNone, TargetSecurity
from iscsi.wire.text import Pair

DEFAULT_COMMAND_WINDOW: Final = 128
_SAME_THROUGHOUT: Final = ("itt", "isid", "tsih", "cid")


def _admit_all(identity: LoginIdentity) -> None:
    """Let everybody in."""


def _no_authentication(identity: LoginIdentity) -> TargetSecurity:
    """Let everybody try, without proof."""
    return TargetNone()


def _no_session(identity: LoginIdentity) -> SessionParams:
    """No session may be joined."""
    raise refusal(LoginStatus.SESSION_DOES_NOT_EXIST)


def _counting_tsih() -> Callable[[LoginIdentity], int]:
    counter = count()
    return lambda identity: next(counter) % 0xFFFF + 1


@dataclass(frozen=True, slots=True)
class TargetPolicy:
    """A target's decisions; each refuses by raising LoginRejected or LoginRedirected.

    `authorize` judges who came before any proof, and says how it has to be proved; `join` gives the
    parameters of the session that a non-zero TSIH names; `admit` reserves what a session needs,
    once the initiator is authenticated; `new_tsih` gives 1..65535.
    """

    target_names: Collection[str]
    portal_group_tag: int = 1
    target_alias: str | None = None
    admit: Callable[[LoginIdentity], None] = _admit_all
    authorize: Callable[[LoginIdentity], TargetSecurity] = _no_authentication
    join: Callable[[LoginIdentity], SessionParams] = _no_session
    new_tsih: Callable[[LoginIdentity], int] = field(default_factory=_counting_tsih)


def refusal(status: LoginStatus, message: str = "") -> LoginRejected:
    """The exception that makes a target answer with `status`."""
    return LoginRejected(status >> 8, status & 0xFF, message)


class TargetLogin(LoginMachine):
    """The target's side of one connection's login.

    `stat_sn` is the first StatSN to use; `command_window` is how many commands the initiator may
    have outstanding when it enters the full feature phase. `identity` is known after the first
    complete request. `security` stands in for what the policy's `authorize` would return.
    """

    _peer_opcode = Opcode.LOGIN_REQUEST
    _peer_sender = Sender.INITIATOR

    def __init__(
        self,
        policy: TargetPolicy,
        *,
        proposal: Proposal | None = None,
        security: TargetSecurity | None = None,
        stat_sn: int = 0,
        command_window: int = DEFAULT_COMMAND_WINDOW,
    ) -> None:
        super().__init__(Stage.SECURITY, proposal or Proposal())
        self.identity: LoginIdentity | None = None
        self._policy = policy
        self._stat_sn = stat_sn
        self._window = command_window
        self._first: Header | None = None
        self._may_leave = False
        self._declared = False
        self._chosen_security = security
        self._security: TargetSecurity = security or TargetNone()
        self._admitted = False
        self._joined: SessionParams | None = None

    def _receive(self, header: Header, data: bytes) -> None:
        self._check_continuity(header)
        self._check_stages(header)
        if self._chunks:
            if data or header.continued:
                raise RemoteProtocolError("the initiator did not wait for the rest of our text")
        else:
            pairs = self._gather(header, data)
            self._say([] if pairs is None else self._answer(header, pairs))
        self._send(header)

    def _check_continuity(self, header: Header) -> None:
        """The first request fixes version, stage and identifiers; later ones must agree."""
        if self._first is not None:
            for name in _SAME_THROUGHOUT:
                if getattr(header, name) != getattr(self._first, name):
                    raise RemoteProtocolError(f"{name} changed during the login")
            return
        self._first = header
        if header.version_min > VERSION:
            raise refusal(LoginStatus.UNSUPPORTED_VERSION)
        if header.csg == Stage.OPERATIONAL:
            self.stage = Stage.OPERATIONAL
        if header.tsih:
            self._negotiation = Negotiation(self._peer_sender, self._proposal, leading=False)

    def _answer(self, header: Header, pairs: list[Pair]) -> list[Pair]:
        """What to say to a complete text, and whether its T bit may be granted."""
        first = self.identity is None
        if first:
            self._check_session_type(pairs)
        security, others = self._sort(pairs)
        answers = self._negotiate(others)
        if first:
            answers = self._identify(header) + answers
        if self.stage is Stage.SECURITY:
            answers += self._authenticate(header, security)
        self._admit()
        if self.stage is Stage.OPERATIONAL:
            if not self._declared:
                self._declared = True
                answers += self._negotiation.declarations()
            if header.transit:
                answers += self._negotiation.offer_needed()
        elif header.transit and header.nsg == Stage.FULL_FEATURE:
            self._negotiation.require_defaults()
        self._may_leave = (
            self.stage is Stage.OPERATIONAL or self._security.is_complete
        ) and not self._negotiation.has_open_offers
        return answers

    def _check_session_type(self, pairs: list[Pair]) -> None:
        kind = dict(pairs).get("SessionType", SESSION_NORMAL)
        if kind not in (SESSION_NORMAL, SESSION_DISCOVERY):
            raise refusal(LoginStatus.SESSION_TYPE_NOT_SUPPORTED, kind)
        if kind == SESSION_DISCOVERY:
            self._negotiation.set_discovery()

    def _identify(self, header: Header) -> list[Pair]:
        """Judge who logs in to what; returns what the first response must tell."""
        declared = self._negotiation.declared
        initiator = declared.get("InitiatorName")
        if initiator is None:
            raise refusal(LoginStatus.MISSING_PARAMETER, "InitiatorName")
        fault = name_fault(initiator, strict=False)
        if fault:
            raise RemoteProtocolError(f"InitiatorName: {fault}")
        target = None
        if declared.get("SessionType") != SESSION_DISCOVERY:
            target = declared.get("TargetName")
            if target is None:
                raise refusal(LoginStatus.MISSING_PARAMETER, "TargetName")
            if target not in self._policy.target_names:
                raise refusal(LoginStatus.TARGET_NOT_FOUND, target)
        identity = LoginIdentity(initiator, target, header.isid, header.tsih, header.cid)
        self._security = self._chosen_security or self._policy.authorize(identity)
        if self.stage is Stage.OPERATIONAL and self._security.is_required:
            raise refusal(LoginStatus.AUTHENTICATION_FAILURE, "the security stage is skipped")
        self.identity = identity
        return [] if target is None else self._introduction()

    def _authenticate(self, header: Header, pairs: list[Pair]) -> list[Pair]:
        """Go on with the method; one who wants to leave without having proved anything may not."""
        if header.transit and not pairs and not self._security.is_complete:
            raise refusal(LoginStatus.AUTHENTICATION_FAILURE, "no method is offered")
        return self._security.receive(pairs)

    def _admit(self) -> None:
        """Find the session and reserve memory, but not for somebody who has yet to prove it."""
        if self._admitted or not self._security.is_complete:
            return
        assert self.identity is not None, "the first complete request identified the initiator"
        if self.identity.tsih:
            self._joined = self._policy.join(self.identity)
        self._policy.admit(self.identity)
        self._admitted = True

    def _introduction(self) -> list[Pair]:
        """TargetPortalGroupTag belongs in the first response of a normal session (§13.9)."""
        pairs = [("TargetPortalGroupTag", str(self._policy.portal_group_tag))]
        if self._policy.target_alias:
            pairs.append(("TargetAlias", self._policy.target_alias))
        return pairs

    def _send(self, header: Header) -> None:
        """The next response: the next piece of our text, and T if it is asked for and granted."""
        data, continued = self._chunks.popleft()
        # An unfinished text from the initiator leaves T clear, so the grant cannot be stale.
        transit = bool(header.transit) and self._may_leave and not continued
        tsih = header.tsih
        if transit and header.nsg == Stage.FULL_FEATURE:
            tsih = self._finish(header)
        self._respond(
            header,
            data,
            transit=transit,
            continued=continued,
            csg=self.stage,
            nsg=header.nsg if transit else 0,
            tsih=tsih,
        )
        if transit:
            self.stage = Stage(header.nsg)
            self._may_leave = False

    def _respond(self, header: Header, data: bytes = b"", **fields: int) -> None:
        self._out += bhs.encode_pdu(
            Opcode.LOGIN_RESPONSE,
            data,
            version_max=VERSION,
            version_active=VERSION,
            isid=header.isid,
            itt=header.itt,
            stat_sn=self._stat_sn,
            exp_cmd_sn=header.cmd_sn,
            max_cmd_sn=self._max_cmd_sn(header),
            **fields,
        )
        self._stat_sn = (self._stat_sn + 1) & 0xFFFFFFFF

    def _max_cmd_sn(self, header: Header) -> int:
        return (header.cmd_sn + self._window - 1) & 0xFFFFFFFF

    def _finish(self, header: Header) -> int:
        """Settle everything and return the session's TSIH."""
        who = self.identity
        assert who is not None, "the first complete request identified the initiator"
        self._negotiation.close()
        tsih = header.tsih or self._policy.new_tsih(who)
        if not 0 < tsih <= 0xFFFF:
            raise LocalProtocolError(f"new_tsih gave {tsih}; 1..65535 are possible")
        self.result = LoginResult(
            session=self._joined or self._negotiation.session_params(),
            connection=self._negotiation.connection_params(),
            initiator_name=who.initiator_name,
            target_name=who.target_name,
            isid=who.isid,
            tsih=tsih,
            cid=who.cid,
            cmd_sn=header.cmd_sn,
            max_cmd_sn=self._max_cmd_sn(header),
            stat_sn=(self._stat_sn + 1) & 0xFFFFFFFF,
            target_portal_group_tag=self._policy.portal_group_tag if who.target_name else None,
            target_alias=self._policy.target_alias,
            user=self._security.user,
            iser=self._negotiation.iser_params(),
        )
        return tsih

    def _refuse_opcode(self, header: Header) -> None:
        """Before any login: close in silence. During one: say so, then close (§6.3)."""
        if self._first is None:
            raise RemoteProtocolError(f"{header.opcode.name} before any login")
        raise refusal(LoginStatus.INVALID_DURING_LOGIN, header.opcode.name)

    def _fail(self, error: ProtocolError) -> None:
        """Queue the response that tells the initiator why."""
        super()._fail(error)
        self._chunks.clear()
        if self._first is None:
            return
        status, data = int(LoginStatus.INITIATOR_ERROR), b""
        if isinstance(error, LoginRejected):
            status = error.status
        elif isinstance(error, LoginRedirected):
            moved = LoginStatus.TARGET_MOVED_TEMPORARILY
            status = LoginStatus.TARGET_MOVED_PERMANENTLY if error.permanent else moved
            data = text.encode([("TargetAddress", error.address)])
        elif isinstance(error, LocalProtocolError):
            status = LoginStatus.TARGET_ERROR
        fields = {"csg": self.stage, "tsih": self._first.tsih}
        self._respond(
            self._first, data, status_class=status >> 8, status_detail=status & 0xFF, **fields
        )
