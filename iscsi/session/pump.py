"""The pump of the initiator role: `host.pump` over the functions of `iscsi.wire.initiator_*`."""

from typing import Final

from host import pump
from iscsi.wire import initiator_post, initiator_rx, initiator_tx
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


INITIATOR_PUMP: Final = pump.make_pump(
    initiator_rx.rx_bytes, initiator_tx.tx_next, initiator_tx.tx_take, initiator_tx.tx_done, predict
)
# Compiled code takes functions from a module's own names.
send, receive, event = INITIATOR_PUMP
