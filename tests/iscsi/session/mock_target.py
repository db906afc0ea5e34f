"""A target by script, on plain sockets in a thread: it logs initiators in and then misbehaves.

A script is a function of a `Peer`; what it raises is raised again when the target is left.
"""

import contextlib
import socket
import threading
from contextlib import contextmanager

from iscsi.wire import bhs, scsi, scsi_data
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import ProtocolError
from iscsi.wire.login import TargetLogin, TargetPolicy
from iscsi.wire.scsi import Operation
from iscsi.wire.scsi_data import Capacity, InquiryData

WAIT_S = 10
NAME = "iqn.2026-01.org.example:mock"
BLOCKS = 4096


class Closed(Exception):
    """The initiator closed the connection."""


class Peer:
    """One connection as the scripted target sees it."""

    def __init__(self, stream, port):
        self.stream, self.port = stream, port
        self.stat_sn = 0
        self.window = 32
        self.ahs = b""  # additional header segments of the last PDU

    def read(self, length):
        data = b""
        while len(data) < length:
            piece = self.stream.recv(length - len(data))
            if not piece:
                raise Closed
            data += piece
        return data

    def read_pdu(self):
        header = self.read(bhs.BHS_LENGTH)
        self.ahs = self.read(4 * header[4])
        return bhs.decode(header), self.read(bhs.padded(bhs.data_segment_length(header)))

    def log_in(self, admit=lambda identity: None):
        """Go through a login, or refuse it by what `admit` raises."""
        login = TargetLogin(TargetPolicy({NAME}, admit=admit), command_window=self.window)
        try:
            while not login.done:
                header = self.read(48)
                login.receive_pdu(header, self.read(login.segment_length(header)))
                self.stream.sendall(login.data_to_send())
        except ProtocolError:
            self.stream.sendall(login.data_to_send())
            raise Closed from None
        self.stat_sn = login.result.stat_sn

    def send(self, opcode, data=b"", *, to=None, counted=True, **fields):
        """Send a PDU; `to` is the command it answers, whose numbers it acknowledges."""
        if to is not None:
            fields.setdefault("itt", to.itt)
            fields.setdefault("exp_cmd_sn", (to.cmd_sn + 1) & 0xFFFFFFFF)
            fields.setdefault("max_cmd_sn", (to.cmd_sn + self.window) & 0xFFFFFFFF)
        fields.setdefault("stat_sn", self.stat_sn if counted else 0)
        self.stat_sn += counted
        self.stream.sendall(bhs.encode_pdu(opcode, data, **fields))

    def send_data(self, to, data, **fields):
        """A whole READ's data with its status."""
        data = data[: to.expected_data_transfer_length]
        missing = to.expected_data_transfer_length - len(data)
        if missing:
            fields.update(underflow=1, residual_count=missing)
        self.send(Opcode.DATA_IN, data, to=to, has_status=1, **fields)

    def answer(self, header):
        """Answer what a device asks when it is opened, and logout; False for anything else."""
        if header.opcode is Opcode.LOGOUT_REQUEST:
            self.send(Opcode.LOGOUT_RESPONSE, to=header)
            raise Closed
        if header.opcode is not Opcode.SCSI_COMMAND:
            return False
        operation = scsi.parse_cdb(header.cdb_bytes).operation
        if operation is Operation.INQUIRY:
            if scsi.parse_cdb(header.cdb_bytes).is_evpd:
                self.send_data(header, scsi_data.build_vpd(0, bytes((0,))))
            else:
                self.send_data(header, scsi_data.build_inquiry(InquiryData(0, vendor="MOCK")))
        elif operation is Operation.TEST_UNIT_READY:
            self.send(Opcode.SCSI_RESPONSE, to=header)
        elif operation is Operation.SERVICE_ACTION_IN_16:
            self.send_data(header, scsi_data.build_capacity_16(Capacity(BLOCKS, 512)))
        else:
            return False
        return True

    def until_asked(self):
        """Serve everything up to the first read or write. Its header and immediate data."""
        self.log_in()
        while True:
            header, data = self.read_pdu()
            if not self.answer(header):
                return header, data

    def until_closed(self):
        """Read on until the initiator hangs up."""
        with contextlib.suppress(Closed, ConnectionResetError):
            while self.stream.recv(65536):
                pass


@contextmanager
def mock_target(*scripts):
    """Listen; connection i runs script i (the last one again and again). Its URL."""
    failures, threads, stop = [], [], threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(0.1)

        def serve(stream, script):
            stream.settimeout(WAIT_S)
            with stream:
                try:
                    script(Peer(stream, port))
                except (Closed, ConnectionResetError, BrokenPipeError):
                    pass
                except BaseException as error:
                    failures.append(error)

        def accept():
            number = 0
            while not stop.is_set():
                try:
                    stream, _ = server.accept()
                except TimeoutError:
                    continue
                script = scripts[min(number, len(scripts) - 1)]
                number += 1
                thread = threading.Thread(target=serve, args=(stream, script))
                thread.start()
                threads.append(thread)

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield f"iscsi://127.0.0.1:{port}/{NAME}/0"
        finally:
            stop.set()
            for thread in (acceptor, *threads):
                thread.join(WAIT_S)
                assert not thread.is_alive(), "the scripted target does not end"
    if failures:
        raise failures[0]
