"""Pieces of memory become commands: every byte once and in order, whole blocks, bounded lists."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.session.gather import Piece, check_overlaps, gathers
from shm.view import address_of, window

BLOCK = 64
LENGTHS = st.lists(st.tuples(st.integers(1, 400), st.booleans()), min_size=1, max_size=60)


def pieces_of(sizes, memory):
    """Pieces of these sizes in memory, each a byte away from the next."""
    found, at = [], address_of(memory)
    for length, in_place in sizes:
        found.append(Piece(at, length, in_place))
        at += length + 1
    return found


def whole_blocks(sizes):
    """The same sizes with a last one that makes them whole blocks."""
    rest = -sum(length for length, _ in sizes) % BLOCK
    return [*sizes, (rest, True)] if rest else sizes


@settings(max_examples=300, deadline=None)
@given(LENGTHS, st.integers(1, 40), st.integers(1, 8), st.integers(1, 30))
def test_every_byte_is_moved_once_and_in_its_order(sizes, per_command, most, bounce_blocks):
    sizes = whole_blocks(sizes)
    total = sum(length for length, _ in sizes)
    memory = np.random.default_rng(total).integers(0, 256, total + len(sizes), dtype=np.uint8)
    pieces = pieces_of(sizes, memory)
    wanted = b"".join(window(p.address, p.length, np.uint8).tobytes() for p in pieces)
    sent, places = b"", 0
    for gather in gathers(pieces, BLOCK, per_command, bounce_blocks * BLOCK, most):
        assert gather.bounce <= bounce_blocks * BLOCK
        bounce = np.zeros(gather.bounce + 1, np.uint8)
        gather.place(address_of(bounce))
        gather.copy_in(address_of(bounce))
        assert gather.blocks == sum(gather.parts["blocks"])
        assert all(gather.runs["length"] > 0)
        before = len(sent)
        for part in gather.parts:
            runs = gather.runs[places : places + part["run_count"]]
            places += part["run_count"]
            assert 1 <= part["run_count"] <= most
            assert 1 <= part["blocks"] <= per_command
            assert sum(runs["length"]) == part["blocks"] * BLOCK
            sent += b"".join(window(int(a), int(n), np.uint8).tobytes() for a, n in runs)
        assert places == len(gather.runs)
        places = 0
        # And back: what was read goes to where it was taken from.
        inverted = 255 - np.frombuffer(sent[before:], np.uint8)
        at = 0
        for address, length in gather.runs:
            window(int(address), int(length), np.uint8)[:] = inverted[at : at + length]
            at += length
        gather.copy_out(address_of(bounce))
    assert sent == wanted
    found = b"".join(window(p.address, p.length, np.uint8).tobytes() for p in pieces)
    assert found == (255 - np.frombuffer(wanted, np.uint8)).tobytes()


def test_memory_of_the_engine_is_used_where_it_lies():
    memory = np.zeros(8192, np.uint8)
    pieces = pieces_of([(100, True), (28, True), (512, False), (128, True)], memory)
    (gather,) = gathers(pieces, BLOCK, 100, 4096)
    gather.place(0x100000)
    assert gather.bounce == 512
    assert [tuple(row) for row in gather.parts] == [(12, 4)]
    assert list(gather.runs["address"]) == [
        pieces[0].address,
        pieces[1].address,
        0x100000,
        pieces[3].address,
    ]


def test_a_block_in_more_pieces_than_a_command_can_name_is_copied():
    memory = np.zeros(8192, np.uint8)
    pieces = pieces_of([(1, True)] * BLOCK + [(BLOCK, True)], memory)
    (gather,) = gathers(pieces, BLOCK, 100, 4096, 8)
    assert gather.bounce == BLOCK
    gather.place(0x1000)
    assert list(gather.parts["blocks"]) == [1, 1]


def test_buffers_that_overlap_are_not_read_into():
    memory = np.zeros(8192, np.uint8)
    start = address_of(memory)
    check_overlaps([Piece(start + 64, 64, True), Piece(start, 64, True)])
    for other in (start, start + 63, start + 1):
        with pytest.raises(ValueError, match="overlap"):
            check_overlaps([Piece(start + 63, 64, True), Piece(other, 64, True)])
