"""`ppe demo`: one pinned engine, a target and an initiator on it, and what they did.

Everything is started by this command, in a run directory of its own, and stopped at its end, be it
a signal. The initiator is this process; the target is another one; the engine moves the bytes of
both. Hosts sleep in `wait_n`, so that on two cores nobody spins on the core of somebody else.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from iscsi.tools.arguments import count, seconds
from ppe import compiling, output, paths
from ppe.errors import OperatorError

ENGINE: Final = "demo"
PATIENCE_S: Final = 300
TIDY_S: Final = 30  # what a command gets to undo what it began
CHUNK_BLOCKS: Final = 2048


class DemoCommand:
    """Show an engine at work: verified data, latencies, CPU accounts, wake-ups saved."""

    name = "demo"
    help = "move verified iSCSI data through an engine"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        parser.add_argument(
            "--mib", type=count, default=64, metavar="N", help="size of the LUN (default: 64)"
        )
        parser.add_argument(
            "--seconds", type=seconds, default=2.0, metavar="S", help="of each measurement"
        )
        output.add_json_flag(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Run it; 0 when every block came back as it was written."""
        report: dict[str, Any] = {}
        with tempfile.TemporaryDirectory(prefix="ppe-demo-") as directory:
            os.environ["PPE_RUNTIME_DIR"] = directory
            with _engine(), _target(args.mib) as url:
                report["url"] = url
                with compiling.shown():
                    report["verified"] = _verify(url)
                report["wait_n"] = _coalescing(url, args.seconds)
                report["load"] = _loads(url, args.seconds)
                report["engine"] = _engine_accounts()
        if args.json:
            output.write_json(report)
        else:
            _print(report)
        return 0 if report["verified"]["bad_blocks"] == 0 else 1


def _ppe(*words: str, **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-m", "ppe", *words], text=True, **options)


def _run_json(*words: str) -> dict[str, Any]:
    process = _ppe(*words, "--json", stdout=subprocess.PIPE)
    try:
        text, _ = process.communicate(timeout=PATIENCE_S)
    except BaseException:
        process.terminate()  # Not killed: an engine that is just starting would outlive it.
        process.communicate(timeout=TIDY_S)
        raise
    if process.returncode != 0:
        raise OperatorError(f"`ppe {' '.join(words)}` failed", "its message is above")
    found: dict[str, Any] = json.loads(text)
    return found


@contextlib.contextmanager
def _engine() -> Iterator[None]:
    output.say("· starting an engine on a core of its own")
    try:
        _run_json("up", "--name", ENGINE)
        yield
    finally:
        if paths.engine_files(ENGINE).socket.exists():
            _run_json("down", "--name", ENGINE)


@contextlib.contextmanager
def _target(mib: int) -> Iterator[str]:
    output.say(f"· starting a target with a RAM LUN of {mib} MiB on it")
    words = ("target", "serve", "--ram", f"{mib}M", "--engine", ENGINE)
    target = _ppe(*words, "--portal", "127.0.0.1:0", "--json", stdout=subprocess.PIPE)
    try:
        yield _url_of(target)
    finally:
        target.terminate()
        target.wait(timeout=TIDY_S)


def _url_of(target: "subprocess.Popen[str]") -> str:
    """Read the target's object on standard output until it is whole."""
    text = ""
    assert target.stdout is not None
    for line in target.stdout:
        text += line
        with contextlib.suppress(json.JSONDecodeError):
            return str(json.loads(text)["urls"][0])
    raise OperatorError("the target ended before it was ready", "its message is above")


def pattern(lba: int, blocks: int, block_size: int) -> NDArray[Any]:
    """What the demo writes: every 8-byte word of a block is derived from its address."""
    words = block_size // 8
    numbers = np.arange(lba * words, (lba + blocks) * words, dtype=np.uint64)
    return (numbers * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)).view(np.uint8)


def _verify(url: str) -> dict[str, Any]:
    """Write every block of the LUN, read every block back, compare each."""
    import iscsi

    bad, started = 0, time.monotonic()
    with iscsi.open(url, engine=ENGINE) as disk:
        size, count = disk.block_size, disk.block_count
        output.say(f"· writing, reading back and comparing {count:,} blocks of {size} bytes")
        with disk.alloc(CHUNK_BLOCKS * size) as buffer:
            for lba in range(0, count, CHUNK_BLOCKS):
                blocks = min(CHUNK_BLOCKS, count - lba)
                buffer.array[: blocks * size] = pattern(lba, blocks, size)
                disk.write(lba, buffer.array[: blocks * size])
            disk.flush()
            for lba in range(0, count, CHUNK_BLOCKS):
                blocks = min(CHUNK_BLOCKS, count - lba)
                buffer.array[:] = 0
                disk.readinto(lba, buffer.array[: blocks * size])
                expected = pattern(lba, blocks, size).reshape(blocks, size)
                found = buffer.array[: blocks * size].reshape(blocks, size)
                bad += int(np.any(found != expected, axis=1).sum())
    seconds = time.monotonic() - started
    return {
        "blocks": count,
        "block_size": size,
        "bad_blocks": bad,
        "seconds": seconds,
        "mib_per_s": 2 * count * size / seconds / (1 << 20),
    }


