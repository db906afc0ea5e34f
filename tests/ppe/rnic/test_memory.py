"""Registered memory: who may touch what, by which name, and for how long."""

import errno
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppe.cycle.rnic.memory import (
    ACCESS_RIGHTS,
    BASE_OR_BOUNDS,
    INVALID_STAG,
    NOT_ASSOCIATED,
    ROWS_MAX,
    TO_WRAP,
    build_table,
    table_size,
)
from ppe.cycle.rnic.records import mr_at, mr_table_at
from shm.verbs_numbers import (
    ACCESS_LOCAL_WRITE,
    ACCESS_MW_BIND,
    ACCESS_ON_DEMAND,
    ACCESS_REMOTE_ATOMIC,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
)
from shm.view import address_of
from tests.ppe.rnic import doors

PD, CLIENT, QP = 1, 7, 3
ALL = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_ATOMIC
TOP = 1 << 64


def signed(number):
    return number - TOP if number >= TOP >> 1 else number


class Table:
    """A table in ordinary memory, asked through compiled code."""

    def __init__(self, capacity=16, secret=bytes(range(32))):
        self._memory = np.zeros(table_size(capacity), np.uint8)
        self.address = address_of(self._memory)
        build_table(self.address, capacity, secret)

    def ask(self, what, *arguments):
        padded = [signed(each) for each in arguments] + [0] * (6 - len(arguments))
        return doors.ask(what, self.address, *padded)

    def register(self, length=100, iova=0x1000, access=ALL, *, pd=PD, client=CLIENT, address=4096):
        return self.ask(doors.REGISTER, pd, client, address, length, iova, access)

    def remote(self, stag, to, length, access=ACCESS_REMOTE_READ, *, pd=PD, qp=QP):
        return self.ask(doors.REMOTE, pd, qp, stag, to, length, access)

    def local(self, lkey, iova, length, access=0, *, pd=PD):
        return self.ask(doors.LOCAL, pd, lkey, iova, length, access)

    def local_row(self, lkey, iova, length, access=0, *, pd=PD):
        return self.ask(doors.LOCAL_ROW, pd, lkey, iova, length, access)

    def row(self, stag):
        return mr_at(self.ask(doors.FIND, stag))[0]

    @property
    def used(self):
        return mr_table_at(self.address)[0]["used"]


@pytest.fixture
def table():
    return Table()


# --- what is named is where it was registered ----------------------------------------------------


def test_memory_is_found_by_its_owners_addresses_and_by_its_peers(table):
    stag = table.register(100, 0x1000)
    assert table.remote(stag, 0x1000, 100) == 4096
    assert table.remote(stag, 0x1063, 1) == 4096 + 99
    assert table.local(stag, 0x1010, 10) == 4096 + 16


@pytest.mark.parametrize(
    ("to", "length", "outcome"),
    [
        (0x1000, 101, -BASE_OR_BOUNDS),
        (0x0FFF, 1, -BASE_OR_BOUNDS),
        (0x1064, 1, -BASE_OR_BOUNDS),
        (0x1064, 0, 4196),  # nothing, right behind the end
        (0x1065, 0, -BASE_OR_BOUNDS),
        (0, 1, -BASE_OR_BOUNDS),
        (1 << 63, 1, -BASE_OR_BOUNDS),
        (TOP - 1, 1, -BASE_OR_BOUNDS),
        (TOP - 1, 2, -TO_WRAP),
        (TOP - 1, 0x1000 + 2, -TO_WRAP),  # a sum that wraps would land inside
        (0x1001, 0xFFFFFFFF, -BASE_OR_BOUNDS),
    ],
)
def test_no_byte_outside_is_reached(table, to, length, outcome):
    stag = table.register(100, 0x1000)
    assert table.remote(stag, to, length) == outcome
    assert table.local(stag, to, length) == max(outcome, 0)


@given(
    iova=st.one_of(
        st.integers(0, TOP - 1), st.sampled_from([0, 1 << 63, (1 << 63) - 50, TOP - 64])
    ),
    size=st.integers(1, 64),
    shift=st.integers(-70, 70),
    length=st.one_of(st.integers(0, 70), st.sampled_from([0xFFFFFFFF])),
)
def test_bounds_hold_wherever_in_the_address_space(iova, size, shift, length):
    table = Table(2)
    stag = table.register(size, iova)
    if iova + size > TOP:
        assert stag == -errno.EINVAL
        return
    to = (iova + shift) % TOP
    inside = iova <= to and to + length <= iova + size
    expected = 4096 + to - iova if inside else -(TO_WRAP if to + length > TOP else BASE_OR_BOUNDS)
    assert table.remote(stag, to, length) == expected


