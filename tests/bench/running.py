"""A command of the `ppe` program, run in this process with the words that a user would type."""

from ppe.cli import Parser


def run(command, *words):
    """Its exit code."""
    parser = Parser(prog="ppe")
    command.prepare_parser(parser)
    return command.run(parser.parse([str(word) for word in words]))
