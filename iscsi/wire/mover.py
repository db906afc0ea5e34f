"""The datamover interface (RFC 5047) as records: what the iSCSI layer asks of whoever frames PDUs
and moves data for it, and what it is told. One POST becomes one work-queue entry of two slots, one
EVENT is one completion. The upper half (session or target) knows nothing of TCP or iSER; the lower
half, in the engine, trusts nothing it is told: it bounds every number before it uses it.
"""

from typing import Final

from shm.layout import Field, layout_hash, record
from shm.operations import (
    EVENT_WINDOW,
    MOVER_ABORT,
    MOVER_ANSWER,
    MOVER_CANCEL,
    MOVER_COMMAND,
    MOVER_CONTROL,
    MOVER_DONE,
    MOVER_GATE,
    MOVER_GET,
    MOVER_RECEIVE,
)
from shm.view import opener

# What is asked, with RFC 5047's name for it:
COMMAND: Final = MOVER_COMMAND  # Send_Control of a SCSI Command: its data is named once, here
CONTROL: Final = MOVER_CONTROL  # Send_Control of any other PDU
RECEIVE: Final = MOVER_RECEIVE  # lend a buffer for one Control_Notify
CANCEL: Final = MOVER_CANCEL  # Deallocate_Task_Resources, at the initiator
GET: Final = MOVER_GET  # Get_Data, at the target
ANSWER: Final = MOVER_ANSWER  # Put_Data with its status, or Send_Control of a SCSI Response
ABORT: Final = MOVER_ABORT  # Deallocate_Task_Resources of many tasks, at the target
DONE: Final = MOVER_DONE  # the target has looked at a control PDU: its window place is free
GATE: Final = MOVER_GATE  # whether the lower half may serve a nexus' READ and WRITE of a unit
WINDOW: Final = EVENT_WINDOW  # unsolicited: the command window moved, and nothing else tells of it

POST: Final = record(
    Field("opcode", "<i8"),
    Field("flags", "<i8"),
    Field("user_data", "<i8"),
    # Data buffer of the session's or the target's own, `length` bytes; 0 for none.
    Field("address", "<i8"),
    Field("length", "<i8"),
    # What follows travels as it is. `home` is the upper half's block of memory: offsets in it name
    # what is small and has one place (sense data, AHS, control PDUs, gather lists).
    Field("arg0", "<i8"),
    Field("arg1", "<i8"),
    Field("arg2", "<i8"),  # 32 bits
    Field("more0", "<i8"),
    Field("more1", "<i8"),
    Field("more2", "<i8"),
    Field("more3", "<i8"),
    Field("more4", "<i8"),
    Field("more5", "<i8"),
    size=128,
)
EVENT: Final = record(
    Field("opcode", "<i8"),
    Field("user_data", "<i8"),
    Field("status", "<i8"),  # 0 or -errno, or the Violation that ended the connection
    Field("length", "<i8"),
    Field("arg0", "<i8"),
    Field("arg1", "<i8"),
    Field("arg2", "<i8"),
    size=64,
)
# One entry of a gather list in `home`: memory of the upper half, by region.
VECTOR: Final = record(
    Field("region", "<i8"), Field("offset", "<i8"), Field("length", "<i8"), size=24
)
post_at = opener(POST)
event_at = opener(EVENT)
vector_at = opener(VECTOR)

