"""The pumps of the initiator role: `host.pump` over a byte stream, where this side frames PDUs, and
`host.mover` over a datamover endpoint, where the engine does. A PUMP's mode says which.
"""

from typing import Final

from host import mover, pump
from host.pump import MOVER as MOVER_MODE
from host.pump import pump_at
from iscsi.wire import (
    initiator_mirror,
    initiator_post,
    initiator_rx,
    initiator_tx,
)
from iscsi.wire.initiator_task import initiator_at, task_at
from shm.jit import nopython


@nopython
def predict(conn: int) -> tuple[int, int]:
    """Where the data behind the next header goes, and its length, as far as it can be foreseen.

    Only with one command under way, which is a READ whose data fits one PDU.
    """
    length = initiator_post.predict(conn)
    if length == 0:
        return 0, 0
    return int(task_at(initiator_at(conn)[0]["last"])[0]["data_address"]), length


STREAM: Final = pump.make_pump(
    initiator_rx.rx_bytes, initiator_tx.tx_next, initiator_tx.tx_take, initiator_tx.tx_done, predict
)
MOVER: Final = mover.make_mover(
    initiator_mirror.post_peek,
    initiator_mirror.post_taken,
    initiator_mirror.on_event,
    initiator_mirror.on_notify,
)
# Compiled code takes functions from a module's own names.
_stream_send, _stream_receive, _stream_event = STREAM
_mover_send, _mover_receive, _mover_event = MOVER


@nopython
def send(pump: int) -> int:
    """Post what there is to send. How much that was."""
    if pump_at(pump)[0]["mode"] == MOVER_MODE:
        return _mover_send(pump)
    return _stream_send(pump)


@nopython
def receive(pump: int) -> int:
    """Keep receives posted. How many operations were added."""
    if pump_at(pump)[0]["mode"] == MOVER_MODE:
        return _mover_receive(pump)
    return _stream_receive(pump)


@nopython
def event(pump: int, completion: int) -> int:
    """Feed one completion (address of its CQE): the error so far."""
    if pump_at(pump)[0]["mode"] == MOVER_MODE:
        return _mover_event(pump, completion)
    return _stream_event(pump, completion)
