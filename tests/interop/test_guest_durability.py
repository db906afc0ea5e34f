"""What was promised to be durable is on the disk after the plug was pulled: our target serves a
file in a guest, an initiator here writes with FUA or flushes, and QEMU is killed at a random time.
The same rig with the target's flushes taken away must lose something, or it would prove nothing.
"""

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
    pytest.mark.timeout(290),
    pytest.mark.skipif(JIT_DISABLED, reason="the server's loop is compiled"),
]

SEED = int(os.environ.get("PPE_PLUG_SEED", "20260711"))
KILLS = int(os.environ.get("PPE_PLUG_KILLS", "2"))
BLOCK = 512
BLOCKS = 8  # of one write
PLACES = 512  # where writes go; each is written again and again
SPACING = plug.UNIT_BYTES // BLOCK // PLACES
WRITES = 60  # at least, before the plug is pulled
LATEST_S = 4.0
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


def write_until_cut(port, ledger, chance, enough):
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
                    enough.set()
    except (ConnectionError, EOFError, TimeoutError):
        pass


def run_until_plug_is_pulled(image, folder, seed, **options):
    """One life of the guest: the ledger, and the unit as its disk holds it."""
    chance, ledger, enough = random.Random(seed), Ledger(), threading.Event()
    delay_s = chance.uniform(0, LATEST_S)
    with plug.PluggedIn(image, folder, **options) as machine:

        def pull():
            if enough.wait(60):
                time.sleep(delay_s)
            machine.pull_the_plug()

        puller = threading.Thread(target=pull, name="puller")
        puller.start()
        try:
            write_until_cut(machine.port, ledger, chance, enough)
        finally:
            enough.set()
            puller.join()
        unit = machine.unit_bytes(folder)
    assert ledger.promises >= WRITES // 4, "the plug was pulled before anything was promised"
    return ledger, unit


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    plug.warm_up(tmp_path_factory.mktemp("warm"))


@pytest.mark.parametrize("life", range(KILLS))
def test_every_promised_write_is_on_the_disk(guest_image, warm, tmp_path, life):
    ledger, unit = run_until_plug_is_pulled(guest_image, tmp_path, SEED + life)
    assert ledger.lost(unit) == set()


def test_without_its_flushes_the_target_breaks_promises(guest_image, warm, tmp_path):
    library = plug.forgetful_library(tmp_path)
    ledger, unit = run_until_plug_is_pulled(guest_image, tmp_path, SEED, preload=library)
    assert ledger.lost(unit), "nothing was lost: this rig cannot see a missing flush"
