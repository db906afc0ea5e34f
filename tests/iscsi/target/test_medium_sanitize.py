"""SANITIZE: what it leaves on the medium, what it lets through meanwhile, and how it ends."""

import errno
import threading
import time

import pytest

from iscsi.target import scsi
from iscsi.target.nexus import Nexus
from iscsi.target.scsi import sanitize
from iscsi.wire.sense import Asc, ScsiStatus, SenseKey, decode_sense
from tests.iscsi.target.medium import (
    BLOCK,
    BLOCKS,
    Bench,
    Faulty,
    cdb_10,
    cdb_16,
    fault,
    is_good,
    pattern,
    ram,
)

OVERWRITE, BLOCK_ERASE, CRYPTO_ERASE, EXIT = 1, 2, 3, 0x1F
IMMED, RESERVED, AUSE = 0x80, 0x40, 0x20
INVALID = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
WRONG_LIST = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_PARAMETER_LIST)
IN_PROGRESS = (SenseKey.NOT_READY, Asc.SANITIZE_IN_PROGRESS)
FAILED = (SenseKey.MEDIUM_ERROR, Asc.SANITIZE_FAILED)
WAIT_S = 30
READY = bytes(6)


def cdb(action, length=0, option=0):
    return bytes((0x48, option | action, 0, 0, 0, 0, 0, *length.to_bytes(2, "big"), 0))


def overwrite(block=bytes(BLOCK), count=1, *, invert=False, length=None):
    stated = len(block) if length is None else length
    return bytes((0x80 * invert | count, 0, *stated.to_bytes(2, "big"))) + block


def send_overwrite(bench, data, option=0):
    return bench.send(cdb(OVERWRITE, len(data), option), data)


def wait_until_ready(bench, lun=0):
    deadline = time.monotonic() + WAIT_S
    while not is_good(answer := bench.send(READY, lun=lun)):
        assert fault(answer) == IN_PROGRESS
        assert time.monotonic() < deadline, "the operation does not end"
        time.sleep(0.01)


class Held:
    """A backend whose writes wait until they are let through."""

    def __init__(self, backend):
        self._backend, self.gate = backend, threading.Event()

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def write(self, offset, data, *, durable=False):
        assert self.gate.wait(WAIT_S), "nobody let it through"
        self._backend.write(offset, data, durable=durable)


@pytest.fixture
def held():
    """A unit in the middle of an OVERWRITE begun with IMMED, which ends with `gate`."""
    unit = ram()
    unit.backend = Held(unit.backend)
    bench = Bench(unit)
    assert is_good(send_overwrite(bench, overwrite(), IMMED))
    yield bench
    unit.backend.gate.set()
    sanitize.stop(unit)


@pytest.mark.parametrize("length", [1, 4, BLOCK // 2, BLOCK, 300])
def test_overwrite_repeats_its_pattern_in_each_block(length):
    bench = Bench()
    block = pattern(1)[:length]
    assert is_good(send_overwrite(bench, overwrite(block)))
    assert bench.blocks(0, BLOCKS) == (block * BLOCK)[:BLOCK] * BLOCKS


@pytest.mark.parametrize(("count", "left"), [(1, 0x5A), (2, 0xA5), (3, 0x5A)])
def test_passes_are_inverted_when_asked(count, left):
    bench = Bench()
    assert is_good(send_overwrite(bench, overwrite(b"\x5a", count, invert=True)))
    assert bench.blocks(0, BLOCKS) == bytes((left,)) * (BLOCKS * BLOCK)


@pytest.mark.parametrize("action", [BLOCK_ERASE, CRYPTO_ERASE])
def test_erasing_unmaps_everything(action):
    bench = Bench()
    bench.fill(0, pattern(BLOCKS))
    assert is_good(bench.send(cdb(action)))
    assert list(bench.units[0].backend.extents(0, BLOCKS * BLOCK)) == [(BLOCKS * BLOCK, False)]
    assert bench.blocks(0, BLOCKS) == bytes(BLOCKS * BLOCK)
    assert fault(bench.send(cdb(action, 4), bytes(4))) == INVALID


@pytest.mark.parametrize("action", [BLOCK_ERASE, CRYPTO_ERASE])
def test_a_thick_unit_does_not_erase_but_overwrites(action):
    bench = Bench(ram(thin=False))
    assert fault(bench.send(cdb(action))) == INVALID
    assert is_good(send_overwrite(bench, overwrite(b"\x11")))


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, BLOCK + 5])
def test_a_parameter_list_of_a_wrong_length_is_refused(length):
    bench = Bench()
    data = overwrite(bytes(BLOCK + 4))[:length]
    assert fault(send_overwrite(bench, data)) == INVALID


