"""The buffers that a server lends its engine for PDUs it must see (RFC 5047, Control_Notify): one
pool for all its connections, made once. The compiled loop lends them and takes them back.
"""

from typing import Any, Final

import numpy as np

from host.mover import SCRATCH_SIZE
from iscsi.target.mover_pump import ENDPOINTS_MAX, KEPT, LENDING, forget_pump, lend_spare
from iscsi.wire.bhs import BHS_LENGTH, MAX_AHS_LENGTH
from iscsi.wire.target_block import TargetLimits
from shm.jit import entry
from shm.operations import INDEX_MASK
from shm.view import address_of

LINE: Final = 64
# As many as connections may be shown commands at once: 4 full windows, or an eighth of the channel.
WINDOWS: Final = 4
CHANNEL_SHARE: Final = 8


@entry("void(intp, intp)")
def _forget(lending: int, pump: int) -> None:
    """Door to `mover_pump.forget_pump`."""
    forget_pump(lending, pump)


@entry("void(intp)")
def _lend(lending: int) -> None:
    """Door to `mover_pump.lend_spare`."""
    lend_spare(lending)


class Lending:
    """The pool, its buffers and the table of pumps by endpoint. Raises what `make_pool` and `alloc`
    raise.
    """

    def __init__(self, engine: Any, channel: Any, limits: TargetLimits) -> None:
        data = max(limits.cold_length, limits.port.control_data_length)
        size = -(-(BHS_LENGTH + MAX_AHS_LENGTH + data) // LINE) * LINE
        count = max(8, min(WINDOWS * limits.task_count, channel.limit // CHANNEL_SHARE))
        self.pool = int(engine.make_pool(channel))
        self._memory = engine.alloc(size * count)
        self._pumps = np.zeros(ENDPOINTS_MAX, np.int64)
        self._spare = self._memory.address + size * np.arange(count, dtype=np.int64)
        self._kept = np.zeros(count, KEPT)
        self._scratch = np.zeros(SCRATCH_SIZE, np.uint8)
        self._record = np.zeros(1, LENDING)
        mine = self._record[0]
        mine["context"], mine["pool"] = channel.context, self.pool
        mine["size"], mine["count"] = size, count
        mine["spare"], mine["spare_count"] = address_of(self._spare), count
        mine["kept"], mine["pumps"] = address_of(self._kept), address_of(self._pumps)
        mine["scratch"] = address_of(self._scratch)
        _lend(self.address)

    @property
    def address(self) -> int:
        """The LENDING record."""
        return address_of(self._record)

    @property
    def spare(self) -> int:
        """Buffers that are here, because the ring had no room for them."""
        return int(self._record[0]["spare_count"])

    @property
    def kept(self) -> int:
        """PDUs for which their connections have no room yet."""
        return int(self._record[0]["kept_count"])

    def know(self, endpoint: int, pump: int) -> None:
        """What comes of an endpoint is this pump's."""
        self._pumps[endpoint & INDEX_MASK] = pump

    def forget(self, pump: int) -> None:
        """A connection's memory is about to go."""
        _forget(self.address, pump)

    def free(self) -> None:
        """Give the memory back; the channel is closed. Idempotent."""
        if self._memory is not None:
            self._memory.free()
            self._memory = None
