"""Processes killed in the middle of their work: initiators while another one verifies, and the
target under load. Every acknowledged write is in the file, seen from outside.
"""

import random
import threading
import time

import pytest

import host
import iscsi
from iscsi.session.options import Recovery
from shm.jit import JIT_DISABLED
from tests.iscsi.session.relay import Relay
from tests.iscsi.target.serving import NAME
from tests.robustness.children import BLOCK, Told, child, stamp

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(250),
    pytest.mark.skipif(JIT_DISABLED, reason="processes that take minutes to start when plain"),
]
BLOCKS = 4096
SIZE = BLOCKS * BLOCK
PATIENT = Recovery(initial_s=0, maximum_s=0.2, limit_s=60)


def port_of(process):
    """The port a server told; an empty line means that it died."""
    line = process.stdout.readline()
    assert line, "the target does not start"
    return int(line)


def check(path, told, first, blocks):
    """Compare the file with what a writer told."""
    content = path.read_bytes()
    for lba in range(first, first + blocks):
        told.check(lba, content[lba * BLOCK : (lba + 1) * BLOCK])


def test_initiators_killed_in_the_middle_of_writes_disturb_nobody(tmp_path):
    path, chance = tmp_path / "lun", random.Random(1)
    with child("serve", path, SIZE, 0) as server, host.connect("inline:") as engine:
        url = f"iscsi://127.0.0.1:{port_of(server)}/{NAME}/0"
        with iscsi.open(url, engine, queue_depth=8) as device:
            acknowledged = 0
            for seed in range(5):
                first, shadow = 512 * seed, {}
                with child("write", url, first, 512, seed) as writer:
                    lines = [writer.stdout.readline() for _ in range(2)]  # it writes now
                    until = time.monotonic() + chance.uniform(0.05, 0.4)
                    while time.monotonic() < until:
                        lba = 3000 + chance.randrange(1000)
                        shadow[lba] = chance.randbytes(BLOCK)
                        device.write(lba, shadow[lba])
                        lba = chance.choice(list(shadow))
                        assert device.read(lba, 1) == shadow[lba]
                    writer.kill()
                    told = Told().read(lines + writer.stdout.readlines())
                acknowledged += told.acknowledged
                check(path, told, first, 512)
                for lba, data in shadow.items():
                    assert device.read(lba, 1) == data
            assert acknowledged > 5
            assert device.recoveries == 0, "the other one never noticed"


def restarted(path, relay, stop, kills, chance):
    """Serve the file behind the relay, killed (or asked to end) and started again and again."""
    while True:
        with child("serve", path, SIZE, 0) as server:
            relay.target = ("127.0.0.1", port_of(server))
            if stop.wait(chance.uniform(0.5, 1.5)):
                return
            kills.append(1)
            if chance.random() < 0.3:
                server.terminate()
                server.wait(30)


def test_a_target_killed_and_started_again_under_load_has_every_acknowledged_write(tmp_path):
    path, chance, stop, kills = tmp_path / "lun", random.Random(2), threading.Event(), []
    path.write_bytes(bytes(SIZE))
    with Relay(("127.0.0.1", 1)) as relay, host.connect("inline:") as engine:
        servers = threading.Thread(target=restarted, args=(path, relay, stop, kills, chance))
        servers.start()
        try:
            _wait_for(lambda: relay.target[1] != 1)
            url = f"iscsi://{relay.address}/{NAME}/0"
            mine = random.Random(3)
            with iscsi.open(url, engine, queue_depth=4, recovery=PATIENT) as device:
                numbers, number = {}, 0
                until = time.monotonic() + 60
                while (len(kills) < 4 or device.recoveries < 3) and time.monotonic() < until:
                    number += 1
                    lba = mine.randrange(BLOCKS)
                    device.write(lba, stamp(lba, number))
                    numbers[lba] = number
                    lba = mine.choice(list(numbers))
                    assert device.read(lba, 1) == stamp(lba, numbers[lba])
                assert device.recoveries >= 3
        finally:
            stop.set()
            servers.join(60)
            assert not servers.is_alive()
    content = path.read_bytes()
    for lba, number in numbers.items():
        assert content[lba * BLOCK : (lba + 1) * BLOCK] == stamp(lba, number)


def _wait_for(is_true, seconds=120):
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "the target does not start"
        time.sleep(0.02)
