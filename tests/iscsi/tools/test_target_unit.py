"""The service unit of the target agrees with the program it starts, and with systemd where that can
be asked.
"""

import argparse
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from iscsi.target import remote
from iscsi.tools.target import TargetCommand

PACKAGING = Path(__file__).parents[3] / "packaging"
UNIT = PACKAGING / "systemd" / "ppe-target@.service"
ACCOUNT = PACKAGING / "sysusers.d" / "ppe-target.conf"


@pytest.fixture(scope="module")
def settings():
    found = {}
    for line in UNIT.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def parsed(line):
    """The flags of a command of the unit, as `ppe target` understands them."""
    program, command, *words = shlex.split(line.replace("%i", "blue").replace("%t", "/run"))
    assert (Path(program).name, command) == ("ppe", "target")
    parser = argparse.ArgumentParser(exit_on_error=False)
    TargetCommand().prepare_parser(parser)
    return parser.parse_args(words)


def test_the_flags_it_starts_with_exist(settings):
    args = parsed(settings["ExecStart"][0])
    assert (args.action, args.name) == ("serve", "blue")
    assert args.config == Path("/etc/ppe/targets/blue.toml")


def test_reload_asks_the_server_that_was_started(settings):
    started, asked = parsed(settings["ExecStart"][0]), parsed(settings["ExecReload"][0])
    assert asked.action == "reload"
    assert asked.control == started.control


def test_commands_find_its_control_socket_by_name(settings):
    control = parsed(settings["ExecStart"][0]).control
    assert control == remote.SERVICES / f"blue{remote.SUFFIX}"
    assert settings["RuntimeDirectory"] == [remote.SERVICES.name]
    assert settings["RuntimeDirectoryPreserve"] == ["yes"], "others live there, too"


def test_it_is_told_when_the_server_serves(settings):
    assert settings["Type"] == ["notify"]
    assert settings["NotifyAccess"] == ["main"]


def test_it_runs_as_the_account_that_is_made_for_it(settings):
    (line,) = (line for line in ACCOUNT.read_text().splitlines() if line.startswith("u "))
    _, name, *_ = shlex.split(line)
    assert settings["User"] == settings["Group"] == [name]
    assert settings["CapabilityBoundingSet"] == settings["AmbientCapabilities"] == [""]


def test_it_does_not_forbid_what_the_server_needs(settings):
    for key, why in (
        ("MemoryDenyWriteExecute", "its loop is compiled at its start"),
        ("PrivateNetwork", "it is there to use the network"),
        ("PrivateDevices", "block devices may be LUNs"),
        ("ProtectClock", "it closes every other device"),
        ("RemoveIPC", "several servers are one user"),
    ):
        assert key not in settings, why
    families = settings["RestrictAddressFamilies"][0].split()
    assert {"AF_UNIX", "AF_INET", "AF_INET6"} <= set(families)


@pytest.mark.interop("systemd-analyze")
def test_systemd_finds_nothing_wrong_with_it(tmp_path):
    program = shutil.which("true")
    text = UNIT.read_text().replace("/usr/local/bin/ppe", str(program))
    unit = tmp_path / UNIT.name
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
