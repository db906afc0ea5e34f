"""The table of keys holds what was put in, through any order of putting and taking out."""

import errno
import random

import pytest

from ppe.cycle.rnic.verbs import keys
from ppe.cycle.rnic.verbs.queues import Block
from tests.ppe.rnic.verbs import doors


class Table:
    def __init__(self, entries):
        self._block = Block(keys.keys_size(entries))
        self.address = keys.build_keys(self._block.address, entries)

    def put(self, key, value):
        return doors.ask(doors.PUT, self.address, key, value)

    def get(self, key):
        return doors.ask(doors.GET, self.address, key, 0)

    def remove(self, key):
        return doors.ask(doors.REMOVE, self.address, key, 0)


def test_a_key_leads_to_its_value_until_it_is_taken_out():
    table = Table(4)
    assert table.put(0, 11) == 0
    assert table.put(0xFFFFFFFF, 12) == 0
    assert (table.get(0), table.get(0xFFFFFFFF), table.get(1)) == (11, 12, 0)
    assert table.remove(0) == 0
    assert (table.get(0), table.get(0xFFFFFFFF)) == (0, 12)


def test_a_key_is_entered_once_and_taken_out_once():
    table = Table(4)
    assert table.put(5, 1) == 0
    assert table.put(5, 2) == -errno.EEXIST
    assert table.get(5) == 1
    assert table.remove(5) == 0
    assert table.remove(5) == -errno.ENOENT


def test_a_table_takes_what_it_was_made_for_and_then_refuses():
    table = Table(4)
    assert [table.put(key, 1) for key in range(5)] == [0] * 4 + [-errno.ENOMEM]


@pytest.mark.parametrize("seed", range(10))
def test_it_agrees_with_a_dictionary_after_any_history(seed):
    chance, table, model = random.Random(seed), Table(16), {}
    for _ in range(500):
        key = chance.choice(range(24)) * chance.choice([1, 1 << 20])
        if chance.random() < 0.5:
            value = chance.randrange(1, 1 << 60)
            expected = -errno.EEXIST if key in model else 0
            if len(model) == 16 and key not in model:
                expected = -errno.ENOMEM
            assert table.put(key, value) == expected
            if expected == 0:
                model[key] = value
        else:
            assert table.remove(key) == (0 if model.pop(key, None) else -errno.ENOENT)
        assert all(table.get(known) == value for known, value in model.items())
