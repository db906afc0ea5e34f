"""Text negotiation at the target, PDU by PDU (RFC 7143 §6.2, §11.10)."""

import pytest

from iscsi.target.text_exchange import Refused, TextExchange
from iscsi.wire import bhs, text
from iscsi.wire.bhs import Opcode, decode, encode
from iscsi.wire.errors import RejectReason

NO_TAG = bhs.RESERVED_TAG
LONG = b"TargetName=" + b"x" * 240 + b"\0"


class Asking:
    """An exchange whose answers are the pairs that were asked, four times over."""

    def __init__(self, limit=8192):
        self.exchange, self.limit, self.asked = TextExchange(1000), limit, []

    def answer(self, pairs):
        self.asked.append(pairs)
        return 4 * text.encode(pairs)

    def ask(self, data=b"", **fields):
        header = decode(encode(Opcode.TEXT_REQUEST, **{"itt": 7, **fields}))
        return self.exchange.request(header, data, self.answer, self.limit)

    def refused(self, reason, data=b"", **fields):
        with pytest.raises(Refused) as found:
            self.ask(data, **fields)
        assert found.value.reason == reason

    def works(self):
        reply = self.ask(b"X-a=b\0")
        assert (reply.final, reply.ttt, reply.data) == (True, NO_TAG, 4 * b"X-a=b\0")
        assert not self.exchange.is_open


def test_one_request_one_answer():
    ends = Asking()
    ends.works()
    ends.works()
    assert ends.asked == [[("X-a", "b")]] * 2


def test_an_empty_request_has_an_empty_answer():
    reply = Asking().ask()
    assert (reply.data, reply.final, reply.continued) == (b"", True, False)


def test_a_text_may_come_in_pieces():
    ends = Asking()
    reply = ends.ask(b"X-a", final=0, continued=1)
    assert (reply.data, reply.final, reply.continued) == (b"", False, False)
    assert reply.ttt != NO_TAG
    assert ends.ask(b"=", final=0, continued=1, ttt=reply.ttt).ttt == reply.ttt
    assert ends.ask(b"b\0", ttt=reply.ttt).final
    assert ends.asked == [[("X-a", "b")]]
    ends.works()


def test_an_answer_may_go_in_pieces():
    ends = Asking(limit=300)
    reply = ends.ask(LONG)
    got = reply.data
    while reply.continued:
        assert (reply.final, len(reply.data)) == (False, 300)
        reply = ends.ask(ttt=reply.ttt)
        got += reply.data
    assert got == 4 * LONG
    assert (reply.final, reply.ttt) == (True, NO_TAG)
    ends.works()


def test_an_initiator_that_is_not_done_may_go_on():
    ends = Asking()
    reply = ends.ask(b"X-a=b\0", final=0)
    assert (reply.final, reply.continued) == (False, False)
    assert ends.ask(b"X-c=d\0", ttt=reply.ttt).final
    assert ends.asked == [[("X-a", "b")], [("X-c", "d")]]


def test_the_same_tag_without_ours_starts_over():
    ends = Asking(limit=300)
    before = ends.ask(LONG)
    assert before.continued
    after = ends.ask(LONG)
    assert after.continued
    ends.refused(RejectReason.INVALID_PDU_FIELD, ttt=before.ttt)
    assert ends.ask(ttt=after.ttt).data
    ends.works()  # a third time


def test_a_second_exchange_beside_one_is_rejected_and_the_first_goes_on():
    ends = Asking()
    reply = ends.ask(b"X-a", final=0, continued=1)
    ends.refused(RejectReason.PROTOCOL_ERROR, b"X-e=f\0", itt=8)
    assert ends.ask(b"=b\0", ttt=reply.ttt).data == 4 * b"X-a=b\0"
    ends.works()


@pytest.mark.parametrize("fields", [{"ttt": 1}, {"ttt": 0}, {"ttt": 99}])
def test_a_tag_that_continues_nothing_is_rejected(fields):
    ends = Asking()
    ends.refused(RejectReason.INVALID_PDU_FIELD, **fields)
    ends.works()


def test_our_tag_is_enough_to_go_on_by():
    ends = Asking()
    reply = ends.ask(b"X-a", final=0, continued=1)
    reply = ends.ask(b"=", itt=8, ttt=reply.ttt, final=0, continued=1)
    assert ends.ask(b"b\0", itt=9, ttt=reply.ttt).final
    ends.works()


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (b"X-a=b\0", {"continued": 1}),
        (b"", {"continued": 1, "final": 0}),
        (b"no equals sign\0", {}),
        (b"X-a=b", {}),
        (b"=b\0", {}),
        (b"X-" + b"a" * 62 + b"=b\0", {}),
        (b"X-a=" + b"b" * 300 + b"\0", {}),
        (b"X-a=\xff\xfe\0", {}),
        (b"X-a=" + b"b" * 1000 + b"\0", {}),
    ],
)
def test_text_that_cannot_be_read_is_rejected_and_ends_the_exchange(data, fields):
    ends = Asking()
    ends.refused(RejectReason.PROTOCOL_ERROR, data, **fields)
    assert not ends.exchange.is_open
    ends.works()


def test_text_in_pieces_is_bounded():
    ends = Asking()
    reply = ends.ask(b"X-a=" + b"b" * 600, final=0, continued=1)
    ends.refused(RejectReason.PROTOCOL_ERROR, b"b" * 600, final=0, continued=1, ttt=reply.ttt)
    ends.works()


def test_new_text_before_the_end_of_our_answer_is_rejected():
    ends = Asking(limit=300)
    reply = ends.ask(LONG)
    ends.refused(RejectReason.PROTOCOL_ERROR, b"X-a=b\0", ttt=reply.ttt)
    ends.limit = 8192
    ends.works()
