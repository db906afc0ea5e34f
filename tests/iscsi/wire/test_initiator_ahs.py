"""Long CDBs in additional header segments: what goes on the wire, digests on and off."""

from dataclasses import replace

import numpy as np
import pytest

from iscsi.session.procedures import extended_cdb
from iscsi.wire import bhs
from iscsi.wire import initiator as doors
from iscsi.wire.bhs import Opcode, encode
from shm.view import address_of
from tests.iscsi.wire.full_feature import CONNECTION, WRITE
from tests.iscsi.wire.test_initiator import Scripted


def crc32c(data):
    """Bit by bit (RFC 7143 §13.1: Castagnoli's polynomial, reflected)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("header_digest", [False, True])
@pytest.mark.parametrize("length", [17, 32, 33, 260])
def test_a_long_cdb_travels_in_an_extended_cdb_segment(length, header_digest):
    """RFC 7143 §11.2.2.3: 16 bytes in the header, the rest behind it, under the header digest."""
    end = Scripted(connection=replace(CONNECTION, header_digest=header_digest))
    cdb = bytes((0x7F, *(n & 0xFF for n in range(1, length))))
    segment = extended_cdb(cdb)
    kept = np.frombuffer(segment, np.uint8)
    tag = end.submit(cdb[:16], WRITE, 512)
    assert doors.attach_ahs(end.connection.address, tag, address_of(kept), len(segment)) == 0
    end.connection.send_control(encode(Opcode.NOP_OUT, immediate=1))
    stream = end.connection.data_to_send()
    header = bhs.decode(stream[:48])
    assert (header.total_ahs_words, header.data_segment_length) == (len(segment) // 4, 0)
    assert header.final, "no data goes with it"
    rest = stream[48 : 48 + len(segment)]
    assert rest[2] == 1, "AHSType of an extended CDB"
    count = int.from_bytes(rest[:2], "big") - 1
    assert (stream[32:48] + rest[4:])[: 16 + count] == cdb
    after = 48 + len(segment)
    if header_digest:
        assert stream[after : after + 4] == crc32c(stream[:after]).to_bytes(4, "little")
        after += 4
    assert bhs.decode(stream[after : after + 48]).opcode is Opcode.NOP_OUT


def test_segments_that_cannot_be_are_refused():
    end = Scripted()
    kept = np.zeros(1100, np.uint8)
    tag = end.submit(bytes(16), 0, 0)
    for length in (0, 4, 9, 1024):
        assert doors.attach_ahs(end.connection.address, tag, address_of(kept), length) < 0
    assert doors.attach_ahs(end.connection.address, tag + 1, address_of(kept), 8) < 0
