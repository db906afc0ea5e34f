"""The target's side of a connection in the full feature phase, for Python: doors into the compiled
code, and a class that owns none of the memory it works in. No input, output or time.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from iscsi.wire import (
    bhs,
    port,
    target_aborted,
    target_command,
    target_rx,
    target_storage,
    target_task,
    target_tx,
    target_writes,
    violations,
)
from iscsi.wire.errors import LocalProtocolError, RemoteProtocolError
from iscsi.wire.login_common import LoginResult
from iscsi.wire.port import ControlPdu, read_control
from iscsi.wire.scsi import CDB_LENGTH
from iscsi.wire.target_block import TargetLimits, build_target, target_size
from iscsi.wire.target_task import CDB, task_at
from shm.jit import entry
from shm.view import address_of, window

_DEFAULT_LIMITS: Final = TargetLimits()
_ALL: Final = -1
_NOTHING: Final = np.zeros(1, np.uint8)
_COPIED_MAX: Final = 1 << 16  # a longer command's data is looked at where it lies


@entry("int64(intp, intp, int64)")
def rx_bytes(conn: int, address: int, length: int) -> int:
    """Door to `target_rx.rx_bytes`."""
    return target_rx.rx_bytes(conn, address, length)


@entry("int64(intp)")
def tx_next(conn: int) -> int:
    """Door to `target_tx.tx_next`."""
    return target_tx.tx_next(conn)


@entry("void(intp, int64)")
def tx_take(conn: int, length: int) -> None:
    """Door to `target_tx.tx_take`."""
    target_tx.tx_take(conn, length)


@entry("void(intp, int64)")
def tx_done(conn: int, length: int) -> None:
    """Door to `target_tx.tx_done`."""
    target_tx.tx_done(conn, length)


@entry("int64(intp)")
def cold_next(conn: int) -> int:
    """Door to `target_command.cold_next`."""
    return target_command.cold_next(conn)


@entry("int64(intp, int64, int64, intp, int64, intp, int64, int64)")
def respond(
    conn: int,
    task_id: int,
    status: int,
    data: int,
    length: int,
    sense: int,
    sense_length: int,
    moved: int,
) -> int:
    """Door to `target_command.respond`."""
    return target_command.respond(conn, task_id, status, data, length, sense, sense_length, moved)


@entry("int64(intp, intp, intp, int64)")
def send_control(conn: int, header: int, data: int, length: int) -> int:
    """Door to `target_command.send_control`."""
    return target_command.send_control(conn, header, data, length)


@entry("int64(intp)")
def control_next(conn: int) -> int:
    """Door to `port.control_next`."""
    return port.control_next(conn)


@entry("void(intp)")
def control_done(conn: int) -> None:
    """Door to `target_command.control_done`."""
    target_command.control_done(conn)


@entry("int64(intp, int64)")
def abort_task(conn: int, itt: int) -> int:
    """Door to `target_task.abort_task`."""
    return target_task.abort_task(conn, itt)


@entry("int64(intp, int64, int64)")
def abort_before(conn: int, lun_number: int, cmd_sn: int) -> int:
    """Door to `target_task.abort_before`."""
    return target_task.abort_before(conn, lun_number, cmd_sn)


@entry("int64(intp, int64)")
def end_aborted(conn: int, lun_number: int) -> int:
    """Door to `target_aborted.end_aborted`."""
    return target_aborted.end_aborted(conn, lun_number)


@entry("int64(intp, int64)")
def aborted_work(conn: int, lun_number: int) -> int:
    """Door to `target_task.aborted_work`."""
    return target_task.aborted_work(conn, lun_number)


@entry("boolean(intp, int64, int64)")
def count_as_received(conn: int, cmd_sn: int, before: int) -> bool:
    """Door to `target_rx.count_as_received`."""
    return target_rx.count_as_received(conn, cmd_sn, before)


@entry("int64(intp, int64, int64, int64)")
def half_written(conn: int, lun_number: int, start: int, end: int) -> int:
    """Door to `target_writes.half_written`."""
    return target_writes.half_written(conn, lun_number, start, end)


@entry("int64(intp, int64, int64)")
def refuse_writes(conn: int, lun_number: int, sense: int) -> int:
    """Door to `target_writes.refuse_writes`."""
    return target_writes.refuse_writes(conn, lun_number, sense)


@entry("void(intp, int64)")
def pin(conn: int, task_id: int) -> None:
    """Door to `target_storage.pin`, by the task's id."""
    target_storage.pin(conn, target_task.address_of(conn, task_id))