# --- rights and domains --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "right", [ACCESS_REMOTE_READ, ACCESS_REMOTE_WRITE, ACCESS_REMOTE_ATOMIC, ACCESS_LOCAL_WRITE]
)
def test_only_what_was_given_is_permitted(table, right):
    needs_write = right in (ACCESS_REMOTE_WRITE, ACCESS_REMOTE_ATOMIC)
    given_right = right | ACCESS_LOCAL_WRITE if needs_write else right
    stag = table.register(access=given_right)
    for asked in (ACCESS_REMOTE_READ, ACCESS_REMOTE_WRITE, ACCESS_REMOTE_ATOMIC):
        expected = 4096 if asked & given_right else -ACCESS_RIGHTS
        assert table.remote(stag, 0x1000, 1, asked) == expected
    writable = given_right & ACCESS_LOCAL_WRITE
    assert (table.local(stag, 0x1000, 1, ACCESS_LOCAL_WRITE) != 0) == bool(writable)


@pytest.mark.parametrize("right", [ACCESS_REMOTE_WRITE, ACCESS_REMOTE_ATOMIC])
def test_who_lets_others_write_must_be_able_to_write(table, right):
    assert table.register(access=right) == -errno.EINVAL


def test_another_domains_memory_is_not_associated(table):
    stag = table.register(pd=2)
    assert table.remote(stag, 0x1000, 1) == -NOT_ASSOCIATED
    assert table.local_row(stag, 0x1000, 1) == -errno.EACCES
    assert table.local(stag, 0x1000, 1) == 0


def test_memory_of_one_queue_pair_is_not_anothers(table):
    stag = table.register()
    table.row(stag)["qp"] = QP
    assert table.remote(stag, 0x1000, 1, qp=QP) == 4096
    assert table.remote(stag, 0x1000, 1, qp=QP + 1) == -NOT_ASSOCIATED


def test_a_local_refusal_says_why(table):
    stag = table.register(100, access=ACCESS_REMOTE_READ)
    assert table.local_row(stag ^ 1, 0x1000, 1) == -errno.EINVAL
    assert table.local_row(stag, 0x1000, 1, ACCESS_LOCAL_WRITE) == -errno.EACCES
    assert table.local_row(stag, 0x1000, 101) == -errno.EFAULT


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        ({"length": 0}, errno.EINVAL),
        ({"length": -1}, errno.EINVAL),
        ({"length": (1 << 62) + 1}, errno.EINVAL),
        ({"address": 0}, errno.EINVAL),
        ({"pd": 0}, errno.EINVAL),
        ({"access": 1 << 9}, errno.EINVAL),
        ({"access": -1 & ~ACCESS_ON_DEMAND}, errno.EINVAL),
        ({"access": ACCESS_ON_DEMAND}, errno.EOPNOTSUPP),
        ({"iova": TOP - 99}, errno.EINVAL),
    ],
)
def test_nonsense_is_not_registered(table, changed, refusal):
    assert table.register(**{"length": 100, **changed}) == -refusal
    assert table.used == 0


def test_the_last_addresses_there_are_can_be_registered(table):
    stag = table.register(100, TOP - 100)
    assert table.remote(stag, TOP - 1, 1) == 4096 + 99


# --- STags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stag", [0, 1, -1, 0xFFFFFFFF, 1 << 32, -(1 << 63)])
def test_made_up_stags_name_nothing(table, stag):
    table.register()
    assert table.remote(stag, 0x1000, 1) == -INVALID_STAG
    assert table.local(stag, 0x1000, 1) == 0


def test_each_of_the_32_bits_counts(table):
    stag = table.register()
    for bit in range(32):
        assert table.remote(stag ^ 1 << bit, 0x1000, 1) == -INVALID_STAG


def test_handles_are_a_bijection(table):
    numbers = [*range(3000), (1 << 24) - 1, 1 << 23]
    handles = [table.ask(doors.HANDLE, number) for number in numbers]
    assert [table.ask(doors.NUMBER, handle) for handle in handles] == numbers
    assert all(0 <= handle < 1 << 24 for handle in handles)


def test_stags_follow_no_line(table):
    """ReDMArk: STags that count up let a peer guess its neighbours'."""
    tables = [table, Table(secret=bytes(range(1, 33)))]
    stags = [[each.register() for _ in range(16)] for each in tables]
    for row in stags:
        steps = {after - before for before, after in itertools.pairwise(row)}
        assert len(steps) == 15
        assert len({stag & 0xFF for stag in row}) > 4
    assert not set(stags[0]) & set(stags[1])


def test_a_row_used_again_has_another_name(table):
    seen = set()
    for _ in range(1000):
        stag = table.register()
        assert stag not in seen
        seen.add(stag)
        assert table.ask(doors.DEREGISTER, stag, CLIENT) == 0
        assert table.remote(stag, 0x1000, 1) == -INVALID_STAG
    assert len({stag >> 8 for stag in seen}) > 900  # the handle changes, not only the key


# --- the end of a registration -------------------------------------------------------------------


