"""Backends: every kind keeps the same promises, and a file's are kept on the file."""

import errno
import fcntl
import os
from pathlib import Path

import numpy as np
import pytest

from host.memory import Arenas
from iscsi.target.backends import FileBackend, NullBackend, RamBackend
from shm.view import window

SIZE = 1 << 20
PIECE = 4096


@pytest.fixture
def memory():
    arenas = Arenas(lambda segment: 0)
    yield arenas
    arenas.close()


KINDS = ("ram", "thin ram", "file", "thin file", "direct", "thin directsync", "writethrough")


@pytest.fixture(params=KINDS)
def backend(request, memory, tmp_path):
    thin = request.param.startswith("thin")
    name = request.param.removeprefix("thin ")
    if name == "ram":
        made = RamBackend.create(memory, SIZE, capacity=2 * SIZE, thin=thin)
    else:
        cache = "writeback" if name == "file" else name
        made = FileBackend(tmp_path / "disk", size=SIZE, cache=cache, thin=thin)
    yield made
    made.close()


def random_bytes(length, seed=1):
    return np.random.default_rng(seed).integers(1, 256, length, np.uint8).tobytes()


@pytest.mark.parametrize(
    ("offset", "length"), [(0, SIZE), (512, 512), (PIECE - 1, 2), (SIZE - 3, 3)]
)
def test_what_is_written_is_read(backend, offset, length):
    data = random_bytes(length)
    backend.write(offset, data, durable=length % 2 == 0)
    assert bytes(backend.read(offset, length)) == data
    into = bytearray(length)
    backend.read_into(offset, memoryview(into))
    assert into == data
    assert bytes(backend.read(0, offset)) == bytes(offset)


