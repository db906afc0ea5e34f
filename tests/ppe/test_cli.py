"""The command line: nearest suggestions, exit codes, lazy imports, quiet endings."""

import argparse
import json
import os
import pty
import subprocess
import sys
import types
from collections.abc import Callable, Iterator

import pytest

from ppe import __version__, cli, output
from ppe.errors import OperatorError

SLOW_MODULES = ("numba", "numpy", "rich", "psutil", "llvmlite")


def ppe(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ppe", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,  # type: ignore[call-overload]
    )


@pytest.fixture
def fake_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., int]], None]:
    """Put a command called `fake` into the table, whose run is the function given."""

    def install(run: Callable[..., int]) -> None:
        class Fake:
            name = "fake"
            help = "a fake"

            def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
                parser.add_argument("--count", type=int, default=1)
                parser.add_argument("--colour", choices=["red", "blue"])
                verbs = parser.add_subparsers(dest="verb")
                verb = verbs.add_parser("list")
                verb.add_argument("--depth", type=int)
                verb.add_argument("what")
                verb.add_argument("number", nargs="?", type=int)

            def run(self, args: argparse.Namespace) -> int:
                return run(args)

        module = types.ModuleType("fake_command_module")
        module.Fake = Fake  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "fake_command_module", module)
        monkeypatch.setitem(cli.COMMANDS, "fake", ("fake_command_module:Fake", "a fake"))

    return install


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ppe {__version__}\n" * 2


