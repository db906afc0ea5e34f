"""Registration strategies: what is hit, evicted, invalidated, and that data moves through each."""

import errno

import numpy as np
import pytest

from host.verbs.pin_down_cache import PinDownCache
from host.verbs.registration import OnDemand, OnTheFly, PreRegistered, Windows
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    WR_RDMA_READ,
)
from tests.rdma.pairs import send

READABLE = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ


@pytest.fixture
def side(sides):
    """Give one side."""
    return sides[0]


def make(strategy, side, qp):
    """Make a strategy by name, and memory that it can lend."""
    if strategy == "on the fly":
        return OnTheFly(side.pd), side.array[:65_536]
    if strategy == "cache":
        return PinDownCache(side.pd), side.array[:65_536]
    if strategy == "pool":
        return PreRegistered(side.pd, [(65_536, 2)]), side.array[:65_536]
    return Windows(qp, side.cq, side.buffer), side.array[:65_536]


@pytest.mark.parametrize("strategy", ["on the fly", "cache", "pool", "windows"])
def test_a_peer_reads_what_a_strategy_lends_and_no_longer(joined, strategy):
    active, passive, ours, theirs = joined
    registrar, memory = make(strategy, passive, theirs)
    memory[:] = np.arange(65_536, dtype=np.uint32).astype(np.uint8)
    for _ in range(2):
        with registrar.acquire(memory, READABLE) as lease:
            lease.load()
            where = {"remote_addr": lease.remote_addr, "rkey": lease.rkey}
            send(active, ours, 0, 65_536, opcode=WR_RDMA_READ, **where)
            active.one().check()
            assert np.array_equal(active.array[:65_536], memory)
            active.array[:65_536] = 0
    assert registrar.counters.leases == 0
    registrar.close()
    assert registrar.counters.bytes_pinned == 0
    send(active, ours, 0, 8, opcode=WR_RDMA_READ, **where)
    assert passive.event().terminate in (0x0100, 0x0101)


@pytest.mark.parametrize("strategy", ["on the fly", "cache", "pool"])
def test_a_lease_is_released_once(side, strategy):
    registrar, memory = make(strategy, side, None)
    lease = registrar.acquire(memory)
    lease.release()
    with pytest.raises(ValueError, match="released already"):
        lease.release()
    registrar.close()


# --- on the fly ---------------------------------------------------------------------------------


def test_on_the_fly_registers_each_time(side):
    registrar = OnTheFly(side.pd)
    for _ in range(3):
        registrar.acquire(side.array[:64]).release()
    counters = registrar.counters
    assert (counters.registrations, counters.deregistrations) == (3, 3)
    assert counters.bytes_pinned == 0
    assert counters.bytes_pinned_max == 64


def test_closing_on_the_fly_takes_back_what_is_still_leased(side):
    registrar = OnTheFly(side.pd)
    registrar.acquire(side.array[:64])
    registrar.close()
    assert registrar.counters.bytes_pinned == 0


# --- the cache ------------------------------------------------------------------------------------


def test_memory_inside_a_cached_registration_is_a_hit(side):
    cache = PinDownCache(side.pd)
    cache.acquire(side.array[1000:9000], READABLE).release()
    for start, end in ((1000, 9000), (1000, 1001), (8999, 9000), (4000, 5000)):
        cache.acquire(side.array[start:end]).release()
    assert (cache.counters.hits, cache.counters.misses) == (4, 1)
    for start, end in ((999, 1001), (8999, 9001), (0, 20_000)):
        cache.acquire(side.array[start:end]).release()
    assert (cache.counters.hits, cache.counters.misses) == (4, 4)
    cache.close()


def test_more_rights_than_were_registered_are_a_miss_and_fewer_a_hit(side):
    cache = PinDownCache(side.pd)
    cache.acquire(side.array[:64], ACCESS_LOCAL_WRITE).release()
    cache.acquire(side.array[:64], READABLE).release()
    cache.acquire(side.array[:64], READABLE).release()
    cache.acquire(side.array[:64], 0).release()
    assert (cache.counters.hits, cache.counters.misses) == (2, 2)
    cache.close()


def test_a_long_registration_is_found_behind_many_short_ones(side):
    cache = PinDownCache(side.pd)
    cache.acquire(side.array[:100_000]).release()
    for i in range(20):
        cache.acquire(side.array[50_000 + 10 * i : 50_000 + 10 * i + 5], READABLE).release()
    misses = cache.counters.misses
    cache.acquire(side.array[60_000:99_999]).release()
    assert cache.counters.misses == misses
    cache.close()


def test_the_least_recently_used_goes_first_and_nothing_that_is_leased(side):
    cache = PinDownCache(side.pd, max_regions=3)
    pieces = [side.array[i * 1000 : i * 1000 + 100] for i in range(5)]
    kept = cache.acquire(pieces[0])
    for i in (1, 2, 1):
        cache.acquire(pieces[i]).release()
    cache.acquire(pieces[3]).release()  # 2 goes: 0 is leased, 1 was used later.
    assert cache.counters.evictions == 1
    misses = cache.counters.misses
    cache.acquire(pieces[1]).release()
    assert cache.counters.misses == misses
    cache.acquire(pieces[2]).release()
    assert cache.counters.misses == misses + 1
    kept.release()
    assert cache.regions == 3
    cache.close()


