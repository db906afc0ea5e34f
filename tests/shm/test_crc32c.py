"""CRC32C against the vectors of RFC 7143 §B.4 (as in RFC 3720), its definition, and a library."""

import os
import subprocess
import sys

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shm import crc32c as crc
from shm.crc32c_fold import make_fold, step_size
from shm.jit import JIT_DISABLED, ROOT, nopython, python_version
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
    assert crc.crc32c(data) == crc.crc32c_by_table(data) == bit_by_bit(data)


# Around the lengths where the three-way code changes its stride, and far above.
LENGTHS = [k * length + more for length in (256, 4096) for k in (2, 3, 6) for more in (-1, 0, 1, 7)]


@pytest.mark.parametrize("length", [*LENGTHS, 3 * 4096 + 3 * 256, 10_007])
@pytest.mark.parametrize("start", [0, 1, 7])
def test_long_buffers_at_any_address_give_what_the_definition_says(length, start):
    data = np.random.default_rng(length).integers(0, 256, start + length, np.uint8)[start:]
    expected = bit_by_bit(data.tobytes())
    assert crc.crc32c(data) == expected
    assert crc.crc32c_by_table(data) == expected


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 40_000), st.integers(0, 2**32 - 1))
def test_instruction_and_table_agree_on_any_length(length, seed):
    data = np.random.default_rng(seed).integers(0, 256, length, np.uint8)
    assert crc.crc32c(data) == crc.crc32c_by_table(data)
    assert crc.crc32c(data[: length // 2]) == crc.crc32c_by_table(data[: length // 2])


def random_bytes(length, seed=0):
    return np.random.default_rng(seed).integers(0, 256, length, np.uint8)


# Around the shortest that is folded with either width of vectors, and around the strides of three.
FOLDED = [128, 256, 512, 3 * 256, 3 * 4096, 65536]


@pytest.mark.parametrize("length", [size + more for size in FOLDED for more in (-9, -1, 0, 1, 15)])
@pytest.mark.parametrize("start", [0, 1, 8])
def test_every_way_to_compute_it_gives_what_a_library_says(length, start):
    data = random_bytes(start + length)[start:]
    expected = google_crc32c.value(data.tobytes())
    found = [
        crc.finish(update(crc.ONES, address_of(data), length))
        for update in (crc.update, crc.update_by_instruction, crc.update_by_table)
    ]
    assert found == [expected] * 3


@pytest.mark.parametrize("copy", [crc.copy_and_update, crc.copy_in_pieces])
@pytest.mark.parametrize("length", [0, 1, 127, 256, 300, 4096 + 5, 12288 + 256 + 3, 65536])
@pytest.mark.parametrize("start", [0, 3])
def test_a_copy_and_its_crc_are_made_at_once(copy, length, start):
    data = random_bytes(start + length + 1)
    target = np.full(start + length + 9, 0xAA, np.uint8)
    first = google_crc32c.value(b"before") ^ crc.ONES
    made = copy(first, address_of(target) + start, address_of(data) + start, length)
    copied = data[start : start + length].tobytes()
    assert crc.finish(made) == google_crc32c.value(b"before" + copied)
    assert target[start : start + length].tobytes() == copied
    assert (target[:start] == 0xAA).all()
    assert (target[start + length :] == 0xAA).all()


@pytest.mark.skipif(JIT_DISABLED, reason="there are no vectors without the compiler")
@pytest.mark.parametrize("lane_count", [2, 4])
@pytest.mark.parametrize("copies", [False, True])
def test_both_widths_of_vectors_give_the_same(lane_count, copies):
    if lane_count > crc.lanes():
        pytest.skip(f"this CPU multiplies {crc.lanes()} lanes at once")
    fold, step = make_fold(lane_count, copies=copies), step_size(lane_count)

    @nopython
    def run(value, target, source, length):
        return fold(value, target, source, length)

    for steps in (1, 2, 3, 50):
        data = random_bytes(steps * step, steps)
        target = np.zeros_like(data)
        made = run(crc.ONES, address_of(target), address_of(data), data.size)
        assert crc.finish(made) == google_crc32c.value(data.tobytes())
        assert np.array_equal(target, data if copies else np.zeros_like(data))


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=20_000))
def test_a_library_says_the_same(data):
    assert crc.crc32c(data) == google_crc32c.value(data)


def test_a_plain_and_a_compiled_table_are_the_same_function():
    data = np.arange(300, dtype=np.uint8)
    plain = python_version(crc.update_by_table)(crc.ONES, address_of(data), data.size)
    assert crc.finish(plain) == crc.crc32c(data)


@settings(deadline=None)  # the first call compiles
@given(st.binary(max_size=100), st.integers(0, 100))
def test_a_crc_continues_over_pieces(data, cut):
    cut = min(cut, len(data))
    array = np.frombuffer(data + b"\0", np.uint8)
    start = address_of(array)
    first = crc.update(crc.ONES, start, cut)
    assert crc.finish(crc.update(first, start + cut, len(data) - cut)) == crc.crc32c(data)


@pytest.mark.slow
@pytest.mark.skipif(JIT_DISABLED, reason="there is no compiler to set up")
@pytest.mark.parametrize(("cpu", "has_it"), [("x86-64-v2", True), ("generic", False)])
def test_code_made_for_another_cpu_gives_the_same(cpu, has_it, tmp_path):
    program = (
        "from shm import crc32c as crc; data = bytes(range(256)) * 60; "
        "print(crc.cpu_has_instruction(), crc.crc32c(data), crc.crc32c(data[:7]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "NUMBA_CPU_NAME": cpu,
            "NUMBA_CPU_FEATURES": "",
            "PPE_CACHE_DIR": str(tmp_path),
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    data = bytes(range(256)) * 60
    assert done.stdout.split() == [str(has_it), str(bit_by_bit(data)), str(bit_by_bit(data[:7]))]
