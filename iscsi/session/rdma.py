"""A connection over RDMA until its login is over: a queue pair of the session's own channel, in
RDMA mode from the first byte as deployed peers are, over which login PDUs travel in Sends, one at a
time. Then the engine takes the queue pair over, which has nothing posted any more.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from host.channel import Channel
from host.errors import EndOfStream
from host.memory import Buffer
from host.verbs import (
    ConnParam,
    Device,
    QpCap,
    QueuePair,
    RecvWr,
    SendWr,
    WorkCompletion,
    mpa,
)
from host.verbs.cm import FRAME_MAX
from host.verbs.memory import MemoryRegion, ProtectionDomain
from iscsi.session.errors import ConnectionLost
from iscsi.session.steps import Complete, Connect, Receive, Send, Steps
from iscsi.wire.iser.connecting import Features
from iscsi.wire.iser.message import unwrap, wrap
from iscsi.wire.iser.records import HEADERS_LENGTH, IserLimits
from iscsi.wire.iser.registration import ONE_COMMAND, REGISTRATIONS
from iscsi.wire.login import InitiatorLogin
from iscsi.wire.login_common import MAX_LOGIN_SEGMENT, LoginResult
from iscsi.wire.names import Portal
from shm.qp_spec import MULPDU_MAX
from shm.verbs import WC_STATUS_NAMES
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    WR_RDMA_WRITE,
    WR_SEND,
)

MESSAGE_MAX: Final = HEADERS_LENGTH + MAX_LOGIN_SEGMENT
READS: Final = 64  # RDMA Reads of the target that we serve at once
# Receives of LIO's target, which declares no limit: 128 for PDUs of every kind.
PDU_LIMIT: Final = 128
# Besides one receive for the response to each command: what a target may send unasked.
SPARE_RECEIVES: Final = 16
# siw misses what comes right behind its Reply until more comes (Linux 6.1, `siw_accept`: the socket
# changes hands without a look at what is in it). So Writes of no bytes follow, further and further
# apart.
NUDGE_S: Final = 0.02
_RECEIVE, _SEND, _NUDGE = 1, 2, 3


@dataclass(slots=True)
class RdmaConnection:
    """A queue pair whose login is over. `limits`: how the engine is to use it."""

    device: Device
    domain: ProtectionDomain
    queue_pair: QueuePair
    limits: IserLimits

    @property
    def endpoint(self) -> int:
        """The engine's name of it."""
        return self.queue_pair.endpoint

    def free(self) -> None:
        """Give back what it rested on; its endpoint is closed."""
        self.domain.users.discard(self.queue_pair)
        if self.device.channel.is_running:
            self.domain.dealloc()


@dataclass(frozen=True, slots=True)
class RdmaWishes:
    """What a session wants of its connection: queues for `tasks` commands and `sends` PDUs, a CRC
    over every FPDU, a Hello after the login, which said so, and how buffers are opened.
    """

    tasks: int
    sends: int
    crc: bool = True
    hello: bool = False
    registration: str = REGISTRATIONS[0]

    @property
    def receives(self) -> int:
        """Receives of the full feature phase."""
        return self.tasks + SPARE_RECEIVES

    @property
    def features(self) -> Features:
        """What is said in the private data. A tag that is kept must not be invalidated with the
        command that used it.
        """
        return Features(send_invalidate=self.registration in ONE_COMMAND)

    @property
    def param(self) -> ConnParam:
        """The same for MPA's start-up."""
        return ConnParam(
            private_data=self.features.to_bytes(),
            responder_resources=READS,
            initiator_depth=1,
            crc=self.crc,
            mulpdu=MULPDU_MAX,
        )


def connecting(
    engine: Any,
    channel: Channel,
    portal: Portal,
    login: InitiatorLogin,
    wishes: RdmaWishes,
    drop: Callable[[], None],
) -> Steps[tuple[RdmaConnection, LoginResult]]:
    """Connect to a portal and log in. `drop` closes the endpoint that `Connect` gave, or does
    nothing if it was closed.

    Raises OSError, ConnectionLost, and what the login machine raises; then nothing is left of it.
    """
    device = Device(engine, channel)
    domain = device.alloc_pd()
    cap = QpCap(max_send_wr=wishes.sends + SPARE_RECEIVES, max_recv_wr=wishes.receives)
    queue_pair = device.create_qp(domain, device.create_cq(8), cap=cap)
    try:
        endpoint = yield Connect(portal.host, portal.port)
        startup = yield from _start(engine, queue_pair, endpoint, portal, wishes.param)
        result = yield from _log_in(engine, queue_pair, portal, login, drop)
    except BaseException:
        drop()
        domain.users.discard(queue_pair)
        if channel.is_running:
            domain.dealloc()
        raise
    theirs = Features.from_bytes(startup.private_data)
    limits = _limits(wishes, wishes.features.answer(theirs), result)
    return RdmaConnection(device, domain, queue_pair, limits), result


