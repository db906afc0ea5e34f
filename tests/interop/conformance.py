"""libiscsi's conformance suites against our target: each suite in a process of its own, on fresh
LUNs of the flavour that the suite is about, and a table of what passed, was skipped and failed.

`python -m tests.interop.conformance [--write] [SUITE ...]`; the exit code is 1 if a test failed or
a suite ran another number of tests than the tool lists.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import host
from iscsi.target.backends import FileBackend, RamBackend
from iscsi.target.config import ServerConfig
from iscsi.target.server import TargetServer
from iscsi.target.units import LogicalUnit, Target
from iscsi.wire.names import Portal
from tests.interop.testcu import Verdict, read

TOOL = "iscsi-test-cu"
SIZE = 16 << 20
PLACEMENTS = ("stream", "datamover", "engine")
SUITE_S = 120  # Sanitize.Reset alone sleeps for a minute
FAMILY = "ALL"
PAGE = Path(__file__).parent.parent.parent / "docs" / "CONFORMANCE.md"


@dataclass(frozen=True)
class Flavour:
    """A kind of LUN: what is special about it, and how many portals lead to it."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    portals: int = 1
    why: str = ""  # a special LUN is needed


THIN = Flavour("thin")
FINE = Flavour(
    "thin, fine-grained",
    {"granularity": 512, "physical_exponent": 0},
    why="UnmapSingle asks for the status of a block and wants the answer to begin where the next"
    " physical block does: both are the same only if a physical block is one logical block",
)
SLOW = Flavour(
    "thin, slow",
    {"sanitize_min_seconds": 8.0},
    why="it looks whether an overwriting outlives its resets, and memory is overwritten at once",
)
LENIENT = Flavour(
    "thin, unmaps any block",
    {"unmaps_any_block": True},
    why="it unmaps with a block of FFh and wants zeros afterwards, where SBC-3 §5.38 wants the"
    " block, which is what our LUNs do by default",
)
REMOVABLE = Flavour("removable", {"removable": True})
PROTECTED = Flavour("write-protected", {"read_only": True})
PATHS = Flavour("two portals", portals=2)
# Suites that are about one flavour only; every other suite belongs to the thin LUN.
SPECIAL = {
    "GetLBAStatus": (FINE,),
    "NoMedia": (REMOVABLE,),
    "PreventAllow": (REMOVABLE,),
    "StartStopUnit": (REMOVABLE,),
    "ReadOnly": (PROTECTED,),
    "MultipathIO": (PATHS,),
    "CompareAndWrite": (THIN, PATHS),
    "ProutClear": (THIN, PATHS),
    "ProutPreempt": (THIN, PATHS),
    "ProutRegister": (THIN, PATHS),
    "ProutReserve": (THIN, PATHS),
    "Reserve6": (THIN, PATHS),
}
# The suites of version 1.19. A newer tool's further ones are run by `make conformance` alone.
_NAMES = """
    CompareAndWrite ExtendedCopy GetLBAStatus Inquiry Mandatory ModeSense6 MultipathIO NoMedia
    OrWrite Prefetch10 Prefetch16 PreventAllow PrinReadKeys PrinReportCapabilities
    PrinServiceactionRange ProutClear ProutPreempt ProutRegister ProutReserve Read10 Read12
    Read16 Read6 ReadCapacity10 ReadCapacity16 ReadDefectData10 ReadDefectData12 ReadOnly
    ReceiveCopyResults ReportSupportedOpcodes Reserve6 Sanitize StartStopUnit TestUnitReady
    Unmap Verify10 Verify12 Verify16 Write10 Write12 Write16 WriteAtomic16 WriteSame10
    WriteSame16 WriteVerify10 WriteVerify12 WriteVerify16 iSCSIResiduals iSCSITMF iSCSIcmdsn
    iSCSIdatasn
"""
SUITES = tuple(_NAMES.split())
# Tests that cannot run, and why.
EXPLAINED = {
    ("ReportSupportedOpcodes", "OneCommand"): (
        "it runs to its end, but the tool takes each refusal that it asks for as a missing command"
    ),
}
# A write to a file cannot be promised to be atomic, so files do not offer it.
NO_FILES = ("WriteAtomic16",)
# Tests that need a LUN of their own, so that their suite is run one by one.
SINGLE = {("Sanitize", "Reset"): SLOW, ("WriteSame10", "UnmapUntilEnd"): LENIENT}


