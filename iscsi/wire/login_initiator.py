"""The initiator's side of the Login phase (RFC 7143 §6.3, §11.12): it asks, stage by stage, and
ends with a `LoginResult`, a refusal, or the address it is sent to.
"""

from typing import Final

from iscsi.wire import bhs, text
from iscsi.wire.bhs import Header, Opcode
from iscsi.wire.errors import (
    STATUS_CLASS_REDIRECTION,
    LocalProtocolError,
    LoginRedirected,
    LoginRejected,
    LoginStatus,
    RemoteProtocolError,
)
from iscsi.wire.keys import (
    KEYS,
    SESSION_DISCOVERY,
    SESSION_NORMAL,
    Proposal,
    Sender,
    parse_number,
)
from iscsi.wire.login_common import VERSION, LoginIdentity, LoginMachine, LoginResult, Stage
from iscsi.wire.names import name_fault, parse_address
from iscsi.wire.negotiation import Negotiation
from iscsi.wire.security import InitiatorNone, InitiatorSecurity
from iscsi.wire.text import REFUSALS, Pair

_GROUP_TAG: Final = KEYS["TargetPortalGroupTag"]


class InitiatorLogin(LoginMachine):
    """The initiator's side. `target_name` None logs in for discovery.

    `start` queues the first request; `skip_security` begins in the operational stage, which
    saves a round trip where the target asks for no authentication.
    """

    _peer_opcode = Opcode.LOGIN_RESPONSE
    _peer_sender = Sender.TARGET

    def __init__(
        self,
        initiator_name: str,
        target_name: str | None,
        *,
        isid: int,
        tsih: int = 0,
        cid: int = 0,
        cmd_sn: int = 1,
        exp_stat_sn: int = 0,
        itt: int = 0,
        initiator_alias: str | None = None,
        proposal: Proposal | None = None,
        security: InitiatorSecurity | None = None,
        skip_security: bool = False,
    ) -> None:
        security = security or InitiatorNone()
        stage = Stage.OPERATIONAL if skip_security else Stage.SECURITY
        super().__init__(stage, proposal or Proposal())
        self._security = security
        for name in filter(None, (initiator_name, target_name)):
            fault = name_fault(name, strict=False)
            if fault:
                raise LocalProtocolError(f"{name!r}: {fault}")
        if skip_security and security.is_required:
            raise LocalProtocolError("this authentication needs the security stage")
        if tsih:
            self._negotiation = Negotiation(self._peer_sender, self._proposal, leading=False)
        if target_name is None:
            self._negotiation.set_discovery()
        self.identity = LoginIdentity(initiator_name, target_name, isid, tsih, cid)
        self._alias = initiator_alias
        self._cmd_sn = cmd_sn
        self._exp_stat_sn = exp_stat_sn
        self._itt = itt
        self._asked_transit = False

    def start(self) -> None:
        """Queue the first Login Request."""
        if self._exchanges or self._out or self._chunks:
            raise LocalProtocolError("this login has started already")
        target = self.identity.target_name
        pairs = [("InitiatorName", self.identity.initiator_name)]
        if self._alias:
            pairs.append(("InitiatorAlias", self._alias))
        if target is not None:
            pairs.append(("TargetName", target))
        if not self.identity.tsih:
            kind = SESSION_DISCOVERY if target is None else SESSION_NORMAL
            pairs.append(("SessionType", kind))
        if self.stage is Stage.SECURITY:
            pairs += self._security.offer()
        else:
            pairs += self._negotiation.offer_all()
        self._say(pairs)
        self._send()

    def _send(self) -> None:
        """The next request: the next piece of our text, with T once this side is content."""
        data, continued = self._chunks.popleft()
        content = self.stage is Stage.OPERATIONAL or self._security.wants_transit
        self._asked_transit = content and not continued
        following = Stage.OPERATIONAL if self.stage is Stage.SECURITY else Stage.FULL_FEATURE
        self._out += bhs.encode_pdu(
            Opcode.LOGIN_REQUEST,
            data,
            immediate=1,
            transit=self._asked_transit,
            continued=continued,
            csg=self.stage,
            nsg=following if self._asked_transit else 0,
            version_max=VERSION,
            version_min=VERSION,
            isid=self.identity.isid,
            tsih=self.identity.tsih,
            cid=self.identity.cid,
            itt=self._itt,
            cmd_sn=self._cmd_sn,
            exp_stat_sn=self._exp_stat_sn,
        )

    def _receive(self, header: Header, data: bytes) -> None:
        if header.itt != self._itt:
            raise RemoteProtocolError(f"Login Response for task {header.itt:#x}, not ours")
        self._check_status(header, data)
        if header.isid != self.identity.isid:
            raise RemoteProtocolError("Login Response for another ISID")
        if header.version_active != VERSION:
            raise RemoteProtocolError(f"the target chose version {header.version_active}")
        self._check_stages(header)
        self._exp_stat_sn = (header.stat_sn + 1) & 0xFFFFFFFF
        if self._chunks:
            if data or header.transit or header.continued:
                raise RemoteProtocolError("the target did not wait for the rest of our text")
            self._send()
            return
        pairs = self._gather(header, data)
        owed = [] if pairs is None else self._answer(pairs)
        if header.transit:
            self._advance(header, owed)
            return
        self._say(owed)
        self._send()

    def _answer(self, pairs: list[Pair]) -> list[Pair]:
        """What we owe for a complete text."""
        security, others = self._sort(pairs)
        answers = self._negotiate(others)
        if self.stage is Stage.SECURITY:
            answers = self._security.receive(security) + answers
        return answers

    def _check_status(self, header: Header, data: bytes) -> None:
        """Anything but success ends the login; a redirection names where to go."""
        if header.status_class == STATUS_CLASS_REDIRECTION:
            address = dict(text.decode(data)).get("TargetAddress", "")
            if parse_address(address) is None:
                raise RemoteProtocolError(f"redirection to a malformed address {address!r}")
            status = header.status_class << 8 | header.status_detail
            permanent = status == LoginStatus.TARGET_MOVED_PERMANENTLY
            raise LoginRedirected(address, permanent=permanent)
        if header.status_class:
            raise LoginRejected(header.status_class, header.status_detail)

    def _advance(self, header: Header, owed: list[Pair]) -> None:
        if not self._asked_transit or not self._security.is_complete:
            raise RemoteProtocolError("the target moved on before we asked for it")
        if self.stage is Stage.SECURITY and header.nsg == Stage.FULL_FEATURE:
            raise RemoteProtocolError("the target skipped the operational stage we asked for")
        # Refusals owed change nothing, so those are dropped; tgt ends with such keys.
        if any(value not in REFUSALS for _, value in owed):
            raise RemoteProtocolError("the target moved on with offers that we had to answer")
        self.stage = Stage(header.nsg)
        if self.stage is Stage.FULL_FEATURE:
            self._finish(header)
            return
        self._say(self._negotiation.offer_all())
        self._send()

    def _finish(self, header: Header) -> None:
        who = self.identity
        if (not header.tsih and who.target_name) or (who.tsih and header.tsih != who.tsih):
            raise RemoteProtocolError(f"TSIH {header.tsih} in the final response")
        self._negotiation.close()
        declared = self._negotiation.declared
        tag = declared.get("TargetPortalGroupTag")
        self.result = LoginResult(
            session=self._negotiation.session_params(),
            connection=self._negotiation.connection_params(),
            initiator_name=who.initiator_name,
            target_name=who.target_name,
            isid=who.isid,
            tsih=header.tsih,
            cid=who.cid,
            cmd_sn=self._cmd_sn,
            max_cmd_sn=header.max_cmd_sn,
            stat_sn=self._exp_stat_sn,
            target_portal_group_tag=None if tag is None else parse_number(_GROUP_TAG, tag),
            target_alias=declared.get("TargetAlias"),
            iser=self._negotiation.iser_params(),
        )