def _limits(wishes: RdmaWishes, both: Features, result: LoginResult) -> IserLimits:
    assert result.iser is not None, "the login was over RDMA"
    return IserLimits(
        receives=wishes.receives,
        data_length=max(MAX_LOGIN_SEGMENT, result.connection.max_recv_data_segment_length),
        depth=READS,
        unexpected_limit=result.iser.max_outstanding_unexpected_pdus,
        pdu_limit=PDU_LIMIT,
        remote_invalidate=both.send_invalidate,
        hello=wishes.hello,
        registration=wishes.registration,
    )


def _start(
    engine: Any, queue_pair: QueuePair, endpoint: int, portal: Portal, param: ConnParam
) -> Steps[mpa.Startup]:
    """MPA's start-up over the stream, and the queue pair that it ends with."""
    wishes = param.wishes()
    asked = np.frombuffer(mpa.request(wishes).encode(), np.uint8)
    reader = mpa.FrameReader(reply=True, now=0, seconds=math.inf)  # The login has its own time.
    with engine.alloc(FRAME_MAX) as buffer:
        buffer.array[: asked.size] = asked
        yield Send(endpoint, buffer.array[: asked.size])
        while reader.frame is None:
            place = buffer.array[: reader.wanted]
            try:
                yield Receive(endpoint, place)
            except EndOfStream as error:
                raise ConnectionLost(_ended(portal, "is it iSER that it speaks there?")) from error
            reader.receive(place.tobytes())
    startup = mpa.agree(wishes, reader.frame)
    queue_pair.device.provider.enable(queue_pair, endpoint, startup, param)  # type: ignore[attr-defined]
    queue_pair.start(endpoint, startup, param.extensions)
    return startup


def _log_in(
    engine: Any,
    queue_pair: QueuePair,
    portal: Portal,
    login: InitiatorLogin,
    drop: Callable[[], None],
) -> Steps[LoginResult]:
    login.start()
    with engine.alloc(2 * MESSAGE_MAX) as buffer:
        region = queue_pair.pd.reg_mr(buffer, ACCESS_LOCAL_WRITE)
        try:
            while not login.done:
                _ask(queue_pair, buffer, region, login.data_to_send())
                yield from _done(queue_pair, _SEND, portal)
                length = yield from _answer(queue_pair, portal)
                login.receive_pdu(*unwrap(buffer.array[:length].tobytes()))
        except BaseException:
            drop()  # A posted receive keeps the memory.
            raise
        finally:
            if queue_pair.device.channel.is_running:
                region.dereg()
    assert login.result is not None, "done means that there is a result"
    return login.result


def _ask(queue_pair: QueuePair, buffer: Buffer, region: MemoryRegion, pdu: bytes) -> None:
    """Send a Login Request; the receive for its answer is posted before."""
    message = np.frombuffer(wrap(pdu), np.uint8)
    buffer.array[MESSAGE_MAX : MESSAGE_MAX + message.size] = message
    queue_pair.post_recv(RecvWr([region.sge(0, MESSAGE_MAX)], _RECEIVE))
    queue_pair.post_send(SendWr(WR_SEND, [region.sge(MESSAGE_MAX, message.size)], _SEND))


def _answer(queue_pair: QueuePair, portal: Portal) -> Steps[int]:
    """Wait for the answer to a Login Request, and make siw look for the request; its length."""
    patience = NUDGE_S
    while (done := (yield Complete(queue_pair.recv_cq, _RECEIVE, patience))) is None:
        queue_pair.post_send(SendWr(WR_RDMA_WRITE, (), _NUDGE))
        yield from _done(queue_pair, _NUDGE, portal)
        patience *= 2
    return _length(done, portal)


def _done(queue_pair: QueuePair, wr_id: int, portal: Portal) -> Steps[int]:
    """Wait for one completion; its length."""
    done = yield Complete(queue_pair.send_cq, wr_id)
    return _length(done, portal)


def _length(done: WorkCompletion, portal: Portal) -> int:
    if done.status:
        raise ConnectionLost(_ended(portal, WC_STATUS_NAMES.get(done.status, str(done.status))))
    return int(done.byte_len)


def _ended(portal: Portal, why: str) -> str:
    return f"the target at {portal.address} ended the connection during the login: {why}"