@dataclass(frozen=True)
class Result:
    """What a suite on a flavour came to."""

    suite: str
    flavour: Flavour
    verdict: Verdict
    expected: int

    @property
    def is_good(self) -> bool:
        """Every test the tool lists ran, none failed, and only explained ones were skipped."""
        unexplained = {test for test in self.verdict.skipped if (self.suite, test) not in EXPLAINED}
        return not self.verdict.failed and not unexplained and self.verdict.ran == self.expected


@cache
def listed() -> dict[str, list[str]]:
    """The suites the installed tool has, and their tests."""
    done = subprocess.run([TOOL, "-l"], capture_output=True, text=True, timeout=20, check=False)
    names = [line.split(".") for line in done.stdout.split() if line.startswith(f"{FAMILY}.")]
    found: dict[str, list[str]] = {}
    for name in names:
        if len(name) == 3:
            found.setdefault(name[1], []).append(name[2])
    return found


def plan(suites: Iterable[str] = SUITES) -> list[tuple[str, Flavour]]:
    """Pairs of a suite and a flavour to run it on."""
    return [(suite, flavour) for suite in sorted(suites) for flavour in SPECIAL.get(suite, (THIN,))]


@dataclass(frozen=True)
class Bench:
    """Where LUNs are made: memory of the engine, or sparse files if there is a folder for them."""

    engine: Any
    folder: Path | None = None
    placement: str = "stream"  # where commands are done: see `ServerConfig`

    @contextlib.contextmanager
    def unit(self, options: dict[str, Any]) -> Iterator[LogicalUnit]:
        """A unit of zeros."""
        if self.folder is None:
            backend: Any = RamBackend.create(
                self.engine, SIZE, thin=True, granularity=options.get("granularity", 4096)
            )
        else:
            backend = FileBackend(self.folder / "lun", size=SIZE, thin=True)
        kept = {name: value for name, value in options.items() if name != "granularity"}
        try:
            yield LogicalUnit(backend, **kept)
        finally:
            backend.close()
            if self.folder is not None:
                (self.folder / "lun").unlink()


@contextlib.contextmanager
def fresh_target(bench: Bench, suite: str, flavour: Flavour) -> Iterator[tuple[Any, list[str]]]:
    """A server with one LUN that nobody has used, and its URLs."""
    name = f"iqn.2026-01.org.example:{suite.lower()}"
    with bench.unit(flavour.options) as unit:
        target = Target(name, {0: unit})
        portals = (Portal("127.0.0.1", 0),) * flavour.portals
        config = ServerConfig((target,), portals, placement=bench.placement)
        with TargetServer(bench.engine, config) as server:
            yield server, [f"iscsi://127.0.0.1:{port}/{name}/0" for _, port in server.bound]


def run_suite(bench: Bench, suite: str, flavour: Flavour, test: str = "") -> Result:
    """Run a suite (or one test of it). AssertionError if the tool does not end in time."""
    if test or not any(name == suite for name, _ in SINGLE):
        expected = 1 if test else len(listed()[suite])
        used = SINGLE.get((suite, test), flavour)
        return Result(suite, flavour, _run(bench, suite, used, test), expected)
    verdicts = [
        _run(bench, suite, SINGLE.get((suite, name), flavour), name) for name in listed()[suite]
    ]
    return Result(suite, flavour, _joined(verdicts), len(listed()[suite]))


def _joined(verdicts: list[Verdict]) -> Verdict:
    passed, failed, skipped = (
        frozenset().union(*(getattr(verdict, what) for verdict in verdicts))
        for what in ("passed", "failed", "skipped")
    )
    return Verdict(passed, failed, skipped, "".join(verdict.text for verdict in verdicts))


