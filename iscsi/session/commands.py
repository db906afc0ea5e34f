"""The SCSI commands of a session or device by name, once for blocking callers and for asyncio: each
method hands a procedure of steps to `_run`, which performs it or gives a coroutine for it. So a
blocking object returns what is said here and an asynchronous one something to await.

Commands that read a unit's state are repeated through unit attentions and while it is busy; those
that change it are cut to the unit's limits (VPD page B0) where the standard allows that. All raise
ScsiError for a status other than GOOD and ValueError for what does not fit the command.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from iscsi.session import cdb, unit
from iscsi.session.replay import END
from iscsi.session.steps import Steps
from iscsi.wire import scsi
from iscsi.wire.bhs import TaskFunction
from iscsi.wire.scsi_data import BlockLimits, Capacity

if TYPE_CHECKING:
    from iscsi.session.core import SessionCore

R = TypeVar("R")
Extents = Iterable[tuple[int, int]]
LIST_BYTES: Final = 16 << 10
# Without a limit of the unit's own: what one command of ours asks for at most.
UNMAP_BLOCKS: Final = 1 << 22
UNMAP_DESCRIPTORS: Final = 256
WRITE_SAME_BLOCKS: Final = 1 << 16
BLOCKS_32: Final = (1 << 32) - 1


class Commands(ABC):
    """Named commands for whoever has a `core` and a way to run its procedures."""

    core: "SessionCore"

    @abstractmethod
    def _run(self, steps: Steps[R]) -> Any:
        """Perform a procedure: its result, or an awaitable for it."""

    # --- looking ---------------------------------------------------------------------------

    def test_unit_ready(self) -> Any:
        """TEST UNIT READY. None, or ScsiError when it is not ready."""
        return self._run(_nothing(unit.patiently(self.core, scsi.test_unit_ready())))

    def inquire(self, lun: int | None = None) -> Any:
        """Standard INQUIRY: an InquiryData. Raises NoSuchUnit."""
        return self._run(unit.inquiry(self.core, lun))

    def vpd(self, page: int, lun: int | None = None) -> Any:
        """The body of a VPD page, bytes."""
        return self._run(unit.vpd(self.core, page, lun))

    def block_limits(self, lun: int | None = None) -> Any:
        """VPD page B0 as BlockLimits, zeros where the unit does not have it."""
        return self._run(unit.block_limits(self.core, lun))

    def read_capacity(self, lun: int | None = None) -> Any:
        """READ CAPACITY (16), else (10): a Capacity."""
        return self._run(unit.read_capacity(self.core, lun))

    def report_luns(self) -> Any:
        """REPORT LUNS: a list of numbers."""
        return self._run(unit.report_luns(self.core))

    def mode_sense(
        self, page: int, subpage: int = 0, *, control: int = 0, length: int = 255
    ) -> Any:
        """MODE SENSE(10): header and pages. `control` 1: changeable, 2: default, 3: saved."""
        asked = cdb.mode_sense(page, subpage, control=control, length=length)
        return self._run(unit.patiently(self.core, asked, length))

    def mode_select(self, parameters: bytes, *, save: bool = False) -> Any:
        """MODE SELECT(10) with header and pages as MODE SENSE(10) gives them."""
        asked = cdb.mode_select(len(parameters), save=save)
        return self._run(_nothing(unit.patiently(self.core, asked, data=parameters)))

    def get_lba_status(self, lba: int, length: int = LIST_BYTES) -> Any:
        """GET LBA STATUS from a block on: a list of cdb.LbaStatus, maybe not to the end."""
        return self._run(
            _parsed(self.core, cdb.get_lba_status(lba, length), length, cdb.parse_lba_status)
        )

    def report_supported_opcodes(self) -> Any:
        """REPORT SUPPORTED OPERATION CODES: a list of cdb.SupportedOpcode."""
        asked = cdb.report_supported_opcodes(LIST_BYTES)
        return self._run(_parsed(self.core, asked, LIST_BYTES, cdb.parse_opcodes))

    def verify(self, lba: int, blocks: int, data: Any = None) -> Any:
        """VERIFY(16): that blocks can be read, or with `data` that they hold it.

        Raises ScsiError MISCOMPARE.
        """
        asked = cdb.verify(lba, blocks, compare=data is not None)
        return self._run(_nothing(unit.patiently(self.core, asked, data=_bytes(data))))

    # --- changing --------------------------------------------------------------------------

    def synchronize_cache(self, lba: int = 0, blocks: int = 0, *, immediate: bool = False) -> Any:
        """Have what was written reach the medium; zero blocks: all from `lba` on.

        A unit that does not know the command has no cache.
        """
        asked = cdb.synchronize_cache(lba, blocks, immediate=immediate)
        return self._run(unit.synchronize_cache(self.core, asked))

    def unmap(self, extents: Extents, *, anchor: bool = False) -> Any:
        """Deallocate (lba, blocks) extents, in as many UNMAP commands as the unit's limits ask."""
        return self._run(_unmap(self.core, list(extents), anchor))

    def write_same(
        self,
        lba: int,
        blocks: int,
        block: Any = None,
        *,
        unmap: bool = False,
        anchor: bool = False,
        no_data: bool = False,
    ) -> Any:
        """Write one block to many, cut by the unit's limit. `block` None: zeros.

        `unmap`: the unit may deallocate them instead if they read the same. `no_data` (NDOB, SBC-3)
        sends no block, which means zeros: units that do not know it do not all say so.
        """
        options = {"unmap": unmap, "anchor": anchor, "no_data": no_data}
        return self._run(_write_same(self.core, lba, blocks, _bytes(block), options))

    def compare_and_write(self, lba: int, compare: Any, write: Any, *, fua: bool = False) -> Any:
        """COMPARE AND WRITE: atomically write blocks if they hold `compare`.

        Raises ScsiError MISCOMPARE, whose `sense.information` is the first byte that differs, and
        UnknownOutcome when the connection was lost over it.
        """
        return self._run(_compare_and_write(self.core, lba, _bytes(compare), _bytes(write), fua))

    def start_stop(self, *, start: bool, load_eject: bool = False, immediate: bool = False) -> Any:
        """START STOP UNIT."""
        asked = cdb.start_stop(start=start, load_eject=load_eject, immediate=immediate)
        return self._run(_nothing(unit.patiently(self.core, asked)))

    def prevent_removal(self, prevent: bool = True) -> Any:
        """PREVENT ALLOW MEDIUM REMOVAL."""
        return self._run(_nothing(unit.patiently(self.core, cdb.prevent_removal(prevent))))

    def sanitize(
        self,
        service_action: int,
        parameters: bytes = b"",
        *,
        immediate: bool = False,
        ause: bool = False,
    ) -> Any:
        """SANITIZE: 1 overwrite (with its parameter list), 2 block erase, 3 cryptographic erase."""
        asked = cdb.sanitize(service_action, len(parameters), immediate=immediate, ause=ause)
        return self._run(_nothing(unit.patiently(self.core, asked, data=parameters)))

    # --- reservations and resets -----------------------------------------------------------

    def persistent_reserve_in(self, service_action: int, length: int = 4096) -> Any:
        """PERSISTENT RESERVE IN: its data, bytes. 0 keys, 1 reservation, 2 capabilities, 3 all."""
        asked = cdb.persistent_reserve_in(service_action, length)
        return self._run(unit.patiently(self.core, asked, length))

    def read_keys(self) -> Any:
        """READ KEYS: cdb.Registrations."""
        asked = cdb.persistent_reserve_in(0, 4096)
        return self._run(_parsed(self.core, asked, 4096, cdb.parse_keys))

    def read_reservation(self) -> Any:
        """READ RESERVATION: a cdb.Reservation."""
        asked = cdb.persistent_reserve_in(1, 4096)
        return self._run(_parsed(self.core, asked, 4096, cdb.parse_reservation))

    def persistent_reserve_out(
        self, service_action: int, key: int, new_key: int = 0, *, kind: int = 0, options: int = 0
    ) -> Any:
        """PERSISTENT RESERVE OUT: 0 register, 1 reserve, 2 release, 3 clear, 4 preempt, 6 register
        and ignore. `kind` is the reservation's type. UnknownOutcome when the connection was lost.
        """
        asked, data = cdb.persistent_reserve_out(
            service_action, key, new_key, kind=kind, options=options
        )
        return self._run(_nothing(unit.patiently(self.core, asked, data=data)))

    def reset_unit(self) -> Any:
        """LOGICAL UNIT RESET: the TaskFunctionResponse, 0 for success."""
        return self._run(self.core.task_management(TaskFunction.LOGICAL_UNIT_RESET))


