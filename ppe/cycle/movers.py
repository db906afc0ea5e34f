"""Datamover endpoints as the control plane makes them: for one connection, after its login."""

import secrets
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iscsi.wire.iser.registration import REGISTRATIONS
from iscsi.wire.lun import LUN
from iscsi.wire.mover_spec import INITIATOR, UNITS_MAX, MoverSpec
from ppe.cycle.blocks import Blocks
from ppe.cycle.control_port import ControlPort
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
from shm.view import address_of, window


@entry("boolean(intp)")
def _is_over(mover: int) -> bool:
    return load_acquire(mover + MOVER_STATE) == MOVER_OVER


class Movers:
    """The datamover blocks of one engine. `limit`: bytes of all together; `client_limit`: of those
    that connections of one client use.
    """

    def __init__(self, port: ControlPort, limit: int, client_limit: int) -> None:
        self._port = port
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
        if spec.iser is None:
            self._port.tables.load_datamover()
        else:
            self._port.tables.load_iser()
        tags = self._tags_size(spec)
        with self._blocks.block(client, MOVER.itemsize + spec.size + tags) as start:
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
            self._port.enable_mover(channel, endpoint, start, home, pool, table)

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
