"""`ppe stat`: what an engine has done, as a table, JSON or Prometheus text."""

import argparse
from typing import Any

from ppe import output
from ppe.commands.common import add_name, engine


class StatCommand:
    """Print an engine's accounts once."""

    name = "stat"
    help = "show what an engine has done"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        add_name(parser)
        parser.add_argument(
            "--format",
            choices=("table", "json", "prometheus"),
            default="table",
            help="how to print it (default: table)",
        )
        output.add_json_flag(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Print; 1 when there is no such engine."""
        with engine(args.name) as observer:
            facts = observer.order("stat")
            facts["engines"] = [accounts.snapshot() for accounts in observer.accounts()]
        if args.json or args.format == "json":
            output.write_json(facts)
        elif args.format == "prometheus":
            output.write("\n".join(prometheus(facts)))
        else:
            output.write("\n".join(table(facts)))
        return 0


def table(facts: dict[str, Any]) -> list[str]:
    """The screen of `ppe stat`, as lines."""
    lines = [
        f"engine {facts['name']}   pid {facts['pid']}   "
        f"{output.counted(facts['clients'], 'client')}   "
        f"idle: {facts['idle']}   readiness: {facts['readiness']}"
    ]
    for snapshot in facts["engines"]:
        lines += ["", *_engine_lines(snapshot)]
    lines += [f"! {note}" for note in facts["notes"]]
    lines += [f"! {complaint}" for complaint in facts["affinity"] if complaint]
    return lines


def _engine_lines(snapshot: dict[str, Any]) -> list[str]:
    known = snapshot["useful_us"] + snapshot["empty_us"] + snapshot["asleep_us"]
    busy = 100 * snapshot["useful_us"] / known if known else 0.0
    percentiles = "  ".join(f"{n} {v:.2f}" for n, v in snapshot["pass_us"].items())
    rows = [["stage", "work", "passes", "useful ms", "empty ms"]]
    rows += [
        [
            stage["stage"],
            f"{stage['work']:,}",
            f"{stage['runs']:,}",
            f"{stage['useful_us'] / 1000:,.1f}",
            f"{stage['empty_us'] / 1000:,.1f}",
        ]
        for stage in snapshot["stages"]
    ]
    counters = [["counter", "value"]]
    counters += [[n, f"{v:,}"] for n, v in snapshot["counters"].items() if v]
    channels = [["channel", "pid", "taken", "completed", "wakes", "endpoints", ""]]
    channels += [
        [
            str(row["row"]),
            str(row["pid"]),
            f"{row['taken']:,}",
            f"{row['completed']:,}",
            f"{row['wakes']:,}",
            str(row["endpoints"]),
            "parked" if row["parked"] else "",
        ]
        for row in snapshot["channels"]
    ]
    return [
        f"CPU {snapshot['cpu']}   {snapshot['passes']:,} passes   useful {busy:.1f} %   "
        f"longest pass {snapshot['longest_pass_us']:.0f} µs   stalls {snapshot['stalls']}",
        f"useful pass, µs   {percentiles or 'none yet'}",
        "",
        *output.columns(rows, numbers=range(1, 5)),
        "",
        *output.columns(counters, numbers={1}),
        "",
        *[line.rstrip() for line in output.columns(channels, numbers=range(6))],
    ]


def prometheus(facts: dict[str, Any]) -> list[str]:
    """The Prometheus text format, version 0.0.4."""
    from ppe.cycle.accounts import COUNTERS

    lines = []
    name = facts["name"]
    for counter, label in COUNTERS.rows:
        lines.append(f"# HELP ppe_{counter}_total {label}")
        lines.append(f"# TYPE ppe_{counter}_total counter")
        for snapshot in facts["engines"]:
            labels = f'name="{name}",engine="{snapshot["engine"]}"'
            lines.append(f"ppe_{counter}_total{{{labels}}} {snapshot['counters'][counter]}")
    lines += ["# HELP ppe_stage_useful_seconds_total time a stage spent working"]
    lines += ["# TYPE ppe_stage_useful_seconds_total counter"]
    for snapshot in facts["engines"]:
        for stage in snapshot["stages"]:
            labels = f'name="{name}",engine="{snapshot["engine"]}",stage="{stage["stage"]}"'
            seconds = stage["useful_us"] / 1e6
            lines.append(f"ppe_stage_useful_seconds_total{{{labels}}} {seconds:.6f}")
    for key in ("useful", "empty", "asleep"):
        lines += [f"# HELP ppe_{key}_seconds_total time the engine was {key}"]
        lines += [f"# TYPE ppe_{key}_seconds_total counter"]
        for snapshot in facts["engines"]:
            labels = f'name="{name}",engine="{snapshot["engine"]}",cpu="{snapshot["cpu"]}"'
            lines.append(f"ppe_{key}_seconds_total{{{labels}}} {snapshot[f'{key}_us'] / 1e6:.6f}")
    lines += ["# HELP ppe_clients clients attached", "# TYPE ppe_clients gauge"]
    lines.append(f'ppe_clients{{name="{name}"}} {facts["clients"]}')
    return lines
