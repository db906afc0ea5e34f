"""Post a send work request to a verbs device: check it, translate it, call the device.

The one rule: positions. Each send that the device was given has the next position of its queue
pair, the device's `wr_id` is that position, and its token is kept until `poll` hands it back.
Reads and atomics are always signalled at the device, even if their poster does not care: a device
may complete a later send first (siw does), and then nothing else would tell when they are done.
"""

import errno
from typing import Final

from ppe.cycle.rnic.opcodes import completion_opcode
from ppe.cycle.rnic.records import WR_SGES, wr_at
from ppe.cycle.rnic.verbs import keys
from ppe.cycle.rnic.verbs.calls import call_post
from ppe.cycle.rnic.verbs.layouts import (
    SEND_WR_SIZE,
    SGE_SIZE,
    atomic_wr_at,
    bind_wr_at,
    field_offset,
    send_wr_at,
)
from ppe.cycle.rnic.verbs.records import (
    QP_READY,
    SENT_POSTED,
    SENT_REFUSED,
    SENT_SIZE,
    qp_at,
    sent_at,
)
from shm.jit import nopython
from shm.memory import copy_bytes, load_32, store_32, store_32_be, store_64, zero_bytes
from shm.verbs_numbers import (
    SEND_FLAGS,
    SEND_INLINE,
    SEND_SIGNALED,
    WR_ATOMIC_CMP_AND_SWP,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_BIND_MW,
    WR_LOCAL_INV,
    WR_RDMA_READ,
    WR_RDMA_WRITE_WITH_IMM,
    WR_SEND,
    WR_SEND_WITH_IMM,
    WR_SEND_WITH_INV,
)

EINVAL: Final = -errno.EINVAL
ENOMEM: Final = -errno.ENOMEM
ENOTCONN: Final = -errno.ENOTCONN
EOPNOTSUPP: Final = -errno.EOPNOTSUPP
ENOENT: Final = -errno.ENOENT

SEND_BIT: Final = 1 << 62  # in a wr_id: a send's position; without it, a receive's token
_IMM: Final = field_offset("ibv_send_wr", "imm_data")
_SGE_LENGTH: Final = 8
_WORD: Final = 0xFFFFFFFF
# Opcodes whose completion may come after that of a later send.
ANSWERED: Final = 1 << WR_RDMA_READ | 1 << WR_ATOMIC_CMP_AND_SWP | 1 << WR_ATOMIC_FETCH_AND_ADD
_OPCODES: Final = 32


@nopython
def post_send(qp: int, wr: int) -> int:
    """Give one send to the device: 0, or -errno and nothing was posted.

    -ENOTCONN: the connection is gone; -EOPNOTSUPP: the device cannot; -ENOMEM: the queue is full;
    -EINVAL: gather list, flags or length; -ENOENT: a window or region that is not the device's.
    """
    own, asked = qp_at(qp)[0], wr_at(wr)[0]
    wrong = _check(qp, wr)
    if wrong:
        return wrong
    wrong = _translate(qp, wr)
    if wrong:
        return wrong
    position = own["posted"]
    own["posted"] = position + 1
    _remember(qp, position, asked["token"], asked["opcode"], asked["flags"] & SEND_SIGNALED)
    said = abs(call_post(own["post_send"], own["handle"], own["wr"], own["bad_wr"]))
    if said == 0:
        return 0
    if said == errno.ENOMEM or said == errno.EINVAL or said == errno.EOPNOTSUPP:
        own["posted"] = position  # the device looked at it and did not take it
    else:
        # siw puts a request into its ring before it learns that the doorbell does not work: a
        # completion may still come, and must find that nobody waits for it.
        sent_at(own["sent"] + (position & (own["depth"] - 1)) * SENT_SIZE)[0]["state"] = (
            SENT_REFUSED
        )
    return -said


@nopython
def _check(qp: int, wr: int) -> int:
    """Whether the device can be given this at all."""
    own, asked = qp_at(qp)[0], wr_at(wr)[0]
    opcode, flags, count = asked["opcode"], asked["flags"], asked["sge_count"]
    if own["state"] != QP_READY:
        return ENOTCONN
    if opcode < 0 or opcode >= _OPCODES or not own["opcodes"] >> opcode & 1 or asked["masked"]:
        return EOPNOTSUPP
    if flags & ~SEND_FLAGS or count < 0 or count > own["sges_max"]:
        return EINVAL
    if flags & SEND_INLINE:
        carries = opcode <= WR_SEND_WITH_IMM or opcode == WR_SEND_WITH_INV
        length = asked["inline_length"]
        if not carries or length < 0 or length > own["inline_max"]:
            return EINVAL
    if own["posted"] - own["done"] >= own["limit"]:
        return ENOMEM
    return 0


