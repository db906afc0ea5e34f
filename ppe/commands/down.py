"""`ppe down`: stop an engine; its clients see EngineDied."""

import argparse
import os
import select

from ppe import output
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
            pid = int(control.hello["pid"])
            process = os.pidfd_open(pid)
            control.order("stop")
        ended = select.poll()
        ended.register(process, select.POLLIN)
        gone = ended.poll(PATIENCE_S * 1000)
        os.close(process)
        if not gone:
            raise OperatorError(
                f"engine {args.name!r} (pid {pid}) did not stop within {PATIENCE_S} s",
                f"kill -9 {pid}",
            )
        if args.json:
            output.write_json({"stopped": True, "pid": pid})
        else:
            output.say(f"engine {args.name!r} (pid {pid}) has stopped")
        return 0
