"""Joins an InitiatorLogin and a TargetLogin in memory, byte by byte if wanted."""

from contextlib import suppress

from iscsi.wire.errors import ProtocolError
from iscsi.wire.login import InitiatorLogin, TargetLogin, TargetPolicy

DISK = "iqn.2026-01.example:disk"
HOST = "iqn.2026-01.example:host"
ISID = 0x80AABBCC0001


def initiator(target_name=DISK, **options):
    return InitiatorLogin(HOST, target_name, isid=ISID, **options)


def target(policy=None, **options):
    return TargetLogin(policy or TargetPolicy({DISK}), **options)


class Reader:
    """Feeds a login from a byte stream, header first, never reading ahead."""

    def __init__(self, login):
        self.login = login
        self.pdus = []
        self._buffer = b""

    def feed(self, data):
        for i in range(len(data)):
            self._buffer += data[i : i + 1]
            if len(self._buffer) == 48:
                self._length = 48 + self.login.segment_length(self._buffer)
            if len(self._buffer) >= 48 and len(self._buffer) == self._length:
                pdu, self._buffer = self._buffer, b""
                self.pdus.append(pdu)
                self.login.receive_pdu(pdu[:48], pdu[48:])


def join(left, right, limit=200):
    """Run two logins against each other; the PDUs that `left` and that `right` received."""
    left.start()
    readers = Reader(left), Reader(right)
    for _ in range(limit):
        to_right, to_left = left.data_to_send(), right.data_to_send()
        if not to_right and not to_left:
            return readers[0].pdus, readers[1].pdus
        # A refusal is the login's own news (`error`); what it still has to send goes out above.
        with suppress(ProtocolError):
            readers[1].feed(to_right)
        with suppress(ProtocolError):
            readers[0].feed(to_left)
    raise AssertionError(f"too many roundtrips: no end after {limit}")
