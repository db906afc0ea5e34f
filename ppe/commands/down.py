"""`ppe down`: stop an engine; its clients see EngineDied."""

import argparse
import time

from ppe import output, paths
from ppe.commands.common import add_name, engine
from ppe.errors import OperatorError

PATIENCE_S = 20


class DownCommand:
    """Ask the engine to stop and wait until it is gone."""

    name = "down"
    help = "stop an engine"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        add_name(parser)
        output.add_json_flag(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Stop it; 1 when there is none, or it does not end in time."""
        with engine(args.name) as control:
            pid = control.order("stop")["pid"]
        deadline = time.monotonic() + PATIENCE_S
        while (files := paths.find_engine(args.name)) is not None and files.pid() == pid:
            if time.monotonic() > deadline:
                raise OperatorError(
                    f"engine {args.name!r} (pid {pid}) did not stop within {PATIENCE_S} s",
                    f"kill -9 {pid}",
                )
            time.sleep(0.02)
        if args.json:
            output.write_json({"stopped": True, "pid": pid})
        else:
            output.say(f"engine {args.name!r} (pid {pid}) has stopped")
        return 0