def test_the_version_as_json_names_the_components(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ppe"] == __version__
    assert facts["components"]["numba"]


@pytest.mark.parametrize("words", [["version"], ["--help"], ["version", "--json"]])
def test_cheap_commands_import_nothing_slow(words: list[str]) -> None:
    script = (
        "import sys; from ppe.cli import main; code = main(sys.argv[1:])\n"
        f"slow = [m for m in {SLOW_MODULES} if m in sys.modules]\n"
        "sys.exit(f'imported {slow}' if slow or code else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_help_lists_every_command_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, (_, help_line) in cli.COMMANDS.items():
        assert name in shown
        assert help_line in shown


def test_no_command_at_all_is_wrong_usage_and_shows_the_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "version" in captured.err


def parsers() -> Iterator[cli.Parser]:
    """The parser of every command, and of what is nested in it."""
    for name in (*cli.COMMANDS, *cli.PLUGIN_HELP):
        parser = cli.Parser(prog=f"ppe {name}")
        cli.load_command(name).prepare_parser(parser)
        yield parser
        yield from parser.nested


def test_every_help_fits_a_terminal_and_explains_each_argument(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    seen = {parser.prog: parser for parser in parsers()}
    assert {"ppe up", "ppe iscsi cp", "ppe target serve", "ppe bench compare"} <= seen.keys()
    for name, parser in seen.items():
        wide = [line for line in parser.format_help().splitlines() if len(line) > 80]
        assert not wide, f"{name}: {wide}"
        silent = [action.dest for action in parser._actions if not action.help]
        assert silent in ([], ["action"], ["benchmark"]), f"{name}: {silent}"


def test_help_of_a_command_shows_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version", "--help"]) == 0
    assert cli.main(["help", "version"]) == 0
    assert capsys.readouterr().out.count("--json") >= 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["versoin"], "did you mean version?"),
        (["dctor"], "did you mean doctor?"),
        (["zzzzzz"], "see `ppe --help`"),
        (["--vresion"], "`ppe --help`"),
        (["version", "--jsno"], "did you mean --json?"),
        (["version", "--js"], "did you mean --json?"),
        (["version", "extra"], "unexpected argument 'extra'"),
    ],
)
def test_a_typing_error_is_wrong_usage_with_the_nearest_name(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""
    assert len(captured.err.splitlines()) <= 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cuont=3"], "did you mean --count?"),
        (["--count", "x"], "invalid int value"),
        (["--colour", "blu"], "did you mean blue?"),
        (["lsit"], "did you mean list?"),
        (["list", "--dpeth", "3"], "did you mean --depth?"),
        (["list", "it", "3", "extra"], "see `ppe fake list --help`"),
        (["list", "it", "--depth", "3", "4", "extra"], "unexpected argument 'extra'"),
        (["list", "it", "--depth", "3", "four"], "invalid int value: 'four'"),
    ],
)
def test_flags_values_and_verbs_of_a_command_get_suggestions(
    words: list[str],
    expected: str,
    fake_command: Callable[[Callable[..., int]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_command(lambda args: 0)
    assert cli.main(["fake", *words]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", ["it 4 --depth 3", "it --depth 3 4", "--depth 3 it 4", "it --depth=3 4"]
)
def test_an_optional_argument_may_stand_behind_flags(
    words: str, fake_command: Callable[[Callable[..., int]], None]
) -> None:
    found: list[argparse.Namespace] = []

    def keep(args: argparse.Namespace) -> int:
        found.append(args)
        return 0

    fake_command(keep)
    assert cli.main(["fake", "list", *words.split()]) == 0
    assert (found[0].what, found[0].number, found[0].depth) == ("it", 4, 3)


def test_the_exit_code_is_the_commands(
    fake_command: Callable[[Callable[..., int]], None],
) -> None:
    fake_command(lambda args: int(args.count))
    assert cli.main(["fake"]) == 1
    assert cli.main(["fake", "--count", "0"]) == 0


def test_an_operators_error_is_two_lines_and_exit_code_1(
    fake_command: Callable[[Callable[..., int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise OperatorError("the moon is full", "wait a week")

    fake_command(fail)
    assert cli.main(["fake"]) == 1
    assert capsys.readouterr().err == "ppe fake: the moon is full\n  try: wait a week\n"


def test_interruption_is_130_without_a_traceback(
    fake_command: Callable[[Callable[..., int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    fake_command(interrupt)
    assert cli.main(["fake"]) == 130
    assert capsys.readouterr().err == ""


def test_a_bug_keeps_its_traceback(
    fake_command: Callable[[Callable[..., int]], None],
) -> None:
    def stumble(args: argparse.Namespace) -> int:
        raise ZeroDivisionError

    fake_command(stumble)
    with pytest.raises(ZeroDivisionError):
        cli.main(["fake"])


def test_a_reader_that_leaves_ends_the_command_silently() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ppe", "--help"],
            stdout=write_end,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(write_end)
    assert done.stderr == b""
    assert done.returncode == cli.EXIT_BROKEN_PIPE


def test_a_plugin_that_is_not_installed_is_named_as_such(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_plugins", dict)
    assert cli.main(["iscsi"]) == 1
    assert "not installed" in capsys.readouterr().err


def test_a_plugin_is_listed_without_being_imported_and_runs(
    monkeypatch: pytest.MonkeyPatch,
    fake_command: Callable[[Callable[..., int]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_command(lambda args: 0)
    places = {"iscsi": "fake_command_module:Fake", "other": "no.such.module:Thing"}
    monkeypatch.setattr(cli, "_plugins", lambda: places)
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert cli.PLUGIN_HELP["iscsi"] in shown
    assert "other" in shown
    assert cli.main(["iscsi"]) == 0
    assert cli.main(["other"]) == 1
    assert "'no'" in capsys.readouterr().err


def test_colour_appears_on_a_terminal_only_and_obeys_no_color(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    control, terminal = pty.openpty()
    try:
        with os.fdopen(os.dup(terminal), "w") as stream:
            assert output.paint("x", "red", stream) == "\x1b[31mx\x1b[0m"
            monkeypatch.setenv("NO_COLOR", "1")
            assert output.paint("x", "red", stream) == "x"
            monkeypatch.delenv("NO_COLOR")
            monkeypatch.setenv("TERM", "dumb")
            assert output.paint("x", "red", stream) == "x"
    finally:
        os.close(control)
        os.close(terminal)
    with open(os.devnull, "w") as stream:  # noqa: PTH123
        assert output.paint("x", "red", stream) == "x"


def test_the_module_and_the_function_are_the_same_command() -> None:
    done = ppe("version")
    assert (done.returncode, done.stdout) == (0, f"ppe {__version__}\n")
