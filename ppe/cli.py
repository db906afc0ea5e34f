"""The `ppe` command: find the sub-command, parse its flags, turn its errors into exit codes.

A command's module is imported when that command runs and not before, so `ppe version` and the
help text never load the compiler. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted; a
command that was told to end tidies up and dies of the signal.
"""

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn, Protocol

from ppe import __version__, output
from ppe.ending import Ended, die_of, orderly
from ppe.errors import EXIT_INTERRUPTED, OperatorError, UsageError

ENTRY_POINT_GROUP: Final = "ppe.commands"
EXIT_BROKEN_PIPE: Final = 141  # 128 + SIGPIPE, what a shell reports too.

# name -> (module:class, one line of help). The help is here so that listing imports nothing.
COMMANDS: Final = {
    "up": ("ppe.commands.up:UpCommand", "start an engine on a CPU of its own"),
    "down": ("ppe.commands.down:DownCommand", "stop an engine"),
    "stat": ("ppe.commands.stat:StatCommand", "show what an engine counts, once"),
    "top": ("ppe.commands.top:TopCommand", "watch an engine live"),
    "errors": ("ppe.commands.errors:ErrorsCommand", "list the distinct errors an engine has seen"),
    "doctor": ("ppe.commands.doctor:DoctorCommand", "find what on this machine slows an engine"),
    "version": ("ppe.commands.version:VersionCommand", "print the version"),
}
# Sub-commands that other packages bring along through entry points, and their help.
PLUGIN_HELP: Final = {
    "demo": "move verified iSCSI data through an engine",
    "iscsi": "list, inspect, read, write and measure iSCSI LUNs",
    "target": "serve iSCSI LUNs",
    "bench": "measure queues, waits, engines and iSCSI",
    "experiment": "compare SMP with AMP and other settings here",
    "advise": "recommend a split of the cores from what was measured",
}


class Command(Protocol):
    """A sub-command. `run` prints its result and returns the exit code, or raises OperatorError."""

    name: str
    help: str

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError instead of exiting, and names the nearest flag."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)
        self.nested: list[Parser] = []

    def add_subparsers(self, **options: Any) -> Any:
        """Add nested commands whose flags take part in the suggestions."""
        nested = self.nested

        class Nested(Parser):
            def __init__(self, *args: Any, **inner: Any) -> None:
                super().__init__(*args, **inner)
                nested.append(self)

        options.setdefault("parser_class", Nested)
        return super().add_subparsers(**options)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with argparse's words."""
        raise UsageError(message, f"see `{self.prog} --help`")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse `words`; raise UsageError for anything unknown."""
        args, unknown = self.parse_known_args(list(words))
        self._asked(words)._place(args, unknown)
        if unknown:
            word = unknown[0].partition("=")[0]
            what = "unknown flag" if word.startswith("-") else "unexpected argument"
            hint = suggestion(word, self.flags()) if word.startswith("-") else ""
            raise UsageError(f"{what} {word!r}", hint or f"see `{self._asked(words).prog} --help`")
        return args

    def _asked(self, words: Sequence[str]) -> "Parser":
        """The nested parser that the words name, or this one."""
        asked = [parser for parser in self.nested if parser.prog.split()[-1] in words[:1]]
        return asked[0] if asked else self

    def _place(self, args: argparse.Namespace, unknown: list[str]) -> None:
        """Take an optional argument from behind flags, where argparse does not look for it."""
        for action in self._actions:
            is_missing = getattr(args, action.dest, None) is action.default
            if action.nargs != argparse.OPTIONAL or action.option_strings or not is_missing:
                continue
            if unknown and not unknown[0].startswith("-"):
                try:
                    setattr(args, action.dest, self._get_value(action, unknown.pop(0)))
                except argparse.ArgumentError as error:
                    self.error(str(error))

    def flags(self) -> set[str]:
        """Return every long flag of this parser and of the nested ones."""
        own = {name for name in self._option_string_actions if name.startswith("--")}
        return own.union(*(parser.flags() for parser in self.nested))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = list(map(str, action.choices)) if action.choices is not None else []
        if choices and str(value) not in choices:
            near = suggestion(str(value), choices) or f"choose from {', '.join(choices)}"
            raise argparse.ArgumentError(action, f"unknown value {str(value)!r}; {near}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ppe` with `argv` (the process's own by default) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words and not words[0].startswith("-") else ""
    try:
        with orderly():
            code = _run(name, words)
            sys.stdout.flush()  # Here, where a closed pipe is still ours to handle.
    except OperatorError as error:
        output.complain(f"ppe {name}".rstrip(), error.message, error.hint)
        return error.exit_code
    except Ended as end:
        die_of(end.number)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has left. Nothing may be flushed at exit, it would only complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except SystemExit as end:  # argparse's own way to end after --help.
        return end.code if isinstance(end.code, int) else 0
    return code


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return "did you mean …?" with the nearest of `known`, or an empty string."""
    near = difflib.get_close_matches(word, list(known), 1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else ""


def help_text() -> str:
    """Return the overview of the commands; imports none of them."""
    described = {name: help for name, (_, help) in COMMANDS.items()}
    plugins = {name: PLUGIN_HELP.get(name, "") for name in _plugins()}
    lines = ["usage: ppe COMMAND [flags]", ""]
    lines += ["A packet processing engine on CPU cores of its own.", ""]
    lines += output.columns((f"  {name}", help) for name, help in described.items())
    if plugins:
        order = [*PLUGIN_HELP, *sorted(plugins.keys() - PLUGIN_HELP.keys())]
        lines.append("")
        lines += output.columns((f"  {n}", plugins[n]) for n in order if n in plugins)
    lines += ["", "`ppe COMMAND --help` lists its flags. Data goes to stdout, the rest to stderr."]
    return "\n".join(lines)


def _run(name: str, words: list[str]) -> int:
    if not name:
        return _run_without_command(words)
    if name == "help":
        words = [words[1], "--help"] if len(words) > 1 else ["--help"]
        return _run("" if words == ["--help"] else words[0], words)
    command = load_command(name)
    parser = Parser(prog=f"ppe {name}", description=command.help)
    command.prepare_parser(parser)
    return command.run(parser.parse(words[1:]))


def _run_without_command(words: list[str]) -> int:
    if not words:
        output.say(help_text())
        return UsageError.exit_code
    if words[0] in {"-h", "--help"}:
        output.write(help_text())
        return 0
    if words[0] in {"-V", "--version"}:
        output.write(f"ppe {__version__}")
        return 0
    raise UsageError(f"unknown flag {words[0]!r}", "a command comes first: `ppe --help` lists them")


def load_command(name: str) -> Command:
    """Import and make the command `name`.

    Raises UsageError for a name nobody has, OperatorError when its package cannot be imported.
    """
    plugins: dict[str, str] = {} if name in COMMANDS else _plugins()
    place = COMMANDS[name][0] if name in COMMANDS else plugins.get(name)
    if place is None:
        if name in PLUGIN_HELP:
            raise OperatorError(
                f"the command {name!r} is not installed", "run `make setup`, or pip install it"
            )
        known = [*COMMANDS, *plugins]
        raise UsageError(f"unknown command {name!r}", suggestion(name, known) or "see `ppe --help`")
    module_name, _, class_name = place.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only the absence of a module is the installation's fault; the rest is a bug: traceback.
        raise OperatorError(
            f"the command {name!r} needs the module {error.name!r}, which is not installed",
            "run `make setup`, or reinstall the package",
        ) from error
    command: Command = getattr(module, class_name)()
    return command


def _plugins() -> dict[str, str]:
    from importlib import metadata

    return {point.name: point.value for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}
