"""Clients are killed at random moments while two others move verified bytes through the engine.

`python -m tests.soak.clients_soak --kills 1000` prints one JSON object; exits with 1 when anything
was left behind, a byte was wrong, or the engine did not survive. The one rule: every moment of a
kill comes from the seed.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.e2e.honest import Echo
from tests.e2e.raw import facts
from tests.e2e.running import ROOT, RunningEngine

BEHAVIOURS = ("die_posting", "die_receiving", "scribble", "suicide")
LIFE_S = 0.12  # a client starts in about half of it, so some die before they have said hello
SETTLE_S = 20
RSS_GROWTH_KIB = 16 << 10  # what allocators may keep; a leak of one region per kill is far more


class Verifier(threading.Thread):
    """An honest client in its own thread, echoing blocks until told to stop."""

    def __init__(self, engine):
        super().__init__()
        self._engine, self._stop_asked = engine, threading.Event()
        self.blocks, self.error = 0, None
        self.ready = threading.Event()

    def run(self):
        """Echo and verify."""
        try:
            with Echo(self._engine) as echo:
                while not self._stop_asked.is_set():
                    echo.verify(1)
                    self.blocks = echo.blocks
                    self.ready.set()
        except BaseException as error:
            self.error = repr(error)
        finally:
            self.ready.set()

    def stop(self):
        """Have it end and wait for it."""
        self._stop_asked.set()
        self.join(60)


def kill_one(engine, told, rng):
    """Start one client and kill it at a moment of the seed's choice. Return how it was found."""
    child = subprocess.Popen(
        [sys.executable, "-S", "-m", "tests.e2e.hostile", rng.choice(BEHAVIOURS), told,
         str(rng.getrandbits(30))],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        time.sleep(rng.uniform(0, LIFE_S))
    finally:
        child.send_signal(signal.SIGKILL)
        status = child.wait(30)
    return "killed" if status == -signal.SIGKILL else "ended"


def rss_kib(pid):
    """Return the resident memory of a process, in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def segments():
    """Name our segments in shared memory now."""
    return {path.name for path in Path("/dev/shm").glob("ppe-*")}


def settled(engine):
    """Return what is held once it has been the same for half a second."""
    deadline = time.monotonic() + SETTLE_S
    before, same_since = engine.levels(), time.monotonic()
    while time.monotonic() - same_since < 0.5:
        if time.monotonic() > deadline:
            raise TimeoutError(f"what the engine holds still changes: {before}")
        time.sleep(0.05)
        if (now := engine.levels()) != before:
            before, same_since = now, time.monotonic()
    return before


def soak(kills, seed):
    """Run it. Return the report; `left` is empty when all is as it was before."""
    rng = random.Random(seed)
    found = {"killed": 0, "ended": 0}
    with tempfile.TemporaryDirectory() as directory, RunningEngine(directory) as engine:
        verifiers = [Verifier(engine) for _ in range(2)]
        for verifier in verifiers:
            verifier.start()
            verifier.ready.wait(60)
        told = facts(engine)
        for _ in range(5):  # so that what the first client of all costs is not counted
            kill_one(engine, told, rng)
        before, rss_before = settled(engine), rss_kib(engine.pid)
        segments_before = segments()
        for _ in range(kills):
            found[kill_one(engine, told, rng)] += 1
        left = _difference(engine, before) | _segments_left(segments_before)
        rss_after = rss_kib(engine.pid)
        for verifier in verifiers:
            verifier.stop()
        errors = [verifier.error for verifier in verifiers if verifier.error]
        report = {
            "kills": kills,
            "seed": seed,
            **found,
            "verified_blocks": sum(verifier.blocks for verifier in verifiers),
            "errors": errors,
            "left": left,
            "rss_growth_kib": rss_after - rss_before,
            "engine_alive": engine.is_alive,
            "compilations_since_ready": engine.stat()["compilations_since_ready"],
        }
    grown = report["rss_growth_kib"] > RSS_GROWTH_KIB
    report["ok"] = not (errors or left or grown) and report["engine_alive"]
    return report


def _difference(engine, before):
    """Return what differs from `before` once the engine had time to take everything back."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        now = engine.levels()
        left = {name: [before[name], now[name]] for name in before if before[name] != now[name]}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def _segments_left(before):
    """Return the segments of ours that came and stayed. Other engines' pass by in a moment."""
    deadline = time.monotonic() + SETTLE_S
    new = segments() - before
    while new and time.monotonic() < deadline:
        time.sleep(0.05)
        new &= segments()
    return {"segments": sorted(new)} if new else {}


def main():
    """Parse the command line, run, print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    report = soak(args.kills, args.seed)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