@pytest.mark.parametrize(
    "data",
    [
        overwrite(count=0),
        overwrite(length=0),
        overwrite(length=BLOCK + 4),
        overwrite(b"abcd", length=5),
        bytes((0x21,)) + overwrite()[1:],
        bytes((0x41,)) + overwrite()[1:],
    ],
)
def test_a_parameter_list_that_makes_no_sense_is_refused(data):
    bench = Bench()
    bench.fill(0, pattern(1))
    assert fault(send_overwrite(bench, data)) == WRONG_LIST
    assert bench.blocks(0, 1) == pattern(1)


@pytest.mark.parametrize("action", [OVERWRITE, BLOCK_ERASE, CRYPTO_ERASE, EXIT])
def test_reserved_bits_are_refused(action):
    bench = Bench()
    data = overwrite() if action == OVERWRITE else b""
    assert fault(bench.send(cdb(action, len(data), RESERVED), data)) == INVALID
    for at in range(2, 7):
        wrong = bytearray(cdb(action, len(data)))
        wrong[at] = 1
        assert fault(bench.send(wrong, data)) == INVALID


def test_service_actions_that_are_none_are_refused():
    bench = Bench()
    for action in range(0x20):
        if action not in (OVERWRITE, BLOCK_ERASE, CRYPTO_ERASE, EXIT):
            assert fault(bench.send(cdb(action))) == INVALID


def test_a_write_protected_unit_is_not_sanitized():
    bench = Bench(ram(read_only=True))
    for action in (OVERWRITE, BLOCK_ERASE, CRYPTO_ERASE):
        data = overwrite() if action == OVERWRITE else b""
        answer = bench.send(cdb(action, len(data)), data)
        assert fault(answer) == (SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)


def test_meanwhile_the_unit_is_not_ready_for_anybody(held):
    other = Nexus("iqn.2026-01.org.example:other", 2)
    for command in (READY, cdb_10(0x28, 0, 1), cdb_16(0x8A, 0, 1), cdb_10(0x35)):
        for nexus in (held.nexus, other):
            assert fault(held.send(command, nexus=nexus)) == IN_PROGRESS
    start_stop = bytes((0x1B, 0, 0, 0, 1, 0))
    assert fault(held.send(start_stop)) == IN_PROGRESS
    assert fault(send_overwrite(held, overwrite())) == IN_PROGRESS
    assert fault(held.send(cdb(EXIT))) == IN_PROGRESS


def test_meanwhile_it_says_who_it_is_and_how_far_it_is(held):
    inquiry = bytes((0x12, 0, 0, 0, 255, 0))
    luns = bytes((0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0))
    assert is_good(held.send(inquiry, expected=255))
    assert is_good(held.send(luns, expected=256))
    answer = held.send(bytes((3, 0, 0, 0, 252, 0)), expected=252)
    assert is_good(answer)
    sense = decode_sense(answer.data)
    assert (sense.key, sense.code) == IN_PROGRESS
    assert sense.specific is not None
    assert held.send(READY).sense.specific is not None


def test_meanwhile_compiled_code_serves_nothing_and_afterwards_again(held):
    table = held.target.table
    assert table[0]["state"] != 0
    held.units[0].backend.gate.set()
    wait_until_ready(held)
    assert table[0]["state"] == 0


def test_a_new_session_finds_it_still_going_on(held):
    held.nexus.detach()
    assert fault(held.send(READY, nexus=Nexus("iqn.2026-01.org.example:i", 1))) == IN_PROGRESS


def test_who_waits_for_the_end_is_let_go_when_the_command_is_aborted():
    unit = ram(sanitize_min_seconds=WAIT_S)
    bench = Bench(unit)
    answer = bench.send(cdb(BLOCK_ERASE), abandoned=lambda: True)
    assert answer.status == ScsiStatus.TASK_ABORTED
    assert fault(bench.send(READY)) == IN_PROGRESS
    sanitize.stop(unit)


@pytest.mark.parametrize(
    ("command", "data"),
    [
        (cdb_16(0x93, 0, BLOCKS), b"x" * BLOCK),
        (cdb_16(0x93, 0, BLOCKS), bytes(BLOCK)),
        (cdb_16(0x8E, 0, 1), b"x" * BLOCK),
    ],
)
def test_what_was_let_in_before_writes_nothing_behind_it(held, command, data):
    """As a worker does it that has not got to its first piece when the sanitizing begins."""
    asked = scsi.Command(command, held.target, 0, held.nexus, data, len(data))
    held.units[0].backend.gate.set()
    answer = scsi.finish(asked)
    assert fault(answer) == IN_PROGRESS


