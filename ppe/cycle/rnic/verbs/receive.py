"""Post a receive work request to a verbs device, to a queue pair's own queue or to a shared one.

The two differ in the function that is called and in nothing else. A token travels in the device's
`wr_id` and comes back with the completion.
"""

import errno
from typing import Final

from ppe.cycle.rnic.records import WR_SGES, wr_at
from ppe.cycle.rnic.verbs.calls import call_post
from ppe.cycle.rnic.verbs.layouts import SGE_SIZE, recv_wr_at
from ppe.cycle.rnic.verbs.records import rq_at
from ppe.cycle.rnic.verbs.send import SEND_BIT
from shm.jit import nopython
from shm.memory import copy_bytes

EINVAL: Final = -errno.EINVAL
ENOMEM: Final = -errno.ENOMEM


@nopython
def post_recv(rq: int, wr: int) -> int:
    """Give one receive to the device: 0, -ENOMEM when the queue is full, -EINVAL, or the device's.

    A token is from 0 to 2^62 - 1.
    """
    own, asked = rq_at(rq)[0], wr_at(wr)[0]
    token, count = asked["token"], asked["sge_count"]
    if token < 0 or token >= SEND_BIT or count < 0 or count > own["sges_max"]:
        return EINVAL
    if own["posted"] >= own["capacity"]:
        return ENOMEM
    out = recv_wr_at(own["wr"])[0]
    out["wr_id"] = token
    out["next"] = 0
    out["sg_list"] = own["sg_list"]
    out["num_sge"] = count
    copy_bytes(own["sg_list"], wr + WR_SGES, count * SGE_SIZE)
    said = abs(call_post(own["post_recv"], own["handle"], own["wr"], own["bad_wr"]))
    if said == 0:
        own["posted"] += 1
    return -said
