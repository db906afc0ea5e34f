"""A CPU has one engine on the whole machine, and is free again the moment its engine dies."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ppe import cpulock, lockfile
from ppe.errors import CpuTaken, OperatorError

CLAIM_AND_WAIT = """
import sys
from ppe import cpulock
held = cpulock.claim(int(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def lock_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "locks"
    monkeypatch.setenv(cpulock.DIRECTORY_VARIABLE, str(directory))
    return directory


@contextmanager
def another_process_claims(cpu: int) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", CLAIM_AND_WAIT, str(cpu)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n", "the child could not claim the CPU"
            yield process
        finally:
            process.kill()


def test_a_claimed_cpu_is_refused_to_everyone_with_the_holders_pid() -> None:
    with another_process_claims(3) as process:
        with pytest.raises(CpuTaken, match=f"pid {process.pid}") as refused:
            cpulock.claim(3)
        assert (refused.value.cpu, refused.value.pid) == (3, process.pid)
        assert cpulock.holders([2, 3]) == {3: process.pid}


def test_a_claim_is_refused_even_within_one_process() -> None:
    with cpulock.claim(1), pytest.raises(CpuTaken, match=f"pid {os.getpid()}"):
        cpulock.claim(1)


def test_asking_for_the_holder_does_not_release_the_claim() -> None:
    with cpulock.claim(1):
        assert cpulock.holders([1]) == {1: os.getpid()}
        assert cpulock.holders([1]) == {1: os.getpid()}


def test_a_killed_holder_frees_its_cpu_and_its_pid_is_not_reported() -> None:
    with another_process_claims(3) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert cpulock.holders([3]) == {}
        with cpulock.claim(3):
            assert cpulock.holders([3]) == {3: os.getpid()}


def test_release_leaves_no_file_and_may_be_repeated(lock_directory: Path) -> None:
    held = cpulock.claim(2)
    assert [path.name for path in lock_directory.iterdir()] == ["cpu-0002.lock"]
    held.release()
    held.release()
    assert list(lock_directory.iterdir()) == []
    cpulock.claim(2).release()


def test_a_forked_child_cannot_release_its_parents_claim() -> None:
    with cpulock.claim(2) as held:
        child = os.fork()
        if child == 0:
            held.release()
            os._exit(0)
        os.waitpid(child, 0)
        assert cpulock.holders([2]) == {2: os.getpid()}


def test_claiming_several_takes_all_or_none() -> None:
    with cpulock.claim(2):
        with pytest.raises(CpuTaken):
            cpulock.claim_all([1, 2])
        assert cpulock.holders([1]) == {}
        claims, warnings = cpulock.claim_all([1, 2], force=True)
        assert len(claims) == 1
        assert "CPU 2" in warnings[0]
        cpulock.release_all(claims)


def test_the_directory_and_files_are_open_to_every_user(lock_directory: Path) -> None:
    before = os.umask(0o077)
    try:
        with cpulock.claim(1) as held:
            assert lock_directory.stat().st_mode & 0o7777 == 0o1777
            assert held.path.stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)


def test_a_symbolic_link_in_place_of_the_directory_is_refused(
    lock_directory: Path, tmp_path: Path
) -> None:
    lock_directory.symlink_to(tmp_path)
    with pytest.raises(OperatorError, match="not a directory"):
        cpulock.claim(1)


def test_a_directory_without_the_sticky_bit_is_refused(lock_directory: Path) -> None:
    lock_directory.mkdir()
    lock_directory.chmod(0o777)
    with pytest.raises(OperatorError, match="sticky"):
        cpulock.claim(1)


def test_a_link_in_place_of_a_lock_file_is_refused_and_its_target_untouched(
    lock_directory: Path, tmp_path: Path
) -> None:
    lock_directory.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (lock_directory / "cpu-0001.lock").symlink_to(precious)
    (lock_directory / "cpu-0002.lock").hardlink_to(precious)
    for cpu in (1, 2):
        with pytest.raises(OperatorError):
            cpulock.claim(cpu)
    assert precious.read_text() == "precious"


def test_a_pipe_in_place_of_a_lock_file_does_not_hang(lock_directory: Path) -> None:
    lock_directory.mkdir()
    os.mkfifo(lock_directory / "cpu-0001.lock")
    with pytest.raises(OperatorError, match="plain file"):
        cpulock.claim(1)
    assert cpulock.holders([1]) == {}


def test_garbage_in_a_lock_file_is_no_pid(lock_directory: Path) -> None:
    lock_directory.mkdir()
    (lock_directory / "cpu-0001.lock").write_text("-1 rm -rf\x00" * 100)
    assert cpulock.holders([1]) == {}
    with cpulock.claim(1):
        assert cpulock.holders([1]) == {1: os.getpid()}


def test_a_claim_in_the_other_directory_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.delenv(cpulock.DIRECTORY_VARIABLE)
    monkeypatch.setattr(cpulock, "DIRECTORIES", (first, second))
    second.mkdir()
    with lockfile.acquire(second / "cpu-0001.lock"):
        assert cpulock.holders([1]) == {1: os.getpid()}
        with pytest.raises(CpuTaken):
            cpulock.claim(1)
        assert lockfile.holder(first / "cpu-0001.lock") is None


def test_a_lock_whose_file_was_removed_is_not_shared_with_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "name.lock"
    old = lockfile.acquire(path)
    path.unlink()
    with lockfile.acquire(path):  # Somebody tidied up by hand: two files, but each is exclusive.
        with pytest.raises(lockfile.LockHeld):
            lockfile.acquire(path)
        os.close(old.descriptor)
