"""`ppe errors`: the distinct errors an engine has seen, each once, with how often and when."""

import argparse

from ppe import output
from ppe.commands.common import add_name, engine


class ErrorsCommand:
    """Print the distinct-error log."""

    name = "errors"
    help = "show the distinct errors an engine has seen"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        add_name(parser)
        output.add_json_flag(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Print; 0 also when there are errors: seeing them is not a failure of this command."""
        import time

        with engine(args.name) as observer:
            found = [
                {"engine": number, **error}
                for number, accounts in enumerate(observer.accounts())
                for error in accounts.errors()
            ]
        if args.json:
            output.write_json({"errors": found})
            return 0
        if not found:
            output.write("no errors")
            return 0
        now = time.monotonic_ns()
        rows = [["engine", "times", "last", "what", "why"]]
        rows += [
            [
                str(error["engine"]),
                f"{error['count']:,}",
                f"{(now - error['last_ns']) / 1e9:.0f} s ago",
                error["what"],
                error["detail"],
            ]
            for error in found
        ]
        output.write("\n".join(output.columns(rows)))
        return 0
