"""Datamover endpoints as the control plane makes them: for one connection, after its login."""

import contextlib
import errno
import secrets
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from iscsi.wire.iser.registration import POOL, REGISTRATIONS
from iscsi.wire.lun import LUN
from iscsi.wire.mover_spec import INITIATOR, UNITS_MAX, MoverSpec
from ppe.cycle.blocks import Blocks
from ppe.cycle.control_port import ControlPort
from ppe.cycle.records import REGION
from ppe.cycle.rnics import Rnics
from ppe.cycle.services.iser_lent import LENT_SIZE, PIECES_MAX, build_lent
from ppe.cycle.services.mover_records import (
    INITIATOR_ROLE,
    MOVER,
    MOVER_OVER,
    MOVER_STATE,
    MOVER_WORDS,
    TAGS,
    TAGS_SIZE,
    TARGET_ROLE,
)
from shm.atomics import load_acquire
from shm.jit import entry
from shm.verbs_numbers import ACCESS_LOCAL_WRITE, ACCESS_REMOTE_READ, ACCESS_REMOTE_WRITE
from shm.view import address_of, window

if TYPE_CHECKING:
    from ppe.cycle.device_objects import Objects

BOTH_WAYS = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_WRITE


@entry("boolean(intp)")
def _is_over(mover: int) -> bool:
    return load_acquire(mover + MOVER_STATE) == MOVER_OVER


class Movers:
    """The datamover blocks of one engine. `limit`: bytes of all together; `client_limit`: of those
    that connections of one client use; `rnics`: whose queue pairs connections may be.
    """

    def __init__(
        self, port: ControlPort, limit: int, client_limit: int, rnics: Rnics | None = None
    ) -> None:
        self._port, self._rnics = port, rnics
        self._blocks = Blocks("connections of datamovers", _is_over, limit, client_limit)
        self._tables: dict[tuple[int, int], NDArray[Any]] = {}

    def enable(
        self,
        client: int,
        channel: int,
        endpoint: int,
        spec: MoverSpec,
        home: tuple[int, int, int],
        words: int,
        pool: int = 0,
        table: int = 0,
    ) -> None:
        """Have the engine take a connection over. `words`: offset of MOVER_WORDS in the home block;
        `table`: what `make_table` gave, for a target whose units the engine serves.

        Raises ValueError for what cannot be, MemoryError beyond a limit, OSError when the engine
        refuses.
        """
        if words < 0 or (home[1] + words) % 8 or words > home[2] - MOVER_WORDS.itemsize:
            raise ValueError(f"the words at {words} do not lie in {home[2]} bytes")
        luns = self._luns_of(channel, table, spec)
        owner = self._owner(channel, endpoint, spec)
        if spec.iser is None:
            self._port.tables.load_datamover()
        else:
            self._port.tables.load_iser()
        tags = self._tags_size(spec)
        lent = MOVER.itemsize + spec.size + tags
        size = lent + (LENT_SIZE if owner is not None else 0)
        with self._blocks.block(client, size) as start, contextlib.ExitStack() as undo:
            mover = window(start, 1, MOVER)[0]
            mover["role"] = INITIATOR_ROLE if spec.role == INITIATOR else TARGET_ROLE
            mover["conn"], mover["words"] = start + MOVER.itemsize, words
            mover["told"] = spec.window_word
            if spec.iser is not None:
                mover["iser"] = start + MOVER.itemsize + spec.iser_offset
                mover["skew"] = secrets.randbits(44) << 12
            if spec.iser is not None and tags:
                mover["tags"] = start + MOVER.itemsize + spec.size
                tags_record = window(int(mover["tags"]), 1, TAGS)[0]
                tags_record["strategy"] = REGISTRATIONS.index(spec.iser.registration)
                tags_record["iser"] = mover["iser"]
            spec.build(start + MOVER.itemsize, luns)
            if owner is not None:
                undo.callback(owner.take_back, endpoint)
                mover["lent"] = start + lent
                self._lend(owner, client, endpoint, start, lent)
            self._port.enable_mover(channel, endpoint, start, home, pool, table)
            undo.pop_all()

    def _owner(self, channel: int, endpoint: int, spec: MoverSpec) -> "Objects | None":
        """Whose queue pair it is, if it is a verbs device's. Raises ValueError for what such a one
        cannot be used for.
        """
        if spec.iser is None or self._rnics is None:
            return None
        owner = self._rnics.owner(channel, endpoint)
        if owner is None:
            return None
        name = owner.opened.device.name
        if spec.role != INITIATOR:
            raise ValueError(f"over the RDMA device {name} the engine carries no targets")
        if spec.iser.registration != POOL:
            raise ValueError(
                f"registration {spec.iser.registration!r}: over the RDMA device {name} buffers are "
                f"opened by region, which is {POOL!r}"
            )
        return owner

    def _lend(self, owner: "Objects", client: int, endpoint: int, start: int, size: int) -> None:
        """Have the device register the connection's block, `size` bytes and then the list of what
        is registered, and its client's regions; the peer reaches those alone.
        """
        regions = self._regions_of(client)
        if len(regions) >= PIECES_MAX:
            raise OSError(
                errno.ENOBUFS,
                f"the client has {len(regions)} regions; over an RDMA device a connection reaches "
                f"{PIECES_MAX - 1} at most",
            )
        key, _ = owner.lend(endpoint, start, size, ACCESS_LOCAL_WRITE)
        pieces = [(start, size, key, 0)]
        for address, length in regions:
            pieces.append((address, length, *owner.lend(endpoint, address, length, BOTH_WAYS)))
        build_lent(start + size, pieces)

    def _regions_of(self, client: int) -> list[tuple[int, int]]:
        """Address and size of each region of a client, which only this thread adds and removes."""
        engine = self._port.tables.engine[0]
        rows = window(int(engine["regions"]), int(engine["region_count"]), REGION)
        mine = rows[(rows["address"] != 0) & (rows["client"] == client)]
        return [(int(row["address"]), int(row["size"])) for row in mine]

    def _tags_size(self, spec: MoverSpec) -> int:
        """Bytes for the tags of an initiator's buffers over a queue pair."""
        return TAGS_SIZE if spec.iser is not None and spec.role == INITIATOR else 0

    def make_table(self, channel: int, count: int) -> int:
        """A table of `count` units that the engine serves itself: its id. Raises OSError."""
        if not 0 < count <= UNITS_MAX:
            raise ValueError(f"{count} units: 1 to {UNITS_MAX} are possible")
        self._port.tables.load_datamover()
        luns = np.zeros(count, LUN)
        luns["granularity"] = 1
        table = self._port.make_table(channel, address_of(luns), count)
        self._tables[channel, table] = luns
        return table

    @property
    def bytes(self) -> int:
        """What the blocks take of the engine's memory, those kept for later among them."""
        return self._blocks.bytes

    def forget(self, channel: int) -> None:
        """A channel is gone, and all its endpoints with it."""
        for key in [key for key in self._tables if key[0] == channel]:
            del self._tables[key]

    def _luns_of(self, channel: int, table: int, spec: MoverSpec) -> int:
        """Address of a table's units. Raises ValueError for one that does not fit."""
        luns = self._tables.get((channel, table))
        if (0 if luns is None else len(luns)) != spec.units:
            raise ValueError(f"{spec.units} units, but table {table} has another number")
        return 0 if luns is None else address_of(luns)
