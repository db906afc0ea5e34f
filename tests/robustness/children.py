"""Processes for the tests that kill: a target server over a file, and an initiator that writes and
tells what was acknowledged. One rule: a line on the pipe is written after the acknowledgement.

    python -m tests.robustness.children serve PATH SIZE PORT
    python -m tests.robustness.children write URL FIRST BLOCKS SEED
"""

import contextlib
import random
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
BLOCK = 512
START_S = 120


def stamp(lba, number):
    """The contents of a block: who wrote it, and when."""
    return (lba.to_bytes(8, "big") + number.to_bytes(8, "big")) * (BLOCK // 16)


def serve(path, size, port):
    """Serve a file at LUN 0 until SIGTERM; the port is told when it listens."""
    import host
    from iscsi.target.backends import FileBackend
    from iscsi.target.config import ServerConfig
    from iscsi.target.server import TargetServer
    from iscsi.target.units import LogicalUnit, Target
    from iscsi.wire.names import Portal
    from tests.iscsi.target.serving import NAME

    backend = FileBackend(Path(path), size=size)
    with contextlib.closing(backend), host.connect("inline:") as engine:
        target = Target(NAME, {0: LogicalUnit(backend)})
        config = ServerConfig((target,), (Portal("127.0.0.1", port),), linger_s=0.2)
        with TargetServer(engine, config) as server:
            signal.signal(signal.SIGTERM, lambda *_: server.stop())
            sys.stdout.write(f"{server.bound[0][1]}\n")
            sys.stdout.flush()
            server.serve_forever()


def write(url, first, blocks, seed):
    """Write stamped blocks for ever; `lba number` is told for each that was acknowledged."""
    import iscsi
    from iscsi.session.options import Recovery

    chance, number = random.Random(seed), 0
    with iscsi.open(url, queue_depth=4, recovery=Recovery(initial_s=0, maximum_s=0.2)) as device:
        while True:
            number += 1
            count = chance.choice((1, 1, 4, 32))
            lba = first + chance.randrange(blocks - count)
            sys.stdout.write(f"begin {lba} {count} {number}\n")
            sys.stdout.flush()
            device.write(lba, b"".join(stamp(at, number) for at in range(lba, lba + count)))
            sys.stdout.write(f"done {lba} {count} {number}\n")
            sys.stdout.flush()


@contextlib.contextmanager
def child(*words):
    """A process of this module, killed at the end whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.robustness.children", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()


class Told:
    """What a writer told: for each block the last number acknowledged, and what may be there."""

    def __init__(self):
        self.possible = {}
        self.acknowledged = 0

    def read(self, lines):
        """Take what it said; the last line may be cut off."""
        for line in lines:
            if not line.endswith("\n"):
                continue
            verb, *numbers = line.split()
            lba, count, number = map(int, numbers)
            for at in range(lba, lba + count):
                if verb == "begin":
                    self.possible.setdefault(at, {0}).add(number)
                else:
                    self.possible[at] = {number}
            self.acknowledged += verb == "done"
        return self

    def check(self, lba, content):
        """Whether a block holds one of what it may: acknowledged, or begun after that."""
        allowed = self.possible.get(lba, {0})
        wanted = [stamp(lba, number) if number else bytes(BLOCK) for number in allowed]
        assert content in wanted, f"block {lba}: {content[:16].hex()}, not one of {sorted(allowed)}"


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        write(sys.argv[2], *map(int, sys.argv[3:6]))
