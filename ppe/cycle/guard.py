"""The guard: a client that takes its memory away (truncates its segment) cannot kill the engine.

Touching such a page raises SIGBUS in the engine's thread. The handler, compiled code without any
Python, puts private zero pages over the client's whole mapping and notes whose it was; the
instruction runs again and the control stage ends the client. A SIGBUS anywhere else is fatal, as it
should be. The table lies at a fixed address, so that the handler can be cached on disk.
"""

import ctypes
import signal
import struct
from functools import cache
from typing import Final

import numpy as np

from ppe.cycle import libc
from shm.atomics import fetch_add, load_acquire, load_relaxed, store_relaxed, store_release
from shm.jit import callback, entry, nopython
from shm.layout import Field, offset, record
from shm.memory import load_64
from shm.view import address_of

TABLE: Final = 0x3A00_0000_0000
ENTRIES: Final = 16384
GUARDED: Final = record(
    Field("address", "<i8"),  # 0: free
    Field("size", "<i8"),
    Field("client", "<i8"),
    Field("faulted", "<i8"),
    size=64,
)
GUARDED_SIZE: Final = GUARDED.itemsize
HEADER_SIZE: Final = 128  # faults in the first word, entries in use in the second
TABLE_SIZE: Final = HEADER_SIZE + ENTRIES * GUARDED_SIZE
FAULTS: Final = TABLE
_COUNT: Final = TABLE + 8
_ADDRESS, _SIZE = offset(GUARDED, "address"), offset(GUARDED, "size")
_CLIENT, _FAULTED = offset(GUARDED, "client"), offset(GUARDED, "faulted")
SI_ADDR: Final = 16  # offset in siginfo_t
SA_SIGINFO, SA_NODEFER = 0x4, 0x40000000
SIGBUS: Final = int(signal.SIGBUS)


@nopython
def _entry_of(index: int) -> int:
    return TABLE + HEADER_SIZE + index * GUARDED_SIZE


@nopython
def entry_count() -> int:
    """How many entries of the table were ever used."""
    return load_acquire(_COUNT)


@nopython
def faulted_client(index: int) -> int:
    """The client whose memory went away, or 0."""
    entry_address = _entry_of(index)
    if load_acquire(entry_address + _FAULTED) == 0:
        return 0
    return load_relaxed(entry_address + _CLIENT)


@callback(None, ctypes.c_int32, ctypes.c_int64, ctypes.c_int64)
def _on_sigbus(number: int, info: int, context: int) -> None:
    fault = load_64(info + SI_ADDR)
    for index in range(entry_count()):
        guarded = _entry_of(index)
        address = load_acquire(guarded + _ADDRESS)
        size = load_relaxed(guarded + _SIZE)
        is_inside = address != 0 and fault >= address and fault < address + size
        if is_inside and libc.map_zeros(address, size, False) == address:
            store_release(guarded + _FAULTED, 1)
            fetch_add(FAULTS, 1)
            return
    libc.default_signal(number)


@entry("int64(intp, int64)")
def _map(address: int, size: int) -> int:
    return libc.map_zeros(address, size, True)


@entry("int64(int64, intp)")
def _install(number: int, action: int) -> int:
    return libc.set_signal_action(number, action)


@entry("void(int64, intp, int64, int64)")
def _write(index: int, address: int, size: int, client: int) -> None:
    guarded = _entry_of(index)
    store_relaxed(guarded + _FAULTED, 0)
    store_relaxed(guarded + _SIZE, size)
    store_relaxed(guarded + _CLIENT, client)
    # SYNC POINT: an entry with an address is whole; pairs with the acquire in the handler.
    store_release(guarded + _ADDRESS, address)
    if load_relaxed(_COUNT) <= index:
        store_release(_COUNT, index + 1)


@cache
def prepare() -> int:
    """Map the table once per process and return the address of its fault counter."""
    got = _map(TABLE, TABLE_SIZE)
    if got < 0:
        raise OSError(-got, f"the guard table's address {TABLE:#x} is taken in this process")
    return FAULTS


def install() -> None:
    """Handle SIGBUS from now on; for an engine's own process only."""
    prepare()
    flags = SA_SIGINFO | SA_NODEFER
    action = np.frombuffer(
        struct.pack("<Q128siiQ", _on_sigbus.address, b"", flags, 0, 0), np.uint8
    ).copy()
    outcome = _install(SIGBUS, address_of(action))
    if outcome < 0:
        raise OSError(-outcome, "cannot install the SIGBUS handler")


class Guards:
    """The control plane's hold on the table: which entry guards which mapping."""

    def __init__(self) -> None:
        prepare()
        self._free = list(range(ENTRIES - 1, -1, -1))

    def add(self, address: int, size: int, client: int) -> int:
        """Guard a mapping; returns the entry to `remove`. Raises OSError when the table is full."""
        if not self._free:
            raise OSError(12, f"{ENTRIES} mappings are guarded already")
        index = self._free.pop()
        _write(index, address, size, client)
        return index

    def remove(self, index: int) -> None:
        """Guard a mapping no more; call before it is unmapped."""
        _write(index, 0, 0, 0)
        self._free.append(index)
