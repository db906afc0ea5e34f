"""The queue pair beneath the datamover, as its protocol asks for it: taken over, posted to, looked
at for what is over, let go of. Work requests name memory by addresses that were checked; its key is
put in here. Nothing of a connection is in a domain of its client: its keys and tags are its own.

The one rule: whatever depends on the RNIC is here, in `iser_device` and in `iser_tags`, and nowhere
above.
"""

import errno
from typing import Final

from ppe.cycle.endpoints import endpoint_id, endpoint_of, queue_transmit
from ppe.cycle.records import NONE, endpoint_at, engine_at
from ppe.cycle.rnic import memory
from ppe.cycle.rnic.records import SGE_SIZE, WR_SGES, rq_at, sge_at, wr_at
from ppe.cycle.services import iser_device as device
from ppe.cycle.services import iser_tags as tags
from ppe.cycle.services import rdma_core as core
from ppe.cycle.services.mover_records import mover_at
from ppe.cycle.services.rdma_records import held_at, rnic_at
from shm.jit import nopython
from shm.verbs_numbers import ACCESS_LOCAL_WRITE, ACCESS_MW_BIND

EBUSY: Final = -errno.EBUSY
# The one key for all memory of the engine: local, so that no peer can use it. It begins behind the
# page that no address is in.
FIRST_ADDRESS: Final = 4096
EVERYTHING: Final = 1 << 47
# Domains of connections lie apart from those of clients, which are ids of endpoints.
DOMAIN_BIT: Final = 1 << 40


@nopython
def take_over(engine: int, index: int) -> int:
    """The protocol has the queue pair from now on: 0, -EBUSY if something is posted to it, or if
    others have a part in it, or -errno.
    """
    if device.is_device(engine, index):
        return device.take_over(engine, index)
    endpoint = endpoint_at(endpoint_of(engine, index))[0]
    mover, held = mover_at(endpoint["mover"])[0], held_at(endpoint["qp"])[0]
    rq = core.rq_of(held["core"])
    if held["shared"] != NONE or held["started"] == 0 or rq_at(rq)[0]["posted"] != 0:
        return EBUSY
    domain = _domain(engine, index)
    skewed = memory.wrap(FIRST_ADDRESS + mover["skew"])
    access = ACCESS_LOCAL_WRITE | ACCESS_MW_BIND  # which no peer can use either
    key = memory.register(_table(engine), domain, domain, FIRST_ADDRESS, EVERYTHING, skewed, access)
    if key < 0:
        return key
    mover["key"] = key
    if mover["tags"] != 0:
        number = core.number_of(held["core"])
        tags.begin(mover["tags"], _table(engine), domain, number, key, mover["skew"])
    core.move_to_domain(held["core"], domain)
    return 0


@nopython
def post_recv(engine: int, index: int, wr: int) -> int:
    """Post a receive: 0 or -errno."""
    if device.is_device(engine, index):
        return device.post_recv(engine, index, wr)
    _name_memory(engine, index, wr)
    return core.post_recv(core.rq_of(_qp(engine, index)), wr)


@nopython
def post_send(engine: int, index: int, wr: int) -> int:
    """Post anything else, and have it sent: 0 or -errno."""
    if device.is_device(engine, index):
        return device.post_send(engine, index, wr)
    _name_memory(engine, index, wr)
    outcome = core.post_send(_qp(engine, index), wr)
    if outcome >= 0:
        queue_transmit(engine, index)
    return outcome


@nopython
def reaches(engine: int, index: int, address: int, length: int) -> bool:
    """Whether the RNIC reaches some of the engine's memory for this connection."""
    return not device.is_device(engine, index) or device.reaches(engine, index, address, length)


@nopython
def wc_next(engine: int, index: int, wc: int) -> bool:
    """Fill in the next WC, in the manual's order; False if nothing more is over, or if completions
    are handed over one by one (TOLD).
    """
    if device.is_device(engine, index):
        return False
    return core.wc_next(_qp(engine, index), wc)


@nopython
def let_go(engine: int, index: int) -> None:
    """The connection is over: completions that nobody looks at any more are dropped, its keys and
    tags are gone. What a device has of it, it has until the control plane ends the queue pair.
    """
    if device.is_device(engine, index):
        return
    qp, wc = _qp(engine, index), rnic_at(engine_at(engine)[0]["rnic"])[0]["wc"]
    while core.wc_next(qp, wc):
        pass  # Whatever they say, everything ends now.
    memory.remove_client(_table(engine), _domain(engine, index))


@nopython
def _table(engine: int) -> int:
    return int(rnic_at(engine_at(engine)[0]["rnic"])[0]["table"])


@nopython
def _qp(engine: int, index: int) -> int:
    return int(held_at(endpoint_at(endpoint_of(engine, index))[0]["qp"])[0]["core"])


@nopython
def _domain(engine: int, index: int) -> int:
    return endpoint_id(engine, index) | DOMAIN_BIT


@nopython
def _name_memory(engine: int, index: int, wr: int) -> None:
    """Give the pieces of a WR, whose addresses were checked, the key they have with the RNIC."""
    mine = mover_at(endpoint_at(endpoint_of(engine, index))[0]["mover"])[0]
    for which in range(wr_at(wr)[0]["sge_count"]):
        place = sge_at(wr + WR_SGES + SGE_SIZE * which)[0]
        place["addr"] = memory.wrap(place["addr"] + mine["skew"])
        place["lkey"] = mine["key"]
