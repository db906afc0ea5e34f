"""The conformance suite over real devices of Linux, rxe and siw, in the guest: the engine there
polls the device. What is left out is about the software RNIC's own bytes, or is slow when emulated.
"""

import pytest

from shm.jit import JIT_DISABLED
from tests.guest import rdma_image
from tests.guest.machine import QEMU_TOOLS
from tests.guest.rdma import ADDRESSES, RdmaGuest

pytestmark = [
    pytest.mark.rdma_guest,
    pytest.mark.slow,
    pytest.mark.interop(*QEMU_TOOLS, "gcc", "make"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(JIT_DISABLED, reason="the guest runs compiled code"),
]
MODULES = (
    "tests.rdma.in_guest",
    "tests.rdma.test_verbs",
    "tests.rdma.test_errors",
    "tests.rdma.test_device_ends",
)
FILES = ("test_verbs.py", "test_errors.py", "test_device_ends.py")
SUITE_S = 400
# What has to have run, and not been skipped, on each device.
EVERYWHERE = (
    "a_send_comes_into_the_receive_that_was_posted_for_it",
    "a_write_lands_where_it_was_told_and_nowhere_else",
    "a_read_brings_the_peers_memory",
    "queue_pairs_share_receives_and_each_completion_says_whose_it_is",
    "a_shared_receive_queue_says_when_it_runs_low",
    "only_a_solicited_send_raises_the_event_that_was_asked_for",
    "an_orderly_disconnect_is_told_to_both_sides_and_flushes_receives",
    "memory_that_was_not_lent_so_is_not_touched",
    "work_posted_to_a_dead_queue_pair_comes_back_flushed",
    "memory_in_use_is_not_deregistered",
    "a_channel_that_goes_with_work_under_way_leaves_nothing_at_the_device",
)
ALSO = {"rxe0": (), "siw0": ("a_send_with_invalidate_ends_the_use_of_an_stag",)}


@pytest.fixture(scope="module")
def outcomes():
    """Run the suite on both devices, and give what became of each test."""
    with RdmaGuest(rdma_image.prepare(), MODULES) as guest:
        yield {
            device: guest.call(
                "tests.rdma.in_guest:run", SUITE_S, device=device, address=address, files=FILES
            )
            for device, address in ADDRESSES.items()
        }


@pytest.mark.parametrize("device", ADDRESSES)
def test_the_conformance_suite_holds_on_a_device(outcomes, device):
    failed = {name: text for name, (how, text) in outcomes[device].items() if how == "failed"}
    assert not failed, "\n\n".join(f"{name}\n{text}" for name, text in failed.items())


@pytest.mark.parametrize("device", ADDRESSES)
def test_what_must_be_shown_was_not_skipped(outcomes, device):
    passed = [name for name, (how, _) in outcomes[device].items() if how == "passed"]
    for wanted in (*EVERYWHERE, *ALSO[device]):
        assert any(f"::test_{wanted}[" in name for name in passed), wanted