def _perf(url: str, seconds: float, depth: int, *words: str) -> dict[str, Any]:
    load = ("iscsi", "perf", url, "--engine", ENGINE, "-m", str(depth), "-b", "8", "--random")
    return _run_json(*load, "-t", str(seconds), *words)


def _coalescing(url: str, seconds: float) -> list[dict[str, Any]]:
    """Reads at depth 1, header then data against both with one `wait_n(2)`: sleeps per command."""
    output.say("· 4 KiB reads one at a time: waiting for header and data apart, then together")
    return [_perf(url, seconds, 1, "--receive", mode) for mode in ("exact", "coalesced")]


def _loads(url: str, seconds: float) -> list[dict[str, Any]]:
    found = []
    for depth in (1, 32):
        for flags in ((), ("--write",)):
            output.say(f"· 4 KiB random {'writes' if flags else 'reads'}, {depth} outstanding")
            found.append(_perf(url, seconds, depth, *flags))
    return found


def _engine_accounts() -> dict[str, Any]:
    facts: dict[str, Any] = _run_json("stat", "--name", ENGINE)["engines"][0]
    return facts


def _print(report: dict[str, Any]) -> None:
    verified = report["verified"]
    mark = "✓" if verified["bad_blocks"] == 0 else "✗"
    output.write(
        f"{mark} {verified['blocks']:,} blocks written, read back and compared: "
        f"{verified['bad_blocks']} wrong   {verified['mib_per_s']:,.0f} MiB/s"
    )
    output.write()
    output.write("\n".join(output.columns(load_rows(report["load"]))))
    output.write()
    output.write("\n".join(wait_rows(report["wait_n"])))
    output.write()
    output.write("\n".join(engine_rows(report["engine"])))


def load_rows(loads: list[dict[str, Any]]) -> list[list[str]]:
    """The table of loads: a row each."""
    rows = [["4 KiB random", "depth", "IOPS", "p50 µs", "p99 µs", "host CPU µs/op", "sleeps/op"]]
    for load in loads:
        operation = "write" if load["writes"] else "read"
        latency = load[f"{operation}_latency_us"]
        rows.append(
            [
                operation,
                str(load["depth"]),
                f"{load['iops']:,.0f}",
                f"{latency['p50']:.1f}",
                f"{latency['p99']:.1f}" if "p99" in latency else "-",
                f"{load['cpu_us_per_io']:.2f}",
                f"{load['sleeps_per_io']:.2f}",
            ]
        )
    return rows


def wait_rows(rows: list[dict[str, Any]]) -> list[str]:
    """What `wait_n(2)` saved, in words."""
    each = {row["receive"]: row["sleeps_per_io"] for row in rows}
    commands = next(row["reads"] for row in rows if row["receive"] == "coalesced")
    saved = (each["exact"] - each["coalesced"]) * commands
    return [
        f"waiting for header, then data   {each['exact']:.2f} sleeps a command",
        f"wait_n(2) for both              {each['coalesced']:.2f} sleeps a command",
        f"wake-ups saved                  {saved:,.0f} in {commands:,} commands",
    ]


def engine_rows(engine: dict[str, Any]) -> list[str]:
    """Where the engine's time went."""
    known = engine["useful_us"] + engine["empty_us"] + engine["asleep_us"]
    share = 100 / known if known else 0.0
    lines = [
        f"engine on CPU {engine['cpu']}: {engine['useful_us'] * share:.1f} % useful, "
        f"{engine['empty_us'] * share:.1f} % polling for work, longest pass "
        f"{engine['longest_pass_us']:,.0f} µs"
    ]
    useful = sum(stage["useful_us"] for stage in engine["stages"]) or 1.0
    lines += [
        f"  {stage['stage']:<12}{100 * stage['useful_us'] / useful:5.1f} %"
        for stage in engine["stages"]
        if stage["useful_us"]
    ]
    return lines
