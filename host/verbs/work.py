"""Work requests and their completions as Python sees them, with the verbs manual's words."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.verbs.records import SGE
from shm.verbs import SGES_MAX, WC_STATUS_NAMES, errno_of
from shm.verbs_numbers import (
    SEND_FENCE,
    SEND_SIGNALED,
    SEND_SOLICITED,
    WC_LOC_QP_OP_ERR,
    WC_RECV,
    WC_SOLICITED,
    WC_SUCCESS,
    WC_WITH_IMM,
    WC_WITH_INV,
    WC_WR_FLUSH_ERR,
)


class Sge(NamedTuple):
    """A piece of registered memory."""

    addr: int
    length: int
    lkey: int


@dataclass(slots=True)
class SendWr:
    """A work request for a send queue. `opcode` is one of `shm.verbs_numbers`' WR_*; `imm_data` the
    immediate data, `invalidate_rkey` what the peer (or a local invalidate) is to invalidate.
    """

    opcode: int
    sg_list: Sequence[Sge] = ()
    wr_id: int = 0
    send_flags: int = SEND_SIGNALED
    remote_addr: int = 0
    rkey: int = 0
    imm_data: int = 0
    invalidate_rkey: int = 0
    compare_add: int = 0
    swap: int = 0


@dataclass(slots=True)
class RecvWr:
    """A receive."""

    sg_list: Sequence[Sge] = ()
    wr_id: int = 0


@dataclass(frozen=True, slots=True)
class QpCap:
    """How large a queue pair's queues are."""

    max_send_wr: int = 128
    max_recv_wr: int = 128


class WorkError(OSError):
    """A work request ended with an error; `wc` is its completion."""

    def __init__(self, wc: "WorkCompletion") -> None:
        name = WC_STATUS_NAMES.get(wc.status, str(wc.status))
        code = f", Terminate {wc.vendor_err:#06x}" if wc.vendor_err else ""
        super().__init__(-errno_of(wc.status), f"work request {wc.wr_id}: {name}{code}")
        self.wc = wc


class WorkCompletion(NamedTuple):
    """What became of one work request. `qp_num` is the queue pair's; `vendor_err` a Terminate's
    layer << 12 | type << 8 | code, or 0.
    """

    wr_id: int
    status: int
    opcode: int
    byte_len: int
    qp_num: int
    word: int  # immediate data, an invalidated or a new rkey: the properties say which
    wc_flags: int
    vendor_err: int

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.status == WC_SUCCESS

    @property
    def flushed(self) -> bool:
        """Whether it was not carried out because the queue pair ended."""
        return self.status == WC_WR_FLUSH_ERR

    @property
    def is_receive(self) -> bool:
        """Whether a receive queue's entry ended, not a send queue's."""
        return bool(self.opcode & WC_RECV)

    @property
    def invalidated_rkey(self) -> int | None:
        """The rkey that the peer's Send invalidated, or None."""
        return self.word & 0xFFFFFFFF if self.wc_flags & WC_WITH_INV else None

    @property
    def imm_data(self) -> int | None:
        """The 32 bits of a Write with immediate data, or None."""
        return self.word >> 32 & 0xFFFFFFFF if self.wc_flags & WC_WITH_IMM else None

    @property
    def immediate(self) -> int | None:
        """All 64 bits of immediate data (RFC 7306 §6), or None."""
        return self.word & (1 << 64) - 1 if self.wc_flags & WC_WITH_IMM else None

    @property
    def new_rkey(self) -> int:
        """The rkey that a window was bound with."""
        return self.word & 0xFFFFFFFF

    @property
    def status_name(self) -> str:
        """The status in words."""
        return WC_STATUS_NAMES.get(self.status, str(self.status))

    def check(self) -> "WorkCompletion":
        """Return itself, or raise WorkError."""
        if self.status != WC_SUCCESS:
            raise WorkError(self)
        return self


@dataclass(slots=True)
class SgeScratch:
    """Memory for the gather list of one post at a time."""

    array: NDArray[Any] = field(default_factory=lambda: np.zeros(SGES_MAX, SGE))

    @property
    def address(self) -> int:
        """Of its first entry."""
        return int(self.array.ctypes.data)

    def fill(self, sg_list: Sequence[Sge]) -> int:
        """Write the entries down. How many. Raises ValueError for too many or nonsense."""
        count = len(sg_list)
        if count > len(self.array):
            raise ValueError(f"{count} scatter/gather entries: {len(self.array)} are possible")
        for place, (addr, length, lkey) in enumerate(sg_list):
            if not 0 <= length <= 0xFFFFFFFF:
                raise ValueError(f"a piece of {length} bytes cannot be")
            self.array[place] = (addr, length, lkey)
        return count


__all__ = [
    "SEND_FENCE",
    "SEND_SIGNALED",
    "SEND_SOLICITED",
    "WC_LOC_QP_OP_ERR",
    "WC_SOLICITED",
    "WC_WITH_IMM",
    "QpCap",
    "RecvWr",
    "SendWr",
    "Sge",
    "SgeScratch",
    "WorkCompletion",
    "WorkError",
]
