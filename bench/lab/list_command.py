"""`ppe experiment list`: the experiments that come with the project, and how long they take."""

import argparse
from typing import Any

from ppe import output
from ppe.errors import ConfigError


class ListCommand:
    """The sub-command `list`."""

    name = "list"
    help = "list the built-in experiments, with the time each takes on this machine"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        output.add_json_flag(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Print one line for each."""
        from bench.lab import builtin
        from bench.lab.progress import duration

        found = [_facts(name) for name in builtin.names()]
        if args.json:
            output.write_json({"experiments": found})
            return 0
        rows = [("experiment", "runs", "takes", "--short", "what it asks")]
        for facts in found:
            full, short = facts["full"], facts["short"]
            rows.append(
                (
                    facts["name"],
                    str(full["runs"]) if full["runs"] else "-",
                    duration(full["seconds"]) if full["runs"] else "not here",
                    duration(short["seconds"]) if short["runs"] else "-",
                    facts["title"],
                )
            )
        for line in output.columns(rows):
            output.write(line.rstrip())
        output.write()
        output.write("next    ppe experiment run NAME --short")
        output.write("        a file of your own: docs/EXPERIMENTS.md")
        return 0


def _facts(name: str) -> dict[str, Any]:
    from bench.lab import builtin
    from bench.lab.partition import Machine

    here, path = Machine.here(), builtin.path_of(name)
    experiment = builtin.find(name)
    short = experiment.shortened() if experiment.short else None
    return {
        "name": name,
        "title": experiment.title,
        "file": path,
        "full": _size(experiment, here),
        "short": _size(short, here),
    }


def _size(experiment: Any, here: Any) -> dict[str, Any]:
    """How many runs and seconds; none, and why, where it cannot run."""
    from bench.lab import plan as planning

    if experiment is None:
        return {"runs": 0, "seconds": 0.0, "reason": "there is none"}
    try:
        plan = planning.make(experiment, here)
    except ConfigError as error:
        return {"runs": 0, "seconds": 0.0, "reason": error.message}
    return {"runs": len(plan.runs), "seconds": plan.seconds(plan.runs), "reason": None}