@entry("boolean(intp, int64)")
def unpin(conn: int, task_id: int) -> bool:
    """Door to `target_storage.unpin`, by the task's id."""
    return target_storage.unpin(conn, target_task.address_of(conn, task_id))


@entry("void(intp)")
def drop_buffers(conn: int) -> None:
    """Door to `target_task.drop_buffers`."""
    target_task.drop_buffers(conn)


@dataclass(frozen=True, slots=True)
class ColdCommand:
    """A SCSI command for the cold code. `lun` is None for a LUN field that names no unit.

    `data` is what was written with it, or empty if that was more than the connection keeps:
    then `expected_length` is larger, and the command must be refused. A long one is a view of its
    buffer, valid until `respond`, or `unpin` if it was pinned.
    """

    task_id: int
    itt: int
    lun: int | None
    cdb: bytes
    flags: int
    expected_length: int
    data: bytes | memoryview


class TargetConnection:
    """One connection. `address` is zeroed memory of `size(...)` bytes, which the caller keeps.

    `luns` is the address of a table of `lun_count` LUN records (`iscsi.wire.lun`), `buffers` of
    BUFFERS shared with others, of which it holds up to `buffer_quota` bytes.
    """

    def __init__(
        self,
        address: int,
        login: LoginResult,
        luns: int,
        lun_count: int,
        limits: TargetLimits = _DEFAULT_LIMITS,
        *,
        buffers: int = 0,
        buffer_quota: int = 0,
    ) -> None:
        self.address = address
        build_target(
            address,
            login.session,
            login.connection,
            limits,
            luns=luns,
            lun_count=lun_count,
            cmd_sn=login.cmd_sn,
            stat_sn=login.stat_sn,
            buffers=buffers,
            buffer_quota=buffer_quota,
        )

    @staticmethod
    def size(lun_count: int, limits: TargetLimits = _DEFAULT_LIMITS) -> int:
        """Bytes of memory a connection takes."""
        return target_size(limits, lun_count)

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the stream; RemoteProtocolError for a violation."""
        if len(data):
            array = np.frombuffer(data, np.uint8)
            result = rx_bytes(self.address, address_of(array), array.size)
            if result < 0:
                raise RemoteProtocolError(violations.describe(result))

    def data_to_send(self) -> bytes:
        """Everything there is to send now, as a copy that counts as sent."""
        pieces = []
        while length := tx_next(self.address):
            start = int(port.port_at(self.address)[0]["span_address"])
            pieces.append(window(start, length, np.uint8).tobytes())
            tx_take(self.address, length)
            tx_done(self.address, length)
        return b"".join(pieces)

    def cold_commands(self) -> Iterator[ColdCommand]:
        """Take the commands that wait for `respond`."""
        while address := cold_next(self.address):
            yield _cold_command(address)

    def respond(
        self,
        task_id: int,
        status: int = 0,
        data: bytes | memoryview = b"",
        sense: bytes = b"",
        *,
        moved: int | None = None,
    ) -> bool:
        """Answer a cold command (`target_command.respond`); False if it was aborted meanwhile.

        Raises LocalProtocolError for data that does not fit, or data and sense at once.
        """
        array = np.frombuffer(data, np.uint8) if len(data) else _NOTHING
        explained = np.frombuffer(sense + b"\0", np.uint8)
        result = respond(
            self.address,
            task_id,
            status,
            address_of(array),
            len(data),
            address_of(explained),
            len(sense),
            -1 if moved is None else moved,
        )
        if result < 0 and result != -errno.ENOENT:
            raise LocalProtocolError(f"the response was refused: {errno.errorcode[-result]}")
        return result == 0

    def controls(self) -> Iterator[ControlPdu]:
        """Take every control PDU that waits."""
        while slot := control_next(self.address):
            yield read_control(slot)
            control_done(self.address)

    def send_control(self, header: bytes | bytearray, data: bytes = b"") -> bool:
        """Send a PDU (`target_command.send_control`); False if there is no slot for it now."""
        pdu = np.frombuffer(bytes(header) + data, np.uint8)
        start = address_of(pdu)
        result = send_control(self.address, start, start + bhs.BHS_LENGTH, len(data))
        if result < 0 and result != -errno.EAGAIN:
            raise LocalProtocolError(f"the PDU was refused: {errno.errorcode[-result]}")
        return result == 0

    def pin(self, command: ColdCommand) -> None:
        """Keep a command's data where it is until `unpin`, even if the command is aborted."""
        pin(self.address, command.task_id)

    def unpin(self, command: ColdCommand) -> bool:
        """Let go of it. False if the command was aborted meanwhile."""
        return unpin(self.address, command.task_id)

    @property
    def jobs(self) -> int:
        """Commands that somebody else is working on, aborted ones included."""
        return int(target_task.target_at(self.address)[0]["jobs"])

    def drop_buffers(self) -> None:
        """Give every shared buffer back; the connection is over, and nobody works on its tasks."""
        drop_buffers(self.address)

    def abort_task(self, itt: int) -> bool:
        """End one task without a response; False if there is none with this tag."""
        return abort_task(self.address, itt) == 0

    def abort_lun(self, lun: int | None = None, *, before: int | None = None) -> int:
        """End this connection's tasks for one LUN, or all of them; how many there were.

        `before`: only those that came before the request with this CmdSN.
        """
        number, limit = _ALL if lun is None else lun, _ALL if before is None else before
        return abort_before(self.address, number, limit)

    def end_aborted(self, lun: int) -> int:
        """End this connection's tasks for one LUN with TASK ABORTED (`target_aborted`)."""
        return end_aborted(self.address, lun)

    def aborted_work(self, lun: int | None = None) -> int:
        """How many aborted tasks of one LUN, or of all, somebody still works on."""
        return aborted_work(self.address, _ALL if lun is None else lun)

    def half_written(self, lun: int, start: int, end: int) -> int:
        """`target_writes.half_written`, between two addresses."""
        return half_written(self.address, lun, start, end)

    def refuse_writes(self, lun: int, key: int, code: int) -> int:
        """End WRITEs whose data is not on its unit yet (`target_writes.refuse_writes`)."""
        return refuse_writes(self.address, lun, key << 16 | code)

    def count_as_received(self, cmd_sn: int, before: int) -> bool:
        """`target_rx.count_as_received`."""
        return count_as_received(self.address, cmd_sn, before)


def _written(address: int, length: int) -> bytes | memoryview:
    data = window(address, length, np.uint8)
    return data.tobytes() if length <= _COPIED_MAX else data.data.toreadonly()


def _cdb(address: int) -> bytes:
    task = task_at(address)[0]
    more = window(int(task["cdb_more"]), int(task["cdb_length"]) - CDB_LENGTH, np.uint8)
    return window(address + CDB, CDB_LENGTH, np.uint8).tobytes() + more.tobytes()


def _cold_command(address: int) -> ColdCommand:
    task = task_at(address)[0]
    number = int(task["lun_number"])
    return ColdCommand(
        task_id=int(task["id"]),
        itt=int(task["itt"]),
        lun=number if number >= 0 else None,
        cdb=_cdb(address),
        flags=int(task["flags"]),
        expected_length=int(task["expected_length"]),
        data=_written(int(task["data_address"]), int(task["transfer"])),
    )
