"""A target over iSER and software iWARP on an ordinary socket, in a thread: the halves and the
cores of the sans-IO tests, with MPA's start-up and a login in front. It serves one connection after
the other; its RAM disk stays.
"""

import select
import socket
import threading
import time

import numpy as np

from host.verbs import mpa
from iscsi.wire import bhs, scsi_data
from iscsi.wire.errors import ProtocolError
from iscsi.wire.iser.connecting import Features
from iscsi.wire.iser.message import unwrap, wrap
from iscsi.wire.iser.records import IserLimits, iser_at
from iscsi.wire.keys import ConnectionParams, IserParams, Proposal, SessionParams
from iscsi.wire.login import TargetLogin, TargetPolicy
from iscsi.wire.scsi_data import Capacity
from ppe.cycle.rnic.iwarp.core import QpSpec
from shm.verbs_numbers import (
    SEND_SIGNALED,
    WR_SEND,
)
from shm.view import address_of
from tests.iscsi.wire.full_feature import BLOCK, memory
from tests.iscsi.wire.iser.fabric import Work
from tests.iscsi.wire.iser.over_iwarp import IwarpQueuePair
from tests.iscsi.wire.iser.pair import IserTarget
from tests.ppe.rnic import joined

NAME = "iqn.2026-01.org.example:iser"
LOGIN_RECEIVE = 28 + 48 + 8192
WINDOW = 32
LOGIN_TOKEN = -1  # of a Send that no half knows
FIRST_BYTES = 100  # of the initiator: more than its word that it is ready, less than a login
GRACE_S = 0.05  # in which an initiator that does not wait for it hangs up before the target


