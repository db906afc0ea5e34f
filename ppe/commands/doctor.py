"""`ppe doctor`: show what on this machine slows an engine, and the line that mends it."""

import argparse
import sys
from typing import Final

from ppe import cpulock, output
from ppe.cputime import busy_now
from ppe.doctor import BAD, OK, UNKNOWN, WARN, Finding, Machine, examine, observe
from ppe.errors import CpuError, UsageError
from ppe.partition import choose, usable_cpus
from ppe.topology import Topology, allowed_cpus, format_cpu_list, read_topology

MARKS: Final = {OK: "✓", WARN: "!", BAD: "✗", UNKNOWN: "?"}
COLOURS: Final = {OK: "green", WARN: "yellow", BAD: "red", UNKNOWN: "dim"}


class DoctorCommand:
    """Examine the CPU an engine has or would get."""

    name = "doctor"
    help = "find what on this machine slows an engine"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        parser.add_argument(
            "--cpu", type=int, metavar="N", help="CPU to examine (default: an engine's choice)"
        )
        parser.add_argument("--strict", action="store_true", help="exit with 1 if anything is bad")
        output.add_json_flag(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Examine and print; 1 only under --strict with a bad finding."""
        if not args.json:
            output.say("watching the CPU for a fifth of a second …")
        machine = visit(args.cpu)
        findings = examine(machine)
        counts = {status: sum(f.status == status for f in findings) for status in MARKS}
        if args.json:
            output.write_json({"cpu": machine.cpu, "summary": counts, "findings": findings})
        else:
            _print(machine, findings, counts)
        return 1 if args.strict and counts[BAD] else 0


def visit(cpu: int | None) -> Machine:
    """Observe `cpu`, by default the one an engine would get.

    Raises UsageError for a CPU this process cannot use.
    """
    topology, allowed = read_topology(), allowed_cpus()
    usable = usable_cpus(topology, allowed)
    holders = cpulock.holders(usable)
    if cpu is not None and cpu not in usable:
        raise UsageError(
            f"--cpu {cpu} is not a CPU this process can use",
            f"pass one of {format_cpu_list(usable)}",
        )
    # The CPU's own holder is what we came to see, not a reason to refuse it.
    others = {taken: pid for taken, pid in holders.items() if taken != cpu}
    wanted = "auto" if cpu is None else str(cpu)
    try:
        partition = choose(topology, allowed, wanted, taken=others, busy=busy_now())
    except CpuError as error:
        return _visit_refused(topology, allowed, cpu, holders, error)
    return observe(
        partition.engine_cpus[0],
        housekeeping=partition.housekeeping_cpus,
        holder=holders.get(partition.engine_cpus[0]),
        reasons=tuple(partition.reasons),
    )


def _visit_refused(
    topology: Topology,
    allowed: frozenset[int],
    cpu: int | None,
    holders: dict[int, int],
    error: CpuError,
) -> Machine:
    """Look all the same: at the CPU asked for, else at an engine's, else at any."""
    usable = usable_cpus(topology, allowed)
    engine_cpus = [held for held in holders if held in usable]
    chosen = cpu if cpu is not None else (engine_cpus or sorted(usable))[-1]
    return observe(
        chosen,
        housekeeping=tuple(sorted(usable - {chosen})) or (chosen,),
        holder=holders.get(chosen),
        refusal=error.message,
    )


def _print(machine: Machine, findings: list[Finding], counts: dict[str, int]) -> None:
    for reason in machine.reasons:
        output.write(reason)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = output.paint(MARKS[finding.status], COLOURS[finding.status], sys.stdout)
        output.write(f"{mark} {finding.name.ljust(width)}  {finding.detail}")
        if finding.fix and finding.status != OK:
            fix = output.paint(finding.fix, "dim", sys.stdout)
            output.write(f"  {' ' * width}  → {fix}")
    total = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    output.write(f"{total}; examined for an engine on CPU {machine.cpu}")
