"""The target's side of a connection in the full feature phase, for Python: doors into the compiled
code, and a class that owns none of the memory it works in. No input, output or time.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from iscsi.wire import bhs, port, target_command, target_rx, target_task, target_tx, violations
from iscsi.wire.errors import LocalProtocolError, RemoteProtocolError
from iscsi.wire.login_common import LoginResult
from iscsi.wire.port import ControlPdu, read_control
from iscsi.wire.scsi import CDB_LENGTH
from iscsi.wire.target_task import CDB, TargetLimits, build_target, target_size, task_at
from shm.jit import entry
from shm.view import address_of, window

_DEFAULT_LIMITS: Final = TargetLimits()
_ALL: Final = -1


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


@entry("int64(intp, int64, int64, intp, int64, intp, int64)")
def respond(
    conn: int, task_id: int, status: int, data: int, length: int, sense: int, sense_length: int
) -> int:
    """Door to `target_command.respond`."""
    return target_command.respond(conn, task_id, status, data, length, sense, sense_length)


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


@entry("int64(intp, int64)")
def abort_lun(conn: int, lun_number: int) -> int:
    """Door to `target_task.abort_lun`."""
    return target_task.abort_lun(conn, lun_number)


@dataclass(frozen=True, slots=True)
class ColdCommand:
    """A SCSI command for the cold code. `lun` is None for a LUN field that names no unit.

    `data` is what was written with it, or empty if that was more than the connection keeps:
    then `expected_length` is larger, and the command must be refused.
    """

    task_id: int
    itt: int
    lun: int | None
    cdb: bytes
    flags: int
    expected_length: int
    data: bytes


class TargetConnection:
    """One connection. `address` is zeroed memory of `size(...)` bytes, which the caller keeps.

    `luns` is the address of a table of `lun_count` LUN records (`iscsi.wire.lun`).
    """

    def __init__(
        self,
        address: int,
        login: LoginResult,
        luns: int,
        lun_count: int,
        limits: TargetLimits = _DEFAULT_LIMITS,
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

    def respond(self, task_id: int, status: int = 0, data: bytes = b"", sense: bytes = b"") -> bool:
        """Answer a cold command (`target_command.respond`); False if it was aborted meanwhile.

        Raises LocalProtocolError for data that does not fit, or data and sense at once.
        """
        array = np.frombuffer(data + sense + b"\0", np.uint8)
        start = address_of(array)
        result = respond(
            self.address, task_id, status, start, len(data), start + len(data), len(sense)
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

    def abort_task(self, itt: int) -> bool:
        """End one task without a response; False if there is none with this tag."""
        return abort_task(self.address, itt) == 0

    def abort_lun(self, lun: int | None = None) -> int:
        """End this connection's tasks for one LUN, or all of them; how many there were."""
        return abort_lun(self.address, _ALL if lun is None else lun)


def _cold_command(address: int) -> ColdCommand:
    task = task_at(address)[0]
    number = int(task["lun_number"])
    return ColdCommand(
        task_id=int(task["id"]),
        itt=int(task["itt"]),
        lun=number if number >= 0 else None,
        cdb=window(address + CDB, CDB_LENGTH, np.uint8).tobytes(),
        flags=int(task["flags"]),
        expected_length=int(task["expected_length"]),
        data=window(int(task["cold_address"]), int(task["transfer"]), np.uint8).tobytes(),
    )