def test_after_invalidation_nobody_gets_in_and_the_memory_is_kept(table):
    stag = table.register()
    assert table.ask(doors.INVALIDATE, stag, PD) == 0
    assert table.remote(stag, 0x1000, 1) == -INVALID_STAG
    assert table.local_row(stag, 0x1000, 1) == -errno.EINVAL
    assert table.ask(doors.INVALIDATE, stag, PD) == -errno.EINVAL
    assert table.used == 1
    assert table.ask(doors.DEREGISTER, stag, CLIENT) == 0
    assert table.used == 0


def test_another_domains_memory_cannot_be_invalidated(table):
    stag = table.register()
    for what in (doors.INVALIDATE, doors.INVALIDATE_FOR_PEER):
        assert table.ask(what, stag, 2, QP) == -errno.EACCES
    assert table.remote(stag, 0x1000, 1) == 4096


def test_a_peer_invalidates_only_what_was_lent_to_it(table):
    own = table.register(access=ACCESS_LOCAL_WRITE | ACCESS_MW_BIND)
    lent = table.register(access=ACCESS_REMOTE_READ)
    bound = table.register(access=ACCESS_REMOTE_READ)
    table.row(bound)["qp"] = QP + 1
    assert table.ask(doors.INVALIDATE_FOR_PEER, own, PD, QP) == -errno.EACCES
    assert table.ask(doors.INVALIDATE_FOR_PEER, bound, PD, QP) == -errno.EACCES
    assert table.ask(doors.INVALIDATE_FOR_PEER, lent, PD, QP) == 0
    assert table.ask(doors.INVALIDATE_FOR_PEER, lent, PD, QP) == -errno.EINVAL


def test_memory_in_use_is_not_deregistered(table):
    stag = table.register()
    row = table.ask(doors.FIND, stag)
    table.ask(doors.HOLD, row)
    assert table.ask(doors.DEREGISTER, stag, CLIENT) == -errno.EBUSY
    assert table.ask(doors.INVALIDATE, stag, PD) == 0
    assert table.ask(doors.DEREGISTER, stag, CLIENT) == -errno.EBUSY
    table.ask(doors.LET_GO, row)
    assert table.ask(doors.DEREGISTER, stag, CLIENT) == 0
    assert table.ask(doors.DEREGISTER, stag, CLIENT) == -errno.EINVAL


def test_another_clients_memory_is_not_deregistered(table):
    stag = table.register()
    assert table.ask(doors.DEREGISTER, stag, CLIENT + 1) == -errno.EINVAL
    assert table.used == 1


def test_a_region_is_lent_anew_under_a_new_name(table):
    stag = table.register(access=ACCESS_REMOTE_READ)
    assert table.ask(doors.RENEW, stag, PD, ALL) == -errno.EINVAL  # valid still
    table.ask(doors.INVALIDATE, stag, PD)
    row = table.ask(doors.FIND, stag)
    table.ask(doors.HOLD, row)
    assert table.ask(doors.RENEW, stag, PD, ALL) == -errno.EBUSY
    table.ask(doors.LET_GO, row)
    assert table.ask(doors.RENEW, stag, 2, ALL) == -errno.EACCES
    assert table.ask(doors.RENEW, stag, PD, ACCESS_REMOTE_WRITE) == -errno.EINVAL
    again = table.ask(doors.RENEW, stag, PD, ALL)
    assert again not in (0, stag)
    assert table.remote(stag, 0x1000, 1) == -INVALID_STAG
    assert table.remote(again, 0x1000, 1, ACCESS_REMOTE_WRITE) == 4096


def test_a_clients_end_frees_its_memory_and_leaves_others(table):
    mine = [table.register() for _ in range(3)]
    other = table.register(client=CLIENT + 1)
    held = table.ask(doors.FIND, mine[1])
    table.ask(doors.HOLD, held)
    assert table.ask(doors.REMOVE_CLIENT, CLIENT) == 1
    table.ask(doors.LET_GO, held)
    assert table.ask(doors.REMOVE_CLIENT, CLIENT) == 0
    assert table.used == 1
    assert table.remote(other, 0x1000, 1) == 4096


def test_a_full_table_says_so_and_has_room_again(table):
    stags = [table.register() for _ in range(16)]
    assert table.register() == -errno.ENOMEM
    assert table.ask(doors.DEREGISTER, stags[5], CLIENT) == 0
    assert table.register() > 0


@pytest.mark.parametrize("capacity", [1, 2, 3, 1000])
def test_any_number_of_rows_works(capacity):
    table = Table(capacity)
    stags = [table.register() for _ in range(capacity)]
    assert len(set(stags)) == capacity
    assert table.register() == -errno.ENOMEM
    assert all(table.remote(stag, 0x1000, 1) == 4096 for stag in stags)


@pytest.mark.parametrize("capacity", [0, -1, ROWS_MAX + 1])
def test_a_table_of_no_or_too_many_rows_is_refused(capacity):
    with pytest.raises(ValueError, match="outside 1"):
        table_size(capacity)


def test_two_tables_without_a_given_secret_differ():
    tables = [Table(secret=None) for _ in range(2)]
    assert len({table.register() for table in tables}) == 2
