"""How a job ended, in words: results of good ones, exceptions for the others."""

import ctypes
import os
from dataclasses import dataclass
from typing import Any

from iscsi.session import jobs
from iscsi.session.errors import CommandTimeout, ConnectionLost, SessionError, UnknownOutcome
from iscsi.wire import bhs, violations
from iscsi.wire.errors import ProtocolError, RemoteProtocolError, ScsiError
from iscsi.wire.scsi import parse_cdb
from iscsi.wire.sense import decode_sense
from shm.operations import CANCELLED, END_OF_STREAM


@dataclass(frozen=True, slots=True)
class CommandResult:
    """A command that ended GOOD: the data it brought, and its residual count.

    `residual` is positive for an underflow (so many bytes fewer than there was room for), negative
    for an overflow.
    """

    data: bytes
    residual: int = 0


def residual_of(job: int) -> int:
    """Bytes fewer (positive) or more (negative) than expected."""
    mine: Any = jobs.job_at(job)[0]
    sign = -1 if mine["residual_flags"] & bhs.FLAG_OVERFLOW else 1
    return sign * int(mine["residual_count"]) if mine["residual_flags"] else 0


def error_of_job(job: int, lost: Exception | None = None) -> Exception | None:
    """The exception a finished job stands for, or None. `lost`: why the connection ended, if so."""
    mine: Any = jobs.job_at(job)[0]
    if not mine["failed"] and not mine["status"] and not mine["response"]:
        return None
    result = int(mine["result"])
    what = _operation(ctypes.string_at(job + jobs.JOB_CDB, 16))
    if result == -jobs.ECANCELED:
        return SessionError("the command was given up")
    if result == -jobs.UNKNOWN_OUTCOME:
        return UnknownOutcome(
            f"{what}: the connection was lost before the answer; it may have been executed or not"
        )
    if result == -jobs.TIMED_OUT_RESULT:
        return CommandTimeout("a command was not answered in time; it may have been executed")
    if result:
        return lost or error_of_connection(result, "the target")
    if mine["response"]:
        return SessionError(f"{what}: the target answered that it failed (response 0x01)")
    if mine["status"]:
        sense = ctypes.string_at(job + jobs.JOB_SENSE, int(mine["sense_length"]))
        return ScsiError(int(mine["status"]), decode_sense(sense), what)
    return SessionError(
        f"{what}: the target said GOOD but moved {int(mine['received'])} bytes "
        f"(residual {residual_of(job)})"
    )


def error_of_connection(code: int, who: str, unanswered: int = 0) -> Exception:
    """The exception for a pump's error: a violation, an end of stream or a transport's errno."""
    if violations.is_violation(code):
        return RemoteProtocolError(f"{who}: {violations.describe(code)}; the connection was closed")
    behind = f" with {unanswered} commands unanswered" if unanswered else ""
    if code == END_OF_STREAM:
        return ConnectionLost(f"{who} closed the connection{behind}")
    if code == CANCELLED:
        return ConnectionLost(f"the connection to {who} was closed{behind}")
    return ConnectionLost(f"the connection to {who} broke{behind}: {os.strerror(-code)}")


def _operation(cdb: bytes) -> str:
    try:
        parsed = parse_cdb(cdb)
    except ProtocolError:
        return f"SCSI command 0x{cdb[0]:02x}"
    name = parsed.operation.name.replace("_", " ")
    if "READ 1" in name or "WRITE 1" in name:
        return f"{name} of {parsed.length} blocks at {parsed.lba}"
    return name
