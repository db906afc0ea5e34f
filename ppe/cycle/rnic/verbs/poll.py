"""Poll a completion queue of a verbs device, and hand completions back as the verbs manual orders
them: the sends of a queue pair in the order of their posts, each exactly once.

Unsignalled sends that succeeded have no completion at the device: a later one covers them. What the
device completes out of order (siw: a send behind a read) waits here for its turn. The one rule: a
send's token goes back when every earlier one's has.
"""

import errno
from typing import Final

from ppe.cycle.rnic.records import wc_at
from ppe.cycle.rnic.verbs import keys, layouts
from ppe.cycle.rnic.verbs.calls import call_poll_cq, call_req_notify_cq
from ppe.cycle.rnic.verbs.layouts import WC_SIZE, field_offset
from ppe.cycle.rnic.verbs.records import (
    BATCH,
    QP_ERROR,
    SENT_COMPLETED,
    SENT_POSTED,
    SENT_REFUSED,
    SENT_SIZE,
    cq_at,
    qp_at,
    rq_at,
    sent_at,
)
from ppe.cycle.rnic.verbs.send import SEND_BIT
from shm.jit import nopython
from shm.memory import load_32, load_32_be, zero_bytes
from shm.verbs_numbers import (
    WC_RECV,
    WC_RECV_RDMA_WITH_IMM,
    WC_SUCCESS,
    WC_UNSIGNALLED,
    WC_WITH_IMM,
    WC_WITH_INV,
    WC_WR_FLUSH_ERR,
)

EIO: Final = -errno.EIO
_IMM: Final = field_offset("ibv_wc", "imm_data")
_SHARED_WC: Final = 64  # of records.WC


@nopython
def wc_next(cq: int, wc: int) -> int:
    """The next completion into `wc`: the address of its queue pair, 0: none now, or -errno.

    WC_UNSIGNALLED in its flags: nobody asked to see it, it gives its token back.
    """
    own = cq_at(cq)[0]
    while True:
        qp = own["ready"]
        if qp:
            if _hand_back(qp, wc):
                return qp  # type: ignore[no-any-return]
            own["ready"] = 0
        if own["next"] == own["count"]:
            count = call_poll_cq(own["poll_cq"], own["handle"], BATCH, own["batch"])
            own["next"] = 0
            own["count"] = max(count, 0)
            if count <= 0:
                return EIO if count < 0 else 0
        device_wc = own["batch"] + own["next"] * WC_SIZE
        own["next"] += 1
        qp = keys.get(own["qps"], layouts.wc_at(device_wc)[0]["qp_num"])
        if qp == 0:
            own["strays"] += 1
        elif layouts.wc_at(device_wc)[0]["wr_id"] & SEND_BIT == 0:
            _receive(qp, device_wc, wc)
            return qp
        elif _note_sent(qp, device_wc):
            own["ready"] = qp
        else:
            own["strays"] += 1


@nopython
def _receive(qp: int, device_wc: int, wc: int) -> None:
    said, out = layouts.wc_at(device_wc)[0], wc_at(wc)[0]
    zero_bytes(wc, _SHARED_WC)
    rq_at(qp_at(qp)[0]["rq"])[0]["posted"] -= 1
    out["token"] = said["wr_id"]
    out["status"] = said["status"]
    out["vendor_err"] = said["vendor_err"]
    out["opcode"] = WC_RECV
    if said["status"] != WC_SUCCESS:
        _note_failure(qp)
        return
    if said["opcode"] == WC_RECV_RDMA_WITH_IMM:
        out["opcode"] = WC_RECV_RDMA_WITH_IMM
    out["byte_len"] = said["byte_len"]
    flags = said["wc_flags"] & (WC_WITH_IMM | WC_WITH_INV)
    out["flags"] = flags
    if flags & WC_WITH_INV:
        out["invalidated_rkey"] = load_32(device_wc + _IMM)
    elif flags & WC_WITH_IMM:
        out["imm"] = load_32_be(device_wc + _IMM)


@nopython
def _note_failure(qp: int) -> None:
    """A failed completion means an error state: the manual's rule for reliable connections."""
    qp_at(qp)[0]["state"] = QP_ERROR


@nopython
def _note_sent(qp: int, device_wc: int) -> bool:
    """Keep what the device says of a send until its turn; False if nobody posted it."""
    own, said = qp_at(qp)[0], layouts.wc_at(device_wc)[0]
    position = said["wr_id"] & ~SEND_BIT
    if position < own["done"] or position >= own["posted"]:
        return False
    sent = sent_at(_sent(qp, position))[0]
    if said["status"] != WC_SUCCESS:
        _note_failure(qp)
    if sent["state"] != SENT_POSTED:
        return False
    sent["state"] = SENT_COMPLETED
    sent["status"] = said["status"]
    sent["byte_len"] = said["byte_len"]
    sent["vendor_err"] = said["vendor_err"]
    if own["reached"] <= position:
        own["reached"] = position + 1
    return True


@nopython
def _sent(qp: int, position: int) -> int:
    own = qp_at(qp)[0]
    return own["sent"] + (position & (own["depth"] - 1)) * SENT_SIZE  # type: ignore[no-any-return]


@nopython
def _hand_back(qp: int, wc: int) -> bool:
    """The oldest send into `wc`, if it is known how it ended."""
    own = qp_at(qp)[0]
    while own["done"] < own["posted"]:
        sent = sent_at(_sent(qp, own["done"]))[0]
        if sent["state"] == SENT_REFUSED:
            own["done"] += 1
            continue
        covered = own["done"] < own["reached"] and not sent["asked"]
        if sent["state"] != SENT_COMPLETED and not covered:
            return False
        _show(qp, wc, sent["state"] == SENT_COMPLETED)
        own["done"] += 1
        return True
    return False


@nopython
def _show(qp: int, wc: int, completed: bool) -> None:
    own = qp_at(qp)[0]
    sent, out = sent_at(_sent(qp, own["done"]))[0], wc_at(wc)[0]
    zero_bytes(wc, _SHARED_WC)
    out["token"] = sent["token"]
    out["opcode"] = sent["opcode"]
    out["status"] = WC_SUCCESS
    if completed:
        out["status"] = sent["status"]
        out["byte_len"] = sent["byte_len"]
        out["vendor_err"] = sent["vendor_err"]
    # A failure is shown whether or not it was asked for.
    if not sent["signalled"] and out["status"] == WC_SUCCESS:
        out["flags"] = WC_UNSIGNALLED


@nopython
def flush_next(qp: int, wc: int) -> bool:
    """What a device no longer says: the oldest send of a queue pair that is gone, as flushed.

    For a queue pair that was destroyed after its completion queue was polled empty. Receives are
    the owner's to flush: the device does not say which it had.
    """
    own = qp_at(qp)[0]
    own["state"] = QP_ERROR
    while own["done"] < own["posted"]:
        sent = sent_at(_sent(qp, own["done"]))[0]
        if sent["state"] == SENT_REFUSED:
            own["done"] += 1
            continue
        if sent["state"] == SENT_POSTED:
            sent["status"] = WC_WR_FLUSH_ERR
            sent["byte_len"] = 0
            sent["vendor_err"] = 0
        _show(qp, wc, True)
        own["done"] += 1
        return True
    return False


@nopython
def req_notify(cq: int, solicited_only: int) -> int:
    """Ask for an event at the next completion, or the next solicited one: 0 or -errno."""
    own = cq_at(cq)[0]
    return -abs(call_req_notify_cq(own["req_notify_cq"], own["handle"], solicited_only))
