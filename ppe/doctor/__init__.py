"""Find what on this machine slows an engine down; every finding carries its one-line remedy.

What can be measured in a fifth of a second is measured, the rest is read from /proc and /sys.
Nothing is changed, and a CPU on which an engine runs is never disturbed.
"""

from collections.abc import Callable
from typing import Final

from ppe.doctor import cores, limits, verbs
from ppe.doctor.finding import BAD, OK, UNKNOWN, WARN, Finding, Status
from ppe.doctor.machine import Machine, observe

__all__ = [
    "BAD",
    "CHECKS",
    "OK",
    "UNKNOWN",
    "WARN",
    "Finding",
    "Machine",
    "Status",
    "examine",
    "observe",
]

CHECKS: Final[tuple[Callable[[Machine], Finding], ...]] = (
    cores.check_placement,
    cores.check_stolen_time,
    cores.check_hypervisor_steal,
    cores.check_smt_sibling,
    cores.check_isolated,
    cores.check_timer_tick,
    cores.check_rcu_callbacks,
    cores.check_interrupts,
    cores.check_governor,
    cores.check_idle_states,
    cores.check_numa,
    limits.check_clock_source,
    limits.check_realtime_throttling,
    limits.check_cpu_quota,
    limits.check_locked_memory,
    limits.check_open_files,
    limits.check_shared_memory,
    limits.check_huge_pages,
    limits.check_transparent_huge_pages,
    limits.check_io_uring,
    limits.check_perf,
    verbs.check_verbs,
)


def examine(machine: Machine) -> list[Finding]:
    """Run every check on what was observed; no check depends on another."""
    return [check(machine) for check in CHECKS]
