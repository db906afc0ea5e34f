"""What a session and a unit have done, as plain dicts of numbers and names: for `ppe target stat`,
logs and tests. Made in the server's thread.
"""

import contextlib
from typing import Any

from iscsi.target.connection import Connection
from iscsi.target.units import LogicalUnit, Target
from iscsi.wire.lun import LUN, LUN_SIZE
from iscsi.wire.target_task import TARGET
from shm.view import address_of, window

_COUNTED = ("reads", "writes", "read_bytes", "written_bytes")


def session_statistics(connection: Connection) -> dict[str, Any]:
    """Who, from where, to which target, and how much went over its connection."""
    assert connection.protocol is not None, "only the full feature phase has numbers"
    assert connection.result is not None, "it logged in"
    result = connection.result
    mine = window(connection.protocol.address, 1, TARGET)[0]
    return {
        "initiator": result.initiator_name,
        "isid": f"{result.isid:012x}",
        "tsih": result.tsih,
        "peer": str(connection),
        "target": result.target_name,
        "portal_group_tag": connection.portal_group_tag,
        "user": result.user,
        "phase": connection.phase.name.lower(),
        "engine": connection.lane.engine,
        **connection.counts,
        "workers": connection.jobs,
        "buffer_bytes": int(mine["buffer_held"]),
    }


def unit_statistics(target: Target, lun: int, unit: LogicalUnit) -> dict[str, Any]:
    """What a unit is, and the READs and WRITEs that compiled code served at this LUN."""
    found: dict[str, Any] = {
        "lun": lun,
        "size": unit.backend.size,
        "block_size": unit.block_size,
        "read_only": unit.write_protected,
        "thin": unit.is_thin,
        "write_cache": unit.backend.write_cache,
        "serial": unit.serial,
    }
    if lun < target.table.size:
        entry = window(address_of(target.table) + LUN_SIZE * lun, 1, LUN)[0]
        found.update({name: int(entry[name]) for name in _COUNTED})
    if unit.backend.medium is not None:
        found["medium"] = unit.backend.medium.counts
    return found


def room_statistics(unit: LogicalUnit) -> dict[str, int]:
    """How much room a thin unit takes, and how much is left for the rest; nothing where nobody can
    tell. Any thread: its file system is asked.
    """
    usage = None
    with contextlib.suppress(OSError):  # It may have been closed, or be on a medium that fails.
        usage = unit.backend.usage()
    return {} if usage is None else {"used": usage.used, "available": usage.available}
