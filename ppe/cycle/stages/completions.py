"""Take the completions of verbs devices. An engine that has none does not come here."""

from typing import Final

from ppe.cycle.records import engine_at
from ppe.cycle.services.mover_records import POLL
from shm.call import call_address
from shm.jit import nopython

_ARM: Final = 1


@nopython
def step(engine: int) -> int:
    """Poll every completion queue once."""
    return call_address(engine_at(engine)[0]["verbs"], engine, 0, 0, POLL)


@nopython
def arm(engine: int) -> int:
    """Before sleeping: have the devices wake the engine, and look once more, since what came before
    they were asked wakes nobody. How much there was.
    """
    return call_address(engine_at(engine)[0]["verbs"], engine, _ARM, 0, POLL)
