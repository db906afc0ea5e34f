"""Segments: made whole or not at all, handed over by descriptor, gone with their last user."""

import contextlib
import errno
import mmap
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from shm import segment as segments
from shm.layout import offset
from shm.libc import is_in_memory
from shm.records import LAYOUT_HASH, MAGIC, SEGMENT_HEADER, VERSION
from shm.segment import (
    DIRECTORY,
    KIND_CHANNEL,
    KIND_REGION,
    PAGE,
    PREFIX,
    LayoutMismatch,
    SegmentError,
    check_header,
    create,
    map_descriptor,
    publish,
    start_time,
    sweep,
)

ROOT = Path(__file__).resolve().parent.parent.parent


@contextlib.contextmanager
def segment(size=PAGE, **options):
    made = create(size, **options)
    try:
        yield made
    finally:
        made.close()


def names():
    return {path.name for path in DIRECTORY.glob(f"{PREFIX}{os.getpid()}-*")}


def test_a_segment_is_zeroed_whole_pages_present_private_and_unnamed():
    with segment(PAGE + 1) as made:
        assert made.size == len(made.array) == 2 * PAGE
        assert not made.array.any()
        about = os.fstat(made.descriptor)
        assert about.st_size == made.size
        assert about.st_blocks * 512 >= made.size
        assert about.st_mode & 0o777 == 0o600
        assert about.st_nlink == 0
        assert not names()


def test_both_sides_of_a_descriptor_see_the_same_memory():
    with segment() as made:
        other = map_descriptor(os.dup(made.descriptor), made.size)
        made.array[5] = 77
        assert other.array[5] == 77
        assert other.address != made.address
        other.close()


def test_a_read_only_mapping_cannot_be_written():
    with segment() as made:
        other = map_descriptor(os.dup(made.descriptor), made.size, writable=False)
        with pytest.raises(ValueError, match="read-only"):
            other.array[0] = 1
        other.close()


def test_the_mapping_is_not_inherited_over_fork():
    with segment() as made:
        lines = Path("/proc/self/smaps").read_text().splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith(f"{made.address:x}-"))
        flags = next(line for line in lines[start:] if line.startswith("VmFlags:"))
        assert "dc" in flags.split()


def test_closing_twice_is_harmless_and_a_window_keeps_its_memory():
    made = create(PAGE)
    window = made.array[:8]
    made.close()
    made.close()
    window[0] = 3
    assert window[0] == 3


@pytest.mark.parametrize("size", [0, -1])
def test_a_segment_of_nothing_is_refused(size):
    with pytest.raises(SegmentError, match="holds nothing"):
        create(size)


def test_a_segment_smaller_than_announced_is_refused():
    with segment() as made:
        with pytest.raises(SegmentError, match="4096 bytes, 8192 were announced"):
            map_descriptor(made.descriptor, 2 * PAGE)
        os.ftruncate(made.descriptor, 0)
        with pytest.raises(SegmentError, match="0 bytes"):
            map_descriptor(made.descriptor, 0)


def test_a_file_that_is_not_in_memory_is_refused():
    with ROOT.joinpath("pyproject.toml").open("rb") as file:
        if is_in_memory(file.fileno()):
            pytest.skip("this checkout lies in tmpfs")
        with pytest.raises(SegmentError, match="not one of shared memory"):
            map_descriptor(file.fileno(), 64)
    reader, writer = os.pipe()
    with pytest.raises(SegmentError, match="0 bytes"):
        map_descriptor(reader, 64)
    os.close(reader)
    os.close(writer)


def test_a_memfd_is_shared_memory_too():
    descriptor = os.memfd_create("test")
    os.ftruncate(descriptor, PAGE)
    mapped = map_descriptor(descriptor, PAGE)
    mapped.array[0] = 1
    mapped.close()


def test_a_segment_that_shrinks_while_it_is_mapped_is_refused(monkeypatch):
    with segment() as made:
        real = os.fstat(made.descriptor)
        os.ftruncate(made.descriptor, 0)
        monkeypatch.setattr(os, "fstat", lambda descriptor: real)
        with pytest.raises(SegmentError, match="shrank"):
            map_descriptor(made.descriptor, PAGE)
        monkeypatch.undo()


# --- the header --------------------------------------------------------------------------------


def header_of(made):
    return made.array[: SEGMENT_HEADER.itemsize].view(SEGMENT_HEADER)


def test_a_published_segment_is_accepted_and_says_who_made_it():
    with segment(kind=KIND_CHANNEL, header=True) as made:
        publish(made)
        check_header(made, KIND_CHANNEL)
        header = header_of(made)[0]
        assert (header["magic"], header["version"]) == (MAGIC, VERSION)
        assert (header["layout"], header["size"]) == (LAYOUT_HASH, made.size)
        assert (header["pid"], header["start_time"]) == (os.getpid(), start_time(os.getpid()))


