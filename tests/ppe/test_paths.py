"""Engines are found by name, in a directory that nobody else can write to."""

import os
import socket
from pathlib import Path

import pytest

from ppe import paths
from ppe.errors import EngineNameError, EngineNameTaken, OperatorError, RuntimeDirectoryError
from ppe.observer import Observer


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "run"
    monkeypatch.setenv(paths.DIRECTORY_VARIABLE, str(directory))
    return directory


@pytest.mark.parametrize("name", ["default", "a", "0", "a-b_c9", "x" * 32])
def test_a_plain_name_is_accepted(name: str) -> None:
    assert paths.check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "A", "-a", "_a", "a b", "a/b", "..", "a.b", "x" * 33, "ä", "a\n", "a\0"]
)
def test_a_name_that_is_no_file_name_of_ours_is_refused(name: str) -> None:
    with pytest.raises(EngineNameError) as refused:
        paths.check_name(name)
    assert "--name" in refused.value.hint


def test_the_run_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(paths.DIRECTORY_VARIABLE, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert paths.runtime_directory() == Path("/run/ppe")
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    assert paths.runtime_directory() == Path("/run/user/1234/ppe")
    assert paths.search_directories() == [Path("/run/user/1234/ppe"), Path("/run/ppe")]
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert paths.runtime_directory() == Path("/tmp/ppe-1234")
    monkeypatch.setenv(paths.DIRECTORY_VARIABLE, "/somewhere")
    assert paths.runtime_directory() == Path("/somewhere")
    assert paths.search_directories() == [Path("/somewhere")]


def test_the_run_directory_is_made_for_its_owner_alone(run_directory: Path) -> None:
    assert paths.ensure_runtime_directory() == run_directory
    assert run_directory.stat().st_mode & 0o777 == 0o700
    assert paths.ensure_runtime_directory() == run_directory


def test_a_link_in_place_of_the_run_directory_is_refused(
    run_directory: Path, tmp_path: Path
) -> None:
    run_directory.symlink_to(tmp_path)
    with pytest.raises(RuntimeDirectoryError, match="symbolic link"):
        paths.ensure_runtime_directory()


def test_a_file_in_place_of_the_run_directory_is_refused(run_directory: Path) -> None:
    run_directory.touch()
    with pytest.raises(RuntimeDirectoryError, match="not a directory"):
        paths.ensure_runtime_directory()


def test_a_run_directory_that_others_may_write_is_refused(run_directory: Path) -> None:
    run_directory.mkdir()
    run_directory.chmod(0o777)
    with pytest.raises(RuntimeDirectoryError) as refused:
        paths.ensure_runtime_directory()
    assert refused.value.hint == f"chmod go-w {run_directory}"


def test_a_run_directory_of_another_user_is_refused(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_directory.mkdir()
    owner = run_directory.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(RuntimeDirectoryError, match=f"belongs to uid {owner}"):
        paths.ensure_runtime_directory()


def test_a_run_directory_that_cannot_be_made_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(paths.DIRECTORY_VARIABLE, str(tmp_path / "missing" / "run"))
    with pytest.raises(RuntimeDirectoryError) as refused:
        paths.ensure_runtime_directory()
    assert paths.DIRECTORY_VARIABLE in refused.value.hint


def test_the_longest_socket_path_can_be_bound_and_one_more_byte_is_refused(
    tmp_path: Path,
) -> None:
    room = paths.SUN_PATH_BYTES - len(os.fsencode(tmp_path)) - len("//a.sock")
    assert room > 0, "pytest's directory is too long for this test"
    directory = tmp_path / ("d" * room)
    directory.mkdir()
    files = paths.engine_files("a", directory)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(files.socket))
    with pytest.raises(RuntimeDirectoryError, match="108 bytes"):
        paths.engine_files("ab", directory)


def test_a_live_engines_name_is_refused_with_its_pid(run_directory: Path) -> None:
    files, lock = paths.claim_name("mine")
    with lock:
        assert files.pid() == os.getpid()
        files.socket.touch()
        with pytest.raises(EngineNameTaken, match=f"pid {os.getpid()}"):
            paths.claim_name("mine")
        assert files.socket.exists(), "the live engine's socket must survive the attempt"
    assert files.pid() is None


def test_a_dead_engines_socket_is_cleared_away(run_directory: Path) -> None:
    paths.ensure_runtime_directory()
    dead = paths.engine_files("mine")
    dead.lock.write_text("1\n")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(dead.socket))
    files, lock = paths.claim_name("mine")
    with lock:
        assert not files.socket.exists()


def test_only_live_engines_are_listed_and_found(run_directory: Path) -> None:
    assert paths.list_engines() == []
    _, second = paths.claim_name("second")
    _, first = paths.claim_name("first")
    (run_directory / "dead.lock").write_text("1\n")
    (run_directory / "Not A Name.lock").touch()
    with first, second:
        assert [files.name for files in paths.list_engines()] == ["first", "second"]
        found = paths.find_engine("first")
        assert found is not None
        assert found.socket == run_directory / "first.sock"
        assert paths.find_engine("dead") is None
    assert paths.list_engines() == []


def test_an_engine_that_is_starting_is_not_said_to_be_missing(run_directory: Path) -> None:
    with pytest.raises(OperatorError, match="no engine named 'slow'"):
        Observer("slow")
    _, lock = paths.claim_name("slow")
    try:
        with pytest.raises(OperatorError, match=rf"pid {os.getpid()}\) is still starting") as told:
            Observer("slow")
    finally:
        lock.release()
    assert "slow.log" in told.value.hint
