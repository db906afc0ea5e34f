"""What services of the resource manager say to each other on the wire: the greeting of a
connection, the header of a message, and descriptors of memory.
"""

import struct
from dataclasses import dataclass
from typing import Final

# In front of each message: what it is, and credits for the other side.
HEADER: Final = struct.Struct(">HHI")
MAGIC: Final = 0x5250
MESSAGE: Final = 1
CREDITS_ONLY: Final = 2
# In the private data of Request and Reply: magic, credits for the beginning, name of the service.
GREETING: Final = struct.Struct(">HH")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Remote memory, in 16 octets (as RPC over RDMA's segments): STag, length, address."""

    stag: int
    length: int
    address: int

    FORMAT = struct.Struct(">IIQ")

    def pack(self) -> bytes:
        """As bytes on the wire."""
        return self.FORMAT.pack(self.stag, self.length, self.address)

    @classmethod
    def unpack(cls, data: bytes) -> "Descriptor":
        """From 16 bytes. Raises ValueError for another length."""
        if len(data) != cls.FORMAT.size:
            raise ValueError(f"a descriptor has 16 octets, not {len(data)}")
        return cls(*cls.FORMAT.unpack(data))

    def piece(self, offset: int, length: int) -> "Descriptor":
        """A part of it. Raises ValueError for what lies outside."""
        if offset < 0 or length < 0 or offset > self.length or length > self.length - offset:
            raise ValueError(f"{length} bytes at {offset} are not within {self.length}")
        return Descriptor(self.stag, length, self.address + offset)


def credits_of(private_data: bytes, name: str) -> int:
    """Credits that a Reply grants. Raises ConnectionError if it is no greeting of that service."""
    try:
        magic, granted = GREETING.unpack_from(private_data)
    except struct.error:
        magic, granted = 0, 0
    if magic != MAGIC or private_data[GREETING.size :] != name.encode():
        raise ConnectionError(f"the peer does not answer as service {name!r}")
    return int(granted)
