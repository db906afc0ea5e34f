"""Written data as it comes to a target (RFC 7143 §11.7): which burst a Data-Out belongs to, and
what is wrong with it. A wrong one ends its own command with CHECK CONDITION, or is rejected where
it names no burst; it never ends the connection, and nothing of it is placed.
"""

from typing import Final

from iscsi.wire import bhs, rx
from iscsi.wire.port import port_at
from iscsi.wire.sense import Asc, SenseKey
from iscsi.wire.target_command import command_data, end_spoiled, spoil
from iscsi.wire.target_refusal import INVALID_FIELD, reject
from iscsi.wire.target_task import (
    STATE_DATA_OUT,
    STATE_HELD,
    target_at,
    task_at,
    task_of,
)
from iscsi.wire.target_tx import R2T_TAG_MASK, r2t_tag
from shm.jit import nopython
from shm.memory import load_8, load_32_be

# The iSCSI conditions of RFC 7143 §11.4.7.2, as key << 16 | code.
_ABORTED: Final = int(SenseKey.ABORTED_COMMAND) << 16
UNEXPECTED_DATA: Final = _ABORTED | int(Asc.UNEXPECTED_UNSOLICITED_DATA)
INCORRECT_AMOUNT: Final = _ABORTED | int(Asc.INCORRECT_AMOUNT_OF_DATA)
CRC_ERROR: Final = _ABORTED | int(Asc.PROTOCOL_SERVICE_CRC_ERROR)
DATA_OFFSET_ERROR: Final = _ABORTED | 0x4B05  # SPC-4: the offset does not follow the data before

DATA: Final = 2  # an `rx_action`; see target_rx


@nopython
def data_out_header(conn: int, header: int) -> int:
    """Judge a Data-Out's header and say where its data goes: 0 or a violation."""
    port, mine = port_at(conn)[0], target_at(conn)[0]
    ttt = load_32_be(header + bhs.OFFSET_TTT)
    address = task_of(conn, load_32_be(header + bhs.OFFSET_ITT))
    if address == 0:
        # Its command may have been ignored, answered, or aborted while the data was on the way.
        if ttt == bhs.RESERVED_TAG or mine["has_aborted"]:
            port["discarded"] += 1
            return 0
        return reject(conn, header, INVALID_FIELD)
    task = task_at(address)[0]
    if not _names_burst(conn, address, ttt):
        if task["spoiled"] and task["state"] != STATE_DATA_OUT:
            port["discarded"] += 1
            return 0
        if ttt != bhs.RESERVED_TAG or task["state"] != STATE_DATA_OUT:
            return reject(conn, header, INVALID_FIELD)
        spoil(conn, address, UNEXPECTED_DATA)
        end_spoiled(conn, address)
        return 0
    if task["spoiled"] == 0:
        sense = _fault(conn, address, header, ttt)
        if sense:
            spoil(conn, address, sense)
    port["rx_action"] = DATA
    port["rx_object"] = address
    rx.place(conn, task["data_address"] + task["received"], command_data(address))
    return 0


@nopython
def _names_burst(conn: int, address: int, ttt: int) -> bool:
    """Whether data with this target transfer tag was announced or asked for."""
    task = task_at(address)[0]
    if task["state"] != STATE_DATA_OUT and task["state"] != STATE_HELD:
        return False
    if ttt == bhs.RESERVED_TAG:
        return bool(task["unsolicited"] != 0)
    open_count = task["r2t_sn"] - task["r2t_done"]
    if task["spoiled"] and open_count:  # Of a spoiled command the bursts are only counted.
        open_count = min(task["r2t_sn"], target_at(conn)[0]["max_outstanding_r2t"])
    first = task["r2t_sn"] - open_count
    behind = ((ttt >> 16) - first) & R2T_TAG_MASK
    return bool(behind < open_count and ttt == r2t_tag(conn, address, first + behind))


@nopython
def _burst_limit(conn: int, address: int, ttt: int) -> int:
    """Where the burst under way ends in the initiator's buffer."""
    task = task_at(address)[0]
    if ttt == bhs.RESERVED_TAG:
        return int(min(target_at(conn)[0]["first_burst_length"], task["expected_length"]))
    return int(task["burst_end"])


@nopython
def _fault(conn: int, address: int, header: int, ttt: int) -> int:
    """The sense for what is wrong with a Data-Out, or 0. Bursts come in the order of their R2Ts,
    and data in the order of its offsets, because both of those keys are Yes here.
    """
    task = task_at(address)[0]
    if ttt != bhs.RESERVED_TAG and ttt != r2t_tag(conn, address, task["r2t_done"]):
        return CRC_ERROR  # a burst before it is missing
    if load_32_be(header + bhs.OFFSET_DATA_SN) != task["data_out_sn"]:
        return CRC_ERROR  # a PDU is missing (RFC 7143 §7.9)
    if load_32_be(header + bhs.OFFSET_BUFFER_OFFSET) != task["received"]:
        return DATA_OFFSET_ERROR
    end = task["received"] + port_at(conn)[0]["rx_data_length"]
    limit = _burst_limit(conn, address, ttt)
    is_final = load_8(header + bhs.OFFSET_FLAGS) & bhs.FLAG_FINAL != 0
    if end > limit or (end == limit and not is_final):
        return INCORRECT_AMOUNT
    if is_final and end < limit and ttt != bhs.RESERVED_TAG:
        return INCORRECT_AMOUNT
    return 0


@nopython
def ends_burst(conn: int, address: int, header: int) -> bool:
    """Whether a Data-Out, now complete, is the last of its burst. In a spoiled one as much data as
    was asked for is the end, too: whoever forgot the F bit sends no more.
    """
    if load_8(header + bhs.OFFSET_FLAGS) & bhs.FLAG_FINAL:
        return True
    task = task_at(address)[0]
    end = task["received"] + port_at(conn)[0]["rx_data_length"]
    ttt = load_32_be(header + bhs.OFFSET_TTT)
    return bool(task["spoiled"] and end >= _burst_limit(conn, address, ttt))
