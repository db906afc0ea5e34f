"""The resource manager: quotas, borrowing, credits and exports, and two services on one device."""

import errno

import numpy as np
import pytest

from host.verbs.credits import CreditPool
from host.verbs.exchange import HEADER, Descriptor
from host.verbs.mpa import Rejected
from host.verbs.quotas import Quota, Share
from host.verbs.resources import BUFFERS, ENDPOINTS, EXPORTED, ResourceManager, Service
from shm.verbs_numbers import (
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
)
from tests.rdma.pairs import WAIT_S, Side

# --- quotas --------------------------------------------------------------------------------------


def shared(total=10, **quotas):
    """Make a share among holders."""
    share = Share("things", total)
    for name, quota in quotas.items():
        share.add(name, quota)
    return share


def test_a_reserve_is_there_however_much_others_borrow():
    share = shared(10, a=Quota(reserve=4, lends=False), b=Quota(reserve=1, limit=10))
    with pytest.raises(OSError, match="gets no 7 more") as refused:
        share.take("b", 7)
    assert refused.value.errno == errno.ENOBUFS
    share.take("b", 6)
    share.take("a", 4)
    assert share.used == 10
    assert share.counters("b").borrowed == 1


def test_nobody_gets_more_than_its_limit():
    share = shared(10, a=Quota(reserve=1, limit=3))
    share.take("a", 3)
    with pytest.raises(OSError, match="limit 3"):
        share.take("a")
    assert share.counters("a").refused == 1


def test_an_idle_reserve_is_lent_and_called_back():
    share = Share("things", 10)
    calls = []

    def give_back(resource, count):
        calls.append((resource, count))
        share.give("borrower", count)
        return count

    share.add("owner", Quota(reserve=6))
    share.add("borrower", Quota(reserve=2, limit=10), give_back)
    share.take("borrower", 10)
    share.take("owner", 5)
    assert calls == [("things", 5)]
    assert share.counters("borrower").reclaimed == 5
    assert share.used == 10


def test_a_borrower_that_gives_nothing_back_breaks_no_bound():
    share = Share("things", 10)
    share.add("owner", Quota(reserve=6))
    share.add("borrower", Quota(limit=10), lambda resource, count: 0)
    share.take("borrower", 8)
    with pytest.raises(OSError, match="8 of 10 are in use"):
        share.take("owner", 3)
    share.take("owner", 2)
    assert share.used == 10


def test_reserves_are_never_more_than_there_is():
    share = shared(10, a=Quota(reserve=7))
    with pytest.raises(ValueError, match="3 left to reserve"):
        share.add("b", Quota(reserve=4))
    with pytest.raises(ValueError, match="already"):
        share.add("a", Quota())


def test_what_is_held_is_given_back_once():
    share = shared(10, a=Quota(reserve=7))
    share.take("a", 2)
    with pytest.raises(ValueError, match="gives back 3 of 2"):
        share.give("a", 3)
    with pytest.raises(ValueError, match="still holds 2"):
        share.remove("a")
    share.give("a", 2)
    share.remove("a")


# --- credits -------------------------------------------------------------------------------------


def test_no_more_credits_are_granted_than_receives_are_posted():
    pool = CreditPool(kept=1)
    pool.post(10)
    first, second = pool.account(8), pool.account(8)
    assert (first.grant(), second.grant()) == (8, 1)
    assert second.counters.refused == 1
    assert pool.promised == pool.posted - pool.kept
    first.arrived()
    assert second.grant() == 0  # The receive is used up: it cannot be promised again.
    pool.post()
    assert second.grant() == 1
    pool.close(first)
    assert second.grant() == 6


def test_a_peer_that_sends_without_a_credit_is_not_kept():
    pool = CreditPool()
    pool.post(4)
    account = pool.account(1)
    account.grant()
    account.arrived()
    with pytest.raises(ConnectionError, match="no credit"):
        account.arrived()


def test_our_messages_wait_for_credits():
    account = CreditPool().account(1)
    assert not account.spend()
    account.granted(2)
    assert account.spend()
    assert account.spend()
    assert not account.spend()
    assert account.counters.stalled == 2
    with pytest.raises(ConnectionError, match="granted"):
        account.granted(0x1_0000)


def test_a_descriptor_is_sixteen_octets_and_a_piece_of_it_lies_within():
    descriptor = Descriptor(0x01020304, 100, 0x1122334455667788)
    assert descriptor.pack() == bytes.fromhex("01020304 00000064 1122334455667788")
    assert Descriptor.unpack(descriptor.pack()) == descriptor
    assert descriptor.piece(90, 10) == Descriptor(0x01020304, 10, 0x1122334455667788 + 90)
    with pytest.raises(ValueError, match="not within 100"):
        descriptor.piece(91, 10)
    with pytest.raises(ValueError, match="16 octets"):
        Descriptor.unpack(bytes(15))


