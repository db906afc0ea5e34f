"""Work requests and completions of ours, filled by name."""

from ppe.cycle.rnic.records import SGE, WC, WR, WR_SGES
from ppe.cycle.rnic.verbs.queues import Block
from shm.view import window
from tests.ppe.rnic.verbs import doors


class Request:
    """A work request; `sges` are triples of address, length and lkey."""

    def __init__(self, opcode=0, *, sges=(), **fields):
        self._block = Block(WR.itemsize)
        self.address = self._block.address
        row = window(self.address, 1, WR)[0]
        row["opcode"], row["sge_count"] = opcode, len(sges)
        for name, value in fields.items():
            row[name] = value
        if sges:
            window(self.address + WR_SGES, len(sges), SGE)[:] = list(sges)


class Completion:
    """A completion as plain numbers; `qp` is the address of its queue pair."""

    def __init__(self, row, qp):
        self.qp = qp
        for name in WC.names:
            setattr(self, name, int(row[name]))


_room = Block(WC.itemsize)


def next_completion(cq):
    """What a completion queue's record gives next: a Completion, None, or -errno."""
    found = doors.ask(doors.WC_NEXT, cq, _room.address, 0)
    return Completion(window(_room.address, 1, WC)[0], found) if found > 0 else found or None


def completions(cq):
    """All that it gives now."""
    found = []
    while (one := next_completion(cq)) is not None:
        assert isinstance(one, Completion), f"polling failed: {one}"
        found.append(one)
    return found


def flushed(qp):
    """All that a queue pair that is gone still owes."""
    found = []
    while doors.ask(doors.FLUSH_NEXT, qp, _room.address, 0):
        found.append(Completion(window(_room.address, 1, WC)[0], qp))
    return found
