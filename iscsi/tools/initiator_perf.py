"""`ppe iscsi perf`: a closed loop of reads and writes, measured in compiled code.

What it prints names what it costs as well as what it does: CPU of this process, waits that could
sleep, and the engine's own time where the engine is another process.
"""

import argparse
from typing import Any

import host
from iscsi.session.perf import Load, LoadPlan, LoadResult
from iscsi.tools.initiator import device
from ppe import output
from ppe.errors import UsageError
from shm.histogram import Histogram


def perf(args: argparse.Namespace) -> int:
    """Measure and print; 0 when every command ended well (and verified)."""
    if args.write and args.mix is not None:
        raise UsageError("--write and --mix exclude each other", "--mix 100 is --write")
    share = args.mix if args.mix is not None else 100 * args.write
    plan = LoadPlan(
        blocks=args.blocks,
        seconds=args.seconds,
        random=args.random,
        write_percent=share,
        verify=args.verify,
        first_lba=args.lba,
        span_blocks=args.span,
    )
    with host.connect(args.engine) as engine, device(args, engine) as unit:
        load = Load(unit, plan)
        try:
            before = _engine_times(args.engine)
            result = load.run()
            after = _engine_times(args.engine)
        finally:
            load.close()
        facts = _facts(unit, args, plan, result)
    if before and after:
        facts["engine_us"] = {name: after[name] - before[name] for name in after}
    if args.json:
        output.write_json(facts)
    else:
        _show(facts)
    return 0


def _engine_times(name: str) -> dict[str, float]:
    """Microseconds the engine's threads worked, polled for nothing and slept; {} for inline."""
    if name.startswith(host.INLINE):
        return {}
    from ppe.observer import Observer

    with Observer(name) as observer:
        snapshots = [accounts.snapshot() for accounts in observer.accounts()]
    return {
        kind: sum(float(snapshot[f"{kind}_us"]) for snapshot in snapshots)
        for kind in ("useful", "empty", "asleep")
    }


def _latency(histogram: Histogram) -> dict[str, Any] | None:
    summary = histogram.summary(scale=1e-3)
    if not summary.count:
        return None
    return {
        "count": summary.count,
        "mean": summary.mean,
        "max": summary.maximum,
        **{f"p{percent:g}": value for percent, value in summary.percentiles.items()},
    }


def _facts(
    unit: Any, args: argparse.Namespace, plan: LoadPlan, result: LoadResult
) -> dict[str, Any]:
    count = max(result.commands, 1)
    modes = ("staged", "exact", "coalesced", "datamover")
    return {
        "url": unit.url,
        "engine": args.engine,
        "receive": modes[unit.session.core.mode],
        "depth": args.depth,
        "blocks": plan.blocks,
        "block_size": unit.block_size,
        "random": plan.random,
        "write_percent": plan.write_percent,
        "verify": plan.verify,
        "seconds": result.seconds,
        "reads": result.reads,
        "writes": result.writes,
        "iops": result.iops,
        "mb_per_s": result.bytes / result.seconds / 1e6,
        "verified_blocks": result.verified_blocks,
        "read_latency_us": _latency(result.read_latency),
        "write_latency_us": _latency(result.write_latency),
        "cpu_us_per_io": 1e6 * result.cpu_s / count,
        "waits_per_io": result.waits / count,
        "sleeps_per_io": result.sleeps / count,
    }


def _latency_lines(facts: dict[str, Any]) -> list[str]:
    """A table of latencies, a row for each direction that there was."""
    rows: list[list[str]] = []
    for name in ("read", "write"):
        found = facts[f"{name}_latency_us"]
        if found:
            kinds = [key for key in found if key not in ("count", "max")] + ["max"]
            rows = rows or [["µs", *kinds]]
            rows.append([name, *(f"{found[kind]:,.1f}" for kind in kinds)])
    return output.columns(rows, numbers=range(1, len(rows[0]))) if rows else []


def _show(facts: dict[str, Any]) -> None:
    kind = "random" if facts["random"] else "sequential"
    size = facts["blocks"] * facts["block_size"]
    output.write(
        f"{kind} {size} bytes, depth {facts['depth']}, {facts['write_percent']} % writes, "
        f"receive {facts['receive']}, engine {facts['engine']}"
    )
    output.write(
        f"{facts['iops']:,.0f} IOPS   {facts['mb_per_s']:,.1f} MB/s   "
        f"{facts['cpu_us_per_io']:.2f} µs CPU/IO   {facts['waits_per_io']:.3f} waits/IO"
    )
    for line in _latency_lines(facts):
        output.write(line)
    if facts["verify"]:
        output.write(f"{facts['verified_blocks']:,} blocks read back and verified")
    if "engine_us" in facts:
        cells = "  ".join(f"{name} {value / 1e6:.3f}" for name, value in facts["engine_us"].items())
        output.write(f"engine s   {cells}")
