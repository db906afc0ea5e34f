"""A scripted target that keeps what is written: a disk in memory behind `mock_target`, which ends
the commands of an older connection when a new one logs in, and notes what it executed in order.
"""

import threading

from iscsi.wire import bhs, scsi, scsi_data
from iscsi.wire.bhs import Opcode
from iscsi.wire.keys import Proposal, SessionParams
from iscsi.wire.login import TargetLogin, TargetPolicy
from iscsi.wire.scsi_data import Capacity, InquiryData
from iscsi.wire.sense import Asc, SenseKey, encode_sense, join_sense
from tests.iscsi.session.mock_target import NAME, Closed

BLOCK = 512
BLOCKS = 4096
WRITES = (0x2A, 0x8A)
READS = (0x28, 0x88)
COMPARE_AND_WRITE = 0x89


class Disk:
    """The unit. `before(header)` may answer or refuse a command: True if it did."""

    def __init__(self, blocks=BLOCKS, serial=b"SERIAL-1", vendor="MOCK"):
        self.data, self.removable = bytearray(blocks * BLOCK), False
        self.blocks, self.serial, self.vendor = blocks, serial, vendor
        self.log = []
        self.before = lambda peer, header, data: False
        self.control = lambda peer, header, data: False
        self.attentions = []
        self.connections = 0
        self.isids = []
        self._generation = 0
        self._lock = threading.RLock()

    # --- the script ------------------------------------------------------------------------

    def serve(self, peer):
        """One connection, from its login to its end."""
        self._log_in(peer)
        with self._lock:
            self._generation += 1
            self.connections += 1
            mine = self._generation
        while True:
            header, data = self.read_command(peer)
            with self._lock:
                if mine != self._generation:
                    raise Closed  # A newer login reinstated the session: this task is aborted.
                self._execute(peer, header, data)

    def _log_in(self, peer):
        session = SessionParams(initial_r2t=False, first_burst_length=262144, default_time2wait=0)
        login = TargetLogin(
            TargetPolicy({NAME}), proposal=Proposal(session), command_window=peer.window
        )
        while not login.done:
            header = peer.read(48)
            login.receive_pdu(header, peer.read(login.segment_length(header)))
            peer.stream.sendall(login.data_to_send())
        self.isids.append(login.result.isid)
        peer.stat_sn = login.result.stat_sn

    def read_command(self, peer):
        """The next request, with all data that belongs to it."""
        header, data = peer.read_pdu()
        if header.opcode is Opcode.SCSI_COMMAND and header.write:
            while not header.final and len(data) < header.expected_data_transfer_length:
                more, piece = peer.read_pdu()
                assert more.opcode is Opcode.DATA_OUT
                data += piece
                if more.final:
                    break
        return header, data

    def _execute(self, peer, header, data):
        if header.opcode is not Opcode.SCSI_COMMAND:
            if not self.control(peer, header, data):
                self._control(peer, header)
            return
        cdb = header.cdb_bytes
        if self.attentions and cdb[0] not in (0x12, 0xA0, 0x03):
            self.check(peer, header, SenseKey.UNIT_ATTENTION, self.attentions.pop(0))
        elif not self.before(peer, header, data):
            self.run(peer, header, data)

    def _control(self, peer, header):
        if header.opcode is Opcode.LOGOUT_REQUEST:
            peer.send(Opcode.LOGOUT_RESPONSE, to=header)
            raise Closed
        if header.opcode is Opcode.NOP_OUT and header.itt != bhs.RESERVED_TAG:
            numbers = {"exp_cmd_sn": header.cmd_sn, "max_cmd_sn": header.cmd_sn + peer.window}
            peer.send(Opcode.NOP_IN, itt=header.itt, **numbers)

    def run(self, peer, header, data):
        """Execute a command and answer it."""
        cdb = header.cdb_bytes
        operation = cdb[0]
        if operation in READS + WRITES:
            parsed = scsi.parse_cdb(cdb)
            start, size = parsed.lba * BLOCK, parsed.length * BLOCK
            if operation in WRITES:
                assert len(data) == size, (len(data), size)
                self.data[start : start + size] = data
                self.log.append(("write", parsed.lba, parsed.length))
                peer.send(Opcode.SCSI_RESPONSE, to=header)
            else:
                self.log.append(("read", parsed.lba, parsed.length))
                peer.send_data(header, bytes(self.data[start : start + size]))
        elif operation == COMPARE_AND_WRITE:
            self._compare_and_write(peer, header, data)
        elif operation in (0x35, 0x91, 0x42, 0x93, 0x5F, 0x8B):
            self.log.append((operation, header.cmd_sn))
            peer.send(Opcode.SCSI_RESPONSE, to=header)
        elif operation == 0x12:
            peer.send_data(header, self._inquiry(cdb))
        elif operation == 0x00:
            peer.send(Opcode.SCSI_RESPONSE, to=header)
        elif operation == 0x9E:
            peer.send_data(header, scsi_data.build_capacity_16(Capacity(self.blocks, BLOCK)))
        else:
            self.check(peer, header, SenseKey.ILLEGAL_REQUEST, Asc.INVALID_OPERATION_CODE)

    def _compare_and_write(self, peer, header, data):
        start = int.from_bytes(header.cdb_bytes[2:10], "big") * BLOCK
        half = len(data) // 2
        self.log.append(("compare and write", start // BLOCK))
        if self.data[start : start + half] != data[:half]:
            self.check(peer, header, SenseKey.MISCOMPARE, Asc.MISCOMPARE_DURING_VERIFY)
            return
        self.data[start : start + half] = data[half:]
        peer.send(Opcode.SCSI_RESPONSE, to=header)

    def _inquiry(self, cdb):
        if not cdb[1] & 1:
            return scsi_data.build_inquiry(
                InquiryData(0, removable=self.removable, vendor=self.vendor)
            )
        pages = {0x00: bytes((0x00, 0x80)), 0x80: self.serial}
        return scsi_data.build_vpd(cdb[2], pages[cdb[2]])

    def check(self, peer, header, key, code):
        """End a command with sense data."""
        peer.send(Opcode.SCSI_RESPONSE, join_sense(encode_sense(key, code)), to=header, status=2)
