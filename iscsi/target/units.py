"""Targets and their logical units, as Python names them, and the table compiled code looks them up
in. A unit's memory is one buffer of the engine's, so its data goes to the wire without a copy.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from host.memory import Buffer
from iscsi.wire.lun import LUN, LUN_SIZE, Unit, write_lun
from iscsi.wire.names import name_fault
from iscsi.wire.scsi import MAX_LUN
from shm.view import address_of

BLOCK_SIZES: Final = (512, 4096)
_NAA_LOCALLY_ASSIGNED: Final = 3 << 60


@dataclass(frozen=True, eq=False)
class RamDisk:
    """A logical unit in memory. `buffer` comes from the engine's `alloc` and outlives the server.

    Raises ValueError for a block size other than 512 or 4096, or a size that is no multiple of it.
    """

    buffer: Buffer
    block_size: int = 512
    read_only: bool = False

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise ValueError(f"a block of {self.block_size} bytes: 512 and 4096 are possible")
        if len(self.buffer) == 0 or len(self.buffer) % self.block_size:
            raise ValueError(
                f"{len(self.buffer)} bytes are no whole number of blocks of {self.block_size}"
            )

    @property
    def blocks(self) -> int:
        """Its size in blocks."""
        return len(self.buffer) // self.block_size

    @property
    def record(self) -> Unit:
        """What compiled code needs to know of it."""
        return Unit(self.buffer.address, self.block_size, self.blocks, self.read_only)


@dataclass(frozen=True, eq=False)
class Target:
    """One iSCSI target node and its units by LUN number.

    Raises ValueError for a name that is no iSCSI name, or a number a unit cannot have.
    """

    name: str
    units: Mapping[int, RamDisk]
    alias: str | None = None
    table: np.ndarray[tuple[int], np.dtype[np.void]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        fault = name_fault(self.name)
        if fault:
            raise ValueError(f"target name {self.name!r}: {fault}")
        wrong = [number for number in self.units if not 0 <= number <= MAX_LUN]
        if wrong:
            raise ValueError(f"LUN {wrong[0]} is outside 0..{MAX_LUN}")
        table = np.zeros(max(self.units, default=0) + 1, LUN)
        for number, unit in self.units.items():
            write_lun(address_of(table) + LUN_SIZE * number, unit.record)
        object.__setattr__(self, "table", table)

    def serial(self, lun: int) -> str:
        """The unit serial number: stable over restarts, different for each unit."""
        return f"{self.naa(lun) & ~_NAA_LOCALLY_ASSIGNED:015x}"

    def naa(self, lun: int) -> int:
        """A locally assigned NAA identifier (SPC-4 §7.8.6.6) made of the target's name and LUN."""
        digest = hashlib.blake2b(f"{self.name}/{lun}".encode(), digest_size=8).digest()
        return _NAA_LOCALLY_ASSIGNED | int.from_bytes(digest, "big") >> 4


def by_name(targets: Iterable[Target]) -> dict[str, Target]:
    """The targets by name; ValueError if two have the same one, or there is none."""
    found: dict[str, Target] = {}
    for target in targets:
        if target.name in found:
            raise ValueError(f"two targets are called {target.name}")
        found[target.name] = target
    if not found:
        raise ValueError("a server needs a target")
    return found
