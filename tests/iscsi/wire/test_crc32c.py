"""CRC32C against the vectors of RFC 7143 §B.4 (as in RFC 3720) and against its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.wire import crc32c as crc
from shm.view import address_of

VECTORS = [
    (bytes(32), "aa36918a"),
    (b"\xff" * 32, "43aba862"),
    (bytes(range(32)), "4e79dd46"),
    (bytes(range(31, -1, -1)), "5cdb3f11"),
    (
        bytes.fromhex(
            "01c00000 00000000 00000000 00000000 14000000 00000400"
            "00000014 00000018 28000000 00000000 02000000 00000000"
        ),
        "563a96d9",
    ),
]


@pytest.mark.parametrize(("data", "stored"), VECTORS)
def test_the_rfc_vectors_are_stored_little_endian(data, stored):
    assert crc.crc32c(data).to_bytes(4, "little").hex() == stored


def test_the_check_value_of_the_catalogues():
    assert crc.crc32c(b"123456789") == 0xE3069283
    assert crc.crc32c(b"") == 0


def bit_by_bit(data):
    value = crc.ONES
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ crc.ONES


@settings(deadline=None)  # the first call compiles
@given(st.binary(max_size=200))
def test_instruction_and_table_give_what_the_definition_says(data):
    array = np.frombuffer(data + b"\0", np.uint8)
    table = crc.update_by_table(crc.ONES, address_of(array), len(data)) ^ crc.ONES
    assert crc.crc32c(data) == table == bit_by_bit(data)


@settings(deadline=None)  # the first call compiles
@given(st.binary(max_size=100), st.integers(0, 100))
def test_a_crc_continues_over_pieces(data, cut):
    cut = min(cut, len(data))
    array = np.frombuffer(data + b"\0", np.uint8)
    start = address_of(array)
    first = crc.update(crc.ONES, start, cut)
    assert crc.finish(crc.update(first, start + cut, len(data) - cut)) == crc.crc32c(data)
