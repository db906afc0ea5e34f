"""The line to a guest's agent: every command gets its own answer, whatever came late before it."""

import base64
import socket

import pytest

from tests.guest.agent import Agent, GuestFailed, Ran

GRACE_S = 0.05  # a command with a limit of 0 is given up after this


@pytest.fixture
def line():
    """An agent, and the end of its line at which the test is the guest."""
    ours, guests = socket.socketpair()
    guests.settimeout(20)
    agent = Agent(ours, grace_s=GRACE_S)
    with guests:
        yield agent, guests
    agent.close()


def answer(number, text, status=0):
    """What a guest sends about a command."""
    return f"{number} {status} {len(text)}\n{text}".encode()


def give_up(agent):
    """Run a command that the guest leaves without a whole answer."""
    with pytest.raises(GuestFailed, match="no answer in time to command 1"):
        agent.run("first", 0)


def test_a_command_carries_its_number_and_limit_and_gets_what_it_printed(line):
    agent, guest = line
    guest.sendall(answer(1, "two\nlines\n", status=3))
    assert agent.run("echo é", 30) == Ran(3, "two\nlines\n")
    number, limit, command = guest.recv(1000).split()
    assert (number, limit) == (b"1", b"30")
    assert base64.b64decode(command).decode() == "echo é"


def test_the_answer_of_a_command_given_up_is_not_taken_for_the_next_ones(line):
    agent, guest = line
    give_up(agent)
    guest.sendall(answer(1, "late") + answer(2, "mine") + answer(3, "after"))
    assert agent.run("second", 30).output == "mine"
    assert agent.run("third", 30).output == "after"


@pytest.mark.parametrize("cut", range(1, len(answer(1, "2 0 4\nlate"))))
def test_an_answer_that_was_half_there_when_given_up_is_dropped_whole(line, cut):
    agent, guest = line
    late = answer(1, "2 0 4\nlate")  # it reads like an answer itself
    guest.sendall(late[:cut])
    give_up(agent)
    guest.sendall(late[cut:] + answer(2, "mine"))
    assert agent.run("second", 30).output == "mine"


def test_being_ready_late_is_no_answer_to_a_command(line):
    agent, guest = line
    with pytest.raises(GuestFailed, match="no answer in time to command 0"):
        agent.wait_until_ready(GRACE_S)
    guest.sendall(b"0 0 0\n" + answer(1, "mine"))
    assert agent.run("first", 30).output == "mine"


def test_an_answer_to_what_was_not_asked_is_a_failure(line):
    agent, guest = line
    guest.sendall(answer(2, "of another"))
    with pytest.raises(GuestFailed, match="answered 2 instead of 1"):
        agent.run("first", 30)


def test_noise_on_the_line_is_a_failure(line):
    agent, guest = line
    guest.sendall(b"x" * 1000)
    with pytest.raises(GuestFailed, match="no answer: b'xxx"):
        agent.run("first", 30)


def test_a_guest_that_hangs_up_is_a_failure(line):
    agent, guest = line
    guest.shutdown(socket.SHUT_WR)
    with pytest.raises(GuestFailed, match="hung up"):
        agent.run("first", 30)