class SocketTarget(threading.Thread):
    """Listens on 127.0.0.1; `url` is where. `invalidates`: Responses invalidate tags; `mute`: it
    never answers a login; `misses`: like siw, it does not look at what came right behind its Reply
    until more comes; `hangs_up`: it closes the connection after a logout, and counts in `cut_short`
    how often the initiator was faster.
    """

    def __init__(
        self,
        *,
        invalidates=True,
        blocks=2048,
        answer=None,
        session=None,
        mute=False,
        misses=False,
        hangs_up=True,
    ):
        super().__init__(daemon=True)
        self.invalidates, self.blocks = invalidates, blocks
        self.answer, self.session, self.mute = answer, session, mute
        self.misses, self.hangs_up, self.cut_short = misses, hangs_up, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.ram = np.zeros(blocks * BLOCK, np.uint8)
        self.served, self.errors, self.opcodes = 0, [], []
        self.side = None
        self.stop = threading.Event()
        self.hang_up = threading.Event()
        self.heard = threading.Event()  # a login PDU came

    @property
    def url(self):
        return f"iser://127.0.0.1:{self.port}/{NAME}/0"

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.join(20)
        self.listener.close()
        assert not self.is_alive(), "the target's thread did not end within 20 s"
        assert self.errors == []

    def run(self):
        self.listener.settimeout(0.05)
        while not self.stop.is_set():
            try:
                connection, _ = self.listener.accept()
            except TimeoutError:
                continue
            with connection:
                try:
                    self._serve(connection)
                except (ConnectionError, mpa.MpaError):
                    pass
                except Exception as error:  # for the test's thread to see
                    self.errors.append(error)

    # --- one connection ---

    def _serve(self, connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = self._start(connection)
        wire = _Wire(connection, end, self)
        if self.misses:
            self._miss(connection)
        result = self._log_in(wire)
        self.served += 1
        wire.run(self.side, result)

    def _miss(self, connection):
        """Leave the first bytes where they are until others come."""
        there, deadline = 0, time.monotonic() + 20
        while True:
            assert time.monotonic() < deadline, f"nothing came behind {there} bytes"
            seen = len(connection.recv(1 << 16, socket.MSG_PEEK))
            if 0 < there < seen:
                return
            if seen >= FIRST_BYTES:
                there = seen
            time.sleep(0.005)

    def _start(self, connection):
        """MPA's start-up as the passive side."""
        reader = mpa.FrameReader(False, time.monotonic(), 10)
        connection.settimeout(10)
        while reader.frame is None:
            data = connection.recv(reader.wanted)
            if not data:
                raise ConnectionError("the peer went away")
            reader.receive(data)
        asked = Features.from_bytes(reader.frame.private_data)
        features = Features(send_invalidate=self.invalidates).answer(asked)
        wishes = mpa.Wishes(
            ird=1, ord=16, rtr=mpa.Rtr.WRITE | mpa.Rtr.READ, private_data=features.to_bytes()
        )
        reply, startup = mpa.answer(reader.frame, wishes)
        connection.sendall(reply.encode())
        spec = QpSpec(
            active=False,
            crc=startup.crc,
            rtr=int(startup.rtr),
            ird=startup.ird,
            ord=startup.ord,
            sq_depth=256,
        )
        rnic = joined.Rnic()
        queue = joined.ReceiveQueue(rnic, 128)
        self.features = features
        return joined.QueuePair(rnic, spec, number=1, rq=queue)

    def _log_in(self, wire):
        """Login PDUs in Sends; the receives of the full feature phase are there before its end."""
        buffer = memory(LOGIN_RECEIVE)
        iser = IserParams()
        proposal = Proposal(self.session or SessionParams(), iser=iser)
        login = TargetLogin(TargetPolicy({NAME}), proposal=proposal, command_window=WINDOW)
        wire.qp.receives.append((0, [(address_of(buffer), LOGIN_RECEIVE)]))
        while not login.done:
            length = wire.receive_one()
            self.heard.set()
            while self.mute and wire.pump(0.01):  # It never answers a login.
                if self.stop.is_set():
                    break
            if self.mute:
                raise ConnectionError("the peer has given up")
            try:
                login.receive_pdu(*unwrap(buffer[:length].tobytes()))
            except ProtocolError:
                wire.send(login.data_to_send())
                raise ConnectionError("the login failed") from None
            # Receives are there before the peer can know that it may go on.
            if login.done:
                self.side = self._side(login.result, wire)
            else:
                wire.qp.receives.append((0, [(address_of(buffer), LOGIN_RECEIVE)]))
            wire.send(login.data_to_send())
        return login.result

    def _side(self, result, wire):
        limits = IserLimits(
            receives=64,
            depth=min(16, max(1, int(wire.end.spec.ord))),
            remote_invalidate=self.features.send_invalidate,
            unexpected_limit=4,
        )
        side = IserTarget(
            result.session,
            ConnectionParams(result.connection.peer_max_recv_data_segment_length),
            result.connection.max_recv_data_segment_length,
            window_size=WINDOW,
            cmd_sn=result.cmd_sn,
            stat_sn=result.stat_sn,
            blocks=self.blocks,
            iser_limits=limits,
            hot=True,
        )
        side.ram[:] = self.ram
        side.serve = lambda what: serve(side, what, self)
        side.qp = wire.qp
        mine = iser_at(side.iser)[0]
        side.work()
        assert len(wire.qp.receives) == mine["receive_count"]
        return side


class _Wire:
    """A socket under a software RNIC."""

    def __init__(self, connection, end, owner):
        self.connection, self.end, self.owner = connection, end, owner
        self.qp = IwarpQueuePair(end, None)
        self.kept = []

    def pump(self, wait):
        """Move bytes both ways; False once the peer has gone."""
        data = self.end.data_to_send()
        if data:
            self.connection.sendall(data)
        ready, _, _ = select.select([self.connection], [], [], wait)
        if ready:
            data = self.connection.recv(1 << 16)
            if not data:
                return False
            self.end.take(data)
        return True

    def receive_one(self):
        """Wait for one Send; its length."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not self.owner.stop.is_set():
            done = self.qp.done
            while done:
                is_receive, wc = done.popleft()
                if is_receive and not int(wc[0]["status"]):
                    return int(wc[0]["byte_len"])
            if not self.pump(0.01):
                break
        raise ConnectionError("the peer went away during the login")

    def send(self, pdu):
        if pdu:
            raw = np.frombuffer(wrap(pdu), np.uint8).copy()
            self.kept.append(raw)
            self.qp.sends.append(
                Work(WR_SEND, SEND_SIGNALED, LOGIN_TOKEN, 0, 0, 0, [(address_of(raw), raw.size)])
            )
        self.pump(0)

    def run(self, side, result):
        """The full feature phase, until either side ends it."""
        before = len(self.owner.opcodes)
        while not self.owner.stop.is_set() and not self.owner.hang_up.is_set():
            moved = side.turn_all()
            self.owner.ram[:] = side.ram
            if side.broken or not self.pump(0 if moved else 0.005):
                return
            if self.owner.hangs_up and bhs.Opcode.LOGOUT_REQUEST in self.owner.opcodes[before:]:
                self.pump(0)
                self.owner.cut_short += not self.pump(GRACE_S)
                return
        self.owner.hang_up.clear()


def serve(side, what, owner):
    """The cold commands and requests that a session needs."""
    if not hasattr(what, "task_id"):
        owner.opcodes.append(what.header.opcode)
        answer_control(side, what)
        return
    if owner.answer is not None and owner.answer(side, what):
        return
    operation, data = what.cdb[0], b""
    if operation == 0x9E:
        data = scsi_data.build_capacity_16(Capacity(owner.blocks, BLOCK))
    elif operation == 0x12:
        data = scsi_data.build_inquiry(scsi_data.InquiryData(0, vendor="PPE", product="RAM"))
    side.target.respond(what.task_id, data=data)


def answer_control(side, pdu):
    """Logout and task management, and nothing else."""
    header = pdu.header
    if header.opcode == bhs.Opcode.LOGOUT_REQUEST:
        side.target.send_control(bhs.encode(bhs.Opcode.LOGOUT_RESPONSE, itt=header.itt))
    elif header.opcode == bhs.Opcode.TASK_MANAGEMENT_REQUEST:
        side.target.abort_task(header.referenced_task_tag)
        side.target.send_control(bhs.encode(bhs.Opcode.TASK_MANAGEMENT_RESPONSE, itt=header.itt))
