"""No client can harm the engine or another client: hostile processes against a real daemon.

After each of them the engine lives, an honest client's bytes are right, and descriptors, mappings
and tables are what they were.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.honest import Echo
from tests.e2e.raw import RawClient, facts
from tests.e2e.running import ROOT, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def start(engine, behaviour, seed=0):
    """Start a hostile process."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.hostile", behaviour, facts(engine), str(seed)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@contextlib.contextmanager
def hostile(engine, behaviour, seed=0):
    """Run a hostile process and end it, whatever happens."""
    child = start(engine, behaviour, seed)
    try:
        yield child
    finally:
        child.kill()
        child.wait(10)
        for pipe in (child.stdin, child.stdout, child.stderr):
            pipe.close()


@pytest.fixture
def echo(engine):
    """Give an honest client of the engine, whose bytes were right and are right at the end."""
    with Echo(engine) as echo:
        echo.verify()
        yield echo
        echo.verify()


@pytest.mark.parametrize(
    ("behaviour", "seed"),
    [
        *(("scribble", seed) for seed in range(8)),
        ("lie", 0),
        ("truncate_channel", 0),
        ("truncate_region", 0),
        ("truncate_region", 1),
        ("bad_segments", 0),
        ("babble", 0),
        ("nested", 0),
        ("deaf", 0),
        ("twice", 0),
    ],
)
def test_a_hostile_client_harms_nobody(engine, echo, behaviour, seed):
    before = engine.levels()
    with hostile(engine, behaviour, seed) as child:
        deadline = time.monotonic() + 40
        while child.poll() is None:
            echo.verify(1)
            assert time.monotonic() < deadline, f"{behaviour} did not end"
        said, complaint = child.communicate(timeout=10)
    assert said == "done\n", complaint
    engine.assert_settles_at(before)


def test_a_client_that_takes_its_memory_away_is_named(engine, echo):
    with hostile(engine, "truncate_channel") as child:
        child.wait(30)
    wait_until(
        lambda: any("took its shared memory away" in note for note in engine.stat()["notes"]),
        "the note",
    )
    errors = engine.ppe("errors", "--name", engine.name).stdout
    assert "memory went away" in errors


def test_a_client_that_never_reaps_stalls_alone(engine, echo):
    before = engine.levels()
    with hostile(engine, "never_reap") as child:
        assert child.stdout.readline() == "full\n"
        echo.verify(100)
        child.stdin.close()
        child.wait(10)
    engine.assert_settles_at(before)


@pytest.mark.parametrize("behaviour", ["die_posting", "die_receiving"])
@pytest.mark.parametrize("seed", range(3))
def test_a_client_may_die_at_any_moment(engine, echo, behaviour, seed):
    before = engine.levels()
    with hostile(engine, behaviour) as child:
        assert child.stdout.readline() == "running\n", child.stderr.read()
        time.sleep(random.Random(seed).uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        echo.verify(5)
    engine.assert_settles_at(before)


def test_a_client_that_is_killed_at_once_leaves_nothing(engine, echo):
    before = engine.levels()
    with hostile(engine, "suicide") as child:
        assert child.wait(20) == -signal.SIGKILL
    engine.assert_settles_at(before)


def test_a_client_killed_in_its_sleep_leaves_nothing(engine, echo):
    before = engine.levels()
    script = (
        "import host\n"
        f"with host.connect({engine.name!r}) as engine, engine.channel() as channel:\n"
        "    listener, _ = channel.listen('127.0.0.1', 0)\n"
        "    print('asleep', flush=True)\n"
        "    channel.accept(listener)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=engine.environment, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout.readline() == b"asleep\n"
        time.sleep(0.1)
    finally:
        child.kill()
        child.wait(10)
        child.stdout.close()
    engine.assert_settles_at(before)


def test_two_hundred_clients_at_once(engine, echo):
    before = engine.levels()
    told = facts(engine)
    clients = []
    try:
        for _ in range(200):
            client = RawClient(told)
            clients.append(client)
            region, descriptor, memory = client.region(4096)
            memory.close()
            os.close(descriptor)
            assert region > 0
        assert engine.levels()["clients"] == before["clients"] + 200
        echo.verify(5)
    finally:
        for client in clients:
            client.close()
    engine.assert_settles_at(before)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
CALLS = st.sampled_from(
    [
        *("hello", "attach", "register", "detach", "unregister", "accounts", "stat", "x"),
        *("share", "move"),
    ]
)
FIELDS = (
    *("version", "layout", "work", "events", "size", "channel", "region", "id"),
    *("engine", "beside", "endpoint", "to"),
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    call=CALLS | JSON,
    fields=st.dictionaries(st.sampled_from(FIELDS), JSON),
    greet=st.booleans(),
    descriptors=st.integers(0, 10),
)
def test_every_message_gets_an_answer_or_the_end(shared_engine, call, fields, greet, descriptors):
    import json

    null = os.open(os.devnull, os.O_RDONLY)
    client = RawClient(facts(shared_engine), greet=greet)
    try:
        data = json.dumps({"call": call, **fields}).encode()
        answer = client.say(data, [null] * descriptors)
        if answer is not None:
            for descriptor in answer[1]:
                os.close(descriptor)
            assert isinstance(answer[0], dict)
    finally:
        client.close()
        os.close(null)
    assert shared_engine.is_alive


def test_after_all_that_the_engine_compiled_nothing(engine):
    assert engine.stat()["compilations_since_ready"] == 0
