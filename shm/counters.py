"""Labelled counters that any process may read while their one writer counts.

A set is declared as a table of names and labels; the labels lie in the same memory as the values,
so an observer needs no copy of this table to show them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shm.atomics import load_relaxed, store_relaxed
from shm.jit import nopython

LABEL_SIZE: Final = 80
NAME_SIZE: Final = 40
VALUE: Final = np.dtype("<i8")
LABEL: Final = np.dtype([("name", f"S{NAME_SIZE}"), ("label", f"S{LABEL_SIZE}")])


@dataclass(frozen=True, slots=True)
class CounterSet:
    """The declaration of a set: `(name, label)` in the order of their indices."""

    rows: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.rows]
        if len(set(names)) != len(names):
            raise ValueError("two counters have the same name")
        for name, label in self.rows:
            if not label or len(label.encode()) > LABEL_SIZE or len(name.encode()) > NAME_SIZE:
                raise ValueError(f"counter {name} needs a label of 1..{LABEL_SIZE} bytes")

    def index(self, name: str) -> int:
        """Position of a counter: a constant for compiled code."""
        return [row[0] for row in self.rows].index(name)

    @property
    def labels_size(self) -> int:
        """Bytes that the label table takes."""
        return len(self.rows) * LABEL.itemsize

    @property
    def values_size(self) -> int:
        """Bytes that one set of values takes."""
        return len(self.rows) * VALUE.itemsize

    def write_labels(self, memory: NDArray[Any]) -> None:
        """Fill the label table in shared memory (uint8 array of labels_size)."""
        table = memory.view(LABEL)
        for row, (name, label) in zip(table, self.rows, strict=True):
            row["name"], row["label"] = name.encode(), label.encode()


def read_labels(memory: NDArray[Any]) -> Sequence[tuple[str, str]]:
    """The `(name, label)` rows of a label table written by another process."""
    return [(bytes(r["name"]).decode(), bytes(r["label"]).decode()) for r in memory.view(LABEL)]


@nopython
def count(values: int, index: int, amount: int) -> None:
    """Add to a counter of which the caller is the only writer."""
    address = values + 8 * index
    store_relaxed(address, load_relaxed(address) + amount)


@nopython
def keep_maximum(values: int, index: int, value: int) -> None:
    """Raise a counter to `value` if it is lower."""
    address = values + 8 * index
    if load_relaxed(address) < value:
        store_relaxed(address, value)