# --- procedures ------------------------------------------------------------------------------


def _bytes(data: Any) -> bytes:
    return b"" if data is None else bytes(memoryview(data).cast("B"))


def _nothing(steps: Steps[Any]) -> Steps[None]:
    yield from steps


def _parsed(core: "SessionCore", asked: bytes, length: int, parse: Any) -> Steps[Any]:
    data = yield from unit.patiently(core, asked, length)
    return parse(data)


def _limits(core: "SessionCore") -> Steps[BlockLimits]:
    """The unit's limits, asked for once."""
    if core.limits is None:
        core.limits = yield from unit.block_limits(core)
    return core.limits


def split_extents(extents: Extents, most_blocks: int, most: int) -> Iterator[list[tuple[int, int]]]:
    """Batches of at most `most` extents with at most `most_blocks` blocks together."""
    batch: list[tuple[int, int]] = []
    room = most_blocks
    for first, blocks in extents:
        lba, end = first, first + blocks
        while lba < end:
            count = min(end - lba, room)
            batch.append((lba, count))
            lba, room = lba + count, room - count
            if room == 0 or len(batch) == most:
                yield batch
                batch, room = [], most_blocks
    if batch:
        yield batch


def _unmap(core: "SessionCore", extents: list[tuple[int, int]], anchor: bool) -> Steps[None]:
    for lba, blocks in extents:
        if lba < 0 or blocks < 0 or lba + blocks > END:
            raise ValueError(f"{blocks} blocks at {lba} are no extent")
    limits = yield from _limits(core)
    most_blocks = min(limits.max_unmap_length or UNMAP_BLOCKS, BLOCKS_32)
    most = min(limits.max_unmap_descriptors or UNMAP_DESCRIPTORS, UNMAP_DESCRIPTORS)
    for batch in split_extents(extents, most_blocks, most):
        asked, data = cdb.unmap(batch, anchor=anchor)
        yield from unit.patiently(core, asked, data=data)


