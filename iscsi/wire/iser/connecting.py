"""The four bytes of private data by which both ends of a connection say, before anything else, what
of iSER's extras they can do. Whoever sends none can do nothing of it.
"""

from dataclasses import dataclass
from typing import Final

LENGTH: Final = 4
ZBVA_NOT_SUPPORTED: Final = 0x80  # tags whose memory begins at 0 (ZBVA)
SEND_INVALIDATE_NOT_SUPPORTED: Final = 0x40


@dataclass(frozen=True, slots=True)
class Features:
    """What one side says. `send_invalidate`: of an initiator, that its tags may be invalidated by a
    Send; of a target, that it does so. `zero_based`: the same of addresses that count from 0.
    """

    send_invalidate: bool = False
    zero_based: bool = False

    def to_bytes(self) -> bytes:
        """The private data of a connection request or its reply."""
        flags = ZBVA_NOT_SUPPORTED * (not self.zero_based)
        flags |= SEND_INVALIDATE_NOT_SUPPORTED * (not self.send_invalidate)
        return bytes((flags, 0, 0, 0))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Features":
        """Read a peer's; nothing, or too little, is a peer that knows none of this. More than four
        bytes are somebody else's padding.
        """
        if len(data) < LENGTH:
            return cls()
        return cls(
            send_invalidate=not data[0] & SEND_INVALIDATE_NOT_SUPPORTED,
            zero_based=not data[0] & ZBVA_NOT_SUPPORTED,
        )

    def answer(self, request: "Features") -> "Features":
        """A target's reply, and what both then do: no more than was asked for."""
        return Features(
            self.send_invalidate and request.send_invalidate,
            self.zero_based and request.zero_based,
        )
