"""Whatever a CDB and its data are, a command ends with an answer that can be sent and its unit goes
on: no error of this program, no data with sense, nothing beyond the allocation length.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.memory import Buffer
from iscsi.target.scsi import Access, dispatch
from iscsi.target.units import RamDisk
from iscsi.wire import scsi as cdbs
from iscsi.wire.sense import Asc, ScsiStatus
from tests.iscsi.target.medium import Bench

SANITIZE = 0x48  # starts a thread, and has tests of its own
SIZE = 256 << 10
LENGTHS = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}
KEYS = sorted(
    ((code, action) for code, action in dispatch.ROWS if code != SANITIZE),
    key=lambda key: (key[0], key[1] or 0),
)


def new_bench():
    units = (
        RamDisk(Buffer(np.zeros(SIZE, np.uint8), None), thin=True, removable=True),
        RamDisk(Buffer(np.zeros(SIZE, np.uint8), None), 4096, True),
    )
    return Bench(*units)


@st.composite
def cdb_of(draw):
    """A CDB of a served command: any bits, or only those its usage map names."""
    operation, action = draw(st.sampled_from(KEYS))
    length = LENGTHS.get(operation >> 5, 16)
    raw = bytearray(draw(st.binary(min_size=length, max_size=length)))
    if draw(st.booleans()):
        usage = bytes.fromhex(dispatch.ROWS[operation, action].usage)
        raw[1:] = bytes(bit & used for bit, used in zip(raw[1:], usage, strict=False))
    if draw(st.booleans()) and length >= 10:
        raw[2 : length - 2] = bytes(length - 6) + raw[length - 4 : length - 2]  # a low address
    raw[0] = operation
    if action is not None:
        raw[1] = raw[1] & 0xE0 | action
    raw[-1] &= 0xFB
    return bytes(raw).ljust(16, b"\0")


@settings(max_examples=600, deadline=None)
@given(
    cdb=st.one_of(cdb_of(), st.binary(min_size=16, max_size=16)),
    data=st.one_of(st.just(b""), st.binary(max_size=64), st.just(bytes(8192))),
    lun=st.integers(0, 2),
    expected=st.sampled_from((0, 1, 255, 512, 65536)),
)
def test_every_command_ends_in_order(cdb, data, lun, expected):
    if cdb[0] == SANITIZE:
        return
    bench = new_bench()
    protected = bench.blocks(0, SIZE // 4096, lun=1)
    answer = bench.send(cdb, data, lun=lun, expected=len(data) or expected)
    assert answer.status in set(ScsiStatus)
    assert (answer.sense is not None) == (answer.status == ScsiStatus.CHECK_CONDITION)
    if answer.sense is not None:
        assert answer.sense.code != Asc.INTERNAL_TARGET_FAILURE, answer
        assert not answer.data
        for descriptor in (False, True):
            assert 8 <= len(answer.encoded_sense(descriptor=descriptor)) <= 252
    row = dispatch.row_of(cdb)
    if isinstance(row, dispatch.Row) and row.allocation is not None:
        offset, length = row.allocation
        assert len(answer.data) <= int.from_bytes(cdb[offset : offset + length], "big")
    assert bench.blocks(0, SIZE // 4096, lun=1) == protected
    # It may have taken its medium out, reserved itself, or protected itself, but it answers.
    assert bench.send(cdbs.inquiry(), expected=255).data


@pytest.mark.parametrize("key", KEYS, ids=lambda key: f"{key[0]:02x}-{key[1]}")
def test_the_usage_map_is_as_long_as_the_command(key):
    row = dispatch.ROWS[key]
    assert 1 + len(bytes.fromhex(row.usage)) == LENGTHS[key[0] >> 5]
    assert row.access is not Access.WRITE or row.needs_medium
