"""How a connection over RDMA comes to a target: MPA's start-up, then a queue pair of the server's
own channel, over which login PDUs travel in Sends, one at a time. Nothing here waits: each step is
posted under the connection's slot, and the server says what came of it.
"""

from enum import Enum, auto
from time import monotonic
from typing import Any, Final

import numpy as np

from host import doors as plain_doors
from host.channel import Channel, Completion
from host.verbs import ConnParam, Device, QpCap, RecvWr, SendWr, Sge, doors, mpa
from host.verbs.memory import ProtectionDomain
from host.verbs.records import INIT, RTS
from iscsi.wire.iser.connecting import Features
from iscsi.wire.iser.message import unwrap, wrap
from iscsi.wire.iser.records import HEADERS_LENGTH, IserLimits
from iscsi.wire.keys import IserParams
from iscsi.wire.login_common import MAX_LOGIN_SEGMENT
from shm.operations import RDMA_DEREGISTER, RDMA_START
from shm.qp_spec import MULPDU_MAX
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    WR_SEND,
)

MESSAGE_MAX: Final = HEADERS_LENGTH + MAX_LOGIN_SEGMENT
LOGIN_RECEIVES: Final = 80  # PDUs of one login, either way
SENDS: Final = 256  # of the full feature phase: more than its PDUs under way
READS: Final = 64  # RDMA Reads that we have open at once
# Deployed initiators have four receives for what they do not expect (ib_iser, libiscsi).
UNEXPECTED_MAX: Final = 4
SPARE_RECEIVES: Final = 64  # besides the window: immediate requests, unsolicited data


class Stage(Enum):
    """What comes next for a connection."""

    REQUEST = auto()  # bytes of MPA's Request
    REPLY = auto()  # our Reply is being sent
    MEMORY = auto()  # the login's memory is being registered
    LOGIN = auto()


class RdmaService:
    """What all RDMA connections of a server share. `window`: commands of one connection; `crc`:
    whether FPDUs have one whatever the initiator wants.
    """

    def __init__(self, engine: Any, channel: Channel, window: int, *, crc: bool) -> None:
        self.crc = crc
        self.engine, self.channel = engine, channel
        self.device = Device(engine, channel)
        self.domain: ProtectionDomain = self.device.alloc_pd()
        self.receives = window + SPARE_RECEIVES
        self.params = IserParams(max_outstanding_unexpected_pdus=0)