# --- two services --------------------------------------------------------------------------------


class Echo(Service):
    """Sends back what it gets."""

    name = "echo"

    def __init__(self, manager, quotas):
        super().__init__(manager, quotas)
        self.came = []

    def on_message(self, endpoint, data):
        self.came.append(bytes(data))
        if data[:4] == b"ping":
            place = self.take(HEADER.size + len(data))
            place.array[HEADER.size :] = np.frombuffer(b"pong" + bytes(data[4:]), np.uint8)
            endpoint.send(place, place.length)

    def say(self, endpoint, text):
        """Send a text."""
        place = self.take(HEADER.size + len(text))
        place.array[HEADER.size :] = np.frombuffer(text, np.uint8)
        endpoint.send(place, place.length)


class Store(Service):
    """Lends its memory: a peer that asks gets a descriptor and reads and writes by itself."""

    name = "store"

    def __init__(self, manager, quotas):
        super().__init__(manager, quotas)
        self.memory = None
        self.lent = []
        self.offered = None
        self.done = []

    def on_message(self, endpoint, data):
        if data[:4] == b"open":
            self.lent.append(self.export(self.memory, ACCESS_REMOTE_READ | ACCESS_REMOTE_WRITE))
            place = self.take(HEADER.size + 16)
            packed = self.lent[-1].descriptor.pack()
            place.array[HEADER.size :] = np.frombuffer(packed, np.uint8)
            endpoint.send(place, place.length)
        else:
            self.offered = Descriptor.unpack(bytes(data))

    def on_done(self, endpoint, token, wc):
        self.done.append((token, wc.check().opcode))


QUOTAS = {
    ENDPOINTS: Quota(reserve=1, limit=3),
    BUFFERS: Quota(reserve=8, limit=40),
    EXPORTED: Quota(reserve=0, limit=1 << 20),
}


@pytest.fixture
def managers(engine, provider):
    """Give two managers, each on a device of its own, each with both services."""
    import contextlib

    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(2):
            side = Side(engine, stack, provider)
            manager = stack.enter_context(
                ResourceManager(side.device, endpoints=4, receives=16, credits_per_endpoint=4)
            )
            made.append((manager, Echo(manager, QUOTAS), Store(manager, QUOTAS)))
        yield made


def drive(managers, condition):
    """Have both managers run until a condition holds."""

    def look():
        for manager, *_ in managers:
            manager.progress()
        return condition()

    assert managers[0][0].device.wait_until(look, WAIT_S)


def join(managers, which):
    """Connect the first manager's service to the second's; their endpoints."""
    from tests.rdma import pairs

    (ours, *our_services), (theirs, *their_services) = managers
    address = theirs._listener.address if theirs._listener else theirs.listen()
    service, peer = our_services[which], their_services[which]
    had = set(peer.endpoints)
    waits = ours.device.channel.wait_n

    def wait_and_serve(n, *, min_wait_s=None, timeout_s=None):
        theirs.progress()
        left = 0.01 if timeout_s is None else min(timeout_s, 0.01)
        return waits(n, min_wait_s=min_wait_s, timeout_s=left)

    ours.device.channel.wait_n = wait_and_serve
    try:
        endpoint = service.connect(address)
    finally:
        del ours.device.channel.wait_n
    drive(managers, lambda: peer.endpoints - had)
    assert pairs
    return endpoint, (peer.endpoints - had).pop()


def test_two_services_share_one_device_and_do_not_meet(managers):
    (first, echo, store), (second, far_echo, far_store) = managers
    talking, _ = join(managers, 0)
    storing, _ = join(managers, 1)
    far_store.memory = second.device.engine.alloc(4096)
    far_store.memory.array[:] = 5

    for i in range(20):
        echo.say(talking, b"ping%d" % i)
    place = store.take(HEADER.size + 4)
    place.array[HEADER.size :] = np.frombuffer(b"open", np.uint8)
    storing.send(place, place.length)
    drive(managers, lambda: len(echo.came) == 20 and store.offered is not None)
    assert echo.came == [b"pong%d" % i for i in range(20)]
    assert far_echo.came == [b"ping%d" % i for i in range(20)]

    local = store.take(4096)
    assert storing.read(store.offered, local.sge(0, 4096), "read")
    drive(managers, lambda: "read" in [token for token, _ in store.done])
    assert (local.array == 5).all()
    local.array[:] = 6
    assert storing.write(store.offered.piece(0, 100), local.sge(0, 100), "write")
    drive(managers, lambda: "write" in [token for token, _ in store.done])
    assert storing.read(store.offered, local.sge(0, 4096), "again")
    drive(managers, lambda: "again" in [token for token, _ in store.done])
    assert (far_store.memory.array[:100] == 6).all()
    assert (far_store.memory.array[100:] == 5).all()

    far_store.revoke(far_store.lent[0])
    with pytest.raises(ValueError, match="revoked already"):
        far_store.revoke(far_store.lent[0])
    local.release()
    counted = second.counters()
    assert counted["supplies"][ENDPOINTS]["used"] == 2
    assert counted["supplies"][EXPORTED]["used"] == 0
    assert counted["supplies"][EXPORTED]["store"]["taken"] == 4096
    assert counted["supplies"][BUFFERS]["echo"]["taken"] == 20
    assert counted["supplies"][BUFFERS]["store"]["taken"] == 1
    assert counted["receives"]["promised"] <= counted["receives"]["posted"]
    assert (far_echo.counters.messages_in, far_echo.counters.messages_out) == (20, 20)
    far_store.memory.free()
    assert first.counters()["supplies"][BUFFERS]["used"] == 0


