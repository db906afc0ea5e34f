"""Random CDBs and parameter lists for the commands on the medium: each is answered, none raises,
and what is refused for its CDB changes nothing.
"""

import random

import pytest

from iscsi.target import scsi
from iscsi.target.scsi import (
    atomic,
    compare_and_write,
    copy,
    defects,
    dispatch,
    orwrite,
    prefetch,
    sanitize,
    sync,
    unmap,
    verify,
    write_same,
)
from iscsi.wire.sense import ScsiStatus, SenseKey
from tests.iscsi.target.medium import BLOCK, Bench, ram
from tests.iscsi.target.test_medium_copy import copy_list, segment, target_descriptor

MODULES = (
    atomic,
    compare_and_write,
    copy,
    defects,
    orwrite,
    prefetch,
    sanitize,
    sync,
    unmap,
    verify,
    write_same,
)
KEYS = sorted({key for module in MODULES for key in module.ROWS}, key=str)
BLOCKS = 64
ROUNDS = 300
UNCHANGING = (SenseKey.ILLEGAL_REQUEST, SenseKey.MISCOMPARE, SenseKey.DATA_PROTECT)


def random_cdb(generator, operation, action):
    """Small numbers mostly, so that some commands get past the range check."""
    cdb = bytearray(16)
    for at in range(1, 16):
        if generator.random() < 0.25:
            cdb[at] = generator.choice((1, 2, 3, 4, 8, 16, 24, 32, 63, 64, 128, 255))
    cdb[0] = operation
    if action is not None:
        cdb[1] = cdb[1] & 0xE0 | action
    cdb[-1 if operation >> 5 == 4 else {0: 5, 1: 9, 2: 9, 5: 11}[operation >> 5]] = 0
    return bytes(cdb)


def random_data(generator):
    length = generator.choice((0, 1, 8, 24, 76, BLOCK, 2 * BLOCK, 4 * BLOCK, BLOCK + 4))
    return generator.randbytes(length)


@pytest.mark.parametrize(("operation", "action"), KEYS)
def test_random_commands_are_answered(operation, action):
    generator = random.Random(f"{operation}/{action}")
    bench = Bench(ram(BLOCKS), ram(BLOCKS, thin=False, read_only=True))
    known = set(ScsiStatus)
    for _ in range(ROUNDS):
        before = bench.blocks(0, BLOCKS)
        cdb, data = random_cdb(generator, operation, action), random_data(generator)
        answer = bench.send(cdb, data, lun=generator.choice((0, 0, 0, 1)))
        assert answer.status in known
        assert (answer.sense is None) == (answer.status != ScsiStatus.CHECK_CONDITION)
        if answer.sense is not None and answer.sense.key in UNCHANGING:
            assert bench.blocks(0, BLOCKS) == before, cdb.hex()
        state = bench.units[0].condition
        if state is not None:
            state._thread.join(20)
    row = dispatch.ROWS[operation, action]
    assert isinstance(row, scsi.Row)
    assert len(bytes.fromhex(row.usage)) + 1 in (6, 10, 12, 16)


def test_a_copy_list_with_any_byte_changed_is_answered():
    bench = Bench(ram(BLOCKS), ram(BLOCKS))
    whole = copy_list(
        [target_descriptor(unit) for unit in bench.units], [segment(8, 0, 8, 0, 1)] * 2
    )
    generator = random.Random(7)
    for at in range(len(whole)):
        for value in (0, 1, 0x7F, 0xFF, generator.randrange(256)):
            data = bytearray(whole)
            data[at] = value
            cdb = bytes((0x83, *bytes(9))) + len(data).to_bytes(4, "big") + bytes(2)
            assert bench.send(cdb, bytes(data)).status in set(ScsiStatus)
