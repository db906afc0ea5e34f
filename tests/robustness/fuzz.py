"""A seeded fuzzer for everything that reads what a peer sent. Each role runs in a child process
that writes down what it is about to feed, so that also a crash or a hang leaves the guilty
sequence behind: a JSON file, and the command that feeds it again.

    python -m tests.robustness.fuzz [--role target ...] [--seed 1] [--seconds 30]
    python -m tests.robustness.fuzz --replay guilty-target-1-77.json
"""

import argparse
import json
import mmap
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
JOURNAL = 32 << 20
HANG_S = 30
START_S = 300  # a cold cache compiles first
RSS_GROWTH = 96 << 20  # a child's arrays and caches; a leak per case is far more
WARM_CASES = 200


def roles():
    """Every role by its name, imported late: each loads a good part of the project."""
    from tests.robustness.fuzz_initiator import InitiatorFuzz
    from tests.robustness.fuzz_iwarp import IwarpFuzz
    from tests.robustness.fuzz_parsers import LoginFuzz, ParserFuzz
    from tests.robustness.fuzz_socket import SocketFuzz
    from tests.robustness.fuzz_target import TargetFuzz

    found = (TargetFuzz, InitiatorFuzz, LoginFuzz, ParserFuzz, SocketFuzz, IwarpFuzz)
    return {role.name: role for role in found}


ROLES = ("target", "initiator", "login", "parsers", "socket", "iwarp")


class Journal:
    """What was fed in this case, in memory that outlives the process."""

    def __init__(self, path):
        with Path(path).open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), JOURNAL)

    def begin(self, case):
        """A case begins: forget the one before."""
        self._at = 16
        self._map[:16] = case.to_bytes(8, "little") + (0).to_bytes(8, "little")

    def add(self, message):
        """Write a message down, before it is fed."""
        record = len(message).to_bytes(4, "little") + message
        if self._at + len(record) <= JOURNAL:
            self._map[self._at : self._at + len(record)] = record
            self._at += len(record)
            self._map[8:16] = (self._at - 16).to_bytes(8, "little")


def read_journal(path):
    """The case it was in, how far it was, and its messages."""
    raw = Path(path).read_bytes()
    case, length = int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:16], "little")
    at, messages = 16, []
    while at < 16 + length:
        size = int.from_bytes(raw[at : at + 4], "little")
        messages.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    return case, length, messages


# --- in the child ----------------------------------------------------------------------------


def rss():
    """Resident bytes of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    return 0


def feed_case(role, case_seed, messages, journal=None):
    """One case, from its beginning to its checks."""
    role.begin(case_seed)
    for message in role.messages() if messages is None else messages:
        if journal is not None:
            journal.add(message)
        role.feed(message)
    role.end()


def child(name, seed, seconds, path, cases):
    """Fuzz until the time is up, or so many cases were run."""
    journal = Journal(path)
    journal.begin(0)
    role = roles()[name](seed)
    until, case, before = time.monotonic() + seconds, 0, 0
    try:
        while (case < cases) if cases else (time.monotonic() < until):
            case += 1
            journal.begin(case)
            feed_case(role, f"{name} {seed} {case}", None, journal)
            if case == WARM_CASES:
                before = rss()
            if before and case % 200 == 0:
                assert rss() - before < RSS_GROWTH, "memory grows from case to case"
    finally:
        if hasattr(role, "close"):
            role.close()
    sys.stdout.write(f"{name}: seed {seed}, {case} cases, {role.pdus} messages, all well\n")


# --- in the parent ---------------------------------------------------------------------------


def watch(process, path):
    """Wait for a child. Why it is guilty, or None."""
    last, since = None, time.monotonic() + START_S - HANG_S
    while True:
        try:
            code = process.wait(0.2)
        except subprocess.TimeoutExpired:
            now = read_journal(path)[:2]
            if now != last:
                since = max(since, time.monotonic()) if last is None else time.monotonic()
                last = now
            if time.monotonic() - since > HANG_S:
                process.kill()
                process.wait(30)
                return f"nothing moved for {HANG_S} s"
            continue
        if code < 0:
            return f"killed by signal {-code}"
        return f"exit code {code}" if code else None


def fuzz(name, seed, seconds, folder, *, cases=0):
    """One role. The guilty file, or None."""
    with tempfile.NamedTemporaryFile(prefix="journal-") as file:
        file.truncate(JOURNAL)
        words = ["--child", file.name, "--role", name, "--seed", str(seed)]
        words += ["--seconds", str(seconds), "--cases", str(cases)]
        started = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "tests.robustness.fuzz", *words],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        try:
            why = watch(started, file.name)
        finally:
            if started.poll() is None:
                started.kill()
                started.wait(30)
        if why is None:
            return None
        case, _, messages = read_journal(file.name)
        found = Path(folder) / f"guilty-{name}-{seed}-{case}.json"
        told = {"role": name, "seed": seed, "case": case, "why": why}
        told["messages"] = [message.hex() for message in messages]
        found.write_text(json.dumps(told, indent=1) + "\n")
        sys.stderr.write(
            f"{name}: seed {seed}, case {case}: {why}\n"
            f"again: python -m tests.robustness.fuzz --replay {found}\n"
        )
        return found


def replay(path):
    """Feed a guilty sequence again, in this process: a crash is this process's."""
    told = json.loads(Path(path).read_text())
    role = roles()[told["role"]](told["seed"])
    messages = [bytes.fromhex(message) for message in told["messages"]]
    case_seed = f"{told['role']} {told['seed']} {told['case']}"
    try:
        feed_case(role, case_seed, messages)
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        if hasattr(role, "close"):
            role.close()
    sys.stdout.write(f"{len(messages)} messages, and nothing is wrong\n")
    return 0


def main(arguments=None):
    """Fuzz every role named, one after another, or replay a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", action="append", choices=ROLES, help="default: all of them")
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    parser.add_argument("--seconds", type=float, default=30, help="of all roles together")
    parser.add_argument("--cases", type=int, default=0, help="so many of each role instead")
    parser.add_argument("--replay", metavar="FILE")
    parser.add_argument("--folder", default=".", help="where guilty sequences are written")
    parser.add_argument("--child", metavar="JOURNAL", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.replay:
        return replay(asked.replay)
    names = asked.role or list(ROLES)
    if asked.child:
        child(names[0], asked.seed, asked.seconds, asked.child, asked.cases)
        return 0
    seed = asked.seed or random.SystemRandom().randrange(1, 1 << 31)
    share = asked.seconds / len(names)
    found = [fuzz(name, seed, share, asked.folder, cases=asked.cases) for name in names]
    return 1 if any(found) else 0


if __name__ == "__main__":
    sys.exit(main())
