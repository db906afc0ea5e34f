"""CDBs of the commands an initiator sends now and then (SPC-4, SBC-3): what `iscsi.wire.scsi` does
not have because the target's fast path does not need it. All numbers are in blocks or bytes as the
standard has them; a number that does not fit raises ValueError.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

UNMAP_DESCRIPTOR: Final = 16
ALL_OPCODES: Final = 0


def build(opcode: int, size: int, *fields: tuple[int, int, int]) -> bytes:
    """A CDB of `size` bytes from (offset, length, value) triples."""
    cdb = bytearray(size)
    cdb[0] = opcode
    for offset, length, value in fields:
        try:
            cdb[offset : offset + length] = value.to_bytes(length, "big")
        except OverflowError:
            raise ValueError(f"{value} does not fit in {length} bytes of the command") from None
    return bytes(cdb)


def unmap(extents: Iterable[tuple[int, int]], *, anchor: bool = False) -> tuple[bytes, bytes]:
    """UNMAP (SBC-3 §5.28): the CDB and its parameter list for (lba, blocks) extents."""
    body = b"".join(
        lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(4) for lba, blocks in extents
    )
    data = (len(body) + 6).to_bytes(2, "big") + len(body).to_bytes(2, "big") + bytes(4) + body
    return build(0x42, 10, (1, 1, int(anchor)), (7, 2, len(data))), data


def write_same(
    lba: int, blocks: int, *, unmap: bool = False, anchor: bool = False, no_data: bool = False
) -> bytes:
    """WRITE SAME(16) (SBC-3 §5.43); `no_data` is NDOB: zeros, and nothing is sent."""
    option = 0x10 * anchor | 0x08 * unmap | 0x01 * no_data
    return build(0x93, 16, (1, 1, option), (2, 8, lba), (10, 4, blocks))


def compare_and_write(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """COMPARE AND WRITE (SBC-3 §5.2), of at most 255 blocks."""
    return build(0x89, 16, (1, 1, 0x08 * fua), (2, 8, lba), (13, 1, blocks))


def write_atomic(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """WRITE ATOMIC(16) (SBC-4 §5.48), of at most 65,535 blocks."""
    return build(0x9C, 16, (1, 1, 0x08 * fua), (2, 8, lba), (12, 2, blocks))


def verify(lba: int, blocks: int, *, compare: bool = False) -> bytes:
    """VERIFY(16) (SBC-3 §5.32); `compare` is BYTCHK 01b: the data is sent along."""
    return build(0x8F, 16, (1, 1, 0x02 * compare), (2, 8, lba), (10, 4, blocks))


def synchronize_cache(lba: int, blocks: int, *, immediate: bool = False) -> bytes:
    """SYNCHRONIZE CACHE(16) (SBC-3 §5.22), or (10) where it fits; zero blocks: to the end."""
    option = 0x02 * immediate
    if lba < 1 << 32 and blocks < 1 << 16:
        return build(0x35, 10, (1, 1, option), (2, 4, lba), (7, 2, blocks))
    return build(0x91, 16, (1, 1, option), (2, 8, lba), (10, 4, blocks))


def get_lba_status(lba: int, length: int) -> bytes:
    """GET LBA STATUS (SBC-3 §5.4)."""
    return build(0x9E, 16, (1, 1, 0x12), (2, 8, lba), (10, 4, length))


def report_supported_opcodes(
    length: int,
    opcode: int | None = None,
    service_action: int | None = None,
    *,
    timeouts: bool = False,
) -> bytes:
    """REPORT SUPPORTED OPERATION CODES (SPC-4 §6.35): all of them, or one."""
    option = 0 if opcode is None else 1 if service_action is None else 2
    return build(
        0xA3,
        12,
        (1, 1, 0x0C),
        (2, 1, 0x80 * timeouts | option),
        (3, 1, opcode or 0),
        (4, 2, service_action or 0),
        (6, 4, length),
    )


def mode_sense(
    page: int, subpage: int = 0, *, control: int = 0, length: int = 255, dbd: bool = False
) -> bytes:
    """MODE SENSE(10) (SPC-4 §6.14); `control`: 0 current, 1 changeable, 2 default, 3 saved."""
    return build(
        0x5A, 10, (1, 1, 0x08 * dbd), (2, 1, control << 6 | page), (3, 1, subpage), (7, 2, length)
    )


def mode_select(length: int, *, save: bool = False) -> bytes:
    """MODE SELECT(10), page format (SPC-4 §6.12)."""
    return build(0x55, 10, (1, 1, 0x10 | save), (7, 2, length))


def start_stop(
    *, start: bool, load_eject: bool = False, immediate: bool = False, power: int = 0
) -> bytes:
    """START STOP UNIT (SBC-3 §5.20)."""
    option = power << 4 | 0x02 * load_eject | int(start)
    return build(0x1B, 6, (1, 1, int(immediate)), (4, 1, option))


def prevent_removal(prevent: bool) -> bytes:
    """PREVENT ALLOW MEDIUM REMOVAL (SBC-3 §5.10)."""
    return build(0x1E, 6, (4, 1, int(prevent)))


def sanitize(
    service_action: int, length: int = 0, *, immediate: bool = False, ause: bool = False
) -> bytes:
    """SANITIZE (SBC-4 §5.30): 1 overwrite, 2 block erase, 3 cryptographic, 1Fh exit failure."""
    option = 0x80 * immediate | 0x20 * ause | service_action
    return build(0x48, 10, (1, 1, option), (7, 2, length))


def persistent_reserve_in(service_action: int, length: int) -> bytes:
    """PERSISTENT RESERVE IN (SPC-4 §6.15)."""
    return build(0x5E, 10, (1, 1, service_action), (7, 2, length))


def persistent_reserve_out(
    service_action: int,
    key: int,
    new_key: int = 0,
    *,
    kind: int = 0,
    options: int = 0,
) -> tuple[bytes, bytes]:
    """PERSISTENT RESERVE OUT (SPC-4 §6.16): the CDB and its 24 bytes; `options` is byte 20."""
    data = (
        key.to_bytes(8, "big") + new_key.to_bytes(8, "big") + bytes(4) + bytes((options, 0, 0, 0))
    )
    return build(0x5F, 10, (1, 1, service_action), (2, 1, kind), (5, 4, len(data))), data


@dataclass(frozen=True, slots=True)
class LbaStatus:
    """A run of blocks in one provisioning state: 0 mapped, 1 deallocated, 2 anchored."""

    lba: int
    blocks: int
    state: int


def parse_lba_status(data: bytes) -> list[LbaStatus]:
    """The descriptors of GET LBA STATUS data, as far as they came."""
    end = min(len(data), 4 + int.from_bytes(data[:4], "big"))
    return [
        LbaStatus(
            int.from_bytes(data[at : at + 8], "big"),
            int.from_bytes(data[at + 8 : at + 12], "big"),
            data[at + 12] & 0x0F,
        )
        for at in range(8, end - 15, 16)
    ]


@dataclass(frozen=True, slots=True)
class SupportedOpcode:
    """One command a unit knows. `service_action` is None where it has none."""

    opcode: int
    service_action: int | None
    cdb_length: int


def parse_opcodes(data: bytes) -> list[SupportedOpcode]:
    """The descriptors of REPORT SUPPORTED OPERATION CODES data for all commands."""
    end = min(len(data), 4 + int.from_bytes(data[:4], "big"))
    found, at = [], 4
    while at + 8 <= end:
        action = int.from_bytes(data[at + 2 : at + 4], "big") if data[at + 5] & 1 else None
        length = int.from_bytes(data[at + 6 : at + 8], "big")
        found.append(SupportedOpcode(data[at], action, length))
        at += 20 if data[at + 5] & 2 else 8
    return found


@dataclass(frozen=True, slots=True)
class Registrations:
    """READ KEYS: the generation and every registered key."""

    generation: int
    keys: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reservation:
    """READ RESERVATION: the holder's key and the type (low nibble); `key` None: there is none."""

    generation: int
    key: int | None
    kind: int


def parse_keys(data: bytes) -> Registrations:
    """READ KEYS data (SPC-4 §6.15.2)."""
    end = min(len(data), 8 + int.from_bytes(data[4:8], "big"))
    keys = (int.from_bytes(data[at : at + 8], "big") for at in range(8, end - 7, 8))
    return Registrations(int.from_bytes(data[:4], "big"), tuple(keys))


def parse_reservation(data: bytes) -> Reservation:
    """READ RESERVATION data (SPC-4 §6.15.3)."""
    generation = int.from_bytes(data[:4], "big")
    if len(data) < 24 or int.from_bytes(data[4:8], "big") < 16:
        return Reservation(generation, None, 0)
    return Reservation(generation, int.from_bytes(data[8:16], "big"), data[21] & 0x0F)
