"""The guest with RDMA devices: booted once, when the first test asks for it."""

import pytest

from tests.guest import rdma_image
from tests.guest.rdma import RdmaGuest

# What the guest's Python imports before it says that it is ready.
MODULES = tuple(
    f"tests.ppe.rnic.verbs.on_device.{name}" for name in ("scenarios", "capable", "peer")
)


@pytest.fixture(scope="session")
def rdma_guest(tmp_path_factory):
    """A running guest, with a capture of all that its network card sees."""
    capture = tmp_path_factory.mktemp("rdma") / "wire.pcap"
    with RdmaGuest(rdma_image.prepare(), MODULES, capture=capture) as running:
        yield running