def _run(bench: Bench, suite: str, flavour: Flavour, test: str) -> Verdict:
    with (
        fresh_target(bench, suite, flavour) as (server, urls),
        tempfile.TemporaryFile() as out,
    ):
        name = f"{FAMILY}.{suite}" + (f".{test}" if test else "")
        words = [TOOL, "-d", "-S", "-v", "-t", name, *urls]
        tool = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + SUITE_S
            while tool.poll() is None and time.monotonic() < deadline:
                server.step()
            in_time = tool.poll() is not None
        finally:
            tool.kill()
            tool.wait()
        out.seek(0)
        text = out.read().decode(errors="replace")
        assert in_time, f"{suite} on {flavour.name} does not end: {text}"
    return read(text)


def table(results: list[Result]) -> str:
    """A Markdown table with a row for each suite, and a sum."""
    lines = ["| suite | LUN | run | passed | skipped | failed |", "|---|---|---|---|---|---|"]
    total: Counter[str] = Counter()
    for result in results:
        found = result.verdict
        counts = {
            "run": found.ran,
            "passed": len(found.passed),
            "skipped": len(found.skipped),
            "failed": len(found.failed),
        }
        total.update(counts)
        row = [result.suite, result.flavour.name, *map(str, counts.values())]
        lines.append(f"| {' | '.join(row)} |")
    lines.append(f"| **all** | | {' | '.join(str(count) for count in total.values())} |")
    return "\n".join(lines)


def notes(results: list[Result]) -> list[str]:
    """What was skipped or failed, by name."""
    lines = []
    for result in results:
        for what in ("skipped", "failed"):
            for test in sorted(getattr(result.verdict, what)):
                why = EXPLAINED.get((result.suite, test), "not explained")
                reason = f": {why}" if what == "skipped" else ""
                lines.append(f"- {result.suite}.{test} ({result.flavour.name}) {what}{reason}")
    return lines


def special() -> list[str]:
    """The LUNs that are made for what a test wants of them, and the tests."""
    suites = [(suite, each) for suite, flavours in SPECIAL.items() for each in flavours]
    tests = [(f"{suite}.{test}", flavour) for (suite, test), flavour in SINGLE.items()]
    return [
        f"- {name} runs on a LUN of its own ({flavour.name}): {flavour.why}"
        for name, flavour in suites + tests
        if flavour.why
    ]


def page(results: list[Result], placement: str) -> str:
    """The text of docs/CONFORMANCE.md."""
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", "libiscsi-bin"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "\n".join(
        [
            "# Conformance",
            "",
            "What libiscsi's `iscsi-test-cu` says of `ppe target`, written by"
            " `make conformance WRITE=1`.",
            f"Version of the tool: {done.stdout or 'unknown'}; placement of the target:"
            f" `{placement}`. Each suite runs in a process of its own, on fresh LUNs",
            "of the flavour that it is about; a skipped test is not counted as passed.",
            "",
            table(results),
            "",
            *(notes(results) or ["Nothing was skipped, nothing failed."]),
            *special(),
            "",
        ]
    )


def say(line: str) -> None:
    """A line on standard output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Run what was asked for; 0 if all of it is good."""
    parser = argparse.ArgumentParser(prog="conformance", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE[.TEST]")
    parser.add_argument("--verbose", action="store_true", help="all that the tool says")
    parser.add_argument("--file", action="store_true", help="LUNs in sparse files, not memory")
    parser.add_argument("--placement", choices=PLACEMENTS, default="engine")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    args = parser.parse_args(arguments)
    tests = dict(word.partition(".")[::2] for word in args.suites)
    results = []
    with host.connect("inline:") as engine, tempfile.TemporaryDirectory() as folder:
        bench = Bench(engine, Path(folder) if args.file else None, args.placement)
        wanted = tests or [suite for suite in listed() if not (args.file and suite in NO_FILES)]
        for suite, flavour in plan(wanted):
            began = time.monotonic()
            result = run_suite(bench, suite, flavour, tests.get(suite, ""))
            results.append(result)
            took = time.monotonic() - began
            verdict = "good" if result.is_good else "BAD"
            say(f"{verdict:4} {suite} ({flavour.name}) {took:.1f} s")
            if args.verbose or result.verdict.failed:
                say(result.verdict.text)
    say("\n".join([table(results), *notes(results)]))
    if args.write:
        PAGE.write_text(page(results, args.placement))
    return 0 if results and all(result.is_good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
