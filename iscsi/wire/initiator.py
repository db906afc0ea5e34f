"""The initiator's side of a connection in the full feature phase, for Python: doors into the
compiled code, and a class that owns none of the memory it works in. No input, output or time.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from iscsi.wire import (
    bhs,
    initiator_post,
    initiator_rx,
    initiator_task,
    initiator_tx,
    port,
    violations,
)
from iscsi.wire.errors import LocalProtocolError, RemoteProtocolError
from iscsi.wire.initiator_task import InitiatorLimits, build_initiator, initiator_size, task_at
from iscsi.wire.login_common import LoginResult
from iscsi.wire.port import ControlPdu, read_control
from iscsi.wire.scsi import CDB_LENGTH
from shm.jit import entry
from shm.view import address_of, window

_DEFAULT_LIMITS: Final = InitiatorLimits()


@entry("int64(intp, int64, intp, int64, int64, intp, int64)")
def submit(
    conn: int, lun: int, cdb: int, flags: int, expected_length: int, data: int, user_data: int
) -> int:
    """Door to `initiator_post.submit`."""
    return initiator_post.submit(conn, lun, cdb, flags, expected_length, data, user_data)


@entry("int64(intp, int64, intp, int64)")
def attach_ahs(conn: int, itt: int, ahs: int, length: int) -> int:
    """Door to `initiator_post.attach_ahs`; the memory is the caller's to keep."""
    return initiator_post.attach_ahs(conn, itt, ahs, length)


@entry("int64(intp, int64, intp, int64, int64, intp, int64, int64)")
def submit_runs(
    conn: int,
    lun: int,
    cdb: int,
    flags: int,
    expected_length: int,
    runs: int,
    count: int,
    user_data: int,
) -> int:
    """Door to `initiator_post.submit_runs`; list and memory are the caller's to keep."""
    return initiator_post.submit_runs(
        conn, lun, cdb, flags, expected_length, runs, count, user_data
    )


@entry("int64(intp, intp, intp, int64, int64)")
def send_control(conn: int, header: int, data: int, length: int, user_data: int) -> int:
    """Door to `initiator_post.send_control`."""
    return initiator_post.send_control(conn, header, data, length, user_data)


@entry("int64(intp, intp, int64)")
def rx_bytes(conn: int, address: int, length: int) -> int:
    """Door to `initiator_rx.rx_bytes`."""
    return initiator_rx.rx_bytes(conn, address, length)


@entry("int64(intp)")
def tx_next(conn: int) -> int:
    """Door to `initiator_tx.tx_next`."""
    return initiator_tx.tx_next(conn)


@entry("void(intp, int64)")
def tx_take(conn: int, length: int) -> None:
    """Door to `initiator_tx.tx_take`."""
    initiator_tx.tx_take(conn, length)


@entry("void(intp, int64)")
def tx_done(conn: int, length: int) -> None:
    """Door to `initiator_tx.tx_done`."""
    initiator_tx.tx_done(conn, length)


@entry("int64(intp)")
def predict(conn: int) -> int:
    """Door to `initiator_post.predict`."""
    return initiator_post.predict(conn)


@entry("int64(intp)")
def completed_next(conn: int) -> int:
    """Door to `initiator_post.completed_next`."""
    return initiator_post.completed_next(conn)


@entry("void(intp, intp)")
def release(conn: int, address: int) -> None:
    """Door to `initiator_post.release`."""
    initiator_post.release(conn, address)


@entry("int64(intp, int64)")
def cancel(conn: int, itt: int) -> int:
    """Door to `initiator_post.cancel`."""
    return initiator_post.cancel(conn, itt)


@entry("int64(intp)")
def control_next(conn: int) -> int:
    """Door to `port.control_next`."""
    return port.control_next(conn)


@entry("void(intp)")
def control_done(conn: int) -> None:
    """Door to `initiator_post.control_done`."""
    initiator_post.control_done(conn)


@entry("void(intp, int64)")
def fail_all(conn: int, result: int) -> None:
    """Door to `initiator_task.fail_all`."""
    initiator_task.fail_all(conn, result)


@dataclass(frozen=True, slots=True)
class Completion:
    """How one command ended. `result` is 0, or -errno if there was no response.

    `received` bytes of data came; `residual` is positive for an underflow (so many bytes fewer than
    expected) and negative for an overflow.
    """

    itt: int
    user_data: int
    result: int
    status: int
    received: int
    residual: int
    response: int
    sense: bytes


