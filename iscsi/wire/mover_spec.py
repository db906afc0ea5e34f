"""What an engine must know to take a connection over after its login: a MoverSpec, as a message of
plain values between host and control plane. `from_message` trusts nothing: whatever is missing, of
another type or out of range is a ValueError that names it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import numpy as np

from iscsi.wire.initiator_task import InitiatorLimits, build_initiator, initiator_size
from iscsi.wire.iser.build import build_initiator_iser, build_target_iser
from iscsi.wire.iser.records import IserLimits, iser_size
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.lun import GATE_CLOSED
from iscsi.wire.mover import LAYOUT, VECTORS_MAX
from iscsi.wire.port import PortLimits, copies_size, lend_copies
from iscsi.wire.target_block import TargetLimits, build_target, target_size
from iscsi.wire.target_mover import build_lower_half, lower_size
from iscsi.wire.target_task import target_at
from shm.view import window

INITIATOR: Final = "initiator"
TARGET: Final = "target"
SEGMENT_MAX: Final = (1 << 24) - 1  # bytes a DataSegmentLength can say
TX_ENTRIES_MAX: Final = 4096
CONTROL_SLOTS_MAX: Final = 8192
CONTROL_LENGTH_MAX: Final = 1 << 16
COPY_SIZE: Final = 64 << 10
COPY_COUNT: Final = 16  # a power of two; 1 MiB a connection with a data digest
COLD_LENGTH_MAX: Final = 1 << 16
UNITS_MAX: Final = 1 << 14
SN_MAX: Final = 0xFFFFFFFF
RECEIVES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class MoverSpec:
    """A connection as its login left it. `sns`: for an initiator CmdSN, MaxCmdSN and ExpStatSN; for
    a target CmdSN and StatSN. `counts`: for an initiator its tasks; for a target window,
    cold_length and units. `iser`: the connection is a queue pair.
    """

    role: str
    session: SessionParams
    connection: ConnectionParams
    port: PortLimits
    counts: tuple[int, ...]
    sns: tuple[int, ...]
    iser: IserLimits | None = None

    def to_message(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "layout": LAYOUT,
            "role": self.role,
            "session": asdict(self.session),
            "connection": asdict(self.connection),
            "port": asdict(self.port),
            "counts": list(self.counts),
            "sns": list(self.sns),
            "iser": None if self.iser is None else asdict(self.iser),
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> "MoverSpec":
        """Raises ValueError for anything that cannot be."""
        if message.get("layout") != LAYOUT:
            raise ValueError("host and engine have different releases: install the same on both")
        role = message.get("role")
        if role not in (INITIATOR, TARGET):
            raise ValueError(f"role {role!r} is neither {INITIATOR} nor {TARGET}")
        spec = cls(
            role,
            _record(SessionParams, message.get("session")),
            _record(ConnectionParams, message.get("connection")),
            _record(PortLimits, message.get("port")),
            _numbers(message.get("counts"), "counts"),
            _numbers(message.get("sns"), "sns"),
            None if message.get("iser", 0) is None else _record(IserLimits, message.get("iser")),
        )
        spec.check()
        return spec

    def check(self) -> None:
        """Raise ValueError for what would be too large or nonsense."""
        session, connection, port = self.session, self.connection, self.port
        _range("tx_entries", port.tx_entries, 2, TX_ENTRIES_MAX)
        _range("control_slots", port.control_slots, 4, CONTROL_SLOTS_MAX)
        _range("control_data_length", port.control_data_length, 48, CONTROL_LENGTH_MAX)
        for name in ("max_recv_data_segment_length", "peer_max_recv_data_segment_length"):
            _range(name, getattr(connection, name), 512, SEGMENT_MAX)
        for name in ("max_burst_length", "first_burst_length"):
            _range(name, getattr(session, name), 512, SEGMENT_MAX)
        _range("max_outstanding_r2t", session.max_outstanding_r2t, 1, 65535)
        for sn in self.sns:
            _range("sns", sn, 0, SN_MAX)
        if self.role == INITIATOR and (len(self.counts) != 1 or len(self.sns) != 3):
            raise ValueError("an initiator has one count and three serial numbers")
        if self.role == TARGET:
            for unit_count in self.counts[2:]:
                _range("units", unit_count, 0, UNITS_MAX)
        if self.role == TARGET and (len(self.counts) != 3 or len(self.sns) != 2):
            raise ValueError("a target has three counts and two serial numbers")
        if self.role == TARGET:
            _range("cold_length", self.counts[1], 512, COLD_LENGTH_MAX)
        if self.iser is not None:
            self._check_iser(self.iser)

    def _check_iser(self, limits: IserLimits) -> None:
        longest = self.connection.max_recv_data_segment_length
        _range("receives", limits.receives, 2, RECEIVES_MAX)
        _range("data_length", limits.data_length, longest, CONTROL_LENGTH_MAX)
        if self.connection.header_digest or self.connection.data_digest:
            raise ValueError("over RDMA there are no digests")
        if self.role == TARGET:
            _range("cold_length", self.counts[1], longest, COLD_LENGTH_MAX)

    @property
    def _initiator(self) -> InitiatorLimits:
        # A tag names one piece of memory.
        return InitiatorLimits(self.counts[0], self.port, VECTORS_MAX if self.iser is None else 1)

    @property
    def _target(self) -> TargetLimits:
        return TargetLimits(self.counts[0], self.counts[1], self.port)

    @property
    def window_word(self) -> int:
        """ExpCmdSN | MaxCmdSN << 32 as the login left them, signed; 0 for a target."""
        if self.role == TARGET:
            return 0
        cmd_sn, max_cmd_sn, _ = self.sns
        word = cmd_sn | max_cmd_sn << 32
        return word - (1 << 64) if word >> 63 else word

    @property
    def units(self) -> int:
        """How many units a target's table has that the engine serves itself."""
        return self.counts[2] if self.role == TARGET else 0

    @property
    def size(self) -> int:
        """Bytes of the connection's block."""
        if self.iser is None:
            return self._size
        tasks = self._initiator.task_count if self.role == INITIATOR else self._target.task_count
        counts = (self.port.tx_entries, tasks, self.port.control_slots)
        return self.iser_offset + iser_size(self.iser, *counts)

    @property
    def iser_offset(self) -> int:
        """Where its ISER lies."""
        return _whole(self._size)

    @property
    def _size(self) -> int:
        if self.role == INITIATOR:
            return initiator_size(self.session, self._initiator)
        halves = _whole(target_size(self._target, self.units)) + _whole(lower_size(self._target))
        return halves + copies_size(*self._copies)

    @property
    def _copies(self) -> tuple[int, int]:
        """Size and count of the copies a target sends from, so that a digest fits data of a unit
        that is written meanwhile (docs/decisions/0012).
        """
        if not self.connection.data_digest:
            return 0, 0
        return COPY_SIZE, min(COPY_COUNT, self.port.tx_entries)

    def build(self, address: int, luns: int = 0) -> None:
        """Make the connection's lower half in zeroed memory. `luns`: a target's LUN table."""
        if self.role == TARGET:
            self._build_target(address, luns)
            return
        cmd_sn, max_cmd_sn, exp_stat_sn = self.sns
        build_initiator(
            address,
            self.session,
            self.connection,
            self._initiator,
            cmd_sn=cmd_sn,
            max_cmd_sn=max_cmd_sn,
            exp_stat_sn=exp_stat_sn,
        )
        if self.iser is not None:
            build_initiator_iser(address + self.iser_offset, address, self.iser)

    def _build_target(self, address: int, luns: int) -> None:
        cmd_sn, stat_sn = self.sns
        build_target(
            address,
            self.session,
            self.connection,
            self._target,
            luns=luns,
            lun_count=self.units,
            cmd_sn=cmd_sn,
            stat_sn=stat_sn,
        )
        lower = address + _whole(target_size(self._target, self.units))
        build_lower_half(address, lower, self._target)
        if self.connection.data_digest:
            copies = lower + _whole(lower_size(self._target))
            lend_copies(address, copies, *self._copies)
        if self.units:  # The host says what may be served, before anything is.
            gates = int(target_at(address)[0]["nexus"])
            window(gates, self.units, np.int64)[:] = GATE_CLOSED
        if self.iser is not None:
            build_target_iser(address + self.iser_offset, address, self.iser)


def _whole(size: int) -> int:
    return (size + 63) & ~63


def _range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} {value} is outside {low}..{high}")


def _numbers(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(each) is int for each in value):
        raise ValueError(f"{name} is no list of integers")
    return tuple(value)


def _record(kind: Any, value: Any) -> Any:
    """A dataclass of numbers, flags and strings from a mapping with exactly its fields."""
    defaults = kind()
    if not isinstance(value, dict) or set(value) != {each.name for each in fields(kind)}:
        raise ValueError(f"{kind.__name__} is incomplete or has unknown fields")
    for name, given in value.items():
        if type(given) is not type(getattr(defaults, name)):
            raise ValueError(f"{kind.__name__}.{name} is {given!r}, which is of another type")
    return kind(**value)
