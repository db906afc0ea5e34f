"""What is asked over a session: SCSI commands, transfers, pings, task management, discovery and
logout, as procedures of steps. Every procedure keeps its memory until the session is done with it.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from iscsi.session import doors, jobs
from iscsi.session.attention import ends_reservation, grave, is_attention
from iscsi.session.connection import Connection, Memory
from iscsi.session.controls import Controls
from iscsi.session.errors import ConnectionLost, SessionError
from iscsi.session.gather import Gather
from iscsi.session.guard import Guard
from iscsi.session.memory import aligned_zeros
from iscsi.session.outcome import CommandResult, error_of_job, residual_of
from iscsi.session.replay import Extent, Ordering, Turn, extent_of
from iscsi.session.steps import AwaitControl, AwaitTurn, Finish, Steps
from iscsi.session.worker import Worker
from iscsi.wire import bhs, discovery, scsi
from iscsi.wire.bhs import Opcode, TaskFunction, TaskFunctionResponse
from iscsi.wire.errors import LocalProtocolError, RemoteProtocolError, ScsiError
from iscsi.wire.port import ControlPdu
from iscsi.wire.url import IscsiUrl
from shm.view import address_of

TEXT_EXCHANGES_MAX: Final = 4096
TARGETS_MAX_BYTES: Final = 4 << 20
CDB_MAX: Final = 260  # what a variable length CDB can say of itself (SPC-4 §4.2.3)
_RESERVE: Final = (0x16, 0x56)
_RELEASE: Final = (0x17, 0x57)
_EXTENDED_CDB: Final = 1  # AHSType (RFC 7143 §11.2.2.1)
_OF_A_UNIT: Final = (
    TaskFunction.ABORT_TASK_SET,
    TaskFunction.CLEAR_TASK_SET,
    TaskFunction.LOGICAL_UNIT_RESET,
)
_RESETS: Final = (
    TaskFunction.LOGICAL_UNIT_RESET,
    TaskFunction.TARGET_WARM_RESET,
    TaskFunction.TARGET_COLD_RESET,
)
_ENDING: Final = (*_OF_A_UNIT, *_RESETS)  # they end commands, which then have no answer


class Procedures(ABC):
    """The requests of a `SessionCore`, which is the only one to inherit from this and has what is
    declared here.
    """

    url: IscsiUrl
    engine: Memory
    worker: Worker
    ordering: Ordering
    controls: Controls
    lun_field: int
    lost: Exception | None
    down: Exception | None
    pause_s: float
    reserved: set[int]

    @property
    @abstractmethod
    def connection(self) -> Connection:
        """The connection. Raises why there is none."""

    @abstractmethod
    def check_usable(self) -> None:
        """Raise what ended the session, if it is over."""

    @abstractmethod
    def break_off(self, error: Exception) -> Exception:
        """End the session for `error`; the one it ended for."""

    @abstractmethod
    def disown(self, job: int) -> None:
        """Be sure that a job is over, whatever it takes."""

    @abstractmethod
    def holding_back(self) -> AbstractContextManager[Guard]:
        """Let no command be sent meanwhile."""

    def command(
        self,
        cdb: bytes,
        *,
        length: int = 0,
        data: bytes | NDArray[Any] = b"",
        lun: int | None = None,
        express: bool = False,
    ) -> Steps[CommandResult]:
        """One SCSI command of 6 to 260 bytes: reads up to `length` bytes, or writes `data`, or
        moves nothing. `express` ones are recovery's own and pass all others.

        Raises ScsiError for every status but GOOD, UnknownOutcome, and what ends the session.
        """
        self.check_usable()
        if not 6 <= len(cdb) <= CDB_MAX:
            raise LocalProtocolError(f"a CDB is 6 to {CDB_MAX} bytes, not {len(cdb)}")
        cdb = bytes(cdb).ljust(scsi.CDB_LENGTH, b"\0")
        turn = None
        if not express:
            extent = extent_of(self._number(lun), cdb, bytes(data))
            turn = self.ordering.enter(extent) if extent is not None else None
        try:
            if turn is not None:
                yield from self._waiting_for(turn)
            return (yield from self._command(cdb, length, data, lun, express))
        finally:
            if turn is not None:
                self.ordering.leave(turn)

    def raw_command(
        self, cdb: bytes, length: int = 0, data: bytes = b"", lun: int | None = None
    ) -> Steps[CommandResult]:
        """A command of the user's own, who judges by himself what its unit attention means."""
        try:
            return (yield from self.command(cdb, length=length, data=data, lun=lun))
        except ScsiError as error:
            if is_attention(error) and error.sense and ends_reservation(error.sense.code):
                self.reserved.discard(self._number(lun))
            raise

    def pass_over(self, error: ScsiError, lun: int | None = None) -> None:
        """A unit attention is about to be ignored. Ends the session and raises ReservationLost if
        it tells that what RESERVE held is over.
        """
        assert error.sense is not None, "an attention has its sense"
        lost = grave(error.sense.code, self._number(lun), self.reserved)
        if lost is not None:
            raise self.break_off(lost) from error

    def _command(
        self,
        cdb: bytes,
        length: int,
        data: bytes | NDArray[Any],
        lun: int | None,
        express: bool,
    ) -> Steps[CommandResult]:
        size, tail = len(data) or length, extended_cdb(cdb)
        flags = bhs.TaskAttribute.SIMPLE | (
            bhs.FLAG_WRITE if len(data) else bhs.FLAG_READ if length else 0
        )
        place = (size + 63) & ~63
        with self.engine.alloc(max(place + len(tail), 1)) as buffer:
            if len(data):
                buffer.array[:size] = np.frombuffer(data, np.uint8)
            job, record = new_job(jobs.COMMAND, flags, self._field(lun))
            record["cdb0"], record["cdb1"] = np.frombuffer(cdb[: scsi.CDB_LENGTH], np.int64)
            record["address"], record["expected_length"] = buffer.address, size
            record["blocks_left"] = 1
            if tail:
                buffer.array[place : place + len(tail)] = np.frombuffer(tail, np.uint8)
                record["ahs"], record["ahs_length"] = buffer.address + place, len(tail)
            address = address_of(job)
            if express:
                if self.down is not None:
                    raise self.down  # It was lost just after the answer to the last one.
                record["state"] = jobs.ACTIVE
                self.worker.record["express"] = address
            else:
                self.start(address)
            try:
                yield from self._finishing(address)
            finally:
                if express and self.worker.record["express"] == address:
                    self.worker.record["express"] = 0
            error = error_of_job(address, self.lost or self.down)
            if error is not None:
                raise error
            self._note_reservation(cdb[0], self._number(lun))
            came = buffer.array[: int(record["received"])].tobytes() if length else b""
            return CommandResult(came, residual_of(address))

    def _waiting_for(self, turn: Turn) -> Steps[None]:
        """Wait for a turn. Raises what ended the session meanwhile."""
        while turn.is_blocked:
            yield AwaitTurn(turn)
        self.check_usable()

    def _finishing(self, job: int) -> Steps[None]:
        """Wait for the end of a job; nothing knows its memory any more after that."""
        try:
            yield Finish(job)
        finally:
            self.disown(job)

    def _note_reservation(self, opcode: int, lun: int) -> None:
        """Know which units RESERVE holds for us: a lost connection ends that (SPC-2 §5.5.1)."""
        if opcode in _RESERVE:
            self.reserved.add(lun)
        elif opcode in _RELEASE:
            self.reserved.discard(lun)

    def _number(self, lun: int | None) -> int:
        return (self.url.lun or 0) if lun is None else lun

    def _field(self, lun: int | None) -> int:
        field = self.lun_field if lun is None else scsi.encode_lun(lun)
        return field - (1 << 64) if field >= 1 << 63 else field

    def start(self, job: int) -> None:
        """Put a job in line. Raises BlockingIOError when there are too many."""
        queue = self.worker.record["jobs"]
        if queue["tail"] - queue["head"] >= jobs.JOBS_MAX:
            raise BlockingIOError(f"{jobs.JOBS_MAX} transfers are under way: await some first")
        doors.start(self.worker.address, job)

    def transfer(
        self,
        *,
        is_write: bool,
        lba: int,
        blocks: int,
        block_size: int,
        per_command: int,
        address: int,
        gather: Gather | None = None,
    ) -> Steps[int]:
        """Read or write `blocks` blocks at shared memory, several commands at once. Bytes moved.

        With `gather` it says which commands those are and where their data lies.
        Writes of the same blocks take place in the order of their calls. Raises the error of the
        first command that failed; others may have moved data.
        """
        self.check_usable()
        turn: Turn | None = None
        if is_write:
            turn = self.ordering.enter(Extent(self._number(None), lba, lba + blocks))
        try:
            if turn is not None:
                yield from self._waiting_for(turn)
            direction = bhs.FLAG_WRITE if is_write else bhs.FLAG_READ
            job, record = new_job(
                jobs.BLOCKS, direction | bhs.TaskAttribute.SIMPLE, self._field(None)
            )
            record["lba"], record["blocks_left"], record["block_size"] = lba, blocks, block_size
            record["blocks_per_command"], record["address"] = per_command, address
            if gather is not None:
                record["parts"], record["runs"] = address_of(gather.parts), address_of(gather.runs)
            where = address_of(job)
            self.start(where)
            yield from self._finishing(where)
            error = error_of_job(where, self.lost or self.down)
            if error is not None:
                raise error
            return int(record["bytes"])
        finally:
            if turn is not None:
                self.ordering.leave(turn)

    def ping(self) -> Steps[None]:
        """Send a NOP-Out and wait for its answer. Raises ConnectionLost."""
        job, _ = new_job(jobs.COMMAND, 0, 0)
        address = address_of(job)
        header = bhs.encode(Opcode.NOP_OUT, immediate=1)
        mine = self.connection
        if mine.wire.send_control(header, user_data=address) is None:
            raise ConnectionLost("there is no room for a NOP-Out")
        doors.adopt_task(mine.worker, address)
        yield from self._finishing(address)
        error = error_of_job(address, self.lost or self.down)
        if error is not None:
            raise error

    # --- control requests ------------------------------------------------------------------

    def _ask(self, header: bytearray, data: bytes = b"") -> int:
        tag = self.connection.wire.send_control(header, data)
        if tag is None:
            raise ConnectionLost("the target's command window is closed to control requests")
        self.controls.expect(tag)
        return tag

    def task_management(self, function: TaskFunction, lun: int | None = None) -> Steps[int]:
        """A task management function on a whole unit or target; its TaskFunctionResponse.

        (RFC 7143 §11.5.) Single commands are aborted by the session when they take too long.
        """
        field = self.lun_field if lun is None else scsi.encode_lun(lun)
        tag = self._ask(
            bhs.encode(
                Opcode.TASK_MANAGEMENT_REQUEST,
                immediate=1,
                function=function,
                lun=field,
                itt=bhs.RESERVED_TAG,
            )
        )
        with self.holding_back() as guard:
            answer: ControlPdu = yield AwaitControl(tag)
            self.controls.forget(tag)
            if answer.header.response == TaskFunctionResponse.COMPLETE:
                if function in _RESETS:
                    self._forget_reservations(field if function in _OF_A_UNIT else None)
                if function in _ENDING:
                    guard.send_ended_again(field if function in _OF_A_UNIT else None)
            return answer.header.response

    def _forget_reservations(self, field: int | None) -> None:
        """A reset ended what RESERVE held (SPC-2 §5.5.1), of a unit or of all of them."""
        self.reserved -= {
            lun for lun in self.reserved if field is None or scsi.encode_lun(lun) == field
        }

    def discovery(self) -> Steps[list[discovery.DiscoveredTarget]]:
        """SendTargets=All on a discovery session (RFC 7143 appendix C).

        Raises RemoteProtocolError for names with control characters, and for lists without end.
        """
        text = discovery.accumulator()
        tag, ttt, data = bhs.RESERVED_TAG, bhs.RESERVED_TAG, discovery.build_request()
        came = 0
        for _ in range(TEXT_EXCHANGES_MAX):
            tag = self._ask(bhs.encode(Opcode.TEXT_REQUEST, immediate=1, itt=tag, ttt=ttt), data)
            answer: ControlPdu = yield AwaitControl(tag)
            if answer.header.opcode is not Opcode.TEXT_RESPONSE:
                raise RemoteProtocolError(f"{answer.header.opcode.name} instead of a Text Response")
            header = answer.header
            came += len(answer.data)
            if came > TARGETS_MAX_BYTES:
                break
            more = bool(header.continued) or not header.final
            whole = text.add(answer.data, continued=more)
            if whole is not None:
                return discovery.parse_response(whole)
            tag, ttt, data = header.itt, header.ttt, b""
        raise RemoteProtocolError(f"no end of SendTargets after {came} bytes")

    def logging_out(self) -> Steps[None]:
        """Log the session out; the target closes the connection afterwards (RFC 7143 §11.14)."""
        tag = self._ask(bhs.encode(Opcode.LOGOUT_REQUEST, immediate=1, itt=bhs.RESERVED_TAG))
        answer: ControlPdu = yield AwaitControl(tag)
        if answer.header.opcode is not Opcode.LOGOUT_RESPONSE:
            raise SessionError(f"{answer.header.opcode.name} instead of a Logout Response")
        self.pause_s = answer.header.time2wait


def extended_cdb(cdb: bytes) -> bytes:
    """The additional header segment for a CDB of more than 16 bytes (RFC 7143 §11.2.2.3)."""
    rest = cdb[scsi.CDB_LENGTH :]
    if not rest:
        return b""
    # AHSLength counts the reserved byte and the CDB's, and not the padding.
    segment = (1 + len(rest)).to_bytes(2, "big") + bytes((_EXTENDED_CDB, 0)) + rest
    return segment + bytes(-len(segment) % 4)


def new_job(kind: int, flags: int, lun: int) -> tuple[NDArray[Any], Any]:
    """Memory of a job, which the caller keeps until it is over, and its record."""
    memory = aligned_zeros(jobs.JOB_SIZE)
    record: Any = jobs.job_at(address_of(memory))[0]
    record["kind"], record["flags"], record["lun"] = kind, flags, lun
    return memory, record