def test_the_limit_of_bytes_holds_and_what_does_not_fit_bypasses_the_cache(side):
    cache = PinDownCache(side.pd, max_bytes=10_000)
    first = cache.acquire(side.array[:6000])
    second = cache.acquire(side.array[10_000:16_000])
    assert cache.counters.bypasses == 1
    assert cache.counters.bytes_pinned == 12_000
    second.release()
    assert cache.counters.bytes_pinned == 6000
    first.release()
    cache.acquire(side.array[20_000:29_000]).release()
    assert cache.counters.evictions == 1
    assert cache.counters.bytes_pinned == 9000
    cache.close()
    assert cache.counters.bytes_pinned == 0


@pytest.mark.parametrize("wrong", [{"max_regions": 0}, {"max_bytes": 0}])
def test_a_cache_that_keeps_nothing_is_refused(side, wrong):
    with pytest.raises(ValueError, match="keeps nothing"):
        PinDownCache(side.pd, **wrong)


def test_a_buffer_that_is_freed_is_forgotten_before_it_is_somebody_elses(side):
    cache = PinDownCache(side.pd)
    buffer = side.engine.alloc(4096)
    lease = cache.acquire(buffer, READABLE)
    rkey = lease.rkey
    lease.release()
    assert cache.regions == 1
    buffer.free()
    assert cache.regions == 0
    assert cache.counters.invalidations == 1
    again = side.engine.alloc(4096)
    with again, cache.acquire(again, READABLE) as other:
        assert other.rkey != rkey
    cache.close()
    assert cache.forget not in side.engine.on_free


def test_memory_that_goes_away_while_it_is_leased_is_taken_back_with_the_lease(side):
    cache = PinDownCache(side.pd)
    first = cache.acquire(side.array[:100])
    second = cache.acquire(side.array[10:20])
    cache.forget(side.buffer.address + 50, 1)
    assert cache.counters.invalidations == 1
    misses = cache.counters.misses
    cache.acquire(side.array[:100]).release()
    assert cache.counters.misses == misses + 1
    first.release()
    assert cache.counters.deregistrations == 0
    second.release()
    assert cache.counters.deregistrations == 1
    cache.close()


def test_a_cache_with_leases_is_not_closed(side):
    cache = PinDownCache(side.pd)
    lease = cache.acquire(side.array[:100])
    with pytest.raises(ValueError, match="1 leases"):
        cache.close()
    lease.release()
    cache.close()


# --- the pool -------------------------------------------------------------------------------------


def test_a_pool_gives_the_smallest_place_that_fits_until_none_is_left(side):
    pool = PreRegistered(side.pd, [(1000, 1), (100, 2)])
    leases = [pool.take(50), pool.take(100), pool.take(1)]
    assert [lease.length for lease in leases] == [50, 100, 1]
    assert pool.free == {100: 0, 1000: 0}
    with pytest.raises(OSError, match="no place of 1 bytes") as full:
        pool.take(1)
    assert full.value.errno == errno.ENOBUFS
    for lease in leases:
        lease.release()
    assert pool.free == {100: 2, 1000: 1}
    assert pool.counters.registrations == 2
    pool.close()


def test_a_pool_stands_for_memory_elsewhere_by_copies(side):
    pool = PreRegistered(side.pd, [(4096, 1)])
    memory = side.array[:100]
    memory[:] = 7
    lease = pool.acquire(memory)
    assert lease.addr != side.buffer.address
    lease.load()
    assert (lease.array == 7).all()
    lease.array[:] = 9
    lease.store()
    assert (memory == 9).all()
    assert pool.counters.bytes_copied == 100
    lease.release()
    pool.close()


def test_memory_of_the_pool_itself_is_lent_as_it_is(side):
    pool = PreRegistered(side.pd, [(4096, 1)])
    place = pool.take(100)
    inside = pool.acquire(place.array[10:20])
    assert inside.addr == place.addr + 10
    assert pool.counters.bytes_copied == 0
    inside.release()
    place.release()
    pool.close()


def test_a_pool_gives_no_rights_that_it_was_not_registered_with(side):
    pool = PreRegistered(side.pd, [(4096, 1)], ACCESS_LOCAL_WRITE)
    with pytest.raises(OSError, match="without these rights"):
        pool.acquire(side.array[:10], ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE)
    pool.close()


@pytest.mark.parametrize("classes", [[], [(0, 1)], [(1, 0)]])
def test_a_pool_of_nothing_is_refused(side, classes):
    with pytest.raises(ValueError, match="a pool needs classes"):
        PreRegistered(side.pd, classes)


# --- windows, and paging on demand ---------------------------------------------------------------


def test_a_window_needs_no_registration_of_its_own(joined):
    _, passive, _, theirs = joined
    windows = Windows(theirs, passive.cq, passive.buffer)
    keys = set()
    for i in range(4):
        with windows.acquire(passive.array[i * 100 : i * 100 + 50], READABLE) as lease:
            keys.add(lease.rkey)
    assert len(keys) == 4
    assert windows.counters.registrations == 1
    with pytest.raises(ValueError, match="not of the buffer"):
        windows.acquire(np.zeros(8, np.uint8), READABLE)
    windows.close()


def test_paging_on_demand_is_refused_where_the_device_has_none(side):
    with pytest.raises(OSError, match="does not page on demand") as refused:
        OnDemand(side.pd)
    assert refused.value.errno == errno.EOPNOTSUPP