@nopython
def _remember(qp: int, position: int, token: int, opcode: int, signalled: int) -> None:
    own = qp_at(qp)[0]
    sent = sent_at(own["sent"] + (position & (own["depth"] - 1)) * SENT_SIZE)[0]
    sent["token"] = token
    sent["state"] = SENT_POSTED
    sent["signalled"] = signalled
    sent["asked"] = signalled | (own["always_ask"] >> opcode & 1)
    sent["opcode"] = completion_opcode(opcode)


@nopython
def _translate(qp: int, wr: int) -> int:
    """Write the request as the device wants it: 0 or -errno."""
    own, asked = qp_at(qp)[0], wr_at(wr)[0]
    opcode, flags, out = asked["opcode"], asked["flags"], own["wr"]
    zero_bytes(out, SEND_WR_SIZE)
    send = send_wr_at(out)[0]
    send["wr_id"] = SEND_BIT | own["posted"]
    send["sg_list"] = own["sg_list"]
    send["opcode"] = opcode
    if own["always_ask"] >> opcode & 1:
        flags |= SEND_SIGNALED
    send["send_flags"] = flags
    if flags & SEND_INLINE:
        send["num_sge"] = 1 if asked["inline_length"] else 0
        store_64(own["sg_list"], asked["inline_address"])
        store_32(own["sg_list"] + _SGE_LENGTH, asked["inline_length"])
        store_32(own["sg_list"] + _SGE_LENGTH + 4, 0)
    else:
        send["num_sge"] = asked["sge_count"]
        copy_bytes(own["sg_list"], wr + WR_SGES, asked["sge_count"] * SGE_SIZE)
    return _translate_own(qp, wr)


@nopython
def _translate_own(qp: int, wr: int) -> int:
    """The fields that only this opcode has."""
    own, asked = qp_at(qp)[0], wr_at(wr)[0]
    opcode, out = asked["opcode"], own["wr"]
    send = send_wr_at(out)[0]
    if opcode == WR_SEND:
        return 0
    if opcode in (WR_SEND_WITH_INV, WR_LOCAL_INV):
        store_32(out + _IMM, asked["invalidate_rkey"])  # not in network order
        send["rkey"] = asked["invalidate_rkey"]  # where siw's user-space half looks for it
        return 0
    if opcode == WR_SEND_WITH_IMM:
        store_32_be(out + _IMM, asked["imm"])
        return 0
    if opcode == WR_BIND_MW:
        return _translate_bind(qp, wr)
    send["remote_addr"] = asked["remote_addr"]
    if opcode in (WR_ATOMIC_CMP_AND_SWP, WR_ATOMIC_FETCH_AND_ADD):
        atomic = atomic_wr_at(out)[0]
        atomic["compare_add"] = asked["compare_add"]
        atomic["swap"] = asked["swap"]
        atomic["rkey"] = asked["rkey"]
        return 0
    send["rkey"] = asked["rkey"]
    if opcode == WR_RDMA_WRITE_WITH_IMM:
        store_32_be(out + _IMM, asked["imm"])
    return 0


@nopython
def _translate_bind(qp: int, wr: int) -> int:
    """A window of the second type: its next rkey has another key and the same index."""
    own, asked = qp_at(qp)[0], wr_at(wr)[0]
    window = keys.get(own["windows"], asked["bind_window"] >> 8 & _WORD)
    region = keys.get(own["regions"], asked["bind_lkey"] & _WORD)
    if window == 0 or region == 0:
        return ENOENT
    bind = bind_wr_at(own["wr"])[0]
    bind["mw"] = window
    bind["rkey"] = next_rkey(asked["bind_window"])
    bind["mr"] = region
    bind["addr"] = asked["bind_addr"]
    bind["length"] = asked["bind_length"]
    bind["access"] = asked["bind_access"]
    return 0


@nopython
def next_rkey(rkey: int) -> int:
    """The rkey that a window gets when it is bound again (ibv_inc_rkey)."""
    return (rkey & 0xFFFFFF00) | ((rkey + 1) & 0xFF)


@nopython
def rkey_of(memory_window: int) -> int:
    """The rkey that a struct ibv_mw has now."""
    return load_32(memory_window + 16)