def test_few_commands_at_a_time_may_wait_for_the_end():
    units = [ram(sanitize_min_seconds=WAIT_S) for _ in range(sanitize.MAX_WAITING + 1)]
    bench = Bench(*units)
    workers = [
        threading.Thread(target=bench.send, args=(cdb(BLOCK_ERASE),), kwargs={"lun": lun})
        for lun in range(sanitize.MAX_WAITING)
    ]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + WAIT_S
    # A unit says that it is closed a moment before its operation's thread is there to be stopped.
    while sum(t.name == "sanitize" and t.is_alive() for t in threading.enumerate()) < len(workers):
        assert time.monotonic() < deadline, "the operations do not begin"
        time.sleep(0.01)
    last = sanitize.MAX_WAITING
    assert bench.send(cdb(BLOCK_ERASE), lun=last).status == ScsiStatus.BUSY
    assert is_good(bench.send(READY, lun=last))
    assert is_good(bench.send(cdb(BLOCK_ERASE, option=IMMED), lun=last))
    for unit in units:
        sanitize.stop(unit)
    for worker in workers:
        worker.join(WAIT_S)
        assert not worker.is_alive()


def test_it_takes_at_least_the_time_it_is_told_to():
    unit = ram(sanitize_min_seconds=0.3)
    bench = Bench(unit)
    began = time.monotonic()
    assert is_good(bench.send(cdb(BLOCK_ERASE)))
    assert time.monotonic() - began >= 0.3


def test_progress_only_grows():
    unit = ram(sanitize_min_seconds=0.3)
    bench = Bench(unit)
    assert is_good(bench.send(cdb(BLOCK_ERASE, option=IMMED)))
    seen = [0]
    while not is_good(answer := bench.send(READY)):
        seen.append(int.from_bytes(answer.sense.specific[1:], "big"))
        assert len(seen) < 10000
        time.sleep(0.01)
    assert seen == sorted(seen)
    assert seen[-1] > 0


def failed(option=0):
    """A unit whose sanitize operation failed."""
    unit = ram()
    unit.backend = Faulty(unit.backend, errno.EIO, BLOCKS * BLOCK // 2, on=("write",))
    bench = Bench(unit)
    assert fault(send_overwrite(bench, overwrite(), option)) == FAILED
    return bench


def test_after_a_failure_nothing_is_served_but_another_sanitize():
    bench = failed()
    assert fault(bench.send(READY)) == FAILED
    assert fault(bench.send(cdb_10(0x28, 0, 1))) == FAILED
    assert fault(bench.send(cdb(EXIT))) == INVALID
    assert fault(bench.send(READY)) == FAILED
    assert is_good(bench.send(cdb(BLOCK_ERASE)))
    assert is_good(bench.send(READY))


def test_a_failure_begun_without_restriction_can_be_left():
    bench = failed(AUSE)
    assert fault(bench.send(READY)) == FAILED
    assert is_good(bench.send(cdb(EXIT)))
    assert is_good(bench.send(READY))
    assert bench.target.table[0]["state"] == 0


def test_leaving_where_nothing_failed_is_no_error():
    bench = Bench()
    assert is_good(bench.send(cdb(EXIT)))
    assert fault(bench.send(cdb(EXIT, 4), bytes(4))) == INVALID


def test_an_operation_that_is_stopped_has_failed():
    unit = ram(sanitize_min_seconds=WAIT_S)
    bench = Bench(unit)
    assert is_good(bench.send(cdb(BLOCK_ERASE, option=IMMED)))
    sanitize.stop(unit)
    assert fault(bench.send(READY)) == FAILED
    assert not any(thread.name == "sanitize" for thread in threading.enumerate())


def test_what_ends_it_by_a_surprise_is_a_failure(caplog):
    unit = ram()
    unit.backend = Surprising(unit.backend)
    bench = Bench(unit)
    assert fault(bench.send(cdb(BLOCK_ERASE))) == FAILED
    assert fault(bench.send(READY)) == FAILED
    assert "a bug" in caplog.text


class Surprising:
    """A backend with a bug."""

    def __init__(self, backend):
        self._backend = backend

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def discard(self, offset, length):
        raise RuntimeError("a bug")
