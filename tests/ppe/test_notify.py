"""The service manager hears about readiness, and nobody else is bothered."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppe import notify


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield receiver


def test_readiness_reaches_the_manager_with_pid_and_one_status_line(
    manager: socket.socket,
) -> None:
    assert notify.ready("CPU 3,\nidle spin")
    expected = f"READY=1\nMAINPID={os.getpid()}\nSTATUS=CPU 3, idle spin"
    assert manager.recv(4096).decode() == expected


def test_the_other_states_reach_the_manager(manager: socket.socket) -> None:
    assert notify.extend_start(30)
    assert notify.status("compiling")
    assert notify.watchdog()
    assert notify.stopping()
    heard = [manager.recv(4096).decode() for _ in range(4)]
    assert heard == ["EXTEND_TIMEOUT_USEC=30000000", "STATUS=compiling", "WATCHDOG=1", "STOPPING=1"]


def test_an_abstract_address_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"ppe-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name)
        receiver.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert notify.stopping()
        assert receiver.recv(64) == b"STOPPING=1"


@pytest.mark.parametrize("address", [None, "", "relative", "/no/such/socket"])
def test_without_a_manager_nothing_happens(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify.ready("x")


def test_a_manager_that_does_not_read_is_not_waited_for(manager: socket.socket) -> None:
    sent = 0
    while notify.status("x" * 1000):
        sent += 1
        assert sent < 100_000, "the socket's buffer never filled"
    assert sent


def test_the_watchdog_is_half_its_limit_and_only_for_the_process_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert notify.watchdog_interval_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    assert notify.watchdog_interval_s() == 5.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert notify.watchdog_interval_s() is None