# COMMAND. address, length: the data buffer, all `expected_length` bytes of it. arg0: the
# eight-byte LUN field; arg1: ITT | CmdSN << 32; arg2: byte 1 of the PDU (R, W, attribute)
# | bytes of AHS << 8 | entries of the gather list << 20; more0, more1: the CDB; more2: offset in
# `home` of SENSE_ROOM bytes; more3: of the AHS. With a gather list more4 is the offset in `home` of
# VECTOR[entries], more5 the bytes of all of them, address and length are 0. The mirror fills in
# addresses as offsets of region 0; who posts it names regions; who takes it copies the list once
# and hands the addresses down as RUN[entries] at more4. An entry without a byte, another sum than
# more5, or entries of a READ that overlap: -EINVAL.
# Its event: length: bytes received; arg0: response | status << 8 | residual flags << 16 | bytes
# of SenseLength and sense data << 24; arg1: residual count; arg2: ExpCmdSN | MaxCmdSN << 32.
AHS_SHIFT: Final = 8
VECTOR_SHIFT: Final = 20
AHS_MASK: Final = 0xFFF
VECTORS_MAX: Final = 64

# CONTROL. more0: offset in `home` of the header, the data `CONTROL_DATA` behind it; arg2: bytes of
# data; arg1: at a target, the longest data segment that its initiator takes from now on (a Text
# Request may change it, RFC 7143 §13.12), or 0: as before.
# An initiator's header holds its ITT and CmdSN. Its event says that it was copied; a
# NOP-Out's that it was answered (arg2: as of a COMMAND).

# RECEIVE. address, length: a buffer. Its event: length: bytes in it, a header, AHS, data; arg0:
# what to name it by, the target's task id (IS_COMMAND) or control slot; arg1: IS_CONTROL or
# IS_COMMAND; arg2: at an initiator, the window; at a target, `arg2` of the newest ABORT it has
# carried out, so that what was shown before one is told from what came after it.
IS_CONTROL: Final = 0
IS_COMMAND: Final = 1

# CANCEL. arg1: the ITT. The command then ends with -ECANCELED, once, when nothing touches its
# buffer any more; -ENOENT if it names no open command. At a target, arg0: the id of a task with a
# GET: once this is over nothing more of its data is placed; the GET ends when its bursts do.

# GET. address, length: where to put `length` bytes; arg0: task id; arg1: their offset in the
# initiator's buffer. Its event: all of them are there, or -ENOENT: the task was aborted;
# another status ends the command: arg0: sense (key << 16 | code) of what went wrong with the data.

# ANSWER. address, length: data to send, if any; arg0: task id; arg1: status | residual flags << 8
# | bytes of sense at more0 << 16 | sense made by compiled code (key << 16 | code) << 32; arg2:
# residual count; more0: offset in `home` of SenseLength and sense data. Its event: everything is
# handed to the transport; -ENOENT: the task was aborted. flags MAY_CHANGE: others may write to the
# data meanwhile, as to a unit's memory, so that with a data digest a copy is to be sent.
MAY_CHANGE: Final = 1 << 9

# ABORT. arg0: LUN, or -1 for all; arg1: CmdSN before which they came, or -1 for all; flags
# ONE_TASK: arg1 is the ITT of the only one, and arg0 -1 or RefCmdSN | CmdSN of the request << 32:
# if it has not come yet, it counts as received (RFC 7143 §11.5.5) and as the one. arg2: a number
# that RECEIVEs repeat. Its event, when nothing touches their buffers: arg0: how many there were.
# With QUERY nothing is ended, arg1 is an ITT or -1, and its event, which comes at once, has in arg0
# how many open tasks of that LUN and tag there are (RFC 7144 §4.3), or with OLDEST as well the id
# of the one that has waited longest for written data among those served without the host, or -1.
ONE_TASK: Final = 1 << 8
QUERY: Final = 1 << 9
# With REFUSE WRITEs of the LUN that wait for data end with the sense arg1 (key << 16 | code), and
# nothing more of theirs reaches the unit.
OLDEST: Final = 1 << 10
REFUSE: Final = 1 << 11

# DONE. arg0: the control slot of a RECEIVE's event.

# GATE. arg0: LUN; arg1: GATE_OPEN, GATE_CLOSED or GATE_READS_ONLY. Its event: it holds for every
# command from now on.

LAYOUT: Final = layout_hash([POST, EVENT, VECTOR])
