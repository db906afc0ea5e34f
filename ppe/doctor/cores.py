"""The doctor's checks of the CPUs: who else runs there, what interrupts them, how they are clocked.

Each check reads only what was observed and returns one finding; a file that is missing is
"unknown", never "ok".
"""

from ppe.doctor.finding import BAD, OK, UNKNOWN, WARN, Finding, Status
from ppe.doctor.machine import GAP_NS, Machine
from ppe.topology import boot_parameter, format_cpu_list, parse_cpu_list

BUSY = 0.2  # A sibling busier than this takes execution units from the engine.
LOST_WARN, LOST_BAD = 0.001, 0.05
WAKE_US_WARN = 50  # Leaving an idle state slower than this dwarfs the futex wake itself.
DEVICE_IRQ_WARN = 10  # Per second.


def check_placement(machine: Machine) -> Finding:
    """Can an engine have a CPU here at all, and is one left for everything else?"""
    if machine.refusal:
        return Finding(
            "placement", BAD, machine.refusal, "use --idle yield or sleep, or free a CPU"
        )
    left = format_cpu_list(set(machine.housekeeping))
    detail = f"CPU {machine.cpu} for an engine, {left} for the rest"
    if machine.holder is not None:
        detail = f"CPU {machine.cpu} runs the engine of pid {machine.holder}, {left} the rest"
    if machine.cpu in machine.housekeeping:
        return Finding("placement", WARN, detail, "give the machine or container another CPU")
    return Finding("placement", OK, detail)


def check_stolen_time(machine: Machine) -> Finding:
    """Spin on the CPU and count the time in which the loop did not run."""
    spin = machine.spin
    if spin is None:
        why = (
            f"the engine of pid {machine.holder} runs there: see `ppe stat`"
            if machine.holder is not None
            else f"pinning to CPU {machine.cpu} was refused"
        )
        return Finding("stolen time", UNKNOWN, f"not measured, {why}")
    share = spin.lost_ns / spin.window_ns
    detail = (
        f"spun {spin.window_ns / 1e6:.0f} ms: {spin.gaps} gaps over {GAP_NS // 1000} µs, "
        f"{share:.2%} lost, longest {spin.longest_ns / 1000:.0f} µs, "
        f"preempted {spin.preemptions} times"
    )
    fix = f"isolate the CPU: isolcpus={machine.cpu} nohz_full={machine.cpu} on the kernel line"
    if spin.preemptions == 0 and _is_virtual(machine):
        fix = "nothing in this guest preempted it: give the virtual machine dedicated CPUs"
    status = _grade(share, LOST_WARN, LOST_BAD)
    return Finding("stolen time", status, detail, "" if status == OK else fix)


def check_hypervisor_steal(machine: Machine) -> Finding:
    """How much of the CPU does the hypervisor keep, by its own account?"""
    first, last = machine.before.ticks.get(machine.cpu), machine.after.ticks.get(machine.cpu)
    if first is None or last is None:
        return Finding("hypervisor steal", UNKNOWN, "no /proc/stat line for the CPU")
    ticks = last.total - first.total
    now = (last.stolen - first.stolen) / ticks if ticks else 0.0
    boot = last.stolen / last.total if last.total else 0.0
    detail = f"{now:.1%} now, {boot:.1%} since boot"
    if _is_virtual(machine):
        detail += ", in a virtual machine"
    status = _grade(max(now, boot), 0.01, LOST_BAD)
    fix = "" if status == OK else "ask the host for dedicated CPUs (pinned vCPUs)"
    return Finding("hypervisor steal", status, detail, fix)


def check_smt_sibling(machine: Machine) -> Finding:
    """Does the other hardware thread of the core compete for its execution units?"""
    facts = machine.topology.cpu(machine.cpu)
    siblings = [s for s in facts.siblings if s in machine.topology.online] if facts else []
    if not siblings:
        return Finding("SMT sibling", OK, f"CPU {machine.cpu} has its core to itself")
    loads = {s: machine.busy_fraction(s) for s in siblings}
    shown = ", ".join(
        f"CPU {s} " + ("unread" if load is None else f"{load:.0%} busy")
        for s, load in loads.items()
    )
    fix = " ".join(f"echo 0 > /sys/devices/system/cpu/cpu{s}/online;" for s in siblings).rstrip(";")
    if any((load or 0.0) > BUSY for load in loads.values()):
        return Finding("SMT sibling", BAD, shown, fix)
    if set(siblings) <= machine.topology.isolated:
        return Finding("SMT sibling", OK, f"{shown}, isolated")
    return Finding("SMT sibling", WARN, f"{shown} now, but open to every thread", fix)


def check_isolated(machine: Machine) -> Finding:
    """Does the scheduler leave the CPU alone?"""
    if machine.cpu in machine.topology.isolated:
        return Finding("isolcpus", OK, f"CPU {machine.cpu} is isolated")
    isolated = format_cpu_list(machine.topology.isolated)
    return Finding(
        "isolcpus",
        WARN,
        f"CPU {machine.cpu} is open to the scheduler (isolated: {isolated})",
        f"boot with isolcpus=domain,managed_irq,{machine.cpu}, or use an isolated cpuset partition",
    )


def check_timer_tick(machine: Machine) -> Finding:
    """Does a timer tick interrupt the CPU while one thread runs?"""
    facts = machine.topology.cpu(machine.cpu)
    ticks = sum(
        n for (name, _), n in machine.interrupt_counts(machine.cpu).items() if name == "LOC"
    )
    seen = f", {ticks / machine.seconds:.0f} timer interrupts/s" if machine.seconds else ""
    if facts is not None and facts.nohz_full:
        return Finding("nohz_full", OK, f"CPU {machine.cpu} runs without a tick{seen}")
    return Finding(
        "nohz_full",
        WARN,
        f"CPU {machine.cpu} takes the timer tick{seen}",
        f"boot with nohz_full={machine.cpu}",
    )


