"""Every bit of every header turned over, under a right CRC: each field has its outcomes, and
none gives a peer more than it was lent.
"""

import pytest

from ppe.cycle.rnic.iwarp.core import CODE_MASK, VIOLATION
from tests.ppe.rnic.fpdus import (
    atomic_request,
    atomic_response,
    fpdu,
    immediate,
    read_request,
    read_response,
    send,
    write,
)
from tests.ppe.rnic.victim import Victim

WELL = None
ELSEWHERE = {WELL, 0x1101, 0x1103}  # within the region, outside it, or beyond the last address
ELSEWHERE_READ = {WELL, 0x0101, 0x0104}
ANOTHER_KIND = {WELL, 0x0206, 0x2003, 0x1201, 0x1202, 0x1203, 0x1205}
# A Read Response that says it is a Write: the sink of a Read may not be written to.
ANOTHER_KIND |= {0x0102}

# Fields of a segment: where they begin in the ULPDU, their bits, and what turning one over brings.
TAGGED = [
    ("T", 0, 1, {0x0206}),
    ("L", 1, 1, {WELL}),
    ("reserved", 2, 4, {WELL}),
    ("DV", 6, 2, {0x1104}),
    ("RV", 8, 2, {0x0205}),
    ("reserved", 10, 2, {WELL}),
    ("opcode", 12, 4, ANOTHER_KIND),
    ("STag", 16, 32, {0x1100}),
]
UNTAGGED = [
    ("T", 0, 1, {0x0206}),
    ("reserved", 2, 4, {WELL}),
    ("DV", 6, 2, {0x1206}),
    ("RV", 8, 2, {0x0205}),
    ("reserved", 10, 2, {WELL}),
    ("opcode", 12, 4, ANOTHER_KIND),
    ("RsvdULP", 16, 32, {WELL}),
    ("QN", 48, 32, {0x1201}),
    ("MSN", 80, 32, {0x1203}),
    ("MO", 112, 32, {0x1204}),
]
ONE_SEGMENT = [*UNTAGGED, ("L", 1, 1, {0x0207})]
KINDS = {
    "write": (
        lambda v: write(v.lent.key, v.lent.iova + 64, b"data"),
        [*TAGGED, ("TO", 48, 64, ELSEWHERE)],
    ),
    "read response": (
        lambda v: read_response(*v.read(), bytes(64)),
        [*TAGGED, ("TO", 48, 64, {0x1101})],
    ),
    "send": (lambda v: send(1, b"text"), [*UNTAGGED, ("L", 1, 1, {WELL})]),
    "read request": (
        lambda v: read_request(1, 5, 6, 16, v.lent.key, v.lent.iova + 64),
        [
            *ONE_SEGMENT,
            ("sink STag", 144, 32, {WELL}),
            ("sink TO", 176, 64, {WELL}),
            ("size", 240, 32, ELSEWHERE_READ),
            ("source STag", 272, 32, {0x0100}),
            ("source TO", 304, 64, ELSEWHERE_READ),
        ],
    ),
    "atomic request": (
        lambda v: atomic_request(1, 0, 9, v.lent.key, v.lent.iova + 64, 1),
        [
            *ONE_SEGMENT,
            ("reserved", 144, 28, {WELL}),
            ("AOpCode", 172, 4, {WELL, 0x0206}),
            ("request id", 176, 32, {WELL}),
            ("STag", 208, 32, {0x0100}),
            ("TO", 240, 64, {*ELSEWHERE_READ, 0x0207}),
            ("data", 304, 256, {WELL}),
        ],
    ),
    "atomic response": (
        lambda v: atomic_response(1, v.add(), 5),
        [*ONE_SEGMENT, ("request id", 144, 32, {0x0206}), ("value", 176, 64, {WELL})],
    ),
    "immediate": (lambda v: immediate(1, 5), [*ONE_SEGMENT, ("data", 144, 64, {WELL})]),
}
cases = pytest.mark.parametrize(
    ("make", "field", "start", "bits", "outcomes"),
    [
        pytest.param(make, field, start, bits, outcomes, id=f"{kind}: {field}")
        for kind, (make, fields) in KINDS.items()
        for field, start, bits, outcomes in fields
    ],
)


@cases
def test_a_bit_turned_over_has_the_outcomes_of_its_field(make, field, start, bits, outcomes):
    for bit in range(start, start + bits):
        victim = Victim()
        ulpdu = bytearray(make(victim))
        ulpdu[bit // 8] ^= 0x80 >> bit % 8
        victim.take(fpdu(bytes(ulpdu)))
        found = victim.outcome & CODE_MASK if victim.outcome else WELL
        assert found in outcomes, f"bit {bit - start}: {victim.outcome:#x}"
        assert not victim.outcome or victim.outcome & VIOLATION
        assert victim.untouched("lent", "private")
        victim.end()
        assert all(region.uses == 0 for region in victim.regions.values())


@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_of_a_header_belongs_to_one_field(kind):
    make, fields = KINDS[kind]
    covered = sorted(bit for _, start, bits, _ in fields for bit in range(start, start + bits))
    assert covered == list(range(len(covered)))
    header = len(make(Victim())) - {"write": 4, "read response": 64, "send": 4}.get(kind, 0)
    assert len(covered) == 8 * header


@pytest.mark.parametrize("kind", KINDS)
def test_unspoilt_all_of_them_are_well(kind):
    victim = Victim()
    assert victim.hear(KINDS[kind][0](victim)) == 0
