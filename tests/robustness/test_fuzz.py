"""The fuzzer for as long as the suite has time, and proof that it leaves what is guilty behind."""

import json
import random
import subprocess
import sys

import pytest

from shm.jit import JIT_DISABLED
from tests.robustness import fuzz
from tests.robustness.fuzz_parsers import READERS, SEEDS, ParserFuzz, mutated
from tests.robustness.fuzz_target import TargetFuzz

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(200),
    pytest.mark.skipif(JIT_DISABLED, reason="a fuzzer is for what runs"),
]
CASES = {
    "target": 400,
    "initiator": 1500,
    "login": 1500,
    "parsers": 250,
    "socket": 60,
    "iwarp": 1500,
}


@pytest.mark.parametrize("name", fuzz.ROLES)
def test_nothing_that_a_peer_sends_does_harm(tmp_path, name):
    assert fuzz.fuzz(name, 1, 0, tmp_path, cases=CASES[name]) is None


@pytest.mark.soak
@pytest.mark.parametrize("name", fuzz.ROLES)
def test_nothing_that_a_peer_sends_does_harm_for_long(tmp_path, name):
    seed = random.SystemRandom().randrange(1, 1 << 31)
    assert fuzz.fuzz(name, seed, 120, tmp_path) is None


def test_every_reader_takes_what_is_right():
    for name, (parse, _) in READERS.items():
        parse(SEEDS[name])


def test_equal_seeds_give_equal_inputs():
    found = [mutated(random.Random(seed), b"a=b\0c=d\0") for seed in (1, 1, 2, 3, 4)]
    assert found[0] == found[1]
    assert len(set(found)) > 1


def test_a_sequence_fed_again_does_the_same():
    outcomes = []
    for _ in range(2):
        role, messages = TargetFuzz(5), []
        role.begin("target 5 1")
        for message in role.messages():
            messages.append(message)
            role.feed(message)
        outcomes.append((messages, role.cmd_sn, role.ttts))
        role.end()
    assert outcomes[0] == outcomes[1]


BROKEN = """
import os, signal, sys, time
from tests.robustness import fuzz, fuzz_parsers
how = sys.argv[1]
def broken(data):
    if len(data) > 40:
        if how == "crash": os.kill(os.getpid(), signal.SIGSEGV)
        if how == "hang": time.sleep(600)
        raise KeyError(how)
fuzz_parsers.READERS = {"text": (broken, ())}
fuzz.main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("how", "why"), [("crash", "signal 11"), ("hang", "nothing moved"), ("raise", "exit code 1")]
)
def test_what_is_guilty_is_left_behind(tmp_path, monkeypatch, capfd, how, why):
    """The child is a broken reader's; the parent is the real one."""
    real = subprocess.Popen

    def start(words, **options):
        return real(
            [sys.executable, "-c", BROKEN, how, *words[words.index("--child") :]], **options
        )

    monkeypatch.setattr(fuzz.subprocess, "Popen", start)
    monkeypatch.setattr(fuzz, "HANG_S", 1)
    monkeypatch.setattr(fuzz, "START_S", 20)
    found = fuzz.fuzz("parsers", 9, 30, tmp_path)
    told = json.loads(found.read_text())
    assert why in told["why"]
    assert f"--replay {found}" in capfd.readouterr().err
    guilty = bytes.fromhex(told["messages"][-1])
    assert len(guilty) > 40
    assert all(len(bytes.fromhex(message)) <= 40 for message in told["messages"][:-1])


def test_a_guilty_file_is_fed_again(tmp_path, capsys, monkeypatch):
    path = tmp_path / "guilty.json"
    told = {"role": "parsers", "seed": 1, "case": 1, "why": "", "messages": ["00", "ff3d00"]}
    path.write_text(json.dumps(told))
    assert fuzz.main(["--replay", str(path)]) == 0
    assert "2 messages" in capsys.readouterr().out

    def broken(self, message):
        raise KeyError(message)

    monkeypatch.setattr(ParserFuzz, "feed", broken)
    assert fuzz.main(["--replay", str(path)]) == 1