def check_rcu_callbacks(machine: Machine) -> Finding:
    """Are RCU callbacks run elsewhere? nohz_full implies it."""
    facts = machine.topology.cpu(machine.cpu)
    listed = boot_parameter("rcu_nocbs", machine.root)
    if (facts is not None and facts.nohz_full) or listed == "all":
        return Finding("rcu_nocbs", OK, "callbacks run elsewhere")
    try:
        offloaded = parse_cpu_list(listed or "")
    except ValueError:
        return Finding("rcu_nocbs", UNKNOWN, f"rcu_nocbs={listed} on the kernel line")
    if machine.cpu in offloaded:
        return Finding("rcu_nocbs", OK, "callbacks run elsewhere")
    return Finding(
        "rcu_nocbs",
        WARN,
        f"RCU callbacks may run on CPU {machine.cpu}",
        f"boot with rcu_nocbs={machine.cpu}",
    )


def check_interrupts(machine: Machine) -> Finding:
    """Which device interrupts landed on the CPU while we watched?"""
    if not machine.after.interrupts:
        return Finding("interrupts", UNKNOWN, "/proc/interrupts is not readable")
    counts = machine.interrupt_counts(machine.cpu)
    devices = {key: n for key, n in counts.items() if key[0].isdigit()}
    local = sum(n for key, n in counts.items() if not key[0].isdigit())
    rest = f"{local} of the CPU's own (timer, IPI) in {machine.seconds * 1000:.0f} ms"
    if not devices:
        return Finding("interrupts", OK, f"none from devices, {rest}")
    worst = sorted(devices, key=lambda key: -devices[key])
    shown = ", ".join(
        f"{name} ({label.split()[-1] if label else 'no name'}) ×{devices[name, label]}"
        for name, label in worst[:3]
    )
    rate = sum(devices.values()) / machine.seconds if machine.seconds else 0.0
    target = machine.housekeeping[0] if machine.housekeeping else 0
    return Finding(
        "interrupts",
        WARN if rate > DEVICE_IRQ_WARN else OK,
        f"IRQ {shown}; {rest}",
        f"echo {target} > /proc/irq/{worst[0][0]}/smp_affinity_list, "
        f"and IRQBALANCE_BANNED_CPULIST={machine.cpu}",
    )


def check_governor(machine: Machine) -> Finding:
    """Does the CPU stay at its full clock?"""
    governor = machine.text(f"sys/devices/system/cpu/cpu{machine.cpu}/cpufreq/scaling_governor")
    if governor is None:
        return Finding("governor", UNKNOWN, "no cpufreq here: firmware or hypervisor decides")
    if governor == "performance":
        return Finding("governor", OK, "performance")
    return Finding(
        "governor", WARN, governor, f"cpupower -c {machine.cpu} frequency-set -g performance"
    )


def check_idle_states(machine: Machine) -> Finding:
    """How long does a sleeping host thread's CPU take to wake?"""
    cpu = machine.housekeeping[0] if machine.housekeeping else machine.cpu
    folder = f"sys/devices/system/cpu/cpu{cpu}/cpuidle"
    deepest, latency_us = "", 0
    for state in sorted((machine.root / folder).glob("state[0-9]*")):
        below = f"{folder}/{state.name}"
        latency = machine.text(f"{below}/latency") or ""
        if machine.text(f"{below}/disable") == "1" or not latency.isdigit():
            continue
        if int(latency) >= latency_us:
            deepest, latency_us = machine.text(f"{below}/name") or state.name, int(latency)
    if not deepest:
        return Finding("C-states", UNKNOWN, "no cpuidle here: hypervisor or boot line decides")
    detail = f"deepest on CPU {cpu}: {deepest}, {latency_us} µs to leave"
    if latency_us <= WAKE_US_WARN:
        return Finding("C-states", OK, detail)
    return Finding(
        "C-states", WARN, f"{detail}, paid by wait_n", f"cpupower idle-set -D {WAKE_US_WARN}"
    )


def check_numa(machine: Machine) -> Finding:
    """Do engine and hosts share a memory node, and does the kernel move pages under them?"""
    nodes = machine.topology.nodes
    if len(nodes) < 2:
        return Finding("NUMA", OK, "one node")
    facts = machine.topology.cpu(machine.cpu)
    node = facts.node if facts else 0
    near = {c.number for c in machine.topology.cpus if c.node == node} & set(machine.housekeeping)
    if machine.text("proc/sys/kernel/numa_balancing") not in {None, "0"}:
        return Finding(
            "NUMA",
            WARN,
            f"{len(nodes)} nodes, and pages are moved between them (numa_balancing)",
            "sysctl kernel.numa_balancing=0",
        )
    if not near:
        return Finding(
            "NUMA",
            WARN,
            f"node {node} of CPU {machine.cpu} has no CPU left for hosts",
            "leave a CPU of that node to the hosts, or pass another --cpu",
        )
    return Finding(
        "NUMA", OK, f"{len(nodes)} nodes; run hosts on {format_cpu_list(near)}, node {node}"
    )


def _grade(value: float, warn: float, bad: float) -> Status:
    return BAD if value >= bad else WARN if value >= warn else OK


def _is_virtual(machine: Machine) -> bool:
    return " hypervisor" in (machine.text("proc/cpuinfo") or "")
