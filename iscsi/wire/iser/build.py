"""Makes the lower half of a connection one over a queue pair: an ISER beside an INITIATOR or TARGET
that was built for it, just after its login. Digests are none, and bursts have no bound of their
own (RFC 7145 §6).
"""

from typing import Final

from iscsi.wire.initiator_task import initiator_at
from iscsi.wire.iser.records import (
    HELLO_AWAITED,
    HELLO_DUE,
    HELLO_NONE,
    PAGE,
    IserLimits,
    build_iser,
    iser_size,
)
from iscsi.wire.port import port_at
from iscsi.wire.target_task import target_at

# Data that deployed initiators have room for in a response (ib_iser and libiscsi, whatever they
# negotiate): sense data, a rejected header, the echo of a ping, a piece of text.
REPLY_LENGTH: Final = 128
# How far from the next one a status may be. LIO's isert counts StatSN without a lock in several
# threads, and each then posts its response when it gets to it: over its queue pair numbers overtake
# each other and some come twice, as many as the responses that pass a thread which was held up.
# A queue pair loses nothing, so no order has to show it.
STAT_SN_REACH: Final = 4096
# Of RDMA Reads; no command is longer (RFC 7143 §11.3.4).
BURST_MAX: Final = 1 << 32


def initiator_iser_size(conn: int, limits: IserLimits) -> int:
    """Bytes of zeroed memory for an initiator's ISER, from a multiple of 64 on."""
    return _size(conn, limits, int(initiator_at(conn)[0]["task_count"]))


def target_iser_size(conn: int, limits: IserLimits) -> int:
    """Bytes of zeroed memory for a target's ISER, from a multiple of 64 on."""
    return _size(conn, limits, int(target_at(conn)[0]["task_count"]))


def _size(conn: int, limits: IserLimits, task_count: int) -> int:
    port = port_at(conn)[0]
    return iser_size(limits, int(port["tx_capacity"]), task_count, int(port["control_count"]))


def build_initiator_iser(iser: int, conn: int, limits: IserLimits) -> None:
    """Put an INITIATOR's connection on a queue pair. Unsolicited data goes in whole pages where the
    peer takes one: LIO takes none that begins within a page.
    """
    port, mine = port_at(conn)[0], initiator_at(conn)[0]
    _check(conn, limits)
    longest = int(port["peer_max_recv_data_segment_length"])
    port["peer_max_recv_data_segment_length"] = longest - longest % PAGE or longest
    mine["stat_sn_reach"] = STAT_SN_REACH
    hello = HELLO_DUE if limits.hello else HELLO_NONE
    build_iser(iser, conn, limits, int(mine["task_count"]), hello)


def build_target_iser(
    iser: int, conn: int, limits: IserLimits, reply_length: int = REPLY_LENGTH
) -> None:
    """Put a TARGET's connection on a queue pair. `reply_length`: bytes of data that the initiator's
    receives hold, whatever it says of segments.
    """
    port, mine = port_at(conn)[0], target_at(conn)[0]
    _check(conn, limits)
    if mine["cold_length"] < port["max_recv_data_segment_length"]:
        raise ValueError("a task's area must hold immediate data: it may be nowhere else")
    longest = int(port["peer_max_recv_data_segment_length"])
    port["peer_max_recv_data_segment_length"] = min(longest, reply_length)
    mine["max_burst_length"] = BURST_MAX
    hello = HELLO_AWAITED if limits.hello else HELLO_NONE
    build_iser(iser, conn, limits, int(mine["task_count"]), hello)


def _check(conn: int, limits: IserLimits) -> None:
    port = port_at(conn)[0]
    if port["header_digest"] or port["data_digest"]:
        raise ValueError("over RDMA there are no digests")
    if port["max_recv_data_segment_length"] > limits.data_length:
        raise ValueError("the peer may send more data than a receive holds")
