"""One end of a connection that the test plays by hand: its Sends, its tags, its receives."""

from abc import ABC, abstractmethod

import numpy as np

from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.iser.header import IserHeader, encode
from iscsi.wire.violations import describe, is_violation
from shm.verbs_numbers import (
    SEND_SIGNALED,
    WR_SEND,
    WR_SEND_WITH_INV,
)
from shm.view import address_of
from tests.iscsi.wire.full_feature import READ, memory
from tests.iscsi.wire.iser.fabric import Work, connect

RECEIVES = 256
RECEIVE_SIZE = 28 + 48 + 8192


class Lone(ABC):
    """A queue pair whose peer is one side of `pair`."""

    def __init__(self, side, receives=RECEIVES, receive_size=RECEIVE_SIZE):
        self.side = side
        self.qp, side.qp = connect()
        self.buffers = [memory(receive_size) for _ in range(receives)]
        for number, buffer in enumerate(self.buffers):
            self.qp.receives.append((number, [(address_of(buffer), receive_size)]))
        self.kept = []
        side.work()

    def send(self, data, invalidate=0):
        """One Send, carried out and looked at."""
        raw = np.frombuffer(bytes(data), np.uint8).copy()
        self.kept.append(raw)
        opcode = WR_SEND_WITH_INV if invalidate else WR_SEND
        pieces = [(address_of(raw), raw.size)] if raw.size else []
        self.qp.sends.append(Work(opcode, SEND_SIGNALED, 0, 0, 0, invalidate, pieces))
        self.qp.step()
        self.turn()

    @abstractmethod
    def turn(self):
        """Let the half that is tested act on what there is."""

    def got(self):
        """Take what came: `(iSER header, BHS, data)` of each Send."""
        found = []
        while self.qp.done:
            is_receive, wc = self.qp.done.popleft()
            if is_receive and not int(wc[0]["status"]):
                raw = self.buffers[int(wc[0]["token"])][: int(wc[0]["byte_len"])].tobytes()
                header = raw[28:76]
                data = raw[76 : 76 + bhs.data_segment_length(header)] if header else b""
                found.append((raw[:28], bhs.decode(header) if header else None, data))
        return found

    @property
    def why(self):
        """What ended the connection, in words, or None."""
        code = int(self.side.broken)
        if code == 0:
            return None
        return describe(code) if is_violation(code) else code

    def is_ended_by(self, violation):
        return self.side.broken == int(violation)


class LoneInitiator(Lone):
    """Plays the initiator of an IserTarget."""

    def __init__(self, side, **options):
        super().__init__(side, **options)
        self.cmd_sn = side.cmd_sn
        self.exp_stat_sn = side.stat_sn

    def turn(self):
        while self.side.turn_all() + self.side.qp.step():
            pass

    def command(self, cdb=None, data=b"", tags=None, flags=READ, length=0, itt=1, **fields):
        """A SCSI Command in its Send; `tags` is its iSER header."""
        cdb = scsi.test_unit_ready() if cdb is None else cdb
        sn = fields.pop("cmd_sn", None)
        if sn is None:
            sn = self.cmd_sn
            self.cmd_sn += 0 if fields.get("immediate") else 1
        pdu = bhs.encode_pdu(
            Opcode.SCSI_COMMAND,
            data,
            **{
                "final": 1,
                "read": bool(flags & bhs.FLAG_READ),
                "write": bool(flags & bhs.FLAG_WRITE),
                "attribute": flags & bhs.ATTRIBUTE_MASK,
                "itt": itt,
                "expected_data_transfer_length": length,
                "cmd_sn": sn,
                "exp_stat_sn": self.exp_stat_sn,
                "cdb": int.from_bytes(cdb.ljust(16, b"\0"), "big"),
                **fields,
            },
        )
        return encode(tags or IserHeader()) + pdu

    def request(self, opcode, data=b"", **fields):
        """Another request in its Send."""
        fields.setdefault("cmd_sn", self.cmd_sn)
        if not fields.get("immediate") and opcode not in (Opcode.DATA_OUT, Opcode.SNACK_REQUEST):
            self.cmd_sn += 1
        if opcode == Opcode.DATA_OUT:
            fields.pop("cmd_sn")
        return encode(IserHeader()) + bhs.encode_pdu(
            opcode, data, exp_stat_sn=self.exp_stat_sn, **fields
        )


class LoneTarget(Lone):
    """Plays the target of an IserInitiator."""

    def __init__(self, side, **options):
        super().__init__(side, **options)
        self.stat_sn = side.stat_sn

    def turn(self):
        while self.side.turn() + self.side.qp.step():
            pass

    def response(self, itt, data=b"", opcode=Opcode.SCSI_RESPONSE, **fields):
        """A response in its Send."""
        sn = fields.pop("stat_sn", None)
        if sn is None:
            sn = self.stat_sn
            self.stat_sn += 1
        pdu = bhs.encode_pdu(
            opcode,
            data,
            **{
                "final": 1,
                "itt": itt,
                "stat_sn": sn,
                "exp_cmd_sn": 1,
                "max_cmd_sn": 64,
                **fields,
            },
        )
        return encode(IserHeader()) + pdu