def test_a_segment_that_was_not_published_is_refused():
    with (
        segment(kind=KIND_CHANNEL, header=True) as made,
        pytest.raises(SegmentError, match="unfinished"),
    ):
        check_header(made, KIND_CHANNEL)


@pytest.mark.parametrize(
    ("field", "value", "error", "complaint"),
    [
        ("version", VERSION + 1, LayoutMismatch, f"version {VERSION + 1}, ours is {VERSION}"),
        ("layout", LAYOUT_HASH ^ 1, LayoutMismatch, "same release"),
        ("magic", MAGIC ^ 1, SegmentError, "not one of ours"),
        ("boot_id", 1, SegmentError, "another boot"),
        ("kind", KIND_REGION, SegmentError, "something else"),
    ],
)
def test_a_segment_of_something_else_is_refused(field, value, error, complaint):
    with segment(kind=KIND_CHANNEL, header=True) as made:
        publish(made)
        header_of(made)[field] = value
        with pytest.raises(error, match=complaint):
            check_header(made, KIND_CHANNEL)


def test_the_version_is_the_first_word_and_fits_an_atomic_store():
    assert offset(SEGMENT_HEADER, "version") == 0
    assert SEGMENT_HEADER["version"].itemsize == 8


# --- room ----------------------------------------------------------------------------------------


def test_too_little_room_is_refused_before_anything_is_made(monkeypatch):
    real = os.statvfs(DIRECTORY)
    monkeypatch.setattr(
        os, "statvfs", lambda path: os.statvfs_result((*real[:4], 1 << 8, *real[5:]))
    )
    monkeypatch.setattr(segments.posix_ipc, "SharedMemory", None)
    with pytest.raises(SegmentError, match="1 MiB free and 4096 MiB are needed: enlarge") as found:
        create(1 << 32)
    assert found.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("code", "kind", "complaint"),
    [(errno.ENOSPC, SegmentError, "ran full"), (errno.EIO, OSError, "Input/output")],
)
def test_a_failure_half_way_leaves_neither_name_nor_descriptor(monkeypatch, code, kind, complaint):
    def fail(*_arguments):
        raise OSError(code, os.strerror(code))

    before = set(Path("/proc/self/fd").iterdir())
    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(kind, match=complaint):
        create(PAGE)
    assert set(Path("/proc/self/fd").iterdir()) == before
    assert not names()


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="a file system of its own needs root",
)
def test_a_full_file_system_is_a_clear_error():
    program = """
        from pathlib import Path
        from shm import segment
        taken = []
        for check in (segment._check_space, lambda size: None):
            segment._check_space = check
            try:
                taken.append(segment.create(512 << 10))
                taken.append(segment.create(2 << 20))
            except segment.SegmentError as error:
                print(error.strerror)
        assert not list(Path("/dev/shm").iterdir())
    """
    command = 'mount -t tmpfs -o size=1536k tmpfs /dev/shm || exit 99; exec "$0" -c "$1"'
    run = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, sys.executable, textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if run.returncode in (1, 99) and ("unshare" in run.stderr or "mount" in run.stderr):
        pytest.skip(f"no mount namespace here: {run.stderr.strip()}")
    assert run.returncode == 0, run.stderr
    foreseen, met = run.stdout.splitlines()
    assert "enlarge it" in foreseen
    assert "ran full" in met


# --- what dead processes leave -------------------------------------------------------------------


def dead_pid():
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_a_segment_has_no_name_any_more_while_its_pages_are_taken(monkeypatch):
    """Taking them is slow, and whoever is killed meanwhile must leave nothing."""
    seen = []

    def fallocate(descriptor, start, size):
        seen.append(list(DIRECTORY.glob(f"{PREFIX}{os.getpid()}-*")))
        os.ftruncate(descriptor, start + size)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    segments.create(PAGE).close()
    assert seen == [[]]


def test_sweeping_removes_what_dead_processes_left_and_nothing_else():
    orphan = DIRECTORY / f"{PREFIX}{dead_pid()}-test"
    alive = DIRECTORY / f"{PREFIX}{os.getpid()}-test"
    foreign = DIRECTORY / f"{PREFIX}test-{os.getpid()}"
    try:
        for path in (orphan, alive, foreign):
            path.write_bytes(b"")
        assert orphan.name in sweep()
        assert not orphan.exists()
        assert alive.exists()
        assert foreign.exists()
        assert orphan.name not in sweep()
    finally:
        for path in (orphan, alive, foreign):
            path.unlink(missing_ok=True)


def test_a_process_is_known_by_pid_and_start_time():
    assert start_time(os.getpid()) == start_time(os.getpid())
    assert start_time(dead_pid()) is None
    assert start_time(1) != start_time(os.getpid())


def test_sizes_round_up_to_whole_pages():
    assert [segments.round_up(size) for size in (1, PAGE, PAGE + 1)] == [PAGE, PAGE, 2 * PAGE]
    assert mmap.PAGESIZE == PAGE
