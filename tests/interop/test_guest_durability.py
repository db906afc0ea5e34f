"""What was promised to be durable is on the disk after the plug was pulled: our target serves a
file in a guest, an initiator here writes with FUA or flushes, and QEMU is killed at a random time.
A second target beside it, whose flushes are taken away, must lose something, or nothing is proven.
"""

import contextlib
import os
import random
import struct
import threading
import time

import pytest

from iscsi.wire import scsi
from shm.jit import JIT_DISABLED
from tests.guest import plug
from tests.guest.machine import QEMU_TOOLS
from tests.iscsi.target.serving import Raw

pytestmark = [
    pytest.mark.guest,
    pytest.mark.slow,
    pytest.mark.interop(*QEMU_TOOLS, *plug.TOOLS),
    pytest.mark.timeout(600),
    pytest.mark.skipif(JIT_DISABLED, reason="the server's loop is compiled"),
]

# Another moment in every run; one that failed can be asked for again.
SEED = int(os.environ.get("PPE_PLUG_SEED") or random.SystemRandom().randrange(1 << 32))
KILLS = int(os.environ.get("PPE_PLUG_KILLS", "1"))
BLOCK = 512
BLOCKS = 8  # of one write
PLACES = 512  # where writes go; each is written again and again
SPACING = plug.UNIT_BYTES // BLOCK // PLACES
WRITES = 60  # at least, before the plug is pulled
LATEST_S = 4.0
ENOUGH_S = 60
_STAMP = struct.Struct("<QQ")


def blocks_of(place, version):
    """One write: every block says which it is, so that a torn write can be told block by block."""
    fill = random.Random(place * 1_000_003 + version).randbytes(BLOCK - _STAMP.size)
    return (_STAMP.pack(place, version) + fill) * BLOCKS


class Ledger:
    """What was sent, and what the target has promised: versions by place, counted from 1."""

    def __init__(self):
        self.sent = [0] * PLACES
        self.acknowledged = [0] * PLACES
        self.durable = [0] * PLACES
        self.promises = 0

    def write(self, place):
        self.sent[place] += 1
        return blocks_of(place, self.sent[place])

    def acknowledge(self, place, durable):
        self.acknowledged[place] = self.sent[place]
        if durable:
            self.durable[place] = self.sent[place]
            self.promises += 1

    def flushed(self):
        self.promises += sum(
            told > kept for told, kept in zip(self.acknowledged, self.durable, strict=True)
        )
        self.durable = list(self.acknowledged)

    def lost(self, unit):
        """The places that hold less than was promised; AssertionError for what nobody wrote."""
        found = set()
        for place in range(PLACES):
            start = place * SPACING * BLOCK
            for number in range(BLOCKS):
                block = unit[start + number * BLOCK :][:BLOCK]
                owner, version = _STAMP.unpack_from(block)
                if version:
                    whole = blocks_of(place, version)[number * BLOCK :][:BLOCK]
                    assert owner == place, f"a block of place {owner} lies at {place}"
                    assert version <= self.sent[place], f"place {place}: version {version}"
                    assert block == whole, f"place {place} is damaged"
                else:
                    assert not any(block), f"place {place} holds what nobody wrote"
                if version < self.durable[place]:
                    found.add(place)
        return found


def write_until_cut(port, ledger, chance, all_have_enough):
    """Write, some of it durably, now and then flush, until the connection ends."""
    try:
        with Raw(port).log_in(plug.IQN).clear_attention() as client:
            count = 0
            while True:
                place, durable = chance.randrange(PLACES), chance.random() < 0.4
                cdb = scsi.write_16(place * SPACING, BLOCKS, fua=durable)
                data = ledger.write(place)
                client.command(cdb, data, length=len(data), write=1)
                assert client.take()[0].status == 0
                ledger.acknowledge(place, durable)
                if chance.random() < 0.05:
                    client.command(scsi.synchronize_cache_10())
                    assert client.take()[0].status == 0
                    ledger.flushed()
                count += 1
                if count == WRITES:
                    all_have_enough.wait()
    except (ConnectionError, EOFError, TimeoutError, threading.BrokenBarrierError):
        all_have_enough.abort()


def run_until_plug_is_pulled(machine, seed):
    """Write to every target until QEMU is killed; their ledgers."""
    chances = [random.Random(f"{seed}/{number}") for number, _ in enumerate(machine.ports)]
    ledgers = [Ledger() for _ in machine.ports]
    delay_s = random.Random(seed).uniform(0, LATEST_S)
    all_have_enough = threading.Barrier(len(machine.ports) + 1, timeout=ENOUGH_S)
    writers = [
        threading.Thread(target=write_until_cut, args=(*each, all_have_enough), daemon=True)
        for each in zip(machine.ports, ledgers, chances, strict=True)
    ]
    for writer in writers:
        writer.start()
    try:
        with contextlib.suppress(threading.BrokenBarrierError):
            all_have_enough.wait()
            time.sleep(delay_s)
    finally:
        machine.pull_the_plug()
        for writer in writers:
            writer.join(ENOUGH_S)
    for ledger in ledgers:
        assert ledger.promises >= WRITES // 4, "the plug was pulled before enough was promised"
    return ledgers


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    plug.warm_up(tmp_path_factory.mktemp("warm"))


@pytest.mark.parametrize("life", range(KILLS))
def test_promised_writes_are_on_the_disk_and_only_flushes_put_them_there(
    guest_image, warm, tmp_path, life
):
    forgetful = plug.forgetful_library(tmp_path)
    with plug.PluggedIn(guest_image, tmp_path, [None, forgetful]) as machine:
        honest, careless = run_until_plug_is_pulled(machine, SEED + life)
        assert honest.lost(machine.unit_bytes(0)) == set(), f"PPE_PLUG_SEED={SEED + life}"
        lost = careless.lost(machine.unit_bytes(1))
        assert lost, "nothing was lost without flushes: this rig could not see a missing one"
