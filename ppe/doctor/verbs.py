"""The doctor's check of RDMA devices: are there any, and can the engine drive them?

A machine without one is well: the engine's own software RNIC needs none. Looking loads pyverbs, if
it loads at all, and no compiler.
"""

from typing import Final

from ppe.cycle.rnic.verbs import library
from ppe.doctor.finding import OK, WARN, Finding
from ppe.doctor.machine import Machine

NAME: Final = "RDMA devices"
_NONE: Final = "none; iWARP runs in software over TCP"


def check_verbs(machine: Machine) -> Finding:
    """Are there verbs devices, and a pyverbs that this Python can load?"""
    folder = machine.root / "sys/class/infiniband"
    devices = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not devices:
        return Finding(NAME, OK, _NONE)
    named = ", ".join(devices)
    for path, module in (("infiniband_verbs", "ib_uverbs"), ("misc/rdma_cm", "rdma_ucm")):
        if not (machine.root / "sys/class" / path).exists():
            return Finding(
                NAME, WARN, f"{named}, closed to programs: no {module}", f"modprobe {module}"
            )
    found = machine.process.pyverbs
    if found is None or found.state != library.FOUND:
        detail = found.detail if found is not None else "pyverbs was not looked for"
        fix = found.fix if found is not None else library.APT_FIX
        return Finding(NAME, WARN, f"{named}, but the engine cannot use them: {detail}", fix)
    return Finding(NAME, OK, f"{named}; {found.detail}")
