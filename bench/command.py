"""`ppe bench`: measure on this machine, compare with references, keep the result, compare results.

The one rule: a benchmark that ran exits with 0 whatever it found; goals are text beside figures.
"""

import argparse
import importlib
import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from bench import cores
from ppe import output
from ppe.errors import OperatorError, UsageError

# name -> (module, one line of help). Each module has `measure(plan)`, GOALS and METHOD.
BENCHMARKS: Final = {
    "queue": ("bench.queue", "ring and engine round trips, throughput, Python against iceoryx2"),
    "wait": ("bench.wait", "wake-ups through wait_n against a raw futex, and how many it takes"),
    "engine": ("bench.engine", "the duty cycle with many idle clients and connections"),
    "rdma": ("bench.rdma", "the software RNIC against plain TCP, registration by reuse"),
    "iscsi": ("bench.iscsi", "initiator and target against libiscsi, tgt and the floor"),
    "iser": ("bench.iser", "iSER over software iWARP against iSCSI over TCP, at equal protection"),
}
REPEATS_QUICK: Final = 2
CONNECTIONS_MAX: Final = 32  # as many as there are commands outstanding
DIRECTORY: Final = Path("bench/results")
WIDTH_OF_A_PIPE: Final = 160


class Command:
    """The sub-commands of `ppe bench`."""

    name = "bench"
    help = "measure queues, waits, engines, RDMA, iSCSI and iSER"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
        for name, (_, text) in BENCHMARKS.items():
            _prepare(benchmarks.add_parser(name, help=text, description=text))
        for name, what in (
            ("iscsi", "numbers of connections to compare with the first of them"),
            ("iser", "numbers of initiators to compare iSER and TCP with"),
        ):
            benchmarks.choices[name].add_argument(
                "--connections",
                metavar="N,N",
                default="1,2,4,8",
                help=f"{what} (default: 1,2,4,8)",
            )
        compare = benchmarks.add_parser("compare", help="compare two result files")
        compare.add_argument("before", type=Path, help="a result file of `ppe bench`")
        compare.add_argument("after", type=Path, help="another one, of the same benchmark")
        output.add_json_flag(compare)

    def run(self, args: argparse.Namespace) -> int:
        """Measure, or compare."""
        if args.benchmark == "compare":
            return _compare(args)
        return _measure(args)


def _prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    parser.add_argument("--repeats", type=int, metavar="N", help="runs of ours in each pair")
    parser.add_argument(
        "--cores", metavar="A,B", help="host's and engine's CPU (default: 2 usable)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=DIRECTORY, help="for the result")
    parser.add_argument("--no-save", action="store_true", help="leave no result file behind")
    output.add_json_flag(parser)


def _measure(args: argparse.Namespace) -> int:
    name = args.benchmark
    module_name, _ = BENCHMARKS[name]
    if find_spec(module_name) is None:
        raise OperatorError(
            f"the benchmark {name!r} is not part of this version",
            f"there are {', '.join(n for n, (m, _) in BENCHMARKS.items() if find_spec(m))}",
        )
    if args.repeats is not None and args.repeats < 1:
        raise UsageError(f"--repeats {args.repeats}: at least 1", "leave it out for the usual 5")
    a, b = cores.choose(args.cores)
    if not args.json:
        output.say(f"measuring {name} on cores {a} and {b}; the first run compiles")
    result = _run(importlib.import_module(module_name), args, a, b)
    path = None if args.no_save else _save(result, args.out)
    if args.json:
        output.write_json(result.to_json() | {"saved": path})
    elif path is not None:
        output.write(f"saved   {path}")
        output.write(f"next    ppe bench compare BEFORE.json {path}")
    return 0


def _run(module: Any, args: argparse.Namespace, a: int, b: int) -> Any:
    """Measure, and print for a person unless JSON is wanted."""
    from bench.harness import REPEATS_USUAL
    from bench.peers import PeerFailed
    from bench.plan import Plan, show
    from bench.samples import BenchmarkFailed

    repeats = args.repeats or (REPEATS_QUICK if args.quick else REPEATS_USUAL)
    plan = Plan(a, b, args.quick, repeats, quiet=args.json)
    if "connections" in args:
        plan = replace(plan, connections=_connections(args.connections))
    try:
        result = module.measure(plan)
    except (PeerFailed, BenchmarkFailed, OSError) as error:
        raise OperatorError(
            f"the benchmark {args.benchmark!r} failed: {error}", "look at `ppe doctor`"
        ) from error
    if not args.json:
        show(result, module.GOALS, module.METHOD)
    return result


def _connections(text: str) -> tuple[int, ...]:
    """The numbers in "1,2,4". Raises UsageError."""
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(1 <= count <= CONNECTIONS_MAX for count in found):
        raise UsageError(
            f"--connections {text!r} is not a list of numbers from 1 to {CONNECTIONS_MAX}",
            "write --connections 1,2,4,8",
        )
    return tuple(sorted(set(found)))


def _save(result: Any, directory: Path) -> Path:
    try:
        saved: Path = result.save(directory)
    except OSError as error:
        raise OperatorError(
            f"the result cannot be saved in {directory}: {os.strerror(error.errno or 0)}",
            "name another folder with --out, or pass --no-save",
        ) from error
    return saved


def _compare(args: argparse.Namespace) -> int:
    from rich.console import Console

    from bench import compare

    try:
        before, after = compare.load(args.before), compare.load(args.after)
    except compare.NotAResult as error:
        raise OperatorError(str(error), "pass two files that `ppe bench` has saved") from error
    if args.json:
        output.write_json(
            {
                "rows": [row.to_json() for row in compare.compare(before, after)],
                "different_machines": compare.different_machines(before, after),
            }
        )
    else:
        width = None if sys.stdout.isatty() else WIDTH_OF_A_PIPE
        compare.show(before, after, Console(width=width))
    return 0
