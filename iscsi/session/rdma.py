"""A connection over RDMA until its login is over: a queue pair of the session's own channel, in
RDMA mode from the first byte as deployed peers are, over which login PDUs travel in Sends, one at a
time. Then the engine takes the queue pair over, which has nothing posted any more.
"""

from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import numpy as np

from host.channel import Channel
from host.memory import Buffer
from host.verbs import ConnParam, Device, QpCap, QueuePair, RecvWr, SendWr
from host.verbs.memory import MemoryRegion, ProtectionDomain
from iscsi.session.errors import ConnectionLost, LoginTimeout
from iscsi.wire.iser.connecting import Features
from iscsi.wire.iser.message import unwrap, wrap
from iscsi.wire.iser.records import HEADERS_LENGTH, IserLimits
from iscsi.wire.login import InitiatorLogin
from iscsi.wire.login_common import MAX_LOGIN_SEGMENT, LoginResult
from iscsi.wire.names import Portal
from shm.verbs import WC_STATUS_NAMES
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    WR_RDMA_WRITE,
    WR_SEND,
)

MESSAGE_MAX: Final = HEADERS_LENGTH + MAX_LOGIN_SEGMENT
READS: Final = 16  # RDMA Reads of the target that we serve at once
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


def connect(
    engine: Any,
    channel: Channel,
    portal: Portal,
    login: InitiatorLogin,
    *,
    tasks: int,
    sends: int,
    seconds: float,
) -> tuple[RdmaConnection, LoginResult]:
    """Connect to a portal and log in, with queues for `tasks` commands and `sends` PDUs.

    Blocks, up to `seconds` for each answer. Raises OSError, LoginTimeout, ConnectionLost, and what
    the login machine raises; then nothing is left of it.
    """
    device = Device(engine, channel)
    domain = device.alloc_pd()
    receives = tasks + SPARE_RECEIVES
    cap = QpCap(max_send_wr=sends + SPARE_RECEIVES, max_recv_wr=receives)
    queue_pair = device.create_qp(domain, device.create_cq(8), cap=cap)
    try:
        ours = Features(send_invalidate=True)
        wanted = ConnParam(
            private_data=ours.to_bytes(),
            responder_resources=READS,
            initiator_depth=1,
            timeout_s=seconds,
        )
        try:
            startup = queue_pair.connect((portal.host, portal.port), wanted)
        except TimeoutError as error:
            raise LoginTimeout(_late(portal, seconds)) from error
        result = _log_in(engine, queue_pair, portal, login, seconds)
    except BaseException:
        queue_pair.destroy()
        domain.dealloc()
        raise
    assert result.iser is not None, "the login was over RDMA"
    theirs = Features.from_bytes(startup.private_data)
    limits = IserLimits(
        receives=receives,
        data_length=max(MAX_LOGIN_SEGMENT, result.connection.max_recv_data_segment_length),
        depth=READS,
        unexpected_limit=result.iser.max_outstanding_unexpected_pdus,
        pdu_limit=PDU_LIMIT,
        remote_invalidate=theirs.send_invalidate,
    )
    return RdmaConnection(device, domain, queue_pair, limits), result


def _log_in(
    engine: Any, queue_pair: QueuePair, portal: Portal, login: InitiatorLogin, seconds: float
) -> LoginResult:
    login.start()
    with engine.alloc(2 * MESSAGE_MAX) as buffer:
        region = queue_pair.pd.reg_mr(buffer, ACCESS_LOCAL_WRITE)
        try:
            while not login.done:
                _ask(queue_pair, buffer, region, login.data_to_send())
                _complete(queue_pair, _SEND, portal, seconds)
                length = _answer(queue_pair, portal, seconds)
                login.receive_pdu(*unwrap(buffer.array[:length].tobytes()))
        except BaseException:
            queue_pair.destroy()  # A posted receive keeps the memory.
            raise
        finally:
            region.dereg()
    assert login.result is not None, "done means that there is a result"
    return login.result


def _ask(queue_pair: QueuePair, buffer: Buffer, region: MemoryRegion, pdu: bytes) -> None:
    """Send a Login Request; the receive for its answer is posted before."""
    message = np.frombuffer(wrap(pdu), np.uint8)
    buffer.array[MESSAGE_MAX : MESSAGE_MAX + message.size] = message
    queue_pair.post_recv(RecvWr([region.sge(0, MESSAGE_MAX)], _RECEIVE))
    queue_pair.post_send(SendWr(WR_SEND, [region.sge(MESSAGE_MAX, message.size)], _SEND))


def _answer(queue_pair: QueuePair, portal: Portal, seconds: float) -> int:
    """Wait for the answer to a Login Request, and make siw look for the request; its length."""
    start = monotonic()
    end, patience = start + seconds, NUDGE_S

    def is_here() -> bool:
        return queue_pair.recv_cq.ready > 0

    while not queue_pair.device.wait_until(is_here, min(patience, end - monotonic())):
        if monotonic() >= end or not queue_pair.device.channel.is_running:
            break
        queue_pair.post_send(SendWr(WR_RDMA_WRITE, (), _NUDGE))
        _complete(queue_pair, _NUDGE, portal, seconds)
        patience *= 2
    return _complete(queue_pair, _RECEIVE, portal, seconds, end - monotonic())


def _late(portal: Portal, seconds: float) -> str:
    return f"the target at {portal.address} did not answer a login within {seconds:g} s"


def _complete(
    queue_pair: QueuePair, wr_id: int, portal: Portal, seconds: float, left: float | None = None
) -> int:
    """Wait for one completion, with `left` of the `seconds` (default: all of them); its length."""
    try:
        done = queue_pair.send_cq.complete(wr_id, seconds if left is None else max(0.0, left))
    except TimeoutError as error:
        raise LoginTimeout(_late(portal, seconds)) from error
    if done.status:
        raise ConnectionLost(
            f"the target at {portal.address} ended the connection during the login: "
            f"{WC_STATUS_NAMES.get(done.status, done.status)}"
        )
    return int(done.byte_len)
