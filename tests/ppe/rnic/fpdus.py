"""FPDUs as a peer would make them, and a reader of ours, both written from the RFCs and not from
the core: struct, and a CRC32C of another library.
"""

import struct

import google_crc32c

MARKER_EVERY = 512


def crc32c(data):
    """CRC32C as MPA stores it: a little-endian word."""
    return struct.pack("<I", google_crc32c.value(bytes(data)))


def fpdu(ulpdu, *, crc=True, length=None):
    """RFC 5044 §4.1: length, ULPDU, padding to a multiple of four, CRC."""
    body = struct.pack(">H", len(ulpdu) if length is None else length) + ulpdu
    body += bytes(-len(body) % 4)
    return body + (crc32c(body) if crc else bytes(4))


def tagged(opcode, stag, to, payload=b"", *, last=True, version=1, rdmap=1, t=True, reserved=0):
    """RFC 5041 §4.1, RFC 5040 §4.1: a tagged DDP segment."""
    ddp = t << 7 | last << 6 | reserved << 2 | version
    head = struct.pack(">BBIQ", ddp, rdmap << 6 | opcode, stag, to % (1 << 64))
    return head + bytes(payload)


def untagged(opcode, queue, msn, payload=b"", *, mo=0, last=True, ulp=0, version=1, rdmap=1, t=0):
    """RFC 5041 §4.2: an untagged DDP segment."""
    head = struct.pack(
        ">BBIIII", t << 7 | last << 6 | version, rdmap << 6 | opcode, ulp, queue, msn, mo
    )
    return head + bytes(payload)


def write(stag, to, payload=b"", **options):
    return tagged(0, stag, to, payload, **options)


def read_response(stag, to, payload=b"", **options):
    return tagged(2, stag, to, payload, **options)


def send(msn, payload=b"", *, opcode=3, **options):
    return untagged(opcode, options.pop("queue", 0), msn, payload, **options)


def read_request(msn, sink, sink_to, size, source, source_to, **options):
    """RFC 5040 §4.4."""
    payload = struct.pack(">IQIIQ", sink, sink_to % (1 << 64), size, source, source_to % (1 << 64))
    return untagged(1, options.pop("queue", 1), msn, payload + options.pop("more", b""), **options)


def atomic_request(msn, operation, request, stag, to, *words, **options):
    """RFC 7306 §5.2.1; `words`: data, mask, compare data, compare mask."""
    words = [*words, 0, 0, 0, 0][:4]
    payload = struct.pack(">IIIQQQQQ", operation, request, stag, to % (1 << 64), *words)
    return untagged(10, 1, msn, payload + options.pop("more", b""), **options)


def atomic_response(msn, request, value, **options):
    """RFC 7306 §5.2.2."""
    return untagged(11, 3, msn, struct.pack(">IQ", request, value), **options)


def immediate(msn, value, *, solicited=False, **options):
    """RFC 7306 §6.1."""
    payload = struct.pack(">Q", value) + options.pop("more", b"")
    return untagged(9 if solicited else 8, 0, msn, payload, **options)


def terminate(layer, etype, code, *, headers=0, more=b"", msn=1):
    """RFC 5040 §4.8."""
    return untagged(7, 2, msn, struct.pack(">BBH", layer << 4 | etype, code, headers << 13) + more)


def with_markers(fpdus, *, crc=True, pointer=0, start=0):
    """A stream of FPDUs as RFC 5044 §4.3 wants it: a marker every 512 bytes, the first one first,
    with the distance from the start of the FPDU it lies in; CRCs cover it. `pointer` spoils that;
    `start` is how many bytes of the stream there were before.
    """
    stream = bytearray()
    for each in fpdus:
        body, out, begun = each[:-4], bytearray(), None
        for at in range(0, len(each), 4):
            word = None if at == len(body) else body[at : at + 4]
            if (start + len(stream) + len(out)) % MARKER_EVERY == 0:
                distance = 0 if begun is None else len(out) - begun
                out += struct.pack(">HH", 0, (distance + pointer) & 0xFFFF)
            if begun is None:
                begun = len(out)
            if word is None:
                out += crc32c(out) if crc else bytes(4)
            else:
                out += word
        stream += out
    return bytes(stream)


# --- reading -------------------------------------------------------------------------------------


def split(stream):
    """The ULPDUs of a stream without markers, whose padding is zeros."""
    found = []
    while stream:
        (length,) = struct.unpack_from(">H", stream)
        end = 2 + length + (-(2 + length) % 4)
        assert not any(stream[2 + length : end]), "padding is not zero"
        assert len(stream) >= end + 4, "an FPDU is cut off"
        found.append(stream[2 : 2 + length])
        assert stream[end : end + 4] in (crc32c(stream[:end]), bytes(4))
        stream = stream[end + 4 :]
    return found


def terminate_of(stream):
    """layer << 12 | etype << 8 | code of the only Terminate in a stream, and what it quotes."""
    (found,) = [each for each in split(stream) if each[1] & 15 == 7]
    ddp, rdmap, ulp, queue, msn, mo = struct.unpack_from(">BBIIII", found)
    assert (ddp, rdmap, ulp, queue, msn, mo) == (0x41, 0x47, 0, 2, 1, 0)
    first, code, headers = struct.unpack_from(">BBH", found, 18)
    quoted = found[22:]
    if headers >> 13:
        assert headers >> 14 == 3, "a DDP header comes with its length"
        (length,) = struct.unpack_from(">H", quoted)
        quoted = length, quoted[2:]
    else:
        assert quoted == b""
    return first << 8 | code, headers >> 13 & 1, quoted
