"""A verbs device's queue pair beneath the datamover: what `iser_queue` does where that is the RNIC.
Completions are not asked for here: whoever polls the device's completion queues hands each over.

The one rule: what the device is given was lent to it, and comes back when the device is done.
"""

import errno
from typing import Final

from ppe.cycle.endpoints import endpoint_id, endpoint_of
from ppe.cycle.records import NONE, endpoint_at, engine_at
from ppe.cycle.rnic.records import SGE_SIZE, WR_SGES, sge_at, wr_at
from ppe.cycle.rnic.verbs import receive, send
from ppe.cycle.rnic.verbs.loans import give_back, lend, oldest
from ppe.cycle.rnic.verbs.records import qp_at
from ppe.cycle.services.iser_lent import piece_at, piece_of
from ppe.cycle.services.mover_records import mover_at, tags_at
from ppe.cycle.services.rdma_records import held_at, rnic_at
from shm.jit import nopython
from shm.verbs_numbers import ACCESS_LOCAL_WRITE

EBUSY: Final = -errno.EBUSY
EFAULT: Final = -errno.EFAULT
EOPNOTSUPP: Final = -errno.EOPNOTSUPP


@nopython
def is_device(engine: int, index: int) -> bool:
    """Whether an endpoint's queue pair is a verbs device's."""
    service = endpoint_at(endpoint_of(engine, index))[0]["service"]
    return bool(service != 0 and service == engine_at(engine)[0]["verbs"])


@nopython
def take_over(engine: int, index: int) -> int:
    """As `iser_queue.take_over`; -EOPNOTSUPP if the device has registered nothing for it."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    mover, held = mover_at(endpoint["mover"])[0], held_at(endpoint["qp"])[0]
    if held["shared"] != NONE or held["started"] == 0 or held["stopped"] != 0:
        return EBUSY
    if oldest(held["sends"]) != 0 or oldest(held["receives"]) != 0:
        return EBUSY
    if mover["lent"] == 0:
        return EOPNOTSUPP
    if mover["tags"] != 0:
        tags_at(mover["tags"])[0]["lent"] = mover["lent"]
    return 0


@nopython
def post_recv(engine: int, index: int, wr: int) -> int:
    """Give the device a receive: 0 or -errno."""
    held = held_at(endpoint_at(endpoint_of(engine, index))[0]["qp"])[0]
    outcome = _lend(engine, index, held["receives"], wr, ACCESS_LOCAL_WRITE)
    if outcome < 0:
        return outcome
    outcome = receive.post_recv(qp_at(held["core"])[0]["rq"], wr)
    if outcome < 0:
        give_back(wr_at(wr)[0]["token"])
    return outcome


@nopython
def post_send(engine: int, index: int, wr: int) -> int:
    """Give the device anything else that only reads our memory: 0 or -errno."""
    held = held_at(endpoint_at(endpoint_of(engine, index))[0]["qp"])[0]
    outcome = _lend(engine, index, held["sends"], wr, 0)
    if outcome < 0:
        return outcome
    outcome = send.post_send(held["core"], wr)
    if outcome < 0:
        give_back(wr_at(wr)[0]["token"])
    return outcome


@nopython
def reaches(engine: int, index: int, address: int, length: int) -> bool:
    """Whether the device has registered some memory for this connection."""
    lent = mover_at(endpoint_at(endpoint_of(engine, index))[0]["mover"])[0]["lent"]
    return piece_of(lent, address, length) != 0


@nopython
def _lend(engine: int, index: int, loans: int, wr: int, access: int) -> int:
    """Name the pieces of a WR, whose addresses were checked, and lend them: 0 or -errno."""
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    lent = mover_at(endpoint["mover"])[0]["lent"]
    for which in range(wr_at(wr)[0]["sge_count"]):
        place = sge_at(wr + WR_SGES + SGE_SIZE * which)[0]
        if place["length"] == 0:
            continue
        piece = piece_of(lent, place["addr"], place["length"])
        if piece == 0:
            return EFAULT
        place["lkey"] = piece_at(piece)[0]["key"]
    table = rnic_at(engine_at(engine)[0]["rnic"])[0]["table"]
    domain = endpoint_id(engine, held_at(endpoint["qp"])[0]["domain"])
    return lend(loans, table, domain, wr, access)
