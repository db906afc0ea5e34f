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
# The part of the suite that runs there: all of it would take too long where it is emulated.
NAMES = (
    "a_send_comes_into_the_receive_that_was_posted_for_it",
    "a_write_lands_where_it_was_told_and_nowhere_else",
    "a_read_brings_the_peers_memory",
    "a_gather_list_is_one_message",
    "unsignalled_work_is_covered_by_the_next_completion",
    "only_a_solicited_send_raises_the_event_that_was_asked_for",
    "a_send_with_invalidate_ends_the_use_of_an_stag",
    "queue_pairs_share_receives_and_each_completion_says_whose_it_is",
    "a_shared_receive_queue_says_when_it_runs_low",
    "an_orderly_disconnect_is_told_to_both_sides_and_flushes_receives",
    "what_was_posted_before_a_disconnect_still_arrives",
    "a_message_longer_than_its_receive_ends_the_stream",
    "memory_that_was_not_lent_so_is_not_touched",
    "a_read_needs_the_right_to_read_which_some_stacks_forget",
    "memory_of_another_protection_domain_is_not_associated",
    "a_send_from_memory_that_is_not_ours_fails_alone",
    "a_receive_into_memory_that_is_read_only_fails_alone",
    "work_posted_to_a_dead_queue_pair_comes_back_flushed",
    "everything_outstanding_comes_back_in_order_when_the_peer_dies",
    "memory_in_use_is_not_deregistered",
    "a_channel_that_goes_with_work_under_way_leaves_nothing_at_the_device",
    "a_rejection_says_why",
    "private_data_travels_both_ways",
)
SKIPPED = {
    "rxe0": {"a_send_with_invalidate_ends_the_use_of_an_stag"},
    "siw0": {"a_read_needs_the_right_to_read_which_some_stacks_forget"},
}


@pytest.fixture(scope="module")
def outcomes():
    """Run the suite on both devices, and give what became of each test."""
    with RdmaGuest(rdma_image.prepare(), MODULES) as guest:
        yield {
            device: guest.call(
                "tests.rdma.in_guest:run",
                SUITE_S,
                device=device,
                address=address,
                files=FILES,
                names=" or ".join(NAMES),
            )
            for device, address in ADDRESSES.items()
        }


@pytest.mark.parametrize("device", ADDRESSES)
def test_the_conformance_suite_holds_on_a_device(outcomes, device):
    failed = {name: text for name, (how, text) in outcomes[device].items() if how == "failed"}
    assert not failed, "\n\n".join(f"{name}\n{text}" for name, text in failed.items())


@pytest.mark.parametrize("device", ADDRESSES)
def test_nothing_is_skipped_that_the_device_can_do(outcomes, device):
    passed = [name for name, (how, _) in outcomes[device].items() if how == "passed"]
    missing = {name for name in NAMES if not any(name in each for each in passed)}
    assert missing == SKIPPED[device]