def _capacity(core: "SessionCore") -> Steps[Capacity]:
    """The unit's capacity, asked for once."""
    if core.capacity is None:
        core.capacity = yield from unit.read_capacity(core)
    return core.capacity


def _write_same(
    core: "SessionCore", lba: int, blocks: int, block: bytes, options: dict[str, bool]
) -> Steps[None]:
    if blocks < 1:
        raise ValueError(f"{blocks} blocks: at least 1")
    if options["no_data"] and any(block):
        raise ValueError("no_data writes zeros: a block of data has no place there")
    limits, capacity = (yield from _limits(core)), (yield from _capacity(core))
    data = b"" if options["no_data"] else block or bytes(capacity.block_size)
    most = min(limits.max_write_same_length or WRITE_SAME_BLOCKS, BLOCKS_32)
    for start in range(0, blocks, most):
        asked = cdb.write_same(lba + start, min(most, blocks - start), **options)
        yield from unit.patiently(core, asked, data=data)


def _compare_and_write(
    core: "SessionCore", lba: int, compare: bytes, write: bytes, fua: bool
) -> Steps[None]:
    if len(compare) != len(write) or not compare:
        raise ValueError(f"{len(compare)} bytes to compare and {len(write)} to write: as many each")
    capacity = yield from _capacity(core)
    blocks, rest = divmod(len(write), capacity.block_size)
    if rest:
        raise ValueError(f"{len(write)} bytes are not whole blocks of {capacity.block_size}")
    limits = yield from _limits(core)
    most = limits.max_compare_and_write_length
    if blocks > (most or 255):
        raise ValueError(f"{blocks} blocks: the unit compares and writes {most or 255} at once")
    asked = cdb.compare_and_write(lba, blocks, fua=fua)
    yield from unit.patiently(core, asked, data=compare + write)
