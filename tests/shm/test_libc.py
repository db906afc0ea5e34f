"""Futex, eventfd and the generic system call: results and `-errno`, never an exception."""

import errno
import os
import select
import socket
import threading
import time

import numpy as np
import pytest

from shm.libc import external
from shm.view import address_of
from tests.shm import doors

NEVER = 2**63 - 1
DEADLINE_S = 30


def test_a_futex_whose_word_has_changed_does_not_sleep():
    word = np.array([5], np.int32)
    assert doors.futex_wait(address_of(word), 4, NEVER) == -errno.EAGAIN


@pytest.mark.parametrize("value", [0, 5, -1, -(2**31), 2**31 - 1])
def test_a_futex_sleeps_until_its_deadline_while_the_word_is_as_expected(value):
    word = np.array([value], np.int32)
    deadline_ns = time.monotonic_ns() + 5_000_000
    assert doors.futex_wait(address_of(word), value, deadline_ns) == -errno.ETIMEDOUT
    assert time.monotonic_ns() >= deadline_ns


def test_waking_says_how_many_slept():
    word, results = np.zeros(1, np.int32), []
    ends = time.monotonic_ns() + DEADLINE_S * 10**9

    def sleep():
        results.append(doors.futex_wait(address_of(word), 0, ends))

    assert doors.futex_wake(address_of(word), 1) == 0
    threads = [threading.Thread(target=sleep) for _ in range(3)]
    for thread in threads:
        thread.start()
    woken = 0
    while woken < 3 and time.monotonic_ns() < ends:
        woken += doors.futex_wake(address_of(word), 2)
    for thread in threads:
        thread.join(DEADLINE_S)
    assert woken == 3
    assert results == [0, 0, 0]


@pytest.fixture
def eventfd():
    descriptor = os.eventfd(0, os.EFD_NONBLOCK)
    yield descriptor
    os.close(descriptor)


def test_an_eventfd_counts_until_it_is_drained(eventfd):
    assert doors.eventfd_drain(eventfd) == -errno.EAGAIN
    assert doors.eventfd_signal(eventfd) == 8
    assert doors.eventfd_signal(eventfd) == 8
    assert os.eventfd_read(eventfd) == 2
    assert doors.eventfd_signal(eventfd) == 8
    assert doors.eventfd_drain(eventfd) == 8
    assert doors.eventfd_drain(eventfd) == -errno.EAGAIN


def test_a_full_eventfd_answers_and_does_not_block(eventfd):
    os.eventfd_write(eventfd, 2**64 - 2)
    assert doors.eventfd_signal(eventfd) == -errno.EAGAIN
    assert doors.eventfd_drain(eventfd) == 8


def test_draining_does_not_wait_even_when_the_other_side_made_the_descriptor_blocking(eventfd):
    os.set_blocking(eventfd, True)
    assert doors.eventfd_drain(eventfd) == -errno.EAGAIN
    assert doors.eventfd_signal(eventfd) == 8
    assert doors.eventfd_drain(eventfd) == 8
    assert doors.eventfd_drain(eventfd) == -errno.EAGAIN


@pytest.fixture
def sockets():
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    yield pair
    for end in pair:
        end.close()


def test_a_wake_makes_the_other_end_of_a_socket_pair_readable(sockets):
    ours, theirs = sockets
    assert doors.wake_signal(ours.fileno()) == 8
    assert select.select([theirs], [], [], DEADLINE_S)[0]
    assert len(theirs.recv(64)) == 8


def test_a_wake_into_a_full_blocking_socket_comes_back(sockets):
    ours, _theirs = sockets
    ours.setblocking(True)
    while (result := doors.wake_signal(ours.fileno())) > 0:
        pass
    assert result == -errno.EAGAIN


def test_a_wake_into_a_socket_whose_reader_is_gone_raises_no_signal(sockets):
    ours, theirs = sockets
    theirs.close()
    assert doors.wake_signal(ours.fileno()) == -errno.EPIPE


def test_a_wake_may_go_to_an_eventfd(eventfd):
    assert doors.wake_signal(eventfd) == 8
    assert os.eventfd_read(eventfd) == 1


def test_a_failing_call_gives_minus_errno():
    assert doors.failing_close(-1) == -errno.EBADF
    assert doors.eventfd_signal(-1) == -errno.EBADF


def test_a_function_that_the_c_library_does_not_have_is_refused_at_import():
    with pytest.raises(ImportError, match="no function futx"):
        external("futx", None)