def test_an_export_that_was_revoked_is_read_by_nobody(managers):
    (_, _, store), (second, _, far_store) = managers
    storing, far = join(managers, 1)
    with second.device.engine.alloc(4096) as memory:
        export = far_store.export(memory, ACCESS_REMOTE_READ, "pool")
        descriptor = export.descriptor
        assert descriptor.address != memory.address  # A place of the pool stands for it.
        far_store.revoke(export)
        export = far_store.export(memory)
        descriptor = export.descriptor
        far_store.revoke(export)
        second.cache.forget(memory.address, 4096)  # The cache keeps it until then.
        local = store.take(64)
        assert storing.read(descriptor.piece(0, 64), local.sge(0, 64), "late")
        with pytest.raises(OSError, match="remote access error"):
            drive(managers, lambda: store.done)
        drive(managers, lambda: far.is_closed and storing.is_closed)
        local.release()


def test_endpoints_are_bounded_by_quotas_and_another_services_reserve_is_left_alone(managers):
    (_, echo, store), (second, far_echo, _) = managers
    for _ in range(3):
        join(managers, 0)
    with pytest.raises(OSError, match="'echo' holds 3 endpoints"):
        echo.connect(second._listener.address)
    join(managers, 1)
    assert len(far_echo.endpoints) == 3
    with pytest.raises(OSError, match="'store' holds 1 endpoints"):
        store.connect(second._listener.address)


def test_a_name_that_no_service_has_is_rejected(managers):
    (first, echo, _), _ = managers

    class Stranger(Service):
        name = "stranger"

    first.remove(echo)  # Its reserves are needed.
    Stranger(first, QUOTAS)
    with pytest.raises(Rejected) as rejected:
        join([(first, first.services["stranger"]), managers[1]], 0)
    assert rejected.value.private_data == b"no such service"
    assert first.counters()["supplies"][ENDPOINTS]["used"] == 0


def test_a_service_that_floods_does_not_take_the_receives_of_the_other(managers):
    (_, echo, store), (second, _, far_store) = managers
    talking, _ = join(managers, 0)
    storing, _ = join(managers, 1)
    for i in range(30):
        echo.say(talking, b"text%d" % i)
    assert talking.waiting > 0  # It has four credits.
    far_store.memory = second.device.engine.alloc(64)
    place = store.take(HEADER.size + 4)
    place.array[HEADER.size :] = np.frombuffer(b"open", np.uint8)
    storing.send(place, place.length)
    highest = []

    def look():
        highest.append(second.credits.promised <= second.credits.posted)
        return store.offered is not None and talking.waiting == 0

    drive(managers, look)
    assert all(highest)
    drive(managers, lambda: len(managers[1][1].came) == 30)
    assert talking.credits.counters.stalled > 0
    far_store.revoke(far_store.lent[0])
    far_store.memory.free()


def test_a_service_with_impossible_quotas_is_refused_and_leaves_nothing(managers):
    (first, *_), _ = managers

    class Greedy(Service):
        name = "greedy"

    with pytest.raises(ValueError, match="left to reserve"):
        Greedy(first, {EXPORTED: Quota(reserve=1 << 40)})
    with pytest.raises(ValueError, match="the resources are"):
        Greedy(first, {"cakes": Quota(1)})
    assert "greedy" not in first.services


def test_the_end_of_a_connection_gives_everything_back(managers):
    (first, echo, _), (second, far_echo, _) = managers
    talking, far = join(managers, 0)
    echo.say(talking, b"ping")
    drive(managers, lambda: echo.came)
    far.close()
    drive(managers, lambda: talking.is_closed)
    for manager in (first, second):
        counted = manager.counters()
        assert counted["supplies"][ENDPOINTS]["used"] == 0
        assert counted["supplies"][BUFFERS]["used"] == 0
        assert counted["receives"] == {"posted": 16, "promised": 0}
    assert far_echo.endpoints == set()
