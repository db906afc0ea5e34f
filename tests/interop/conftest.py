"""The guests that the tests with a kernel share, one for TCP and one for iSER: booted once, when
the first of them asks for it.
"""

import pytest

from tests.guest import image, lio, rdma_image
from tests.guest.iser import ADDRESS, IserGuest
from tests.guest.machine import Guest
from tests.guest.open_iscsi import OpenIscsi
from tests.iscsi.session.tgt import free_port


@pytest.fixture(scope="session")
def guest_image():
    """The image, made if it is not there; a minute the first time."""
    return image.prepare()


@pytest.fixture(scope="session")
def guest(guest_image):
    """A running guest; `guest.lio_port` leads to the port of the kernel target in it."""
    port = free_port()
    with Guest(guest_image, forwards=[(port, lio.PORT)]) as running:
        running.lio_port = port
        yield running


@pytest.fixture(scope="session")
def open_iscsi(guest):
    """The kernel's initiator."""
    return OpenIscsi(guest)


@pytest.fixture(scope="session")
def kernel_target(guest):
    """The kernel's target."""
    return lio.Lio(guest)


@pytest.fixture(scope="session")
def iser_guest(tmp_path_factory):
    """A running guest with iSER on siw, with a capture of all that its network card sees."""
    capture = tmp_path_factory.mktemp("iser") / "wire.pcap"
    with IserGuest(rdma_image.prepare(), capture=capture) as running:
        yield running


@pytest.fixture(scope="session")
def iser_open_iscsi(iser_guest):
    """The kernel's initiator over iSER."""
    return OpenIscsi(iser_guest, interface="iser")


@pytest.fixture(scope="session")
def iser_kernel_target(iser_guest):
    """The kernel's target over iSER."""
    return lio.Lio(iser_guest, iser_address=ADDRESS)
