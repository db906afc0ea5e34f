"""A COMMAND's gather list: copied once into the engine's own memory, then every entry checked and
turned into an address. Nothing is looked at twice in memory that the host may change meanwhile.
"""

import errno
from typing import Final

from iscsi.wire.initiator_mover import is_inside
from iscsi.wire.initiator_task import initiator_at
from iscsi.wire.mover import COMMAND, VECTOR, VECTOR_SHIFT, post_at, vector_at
from iscsi.wire.runs import RUN_SIZE, run_at
from ppe.cycle.regions import resolve
from ppe.cycle.services.mover_records import INITIATOR_ROLE, mover_at
from shm.jit import nopython
from shm.memory import copy_bytes

EINVAL: Final = -errno.EINVAL
EFAULT: Final = -errno.EFAULT
VECTOR_SIZE: Final = VECTOR.itemsize
assert RUN_SIZE <= VECTOR_SIZE, "runs take the place of their vectors"


@nopython
def gather(engine: int, client: int, mover: int, post: int) -> int:
    """Resolve a POST's gather list, if it has one, to RUN[entries] at its more4: 0, -EINVAL, or
    -EFAULT for memory that the client has not lent.
    """
    mine, what = mover_at(mover)[0], post_at(post)[0]
    count = what["arg2"] >> VECTOR_SHIFT
    if what["opcode"] != COMMAND or mine["role"] != INITIATOR_ROLE or count == 0:
        return 0
    conn = initiator_at(mine["conn"])[0]
    size = count * VECTOR_SIZE
    if count > conn["vectors_max"] or not is_inside(what["more4"], size, mine["home_size"]):
        return EINVAL
    vectors = int(conn["vectors"])
    copy_bytes(vectors, mine["home"] + what["more4"], size)
    for index in range(count):
        vector = vector_at(vectors + VECTOR_SIZE * index)[0]
        region, length = vector["region"], int(vector["length"])
        if length <= 0 or region < 0:
            return EINVAL
        address = resolve(engine, client, region, vector["offset"], length)
        if address == 0:
            return EFAULT
        run = run_at(vectors + RUN_SIZE * index)[0]
        run["address"] = address
        run["length"] = length
    what["more4"] = vectors
    return 0
