"""Labelled counters and the distinct-error log, read as another process would read them."""

import numpy as np
import pytest

from shm.counters import LABEL_SIZE, NAME_SIZE, VALUE, CounterSet, read_labels
from shm.error_log import CAPACITY, ERROR_LOG_SIZE, ErrorRecord, read_errors
from shm.view import address_of
from tests.shm import doors

ROWS = (("posts", "operations taken"), ("naïve", "labels may be UTF-8: µs"))


def test_labels_are_read_back_from_the_memory_they_were_written_to():
    counters = CounterSet(ROWS)
    memory = np.zeros(counters.labels_size, np.uint8)
    counters.write_labels(memory)
    assert read_labels(memory) == list(ROWS)
    assert counters.values_size == 2 * VALUE.itemsize


def test_counting_touches_one_counter_only():
    counters = CounterSet(ROWS)
    values = np.zeros(3, VALUE)
    doors.count(address_of(values), counters.index("naïve"), 5)
    doors.count(address_of(values), counters.index("naïve"), -2)
    assert values.tolist() == [0, 3, 0]


def test_a_maximum_only_rises():
    values = np.zeros(2, VALUE)
    for value in (5, 3, 9, -1):
        doors.keep_maximum(address_of(values), 1, value)
    assert values.tolist() == [0, 9]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ((("a", "x"), ("a", "y")), "same name"),
        ((("a", ""),), "needs a label"),
        ((("a", "x" * (LABEL_SIZE + 1)),), "needs a label"),
        ((("n" * (NAME_SIZE + 1), "x"),), "needs a label"),
    ],
)
def test_a_bad_declaration_is_refused(rows, complaint):
    with pytest.raises(ValueError, match=complaint):
        CounterSet(rows)


def error_log():
    memory = np.zeros(ERROR_LOG_SIZE, np.uint8)
    return memory, address_of(memory)


def test_a_million_errors_of_a_kind_make_one_record():
    memory, log = error_log()
    for at in range(1000):
        assert doors.log_error(log, 3, 104, at + 1, 10 * at)
    assert read_errors(memory) == [ErrorRecord(3, 104, 1000, 0, 9990, 1000)]


def test_errors_are_told_apart_by_code_and_detail_and_kept_in_order():
    memory, log = error_log()
    for code, detail in ((1, 0), (2, 0), (1, 5), (2, 0), (1, 0)):
        assert doors.log_error(log, code, detail, 0, 1)
    kinds = [(error.code, error.detail, error.count) for error in read_errors(memory)]
    assert kinds == [(1, 0, 2), (2, 0, 2), (1, 5, 1)]


def test_a_full_log_says_so_and_still_counts_the_kinds_it_has():
    memory, log = error_log()
    for detail in range(CAPACITY):
        assert doors.log_error(log, 1, detail, 0, 1)
    assert not doors.log_error(log, 2, 0, 0, 1)
    assert doors.log_error(log, 1, 7, 0, 2)
    errors = read_errors(memory)
    assert len(errors) == CAPACITY
    assert errors[7].count == 2


def test_a_record_without_its_code_is_not_shown():
    memory, log = error_log()
    doors.log_error(log, 1, 0, 0, 1)
    assert memory.view(np.int64)[0] == 1
    memory.view(np.int64)[0] = 0
    assert read_errors(memory) == []
