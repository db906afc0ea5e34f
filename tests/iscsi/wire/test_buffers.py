"""Shared data buffers: never two owners, never lost, never given back twice; and the quota."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi.target.buffers import PAGE, DataBuffers
from iscsi.wire import buffers, scsi, target_block
from iscsi.wire.bhs import Opcode, encode_pdu
from iscsi.wire.keys import ConnectionParams, SessionParams
from iscsi.wire.login import LoginResult
from iscsi.wire.target import TargetConnection
from shm.jit import entry
from shm.view import address_of

SIZES = ((PAGE, 3), (4 * PAGE, 2))


class Memory:
    """What buffers come from, without an engine."""

    def __init__(self, size):
        self.array = np.zeros(size, np.uint8)
        self.is_freed = False

    @property
    def address(self):
        return address_of(self.array)

    def free(self):
        assert not self.is_freed
        self.is_freed = True


class Engine:
    def __init__(self):
        self.made = []

    def alloc(self, size):
        self.made.append(Memory(size))
        return self.made[-1]


@entry("int64(intp, int64)")
def take(pool, length):
    return buffers.take_buffer(pool, length)


@entry("boolean(intp, int64)")
def give(pool, token):
    return buffers.give_buffer(pool, token)


@entry("intp(intp, int64)")
def place(pool, token):
    return buffers.buffer_address(pool, token)


@entry("int64(intp, int64)")
def size_of(pool, token):
    return buffers.buffer_size(pool, token)


@given(st.lists(st.one_of(st.integers(1, 5 * PAGE), st.just(None)), max_size=40), st.randoms())
def test_no_two_owners_share_a_byte_and_what_is_given_back_comes_again(steps, random):
    pool = DataBuffers(Engine(), SIZES)
    held = {}
    for length in steps:
        if length is None:
            if held:
                token = random.choice(sorted(held))
                del held[token]
                assert give(pool.address, token)
                assert not give(pool.address, token)
            continue
        token = take(pool.address, length)
        if token == 0:
            fitting = [size for size, count in SIZES for _ in range(count) if size >= length]
            taken = [size for _, size in held.values() if size >= length]
            assert len(taken) == len(fitting)
            continue
        start, size = place(pool.address, token), size_of(pool.address, token)
        assert size >= length
        assert start % PAGE == 0
        assert all(start + size <= at or at + its <= start for at, its in held.values())
        held[token] = start, size
    assert pool.taken == len(held)


@pytest.mark.parametrize("sizes", [((100, 1),), ((2 * PAGE, 1), (PAGE, 1)), ((PAGE, 0),)])
def test_sizes_that_make_no_sense_are_refused(sizes):
    with pytest.raises(ValueError, match="data buffer"):
        DataBuffers(Engine(), sizes)


def test_without_buffers_none_is_found():
    assert take(DataBuffers(Engine(), ()).address, 1) == 0
    assert take(0, 1) == 0


def test_memory_goes_back_once():
    engine = Engine()
    pool = DataBuffers(engine, SIZES)
    pool.free()
    pool.free()
    assert engine.made[-1].is_freed


def connection_over(pool, quota):
    limits = target_block.TargetLimits()
    memory = np.zeros(TargetConnection.size(1, limits) + 64, np.uint8)
    result = LoginResult(
        session=SessionParams(initial_r2t=False, first_burst_length=65536),
        connection=ConnectionParams(),
        initiator_name="",
        target_name=None,
        isid=0,
        tsih=1,
        cid=0,
        cmd_sn=1,
        max_cmd_sn=limits.window,
        stat_sn=1,
    )
    luns = np.zeros(4, np.int64)
    start = address_of(memory) + -address_of(memory) % 64
    made = TargetConnection(
        start, result, address_of(luns), 0, limits, buffers=pool.address, buffer_quota=quota
    )
    made.kept = memory, luns
    return made


def cold_write(number, length):
    """A command that only the cold code knows, with unsolicited data still to come."""
    return encode_pdu(
        Opcode.SCSI_COMMAND,
        bytes(length),
        itt=number,
        cmd_sn=number,
        cdb=int.from_bytes(bytes((0x3B,)) + bytes(15), "big"),
        lun=scsi.encode_lun(0),
        expected_data_transfer_length=length,
        write=1,
    )


def status_of_first(sent):
    return sent[3]


def test_a_cold_command_gets_all_its_data_in_a_buffer_and_gives_it_back():
    pool = DataBuffers(Engine(), SIZES)
    made = connection_over(pool, pool.quota)
    made.receive(cold_write(1, 2 * PAGE))
    (command,) = made.cold_commands()
    assert len(command.data) == 2 * PAGE
    assert pool.taken == 1
    assert made.respond(command.task_id)
    made.data_to_send()
    assert pool.taken == 0


def test_one_connection_does_not_get_more_than_its_share():
    pool = DataBuffers(Engine(), ((2 * PAGE, 4),))
    made = connection_over(pool, 4 * PAGE)
    for number in range(1, 4):
        made.receive(cold_write(number, 2 * PAGE))
    assert pool.taken == 2
    assert status_of_first(made.data_to_send()) == 0x28
    other = connection_over(pool, 4 * PAGE)
    other.receive(cold_write(1, 2 * PAGE))
    assert pool.taken == 3


def test_an_answer_that_finds_no_buffer_is_task_set_full():
    pool = DataBuffers(Engine(), ((8 * PAGE, 1),))
    holder, made = connection_over(pool, pool.total), connection_over(pool, pool.total)
    holder.receive(cold_write(1, 2 * PAGE))
    read = encode_pdu(
        Opcode.SCSI_COMMAND, itt=1, cmd_sn=1, cdb=0, expected_data_transfer_length=1 << 20, read=1
    )
    made.receive(read)
    (command,) = made.cold_commands()
    assert made.respond(command.task_id, data=bytes(6 * PAGE))
    assert status_of_first(made.data_to_send()) == 0x28
    holder.drop_buffers()
    assert pool.taken == 0


def test_pinned_data_stays_although_its_command_is_aborted():
    pool = DataBuffers(Engine(), SIZES)
    made = connection_over(pool, pool.quota)
    made.receive(cold_write(1, 2 * PAGE))
    (command,) = made.cold_commands()
    made.pin(command)
    assert made.abort_task(1)
    assert (pool.taken, made.jobs) == (1, 1)
    assert not made.unpin(command)
    assert (pool.taken, made.jobs) == (0, 0)


def test_a_lost_connection_gives_back_what_was_half_received():
    pool = DataBuffers(Engine(), SIZES)
    made = connection_over(pool, pool.quota)
    made.receive(cold_write(1, 2 * PAGE)[:1000])
    assert made.abort_task(1)
    assert pool.taken == 1
    made.drop_buffers()
    assert pool.taken == 0
