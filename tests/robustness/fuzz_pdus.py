"""PDUs for the fuzzer: of the right types with fields at their edges, then spoilt in every way a
stream can be. Everything is drawn from one `random.Random`, so a seed names a sequence.
"""

from iscsi.wire import bhs
from iscsi.wire.bhs import LAYOUTS, Opcode
from shm.crc32c import crc32c

TO_TARGET = [opcode for opcode in Opcode if opcode < 0x20]
TO_INITIATOR = [opcode for opcode in Opcode if opcode >= 0x20]
EDGES = (0, 1, 2, 3, 7, 8, 255, 511, 512, 513, 1024, 2048, 4096, 65535, 65536, 0xFFFFFF)
HUGE = (0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, (1 << 48) - 1, (1 << 63), (1 << 64) - 1)
LENGTHS = (0, 0, 0, 1, 3, 4, 47, 48, 64, 511, 512, 513, 1024, 2000, 4096, 8192)
KEYS = (
    b"SendTargets=All\0",
    b"SendTargets=\0",
    b"X-a=b\0",
    b"MaxRecvDataSegmentLength=513\0",
    b"=",
)


def field_value(rng, name, field, known):
    """A value for a header field; `known` has those that get past the first checks."""
    top = (1 << field.bits) - 1
    if name in known and rng.random() < 0.9:
        return known[name](rng) & top
    if field.bits == 1:
        return rng.getrandbits(1)
    roll = rng.random()
    if roll < 0.5:
        return rng.choice(EDGES) & top
    if roll < 0.6:
        return rng.choice(HUGE) & top
    return rng.getrandbits(field.bits) if roll < 0.8 else field.default


def header_of(rng, opcode, known):
    """A header whose fields are plausible one by one."""
    skipped = ("data_segment_length", "total_ahs_words")
    fields = {
        name: field_value(rng, name, field, known)
        for name, field in LAYOUTS[opcode].items()
        if name not in skipped
    }
    return bhs.encode(opcode, **fields)


def ahs_of(rng):
    """Additional header segments: well formed, of odd types, or lying about their length."""
    if rng.random() < 0.95:
        return b""
    length = rng.choice((1, 5, 17, 33, 60, 253))
    body = rng.randbytes(length - 1)
    claim = length if rng.random() < 0.7 else rng.choice((0, 1, 255, 1017, 65535))
    ahs = claim.to_bytes(2, "big") + bytes((rng.choice((1, 1, 2, 3, 0, 255)), 0)) + body
    return ahs + bytes(-len(ahs) % 4)


def spoil(rng, header, data, calm):
    """Change what is there: bits, bytes, lengths; nothing in a share `calm` of all cases."""
    if rng.random() < calm:
        return header, data
    roll = 0.6 + 0.4 * rng.random()
    header = bytearray(header)
    if roll < 0.75:
        for _ in range(rng.choice((1, 1, 2, 8))):
            header[rng.randrange(48)] ^= 1 << rng.randrange(8)
    elif roll < 0.85:
        header[rng.randrange(48)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    elif roll < 0.9:
        header[5:8] = rng.choice((*EDGES, len(data) + 1, 0xFFFFFF)).to_bytes(3, "big")
    elif roll < 0.93:
        header[4] = rng.choice((0, 1, 2, 255))
    elif roll < 0.96:
        header[:] = rng.randbytes(48)
    else:
        header[0] = header[0] & 0xC0 | rng.randrange(64)
    return header, data


def stream_of(rng, header, ahs, data, digests, calm):
    """The PDU's bytes with digests, right or not, and padding, zero or not."""
    header = bytearray(header)
    if ahs:
        header[4] = len(ahs) // 4
    first = bytes(header) + ahs
    padding = bytes(-len(data) % 4) if rng.random() < 0.95 else rng.randbytes(-len(data) % 4)
    parts = [first]
    if digests[0]:
        parts.append(crc32c(first).to_bytes(4, "little"))
    if data:
        parts += [data, padding]
        if digests[1]:
            parts.append(crc32c(data + padding).to_bytes(4, "little"))
    found = b"".join(parts)
    if rng.random() < 0.05 * (1 - calm):
        found = bytearray(found)
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def pdu(rng, opcodes, known, digests, *, data=None, calm=0.6):
    """One PDU, with `known(rng)` values for fields that are checked first."""
    opcode = rng.choice(opcodes)
    header = header_of(rng, opcode, known)
    if data is None:
        data = rng.randbytes(rng.choice(LENGTHS)) if rng.random() < 0.8 else rng.choice(KEYS)
    header[5:8] = len(data).to_bytes(3, "big")
    ahs = b""
    if opcode is Opcode.SCSI_COMMAND or rng.random() < 0.1 * (1 - calm):
        ahs = ahs_of(rng)
    header, data = spoil(rng, header, data, calm)
    return stream_of(rng, header, ahs, data, digests, calm)