class RdmaLogin:
    """One connection until its login is over."""

    def __init__(self, service: RdmaService, endpoint: int, seconds: float) -> None:
        self.service, self.endpoint = service, endpoint
        self.stage = Stage.REQUEST
        self.features = Features()
        self.buffer = service.engine.alloc(2 * MESSAGE_MAX)
        self.lkey = 0
        self._reader = mpa.FrameReader(False, monotonic(), seconds)
        self._startup: mpa.Startup | None = None
        self._cq = service.device.create_cq(2 * LOGIN_RECEIVES)
        cap = QpCap(max_send_wr=SENDS, max_recv_wr=max(service.receives, LOGIN_RECEIVES))
        self._qp = service.device.create_qp(service.domain, self._cq, cap=cap)

    # --- MPA's start-up ----------------------------------------------------------------------

    @property
    def wanted(self) -> np.ndarray[Any, Any]:
        """Where the next bytes of the Request belong."""
        place: np.ndarray[Any, Any] = self.buffer.array[: self._reader.wanted]
        return place

    def request(self) -> np.ndarray[Any, Any] | None:
        """The `wanted` bytes are there: the Reply to be sent, or None: more is to come.

        Raises MpaError for bytes that are no Request.
        """
        self._reader.receive(self.wanted.tobytes())
        frame = self._reader.frame
        if frame is None:
            return None
        asked = Features.from_bytes(frame.private_data)
        self.features = Features(send_invalidate=True).answer(asked)
        wishes = self._param.wishes()
        reply, self._startup = mpa.answer(frame, wishes)
        self.stage = Stage.REPLY
        return self._place(0, reply.encode())

    @property
    def _param(self) -> ConnParam:
        return ConnParam(
            private_data=self.features.to_bytes(),
            responder_resources=1,
            initiator_depth=READS,
            crc=self.service.crc,
            mulpdu=MULPDU_MAX,
        )

    def _place(self, start: int, data: bytes) -> np.ndarray[Any, Any]:
        place: np.ndarray[Any, Any] = self.buffer.array[start : start + len(data)]
        place[:] = np.frombuffer(data, np.uint8)
        return place

    # --- the queue pair ----------------------------------------------------------------------

    def make_queue_pair(self, user_data: int) -> bool:
        """Full operation is next: have the engine make the queue pair, and register the memory of
        the login. False: the ring is full. Raises EngineRefused.
        """
        assert self._startup is not None, "the Request was answered"
        if self.stage is Stage.REPLY:
            self.service.device.provider.enable(  # type: ignore[attr-defined]
                self._qp, self.endpoint, self._startup, self._param
            )
            record = self._qp.record[0]
            record["endpoint"] = record["own_rq"]["endpoint"] = self.endpoint
            self._qp.set_state(INIT)
            self.stage = Stage.MEMORY
        size, address = len(self.buffer), self.buffer.address
        return bool(
            doors.post_register(
                self.service.channel.context,
                self.service.domain.handle,
                user_data,
                address,
                size,
                address,
                ACCESS_LOCAL_WRITE,
            )
        )

    def begin(self, done: Completion, receive: int, start: int) -> bool:
        """The memory is registered: post a receive, and start. False: the ring is full."""
        if self.stage is Stage.MEMORY:
            self.lkey = done.arg0
            if not self.post_receive(receive):
                return False
            self.stage = Stage.LOGIN
            self._qp.set_state(RTS)
        context = self.service.channel.context
        return bool(plain_doors.post_plain(context, RDMA_START, 0, self.endpoint, start, 0))

    def post_receive(self, user_data: int) -> bool:
        """Post a receive for one login PDU. False: the ring is full."""
        piece = Sge(self.buffer.address, MESSAGE_MAX, self.lkey)
        return self._qp.post_recv(RecvWr([piece], user_data))

    def post_send(self, pdu: bytes, user_data: int) -> bool:
        """Send a login PDU. False: the ring is full."""
        message = wrap(pdu)
        self._place(MESSAGE_MAX, message)
        piece = Sge(self.buffer.address + MESSAGE_MAX, len(message), self.lkey)
        return self._qp.post_send(SendWr(WR_SEND, [piece], user_data))

    def received(self, length: int) -> tuple[bytes, bytes]:
        """Header and data of the login PDU that came. Raises RemoteProtocolError."""
        return unwrap(self.buffer.array[:length].tobytes())

    def limits(self, theirs: IserParams, data_length: int) -> IserLimits:
        """How the engine is to use the queue pair."""
        assert self._startup is not None, "the Request was answered"
        declared = theirs.max_outstanding_unexpected_pdus
        return IserLimits(
            receives=self.service.receives,
            data_length=data_length,
            depth=max(1, min(self._startup.ord, READS)),
            unexpected_limit=min(declared or UNEXPECTED_MAX, UNEXPECTED_MAX),
            remote_invalidate=self.features.send_invalidate,
            hello=theirs.iser_hello_required,
        )

    def free(self) -> bool:
        """Give the memory of the login back. False: the ring is full, and it is to be tried again.

        Nothing of it is under way any more.
        """
        channel, domain = self.service.channel, self.service.domain
        if self.lkey and channel.is_running:
            handle = domain.handle
            posted = plain_doors.post_plain(
                channel.context, RDMA_DEREGISTER, 0, handle, 0, self.lkey
            )
            if not posted:
                return False
        self.lkey = 0
        domain.users.discard(self._qp)
        self.service.device.forget_qp(self._qp)
        self._cq.destroy()
        self.buffer.free()
        return True