def test_aligned_and_unaligned_pieces_see_each_other(backend):
    model = bytearray(SIZE)
    random = np.random.default_rng(3)
    for turn in range(200):
        align = int(random.choice((1, 512, PIECE)))
        offset = int(random.integers(0, SIZE // align)) * align
        length = min(int(random.integers(1, 9)) * align, SIZE - offset)
        data = random_bytes(length, turn)
        backend.write(offset, memoryview(data))
        model[offset : offset + length] = data
        assert bytes(backend.read(offset, length)) == data
    assert bytes(backend.read(0, SIZE)) == model


@pytest.mark.parametrize(("offset", "length"), [(0, SIZE + 1), (SIZE, 1), (-1, 1), (0, -1)])
@pytest.mark.parametrize("what", ["read", "discard", "zero", "extents"])
def test_a_range_outside_is_the_callers_mistake(backend, what, offset, length):
    with pytest.raises(ValueError, match="not within"):
        list(getattr(backend, what)(offset, length) or ())


def test_a_write_outside_changes_nothing(backend):
    with pytest.raises(ValueError, match="not within"):
        backend.write(SIZE - 1, b"ab")
    assert backend.size == SIZE
    assert bytes(backend.read(SIZE - 1, 1)) == b"\0"


@pytest.mark.parametrize("what", ["discard", "zero"])
def test_discarded_and_zeroed_pieces_are_zeros_to_the_byte(backend, what):
    data = random_bytes(SIZE)
    backend.write(0, data)
    getattr(backend, what)(1000, 3 * PIECE)
    expected = data[:1000] + bytes(3 * PIECE) + data[1000 + 3 * PIECE :]
    assert bytes(backend.read(0, SIZE)) == expected


def test_extents_say_what_is_mapped(backend):
    assert list(backend.extents(0, 0)) == []
    backend.write(2 * PIECE, random_bytes(PIECE))
    backend.write(7 * PIECE + 5, b"x")
    if not backend.is_thin:
        assert list(backend.extents(PIECE, 9 * PIECE)) == [(9 * PIECE, True)]
        return
    assert list(backend.extents(PIECE, 9 * PIECE)) == [
        (PIECE, False),
        (PIECE, True),
        (4 * PIECE, False),
        (PIECE, True),
        (2 * PIECE, False),
    ]
    assert list(backend.extents(2 * PIECE + 100, 200)) == [(200, True)]
    backend.discard(2 * PIECE, PIECE)
    assert sum(length for length, _ in backend.extents(0, SIZE)) == SIZE
    assert next(iter(backend.extents(2 * PIECE, PIECE))) == (PIECE, False)


@pytest.mark.parametrize("backend", ["thin ram", "thin file"], indirect=True)
def test_a_partly_discarded_piece_stays_mapped(backend):
    backend.write(0, random_bytes(3 * PIECE))
    backend.discard(PIECE - 1, PIECE + 1)
    assert list(backend.extents(0, 3 * PIECE)) == [
        (PIECE, True),
        (PIECE, False),
        (PIECE, True),
    ]


def test_growing_adds_zeros_and_cutting_off_forgets(backend):
    backend.write(SIZE - PIECE, random_bytes(PIECE))
    backend.resize(SIZE - PIECE)
    assert backend.size == SIZE - PIECE
    backend.resize(2 * SIZE)
    assert bytes(backend.read(SIZE - PIECE, SIZE + PIECE)) == bytes(SIZE + PIECE)
    backend.write(2 * SIZE - 1, b"z")
    assert bytes(backend.read(2 * SIZE - 1, 1)) == b"z"


def test_closing_twice_is_closing_once(backend):
    backend.close()
    backend.close()


# --- memory --------------------------------------------------------------------------------------


def test_compiled_code_that_marks_the_map_is_believed(memory):
    backend = RamBackend.create(memory, SIZE, thin=True)
    window(backend.allocation, SIZE // PIECE, np.uint8)[3] = 1
    assert list(backend.extents(0, 8 * PIECE)) == [
        (3 * PIECE, False),
        (PIECE, True),
        (4 * PIECE, False),
    ]
    assert RamBackend.create(memory, SIZE).allocation == 0


def test_memory_does_not_grow_beyond_its_room(memory):
    backend = RamBackend.create(memory, SIZE)
    with pytest.raises(OSError, match="at most") as caught:
        backend.resize(SIZE + 1)
    assert caught.value.errno == errno.ENOSPC


def test_memory_given_back_is_zeroed_for_the_next(memory):
    first = RamBackend.create(memory, SIZE)
    first.write(0, random_bytes(SIZE))
    where = first.memory
    first.close()
    second = RamBackend.create(memory, SIZE)
    assert second.memory == where
    assert bytes(second.read(0, SIZE)) == bytes(SIZE)


def test_nothing_is_kept_by_the_null_backend():
    backend = NullBackend(SIZE)
    backend.write(0, b"abc", durable=True)
    assert bytes(backend.read(0, 3)) == bytes(3)
    assert list(backend.extents(0, SIZE)) == [(SIZE, True)]
    with pytest.raises(ValueError, match="not within"):
        backend.read(SIZE, 1)


# --- files ---------------------------------------------------------------------------------------


def test_a_thin_file_takes_no_room_and_a_thick_one_all_of_it(tmp_path):
    for thin, blocks in ((True, 0), (False, SIZE // 512)):
        with_room = tmp_path / f"disk {thin}"
        FileBackend(with_room, size=SIZE, thin=thin).close()
        assert with_room.stat().st_size == SIZE
        assert (
            (with_room.stat().st_blocks >= blocks) if blocks else (with_room.stat().st_blocks == 0)
        )


def test_a_discarded_piece_gives_its_room_back(tmp_path):
    backend = FileBackend(tmp_path / "disk", size=SIZE, thin=True)
    backend.write(0, random_bytes(SIZE))
    backend.flush()
    before = os.stat(tmp_path / "disk").st_blocks  # noqa: PTH116 - the same call as above
    backend.discard(0, SIZE // 2)
    backend.flush()
    assert os.stat(tmp_path / "disk").st_blocks <= before // 2 + 8  # noqa: PTH116
    backend.close()


def test_a_second_server_is_refused_by_name(tmp_path):
    path = tmp_path / "disk"
    first = FileBackend(path, size=SIZE)
    with pytest.raises(OSError, match="another server") as caught:
        FileBackend(path)
    assert caught.value.errno == errno.EAGAIN
    assert caught.value.filename == str(path)
    first.close()
    FileBackend(path).close()


def test_readers_share_a_file_and_a_reader_writes_nothing(tmp_path):
    path = tmp_path / "disk"
    FileBackend(path, size=SIZE).close()
    readers = [FileBackend(path, read_only=True) for _ in range(2)]
    with pytest.raises(OSError, match="Bad file descriptor"):
        readers[0].write(0, b"a")
    for reader in readers:
        reader.close()


def test_a_missing_file_is_only_made_when_a_size_is_given(tmp_path):
    with pytest.raises(FileNotFoundError):
        FileBackend(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_file_of_another_size_is_refused(tmp_path):
    path = tmp_path / "disk"
    FileBackend(path, size=SIZE).close()
    with pytest.raises(OSError, match="bytes, not"):
        FileBackend(path, size=2 * SIZE)
    assert path.stat().st_size == SIZE


def test_a_directory_is_no_medium(tmp_path):
    with pytest.raises(OSError, match=r"directory|neither") as caught:
        FileBackend(tmp_path)
    assert caught.value.filename == str(tmp_path)


def test_a_file_that_lost_its_end_is_a_medium_error(tmp_path):
    backend = FileBackend(tmp_path / "disk", size=SIZE)
    os.truncate(tmp_path / "disk", PIECE)
    with pytest.raises(OSError, match="cut off") as caught:
        backend.read(PIECE, PIECE)
    assert caught.value.errno == errno.EIO
    backend.close()


class Recorded:
    """What of the os module a backend used."""

    def __init__(self, monkeypatch):
        self.flags, self.syncs = [], 0
        write, sync = os.pwritev, os.fdatasync
        monkeypatch.setattr(os, "pwritev", lambda *a: (self.flags.append(a[3]), write(*a))[1])
        monkeypatch.setattr(os, "fdatasync", lambda fd: (self._count(), sync(fd))[1])

    def _count(self):
        self.syncs += 1


@pytest.mark.parametrize("cache", ["writeback", "direct", "writethrough", "directsync"])
def test_a_write_is_durable_when_asked_or_when_there_is_no_cache(tmp_path, monkeypatch, cache):
    backend = FileBackend(tmp_path / "disk", size=SIZE, cache=cache)
    seen = Recorded(monkeypatch)
    backend.write(0, bytes(PIECE))
    backend.write(0, bytes(PIECE), durable=True)
    backend.write(1, b"x", durable=True)
    cached = cache in ("writeback", "direct")
    assert backend.write_cache is cached
    assert seen.flags == [0 if cached else os.RWF_DSYNC, os.RWF_DSYNC, os.RWF_DSYNC]
    backend.flush()
    assert seen.syncs == 1
    backend.close()


def test_a_file_system_without_durable_writes_is_synced_instead(tmp_path, monkeypatch):
    write = os.pwritev

    def cannot(descriptor, buffers, offset, flags=0):
        if flags:
            raise OSError(errno.EOPNOTSUPP, "no")
        return write(descriptor, buffers, offset)

    backend = FileBackend(tmp_path / "disk", size=SIZE)
    monkeypatch.setattr(os, "pwritev", cannot)
    syncs = []
    monkeypatch.setattr(os, "fdatasync", syncs.append)
    backend.write(0, b"abc", durable=True)
    assert len(syncs) == 1
    assert bytes(backend.read(0, 3)) == b"abc"
    backend.close()


def test_switching_the_cache_off_flushes_first(tmp_path, monkeypatch):
    seen = Recorded(monkeypatch)
    backend = FileBackend(tmp_path / "disk", size=SIZE)
    backend.write(0, b"a")
    backend.set_write_cache(False)
    assert seen.syncs == 1
    backend.write(0, b"a")
    assert seen.flags == [0, os.RWF_DSYNC]
    backend.close()


def test_zeroing_without_a_cache_is_durable(tmp_path, monkeypatch):
    backend = FileBackend(tmp_path / "disk", size=SIZE, cache="writethrough", thin=True)
    seen = Recorded(monkeypatch)
    backend.discard(0, PIECE)
    backend.zero(0, PIECE)
    assert seen.syncs == 2
    backend.close()


def test_a_file_system_without_holes_gets_zeros(tmp_path, monkeypatch):
    def cannot(*_):
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr("iscsi.target.backends.file.fallocate", cannot)
    backend = FileBackend(tmp_path / "disk", size=SIZE)
    backend.write(0, random_bytes(SIZE))
    backend.discard(1, SIZE - 2)
    assert bytes(backend.read(1, SIZE - 2)) == bytes(SIZE - 2)
    backend.close()


def test_no_flush_succeeds_after_one_that_failed(tmp_path, monkeypatch):
    backend = FileBackend(tmp_path / "disk", size=SIZE)

    def fails(_):
        raise OSError(errno.EIO, "lost")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fails)
        with pytest.raises(OSError, match="lost"):
            backend.flush()
    with pytest.raises(OSError, match="earlier") as caught:
        backend.flush()
    assert caught.value.errno == errno.EIO
    backend.close()


def test_the_lock_is_gone_with_the_backend(tmp_path):
    path = Path(tmp_path / "disk")
    FileBackend(path, size=SIZE).close()
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
