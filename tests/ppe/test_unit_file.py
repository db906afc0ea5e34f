"""The service unit agrees with the flags and the directories of the program it starts."""

import shlex
from pathlib import Path

import pytest

from ppe import cpulock, paths
from ppe.cli import Parser
from ppe.config import add_arguments, load

UNIT = Path(__file__).parents[2] / "packaging" / "systemd" / "ppe@.service"


@pytest.fixture(scope="module")
def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_the_flags_it_starts_with_exist(settings: dict[str, list[str]]) -> None:
    words = shlex.split(settings["ExecStart"][0].replace("%i", "blue").replace("$PPE_FLAGS", ""))
    assert words[1] == "up"
    parser = Parser(prog="ppe up")
    add_arguments(parser)
    config = load(parser.parse(words[2:]))
    assert (config.name, config.foreground) == ("blue", True)


def test_it_waits_for_readiness_and_lets_memory_be_locked(settings: dict[str, list[str]]) -> None:
    assert settings["Type"] == ["notify"]
    assert settings["LimitMEMLOCK"] == ["infinity"]


def test_it_does_not_forbid_what_the_engine_needs(settings: dict[str, list[str]]) -> None:
    assert "MemoryDenyWriteExecute" not in settings, "the engine is compiled at its start"
    assert "CPUAffinity" not in settings, "pinning is the engine's own business"
    assert "PrivateTmp" not in settings, "engines must see each other's claims"


def test_it_may_write_where_claims_and_sockets_live(settings: dict[str, list[str]]) -> None:
    writable = [path.lstrip("-") for path in settings["ReadWritePaths"][0].split()]
    for directory in cpulock.DIRECTORIES:
        assert str(directory.parent) in writable
    assert f"{paths.DIRECTORY_VARIABLE}=%t/{paths.SYSTEM_DIRECTORY.name}" in settings["Environment"]
