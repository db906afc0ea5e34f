"""How a session over iSER opens its buffers to its target: the strategy it chose says how long a
tag is there and what it covers; what is moved is the same with all of them.
"""

import numpy as np
import pytest

import host
import host.inline
import ppe.cycle.services.iser
import ppe.cycle.services.rdma  # noqa: F401 - the same
from iscsi.session import blockdev
from iscsi.session.options import AUTO_REGISTRATION, NEVER, Options
from iscsi.wire.iser.registration import ONE_COMMAND, REGISTRATIONS
from ppe.cycle.records import ENDPOINT
from ppe.cycle.rnic.records import mr_table_at
from ppe.cycle.services.mover_records import KEPT_MAX, MOVER, TAGS
from shm.operations import INDEX_MASK
from shm.verbs_numbers import WR_SEND_WITH_INV
from shm.view import window
from tests.iscsi.iser_target import SocketTarget
from tests.iscsi.wire.full_feature import BLOCK, pattern
from tests.iscsi.wire.iser.pair import counts

OWN_KEY = 1  # row of the connection's own key, which no peer can use
LARGE = 40  # blocks: more than goes with the command


@pytest.fixture
def engine():
    with host.connect("inline:") as handle:
        yield handle


def opened(engine, target, registration, **options):
    return blockdev.open(target.url, engine, recovery=NEVER, registration=registration, **options)


def registered(engine):
    """Rows of the engine's table of memory that are taken."""
    return int(mr_table_at(engine._port.tables.memory_table)[0]["used"])


def tags_of(engine, device):
    """The TAGS of a device's connection."""
    rows = int(engine._port.tables.engine[0]["endpoints"])
    place = rows + ENDPOINT.itemsize * (device.core.endpoint & INDEX_MASK)
    mover = int(window(place, 1, ENDPOINT)[0]["mover"])
    return window(int(window(mover, 1, MOVER)[0]["tags"]), 1, TAGS)[0]


def write_and_read(device, buffer, lba=0):
    """Through memory of the caller's own, in place."""
    data = pattern(len(buffer), lba)
    buffer.array[:] = data
    device.write(lba, buffer)
    buffer.array[:] = 0
    device.readinto(lba, buffer)
    assert np.array_equal(buffer.array, data)
    assert device.copied_bytes == 0


@pytest.mark.parametrize("registration", REGISTRATIONS)
@pytest.mark.parametrize("invalidates", [True, False], ids=["remote", "local"])
def test_every_strategy_moves_the_callers_own_memory_in_place(engine, registration, invalidates):
    with SocketTarget(invalidates=invalidates) as target:
        with opened(engine, target, registration) as device, device.alloc(LARGE * BLOCK) as buffer:
            for lba in (0, 100, 7):
                write_and_read(device, buffer, lba)
            wanted = invalidates and registration in ONE_COMMAND
            assert (WR_SEND_WITH_INV in counts(target.side.qp)) == wanted
        assert registered(engine) == 0, "nothing is open when the session is over"


@pytest.mark.parametrize("registration", ["auto", "per-io"])
def test_a_tag_for_each_command_is_gone_with_it(engine, registration):
    assert AUTO_REGISTRATION == "per-io"
    with (
        SocketTarget() as target,
        opened(engine, target, registration) as device,
        device.alloc(LARGE * BLOCK) as buffer,
    ):
        write_and_read(device, buffer)
        assert registered(engine) == OWN_KEY


def test_windows_are_bound_again_and_open_nothing_between_commands(engine):
    with (
        SocketTarget() as target,
        opened(engine, target, "window") as device,
        device.alloc(LARGE * BLOCK) as buffer,
    ):
        for lba in range(5):
            write_and_read(device, buffer, lba)
        tags = tags_of(engine, device)
        assert (tags["misses"], tags["count"]) == (1, 1), "one window, which is idle"
        assert tags["hits"] >= 9
        assert registered(engine) == OWN_KEY + 1


def test_a_cache_keeps_a_tag_for_each_buffer_and_direction(engine):
    with SocketTarget() as target, opened(engine, target, "cache") as device:
        before = tags_of(engine, device)["misses"].item()
        with device.alloc(LARGE * BLOCK) as one, device.alloc(LARGE * BLOCK) as two:
            for lba in range(3):
                write_and_read(device, one, lba)
                write_and_read(device, two, lba)
            tags = tags_of(engine, device)
            assert tags["misses"] - before == 4, "two buffers, read into and written from"
            assert tags["evictions"] == tags["bypasses"] == 0
            assert registered(engine) == OWN_KEY + tags["count"]


def test_a_full_cache_closes_what_was_not_used_for_longest(engine):
    with (
        SocketTarget() as target,
        opened(engine, target, "cache") as device,
        device.alloc(2 * KEPT_MAX * LARGE * BLOCK) as whole,
    ):
        pieces = whole.array.reshape(2 * KEPT_MAX, LARGE * BLOCK)
        for piece in pieces:
            device.readinto(0, piece)
        tags = tags_of(engine, device)
        assert tags["count"] == KEPT_MAX
        assert tags["evictions"] >= KEPT_MAX
        assert registered(engine) == OWN_KEY + KEPT_MAX
        misses = int(tags["misses"])
        device.readinto(0, pieces[-1])
        assert tags["misses"] == misses, "the last one is there"
        device.readinto(0, pieces[0])
        assert tags["misses"] == misses + 1, "the first one is not"


def test_a_pool_opens_each_region_once_whatever_its_buffers(engine):
    with SocketTarget() as target, opened(engine, target, "pool") as device:
        with device.alloc(LARGE * BLOCK) as one, device.alloc(3 * LARGE * BLOCK) as two:
            for lba in range(3):
                write_and_read(device, one, lba)
                write_and_read(device, two, lba)
        tags = tags_of(engine, device)
        assert 1 <= tags["count"] == tags["misses"] <= 2, "arenas, not buffers"
        assert registered(engine) == OWN_KEY + tags["count"]


@pytest.mark.parametrize("registration", ["cache", "pool"])
def test_memory_that_is_only_kept_open_can_be_taken_from_the_engine(engine, registration):
    with (
        SocketTarget() as target,
        opened(engine, target, registration) as device,
        device.alloc(8 << 20) as buffer,  # larger than an arena: a region of its own
    ):
        device.readinto(0, buffer.array[: LARGE * BLOCK])
        open_tags = int(tags_of(engine, device)["count"])
        assert open_tags >= 1
        known = engine._arenas.mappings[: engine._arenas.mapping_count]
        (place,) = known[known["address"] == buffer.address]
        assert engine._port.remove_region(int(place["region"]))
        assert tags_of(engine, device)["count"] == open_tags - 1
        assert registered(engine) == OWN_KEY + open_tags - 1


def test_the_url_chooses_the_strategy_before_the_options_do(engine):
    with SocketTarget() as target:
        url = f"{target.url}?registration=pool"
        with blockdev.open(url, engine, recovery=NEVER, registration="cache") as device:
            device.read(0, LARGE)
            assert REGISTRATIONS[tags_of(engine, device)["strategy"]] == "pool"


def test_a_strategy_that_is_none_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="choose from auto, per-io, window, cache, pool"):
        Options(registration="odp")
