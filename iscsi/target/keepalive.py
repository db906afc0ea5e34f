"""Whether a silent initiator still lives (RFC 7143 §11.19): it is asked with a NOP-In after a time
without a sign of life, and given up after another. Any byte received is a sign of life, not only
the answer; so is a peer that still takes what was queued for it. No clock here: `now` comes in.
"""

from enum import Enum, auto
from typing import Any, Final

from iscsi.wire.bhs import RESERVED_TAG

_SIGNS: Final = ("rx_pdus", "rx_phase", "want_address", "want_length")


class Step(Enum):
    """What is due."""

    NOTHING = auto()
    ASK = auto()
    GIVE_UP = auto()


class Keepalive:
    """One connection's. `interval_ns` 0 switches it off."""

    def __init__(self, interval_ns: int, timeout_ns: int) -> None:
        self._interval_ns, self._timeout_ns = interval_ns, timeout_ns
        self._signs: tuple[int, ...] = ()
        self._sent = 0
        self._asked = False
        self._at_ns = 0
        self._tag = 0

    def step(self, port: Any, now_ns: int) -> Step:
        """Look at a PORT record: whether to ask now, or to give up."""
        if self._interval_ns <= 0 or now_ns < self._at_ns:
            return Step.NOTHING
        if self._has_lived(port) or not self._at_ns:
            self._asked = False
            self._at_ns = now_ns + self._interval_ns
            return Step.NOTHING
        if self._asked:
            return Step.GIVE_UP
        self._asked = True
        self._at_ns = now_ns + self._timeout_ns
        return Step.ASK

    def _has_lived(self, port: Any) -> bool:
        signs = tuple(int(port[name]) for name in _SIGNS)
        sent = int(port["tx_sent"])
        # Taking the last of what waits proves nothing: that is the kernel's buffer.
        takes = sent != self._sent and sent != int(port["tx_made"])
        lived = signs != self._signs or takes
        self._signs, self._sent = signs, sent
        return lived

    def next_tag(self) -> int:
        """A target transfer tag for the next NOP-In."""
        self._tag = (self._tag + 1) % RESERVED_TAG
        return self._tag
