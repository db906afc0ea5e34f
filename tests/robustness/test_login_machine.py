"""Both roles' logins as one state machine: whatever proposals meet, whatever is delivered late,
twice or not at all, and whatever a third one throws in, both ends agree or neither is in.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iscsi.wire import bhs
from iscsi.wire.bhs import Opcode
from iscsi.wire.chap import ChapAccount, InitiatorChap, TargetChap
from iscsi.wire.errors import ProtocolError
from iscsi.wire.keys import Proposal, SessionParams
from iscsi.wire.login import InitiatorLogin, TargetLogin, TargetPolicy
from shm.jit import JIT_DISABLED

DISK, HOST = "iqn.2026-01.org.example:t", "iqn.2026-01.org.example:i"
ISID = 0x80_0000_000001
ACCOUNT = ChapAccount("user", b"a secret of twelve")
OTHER = ChapAccount("user", b"not that secret at all")
OWN = ChapAccount("target", b"another one, as long")
DIGESTS = st.sampled_from([("None",), ("CRC32C",), ("CRC32C", "None"), ("None", "CRC32C")])


@st.composite
def proposals(draw):
    first = draw(st.sampled_from([512, 4096, 65536]))
    session = SessionParams(
        initial_r2t=draw(st.booleans()),
        immediate_data=draw(st.booleans()),
        first_burst_length=first,
        max_burst_length=first * draw(st.sampled_from([1, 4])),
        max_outstanding_r2t=draw(st.integers(1, 8)),
    )
    longest = draw(st.sampled_from([512, 8192, 262144]))
    return Proposal(session, longest, draw(DIGESTS), draw(DIGESTS))


class Logins(RuleBasedStateMachine):
    """Whole PDUs wait in `up` and `down` until a rule delivers them."""

    @initialize(
        ours=proposals(),
        theirs=proposals(),
        chap=st.sampled_from(["none", "right", "wrong", "both"]),
    )
    def begin(self, ours, theirs, chap):
        self.proves, self.must_fail = chap != "none", chap == "wrong"
        mine = theirs_proof = None
        if self.proves:
            account = OTHER if chap == "wrong" else ACCOUNT
            mine = InitiatorChap(account, OWN if chap == "both" else None)
            theirs_proof = TargetChap((ACCOUNT,), OWN if chap == "both" else None)
        self.initiator = InitiatorLogin(HOST, DISK, isid=ISID, proposal=ours, security=mine)
        self.target = TargetLogin(TargetPolicy({DISK}), proposal=theirs, security=theirs_proof)
        self.initiator.start()
        self.up, self.down = [self.initiator.data_to_send()], []
        self.stages = {self.initiator: 0, self.target: 0}
        self.is_spoilt = False
        self.last = b""

    def feed(self, login, data, answers):
        over = login.done or login.failed
        try:
            login.receive_pdu(data[:48], data[48 : 48 + login.segment_length(data[:48])])
            assert not over, "a login that has ended takes another PDU"
        except ProtocolError:
            assert login.failed or over
        out = login.data_to_send()
        if out:
            answers.append(out)

    @precondition(lambda self: self.up)
    @rule()
    def deliver_up(self):
        self.last = self.up.pop(0)
        self.feed(self.target, self.last, self.down)

    @precondition(lambda self: self.down)
    @rule()
    def deliver_down(self):
        self.feed(self.initiator, self.down.pop(0), self.up)

    @precondition(lambda self: self.last)
    @rule()
    def deliver_twice(self):
        self.is_spoilt = True
        self.feed(self.target, self.last, self.down)

    @precondition(lambda self: self.up or self.down)
    @rule(bit=st.integers(0, 8 * 48 - 1), upward=st.booleans())
    def flip(self, bit, upward):
        pipe = (self.up if upward else self.down) or self.up or self.down
        if 5 <= bit // 8 < 8:
            return  # the length says where the next PDU begins
        data = bytearray(pipe[0])
        data[bit // 8] ^= 1 << bit % 8
        pipe[0], self.is_spoilt = bytes(data), True

    @rule(opcode=st.sampled_from([Opcode.NOP_OUT, Opcode.SCSI_COMMAND, Opcode.TEXT_REQUEST]))
    def throw_in_another_pdu(self, opcode):
        self.is_spoilt = True
        self.feed(self.target, bhs.encode_pdu(opcode), self.down)

    @invariant()
    def a_stage_only_goes_forward(self):
        for login, before in getattr(self, "stages", {}).items():
            assert login.stage >= before
            self.stages[login] = login.stage

    @invariant()
    def nobody_is_in_without_proof(self):
        if getattr(self, "must_fail", False):
            assert not self.target.done
            assert not self.initiator.done

    @invariant()
    def both_ends_agree(self):
        if not hasattr(self, "target") or self.is_spoilt or not self.initiator.done:
            return
        ours, theirs = self.initiator.result, self.target.result
        assert ours.session == theirs.session
        assert (ours.tsih, ours.cmd_sn, ours.stat_sn) == (
            theirs.tsih,
            theirs.cmd_sn,
            theirs.stat_sn,
        )
        mine, its = ours.connection, theirs.connection
        assert (mine.header_digest, mine.data_digest) == (its.header_digest, its.data_digest)
        assert mine.max_recv_data_segment_length == its.peer_max_recv_data_segment_length
        assert (theirs.user == "user") == self.proves

    def teardown(self):
        """Undisturbed, it always ends: in, or refused for a reason."""
        if not hasattr(self, "target"):
            return
        for _ in range(64):
            if self.up:
                self.deliver_up()
            elif self.down:
                self.deliver_down()
            else:
                break
            self.both_ends_agree()
            self.nobody_is_in_without_proof()
        assert not self.up
        assert not self.down
        if not self.is_spoilt:
            digests_meet = self.initiator.done or self.target.failed or self.initiator.failed
            assert digests_meet, "both wait for each other"
            # An initiator may refuse what the last answer says, when the target is through.
            assert self.initiator.done == self.target.done or self.initiator.failed


TestLogins = Logins.TestCase
TestLogins.settings = settings(
    max_examples=15 if JIT_DISABLED else 150, stateful_step_count=20, deadline=None
)