class InitiatorConnection:
    """One connection. `address` is zeroed memory of `size(...)` bytes, which the caller keeps."""

    def __init__(
        self, address: int, login: LoginResult, limits: InitiatorLimits = _DEFAULT_LIMITS
    ) -> None:
        self.address = address
        build_initiator(
            address,
            login.session,
            login.connection,
            limits,
            cmd_sn=login.cmd_sn,
            max_cmd_sn=login.max_cmd_sn,
            exp_stat_sn=login.stat_sn,
        )

    @staticmethod
    def size(login: LoginResult, limits: InitiatorLimits = _DEFAULT_LIMITS) -> int:
        """Bytes of memory a connection takes."""
        return initiator_size(login.session, limits)

    def submit(
        self,
        lun: int,
        cdb: bytes,
        flags: int = 0,
        expected_length: int = 0,
        data_address: int = 0,
        user_data: int = 0,
    ) -> int | None:
        """Submit a command (`initiator_post.submit`); its tag, or None to try again later.

        Raises LocalProtocolError for a command that cannot be, RemoteProtocolError when the peer
        has ended the connection.
        """
        if len(cdb) != CDB_LENGTH:
            raise LocalProtocolError(f"a CDB is {CDB_LENGTH} bytes here, not {len(cdb)}")
        array = np.frombuffer(cdb, np.uint8)
        return _tag(
            submit(
                self.address,
                lun,
                address_of(array),
                flags,
                expected_length,
                data_address,
                user_data,
            )
        )

    def send_control(
        self, header: bytes | bytearray, data: bytes = b"", user_data: int = 0
    ) -> int | None:
        """Send a request PDU (`initiator_post.send_control`); its tag, or None to try later."""
        pdu = np.frombuffer(bytes(header) + data, np.uint8)
        start = address_of(pdu)
        return _tag(send_control(self.address, start, start + bhs.BHS_LENGTH, len(data), user_data))

    def cancel(self, itt: int) -> bool:
        """Complete a command without an answer (`initiator_post.cancel`); False if not open."""
        return cancel(self.address, itt) == 0

    def fail_all(self, result: int) -> None:
        """Complete everything with `result` (-errno): the connection is over."""
        fail_all(self.address, result)

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the stream; RemoteProtocolError for a violation."""
        if len(data):
            array = np.frombuffer(data, np.uint8)
            _check(rx_bytes(self.address, address_of(array), array.size))

    def data_to_send(self) -> bytes:
        """Everything there is to send now, as a copy that counts as sent."""
        pieces = []
        while length := tx_next(self.address):
            start = int(port.port_at(self.address)[0]["span_address"])
            pieces.append(window(start, length, np.uint8).tobytes())
            tx_take(self.address, length)
            tx_done(self.address, length)
        return b"".join(pieces)

    def completions(self) -> Iterator[Completion]:
        """Take every completed command and release its task."""
        while address := completed_next(self.address):
            yield _completion(address)
            release(self.address, address)

    def controls(self) -> Iterator[ControlPdu]:
        """Take every control PDU that waits."""
        while slot := control_next(self.address):
            yield read_control(slot)
            control_done(self.address)


def _completion(address: int) -> Completion:
    task = task_at(address)[0]
    sign = -1 if task["residual_flags"] & bhs.FLAG_OVERFLOW else 1
    sense = window(int(task["sense_address"]) + 2, int(task["sense_length"]), np.uint8).tobytes()
    return Completion(
        itt=int(task["itt"]),
        user_data=int(task["user_data"]),
        result=int(task["result"]),
        status=int(task["status"]),
        received=int(task["received"]),
        residual=sign * int(task["residual_count"]) if task["residual_flags"] else 0,
        response=int(task["response"]),
        sense=sense,
    )


def _tag(result: int) -> int | None:
    if result == -errno.EAGAIN:
        return None
    _check(result)
    if result < 0:
        raise LocalProtocolError(f"the request was refused: {errno.errorcode[-result]}")
    return result


def _check(result: int) -> None:
    if violations.is_violation(result):
        raise RemoteProtocolError(violations.describe(result))
