"""What a device is believed to do, and the order in which what was made on it is given back."""

from types import SimpleNamespace

import pytest

from ppe.cycle.rnic.verbs import device as devices
from ppe.cycle.rnic.verbs.device import INFINIBAND, IWARP, Device, Owned, VerbsError, asking
from shm import verbs_numbers as c

EXTENSIONS, TYPE_1, TYPE_2A, TYPE_2B = 1 << 21, 1 << 17, 1 << 23, 1 << 24
SIW = 0x626D74


def attributes(**changes):
    """A device without anything beyond the usual."""
    limits = ("qp_wr", "sge", "cqe", "srq_wr", "srq_sge", "qp_rd_atom", "qp_init_rd_atom", "mw")
    usual = {"device_cap_flags": 0, "atomic_caps": 0, "vendor_id": 0}
    usual |= {f"max_{name}": 8 for name in limits}
    return SimpleNamespace(**(usual | changes))


def opcodes(transport, **changes):
    bits = devices._opcodes(attributes(**changes), transport)
    return {opcode for opcode in range(32) if bits >> opcode & 1}


def test_every_device_sends_writes_and_reads():
    assert opcodes(IWARP) == {c.WR_SEND, c.WR_RDMA_WRITE, c.WR_RDMA_READ}


def test_immediate_data_needs_infiniband_or_roce():
    assert opcodes(INFINIBAND) - opcodes(IWARP) == {c.WR_SEND_WITH_IMM, c.WR_RDMA_WRITE_WITH_IMM}


def test_atomics_need_a_device_that_says_so():
    more = opcodes(INFINIBAND, atomic_caps=1) - opcodes(INFINIBAND)
    assert more == {c.WR_ATOMIC_CMP_AND_SWP, c.WR_ATOMIC_FETCH_AND_ADD}


def test_invalidation_and_windows_follow_the_capabilities():
    assert opcodes(IWARP, device_cap_flags=EXTENSIONS) - opcodes(IWARP) == {
        c.WR_LOCAL_INV,
        c.WR_SEND_WITH_INV,
    }
    for flag in (TYPE_2A, TYPE_2B):
        assert opcodes(IWARP, device_cap_flags=flag) - opcodes(IWARP) == {c.WR_BIND_MW}
    assert opcodes(IWARP, device_cap_flags=TYPE_1) == opcodes(IWARP)


def test_what_siws_driver_promises_and_does_not_do_is_left_out():
    assert c.WR_LOCAL_INV not in opcodes(IWARP, device_cap_flags=EXTENSIONS, vendor_id=SIW)
    assert c.WR_SEND_WITH_INV in opcodes(IWARP, device_cap_flags=EXTENSIONS, vendor_id=SIW)


class Item(Owned):
    def __init__(self, device, name, log):
        self.name, self.log = name, log
        super().__init__(device)

    def destroy(self):
        self.log.append(self.name)


@pytest.fixture
def opened():
    """A device without a driver; `log` says what was closed."""
    made = Device.__new__(Device)
    made.made, made.name, made.log = [], "fake0", []
    made.context = SimpleNamespace(close=lambda: made.log.append("context"))
    return made


def test_a_device_closes_what_was_made_on_it_the_last_first_and_itself_at_the_end(opened):
    for name in ("domain", "queue", "pair"):
        Item(opened, name, opened.log)
    opened.close()
    assert opened.log == ["pair", "queue", "domain", "context"]


def test_what_was_closed_is_not_closed_again(opened):
    first, _ = Item(opened, "first", opened.log), Item(opened, "second", opened.log)
    first.close()
    first.close()
    opened.close()
    assert opened.log == ["first", "second", "context"]


def test_a_device_that_is_forgotten_closes_in_order_too(opened):
    log = opened.log
    Item(opened, "queue", log)
    opened.__del__()
    assert log == ["queue", "context"]


def test_an_error_of_pyverbs_becomes_an_oserror_with_its_number():
    kind = type("PyverbsRDMAError", (Exception,), {"__module__": "pyverbs.pyverbs_error"})
    error = kind("Failed to create QP")
    error.error_code = 12
    with (
        pytest.raises(VerbsError, match="no queue pair: Failed to create QP") as raised,
        asking("no queue pair"),
    ):
        raise error
    assert raised.value.errno == 12


def test_other_errors_stay_what_they_are():
    with pytest.raises(ZeroDivisionError), asking("something"):
        1 / 0  # noqa: B018
