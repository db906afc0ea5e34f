"""A pointer is taken out of a pyverbs object only if what it leads to proves itself.

Objects are made without a device: empty ones of pyverbs' own classes, with a structure of ours put
where they keep their pointer. pyverbs' compiled properties then read our structure, so a place that
is wrong in our table is wrong here.
"""

import contextlib
import ctypes
import sys
import types

import pytest

from ppe.cycle.rnic.verbs import layouts, library, pointers
from ppe.cycle.rnic.verbs.queues import Block

CONTEXT = 0x7F0012345000
# Class, its module, the property that proves, and where the structure has the number.
KINDS = [
    ("CQ", "cq", "cqe", layouts.CQ_CQE, pointers.cq_pointer),
    ("QP", "qp", "qp_num", layouts.QP_QP_NUM, pointers.qp_pointer),
    ("MR", "mr", "lkey", layouts.MR_LKEY, pointers.mr_pointer),
    ("MW", "mr", "rkey", layouts.MW_RKEY, pointers.mw_pointer),
    ("PD", "pd", "handle", layouts.PD_HANDLE, pointers.pd_pointer),
]
kinds = pytest.mark.parametrize(
    ("name", "module", "told", "place", "take"), KINDS, ids=[kind[0] for kind in KINDS]
)


class Structure:
    """256 bytes that belong to a context and have a number at a place."""

    def __init__(self, place, number, context=CONTEXT):
        self._block = Block(256)
        self.address = self._block.address
        ctypes.c_uint64.from_address(self.address).value = context
        ctypes.c_uint32.from_address(self.address + place).value = number


@contextlib.contextmanager
def holding(name, module, address):
    """An object of pyverbs that holds this pointer."""
    kind = getattr(library.part(module), name)
    item = kind.__new__(kind)
    place = ctypes.c_uint64.from_address(id(item) + pointers.PLACES[name].offset)
    place.value = address
    try:
        yield item
    finally:
        place.value = 0  # or pyverbs would give our memory back to the device


@kinds
@pytest.mark.interop("pyverbs")
def test_a_pointer_that_proves_itself_is_taken(name, module, told, place, take):
    made = Structure(place, 0x12345)
    with holding(name, module, made.address) as item:
        assert getattr(item, told) == 0x12345  # pyverbs reads it where we put it
        assert take(item, CONTEXT) == made.address


@kinds
@pytest.mark.interop("pyverbs")
def test_a_structure_of_another_context_is_refused(name, module, told, place, take):
    made = Structure(place, 0x12345, context=CONTEXT + 64)
    with (
        holding(name, module, made.address) as item,
        pytest.raises(pointers.PointerUnknownError, match="does not look like it"),
    ):
        take(item, CONTEXT)


@kinds
@pytest.mark.parametrize("address", [0, 0x10, 1 << 50, 0x7FFF_FFFF_F000])
@pytest.mark.interop("pyverbs")
def test_a_pointer_to_nowhere_is_refused_without_a_crash(name, module, told, place, take, address):
    # Only our own reading may touch it, so the number that pyverbs would tell is never asked for.
    with holding(name, module, address) as item, pytest.raises(pointers.PointerUnknownError):
        take(item, CONTEXT)


@pytest.mark.interop("pyverbs")
def test_an_object_of_an_unknown_size_is_refused(monkeypatch):
    monkeypatch.setitem(pointers.PLACES, "CQ", pointers.Place("cq", 104, 40))
    made = Structure(layouts.CQ_CQE, 5)
    with (
        holding("CQ", "cq", made.address) as item,
        pytest.raises(pointers.PointerUnknownError, match="use rdma-core 44, or 61"),
    ):
        pointers.cq_pointer(item, CONTEXT)


def new_release(monkeypatch, names):
    """A pyverbs whose classes have pointer properties, as release 61 and newer do."""
    for module, name, attribute in (("cq", "CQ", "cq"), ("qp", "QP", "qp"), ("srq", "SRQ", "srq")):
        made = types.ModuleType(f"newverbs.{module}")
        members = {"cqe": 9, "__module__": made.__name__}
        if name in names:
            members[attribute] = property(lambda self: self.address)
        setattr(made, name, type(name, (), members))
        monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setitem(sys.modules, "newverbs", types.ModuleType("newverbs"))


def test_the_properties_of_new_releases_are_used(monkeypatch):
    new_release(monkeypatch, {"CQ", "QP", "SRQ"})
    made, item = Structure(layouts.CQ_CQE, 9), sys.modules["newverbs.cq"].CQ()
    item.address = made.address
    assert pointers.cq_pointer(item, CONTEXT) == made.address


def test_a_property_must_prove_itself_too(monkeypatch):
    new_release(monkeypatch, {"CQ", "QP", "SRQ"})
    made, item = Structure(layouts.CQ_CQE, 10), sys.modules["newverbs.cq"].CQ()
    item.address = made.address
    with pytest.raises(pointers.PointerUnknownError):
        pointers.cq_pointer(item, CONTEXT)


def test_a_lone_property_of_that_name_is_not_touched(monkeypatch):
    """Old releases hand pointers out as Python objects there, which ends the process."""
    new_release(monkeypatch, {"CQ"})
    item = sys.modules["newverbs.cq"].CQ()
    with pytest.raises(pointers.PointerUnknownError, match="no pointer property"):
        pointers.cq_pointer(item, CONTEXT)


def test_a_context_without_functions_is_refused():
    block = Block(layouts.CONTEXT_SIZE)
    with pytest.raises(pointers.PointerUnknownError, match="no function at offset 96"):
        pointers.functions(block.address)


def test_data_is_no_function():
    block = Block(layouts.CONTEXT_SIZE)
    ctypes.c_uint64.from_address(block.address + layouts.CONTEXT_POLL_CQ).value = block.address
    with pytest.raises(pointers.PointerUnknownError, match="no function at offset 96"):
        pointers.functions(block.address)


def test_memory_is_read_where_there_is_some_and_nowhere_else():
    block = Block(64)
    assert pointers.read_memory(block.address, 64) == bytes(64)
    for address in (0, -1, 8, 1 << 47):
        with pytest.raises(pointers.PointerUnknownError):
            pointers.read_memory(address, 8)
