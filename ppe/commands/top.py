"""`ppe top`: an engine's accounts, live, as rates per second."""

import argparse
import json
import time
from typing import Any

from ppe import output
from ppe.commands.common import add_name, engine
from ppe.errors import UsageError


class TopCommand:
    """Show rates until Ctrl-C, or for `--count` refreshes."""

    name = "top"
    help = "watch an engine work"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        add_name(parser)
        parser.add_argument(
            "--interval",
            type=float,
            default=1.0,
            metavar="S",
            help="seconds between two looks (default: 1)",
        )
        parser.add_argument("--count", type=int, default=0, metavar="N", help="stop after N")
        output.add_json_flag(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Refresh; with --json one object a line."""
        if not 0 < args.interval < float("inf"):
            raise UsageError(f"--interval is {args.interval:g}", "use seconds above 0")
        if args.count < 0:
            raise UsageError(f"--count is {args.count}", "use 0, which is without end, or more")
        with engine(args.name) as observer:
            mapped = observer.accounts()
            before = [accounts.snapshot() for accounts in mapped]
            started, shown = time.monotonic(), 0
            display = None if args.json else _Display()
            try:
                while not args.count or shown < args.count:
                    time.sleep(max(args.interval, 0.05))
                    observer.order("stat")  # Tells us when the engine is gone.
                    now = time.monotonic()
                    after = [accounts.snapshot() for accounts in mapped]
                    view = [rates(b, a, now - started) for b, a in zip(before, after, strict=True)]
                    before, started = after, now
                    shown += 1
                    _show(display, view)
            finally:
                if display is not None:
                    display.stop()
        return 0


def rates(before: dict[str, Any], after: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What happened between two snapshots, per second; shares of time in percent."""
    spent = {key: after[f"{key}_us"] - before[f"{key}_us"] for key in ("useful", "empty", "asleep")}
    return {
        "engine": after["engine"],
        "cpu": after["cpu"],
        "passes": (after["passes"] - before["passes"]) / seconds,
        **{f"{key}_percent": us / seconds / 1e4 for key, us in spent.items()},
        "stages": {
            a["stage"]: (a["useful_us"] - b["useful_us"]) / seconds / 1e4
            for b, a in zip(before["stages"], after["stages"], strict=True)
        },
        "counters": {
            name: (value - before["counters"][name]) / seconds
            for name, value in after["counters"].items()
        },
        "channels": after["channels"],
    }


class _Display:
    """Where tables are shown: on a terminal each in the place of the last, elsewhere one after the
    other.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False)
        if self._console.is_terminal:
            self._live.start()

    def show(self, table: Any) -> None:
        """Show it now."""
        if self._console.is_terminal:
            self._live.update(table, refresh=True)
        else:
            self._console.print(table)

    def stop(self) -> None:
        """Leave the last one as it is. Idempotent."""
        if self._console.is_terminal:
            self._live.stop()


def _show(display: _Display | None, view: list[dict[str, Any]]) -> None:
    if display is None:
        output.write(json.dumps({"engines": view}))
        return
    from rich.table import Table

    table = Table(title="ppe top   (Ctrl-C ends)", title_justify="left")
    table.add_column("per second")
    for engine_view in view:
        table.add_column(f"CPU {engine_view['cpu']}", justify="right")
    for key in ("useful", "empty", "asleep"):
        table.add_row(f"{key} %", *[f"{v[f'{key}_percent']:.1f}" for v in view])
    table.add_row("passes", *[f"{v['passes']:,.0f}" for v in view])
    for stage in view[0]["stages"]:
        table.add_row(f"{stage} %", *[f"{v['stages'][stage]:.1f}" for v in view])
    for name in view[0]["counters"]:
        if any(v["counters"][name] for v in view):
            table.add_row(name, *[f"{v['counters'][name]:,.0f}" for v in view])
    display.show(table)
