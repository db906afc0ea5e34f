"""Data-In of a unit in memory under a data digest: what is sent is what the digest was computed of
(RFC 7143 §11.7), whatever is written to the unit between the making of a PDU and its sending.
"""

import google_crc32c
import numpy as np
import pytest

from iscsi.wire import bhs
from iscsi.wire import target as doors
from iscsi.wire.bhs import BHS_LENGTH, Opcode
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.port import copies_size, lend_copies, port_at
from shm.view import address_of
from tests.iscsi.wire.full_feature import (
    BLOCK,
    SESSION,
    Joined,
    bytes_at,
    memory,
    pattern,
    pdus_of,
)
from tests.iscsi.wire.test_target import Scripted

HEADER_LENGTH = BHS_LENGTH + 4
BOTH = ConnectionParams(header_digest=True, data_digest=True)
COPY_SIZE, COUNT = 1024, 16


class Copying(Scripted):
    """A target with digests that has a place for copies, and a transport that waits to be told."""

    def __init__(self, session=SESSION, connection=BOTH):
        super().__init__(session, connection)
        self.copies = memory(copies_size(COPY_SIZE, COUNT))
        lend_copies(self.connection.address, address_of(self.copies), COPY_SIZE, COUNT)
        self.posted = []

    def give(self, opcode, data=b"", **fields):
        self.connection.receive(with_digests(opcode, data, **fields))

    def post(self):
        """Hand over every span there is, as addresses: nothing is read yet."""
        conn = self.connection.address
        while length := doors.tx_next(conn):
            self.posted.append((int(port_at(conn)[0]["span_address"]), length))
            doors.tx_take(conn, length)

    def send(self):
        """Read what was handed over, and say that it is sent."""
        stream = b"".join(bytes_at(*span) for span in self.posted)
        self.posted.clear()
        doors.tx_done(self.connection.address, len(stream))
        return stream


def with_digests(opcode, data=b"", **fields):
    header = bytes(bhs.encode(opcode, data_segment_length=len(data), **fields))
    pdu = header + google_crc32c.value(header).to_bytes(4, "little")
    if data:
        padded = data + bytes(-len(data) % 4)
        pdu += padded + google_crc32c.value(padded).to_bytes(4, "little")
    return pdu


def checked(stream):
    """The PDUs of a stream, all of whose digests are looked at with a library's CRC32C."""
    found, at = pdus_of(stream, BOTH), 0
    for _, data in found:
        header = stream[at : at + BHS_LENGTH]
        at += BHS_LENGTH
        assert stream[at : at + 4] == google_crc32c.value(header).to_bytes(4, "little")
        at += 4
        if data:
            padded = stream[at : at + len(data) + -len(data) % 4]
            at += len(padded)
            assert stream[at : at + 4] == google_crc32c.value(padded).to_bytes(4, "little")
            at += 4
    assert at == len(stream)
    return found


def test_a_write_after_the_pdu_is_made_does_not_spoil_its_digest():
    end = Copying()
    before = end.ram.copy()
    end.read(3, 2)
    end.post()
    end.ram[:] = 0xEE
    ((header, data),) = checked(end.send())
    assert header.opcode is Opcode.DATA_IN
    assert data == before[3 * BLOCK : 5 * BLOCK].tobytes()
    end.read(3, 2)
    end.post()
    assert checked(end.send())[0][1] == b"\xee" * 1024


def test_a_write_that_overtakes_a_read_of_the_same_blocks_reaches_the_unit_and_not_the_read():
    end = Copying()
    before = end.ram.copy()
    end.read(0, 8)
    end.post()
    itt = end.write(0, 8, data=b"w" * 4096)
    end.post()
    found = checked(end.send())
    assert b"".join(data for _, data in found) == before[:4096].tobytes()
    assert (found[-1][0].opcode, found[-1][0].itt) == (Opcode.SCSI_RESPONSE, itt)
    assert end.ram[:4096].tobytes() == b"w" * 4096


def test_a_read_longer_than_a_copy_comes_in_more_pdus_of_the_same_sequences():
    end = Copying(SessionParams(max_burst_length=2560, first_burst_length=512))
    end.read(0, 8)
    end.post()
    found = [header for header, _ in checked(end.send())]
    assert [header.data_segment_length for header in found] == [1024, 1024, 512, 1024, 512]
    assert [header.final for header in found] == [0, 0, 1, 0, 1]
    assert [header.data_sn for header in found] == [0, 1, 2, 3, 4]
    assert [header.buffer_offset for header in found] == [0, 1024, 2048, 2560, 3584]
    assert [header.has_status for header in found] == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("length", [1, 2, 3, 510, 1023, 1025, 4094])
def test_a_length_that_needs_padding_is_padded_behind_the_copy(length):
    end = Copying()
    end.copies[:] = 0xAA  # what an earlier, longer PDU left
    end.read(0, 8, length)
    end.post()
    found = checked(end.send())
    assert b"".join(data for _, data in found) == end.ram[:length].tobytes()


def test_a_read_waits_for_the_copies_before_it_to_be_sent():
    """The place is bounded: as many copies as PDUs may be on their way, and no read is refused."""
    end = Copying()
    for _ in range(8):
        end.read(0, 64)
    end.post()
    assert sum(length > HEADER_LENGTH for _, length in end.posted) == COUNT
    total = b""
    while end.posted:
        total += end.send()
        end.post()
    found = checked(total)
    assert sum(header.has_status for header, _ in found) == 8
    for header, data in found:
        at = header.buffer_offset
        assert data == end.ram[at : at + len(data)].tobytes()


def test_data_that_only_its_command_touches_is_sent_from_where_it_lies():
    end = Copying()
    end.command(b"\x12" + bytes(15), read=1, expected_data_transfer_length=96)
    (cold,) = end.connection.cold_commands()
    end.connection.respond(cold.task_id, 0, b"i" * 96)
    end.copies[:] = 0xAA
    end.post()
    ((_, data),) = checked(end.send())
    assert data == b"i" * 96
    assert (end.copies == 0xAA).all()


def test_without_a_data_digest_nothing_is_copied():
    end = Copying(connection=ConnectionParams(header_digest=True))
    end.copies[:] = 0xAA
    end.read(0, 8)
    end.post()
    ram = address_of(end.ram)
    assert (ram, 4096) in end.posted
    assert (end.copies == 0xAA).all()


def test_an_initiator_gets_copied_data_in_any_pieces():
    both = Joined(connection=BOTH)
    copies = memory(copies_size(8192, 4))
    lend_copies(both.target.address, address_of(copies), 8192, 4)
    both.ram[:] = pattern(both.ram.size)
    buffer = np.zeros(256 * BLOCK, np.uint8)
    both.read(1, 256, buffer)
    done = both.one(lambda data: [data[at : at + 777] for at in range(0, len(data), 777)])
    assert (done.result, done.status, done.received) == (0, 0, buffer.size)
    assert (buffer == both.ram[BLOCK : 257 * BLOCK]).all()
