"""Settings come from flags, a file and defaults, in that order, and are checked once."""

import argparse
from pathlib import Path

import pytest

from ppe.cli import Parser
from ppe.config import EngineConfig, Limits, add_arguments, flag, load, parse_size, settings
from ppe.errors import ConfigError, EngineNameError, UsageError


def parse(*words: str) -> argparse.Namespace:
    parser = Parser(prog="ppe up")
    add_arguments(parser)
    return parser.parse(words)


def load_file(tmp_path: Path, text: str, *words: str) -> EngineConfig:
    file = tmp_path / "engine.toml"
    file.write_text(text)
    return load(parse("--config", str(file), *words))


def test_without_flags_and_file_the_defaults_hold() -> None:
    assert load(parse()) == EngineConfig()


def test_every_setting_has_a_flag_and_a_help_text() -> None:
    parser = Parser(prog="ppe up")
    add_arguments(parser)
    text = parser.format_help()
    for section in (EngineConfig, Limits):
        for name, setting in settings(section).items():
            assert flag(name, section) in text
            assert setting.help


def test_flags_set_every_kind_of_setting() -> None:
    config = load(
        parse(
            *("--name", "blue", "--cpu", "3", "--idle", "sleep", "--foreground", "--force"),
            *("--cpu-target", "x86-64-v2", "--readiness", "epoll", "--limit-clients", "7"),
            *("--limit-client-memory-bytes", "256M", "--rdma-devices", "rxe0, siw0,rxe0"),
        )
    )
    assert config == EngineConfig(
        name="blue",
        cpu="3",
        idle="sleep",
        foreground=True,
        force=True,
        cpu_target="x86-64-v2",
        readiness="epoll",
        rdma_devices="rxe0, siw0,rxe0",
        limits=Limits(clients=7, client_memory_bytes=256 << 20),
    )


def test_rdma_devices_are_a_list_of_names_and_none_by_default() -> None:
    assert load(parse("--rdma-devices", "rxe0, siw0,rxe0,")).rdma_device_names == ("rxe0", "siw0")
    assert load(parse()).rdma_device_names == ()


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    text = 'idle = "yield"\nname = "red"\n[limits]\nclients = 9\nregions = 8\n'
    config = load_file(tmp_path, text, "--idle", "sleep", "--limit-regions", "16")
    assert (config.idle, config.name) == ("sleep", "red")
    assert (config.limits.clients, config.limits.regions) == (9, 16)
    assert config.limits.operations == Limits().operations


def test_two_named_cpus_mean_two_engines(tmp_path: Path) -> None:
    assert load(parse("--cpu", "2,3")).engines == 2
    assert load_file(tmp_path, "cpu = [1, 2, 3]").engines == 3
    assert load_file(tmp_path, "cpu = 1").cpu == "1"


def test_cpus_and_engines_that_disagree_are_refused() -> None:
    with pytest.raises(ConfigError, match="--cpu 2,3 names 2 CPUs for --engines 3"):
        load(parse("--cpu", "2,3", "--engines", "3"))


@pytest.mark.parametrize(
    ("words", "named", "hint"),
    [
        (("--idle", "spinn"), "--idle", "did you mean spin?"),
        (("--cpu-target", "native2"), "--cpu-target", "native"),
        (("--engines", "0"), "--engines", "1 to 64"),
        (("--engines", "two"), "--engines", "whole number"),
        (("--engines", "1.5"), "--engines", "whole number"),
        (("--limit-clients", "-1"), "--limit-clients", "1 to 65535"),
        (("--limit-client-memory-bytes", "1Q"), "--limit-client-memory-bytes", "256M"),
        (("--limit-client-memory-bytes", "4K"), "--limit-client-memory-bytes", "64K"),
        (("--cpu", "one"), "--cpu", "--cpu 3"),
    ],
)
def test_a_value_out_of_range_names_its_flag_and_what_fits(
    words: tuple[str, ...], named: str, hint: str
) -> None:
    with pytest.raises(UsageError) as refused:
        load(parse(*words))
    assert named in refused.value.message
    assert hint in refused.value.hint


def test_a_bad_name_is_refused() -> None:
    with pytest.raises(EngineNameError):
        load(parse("--name", "../x"))


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('idel = "spin"', "unknown key 'idel'", "did you mean 'idle'?"),
        ("[limits]\nclient = 3", "unknown key 'client'", "did you mean 'clients'?"),
        ("[limits]\nclients = 0", "'clients' in", "1 to 65535"),
        ("[limits]\nclients = 2.0", "'clients' in", "whole number"),
        ("[limits]\nclients = true", "'clients' in", "whole number"),
        ("foreground = 1", "'foreground' in", "true or false"),
        ("limits = 3", "not a table", "[limits]"),
        ("idle = ", "is not TOML", "correct"),
    ],
)
def test_a_mistake_in_the_file_names_the_file_and_the_key(
    tmp_path: Path, text: str, message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load_file(tmp_path, text)
    assert message in refused.value.message
    assert "engine.toml" in refused.value.message
    assert hint in refused.value.hint


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(parse("--config", str(tmp_path / "none.toml")))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("64k", 65536),
        ("256M", 1 << 28),
        ("2G", 1 << 31),
        ("1GiB", 1 << 30),
        ("3T", 3 << 40),
    ],
)
def test_sizes_are_read_with_their_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "1.5G", "1Z", "x", "-1M", "1_0"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)
