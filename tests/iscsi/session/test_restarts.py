"""The other side dies and comes back: tgtd killed and restarted, the engine killed and restarted,
the connection cut under an engine in another process. Every acknowledged write is there.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

import host
import iscsi
from iscsi.session.options import Recovery
from iscsi.wire import bhs
from iscsi.wire.bhs import Opcode
from iscsi.wire.names import Portal
from tests.iscsi.session.conftest import READY_S
from tests.iscsi.session.disk import Disk
from tests.iscsi.session.mock_target import mock_target
from tests.iscsi.session.relay import relay_to
from tests.iscsi.session.tgt import WAIT_S, tgt_target, wait_for
from tests.iscsi.target.serving import NAME, Serving

BLOCK = 512
QUICK = Recovery(initial_s=0.02, maximum_s=0.2, limit_s=60)
PATIENT = Recovery(initial_s=0.02, maximum_s=0.2, limit_s=120)
PLACEMENTS = ["stream", "datamover"]
tgtd = pytest.mark.interop("tgtd", "tgtadm")


def stamped(number):
    return np.full(8 * BLOCK, number % 251, np.uint8)


@contextmanager
def restarting(folder, down_s=0.3):
    """A tgtd, and a function that kills it and starts another on the same port and files."""
    with ExitStack() as stack:
        inner = ExitStack()
        found = inner.enter_context(tgt_target(folder))
        stack.callback(inner.close)

        def restart():
            inner.close()
            time.sleep(down_s)
            inner.enter_context(tgt_target(folder, port=found.port))

        yield found, restart


@tgtd
@pytest.mark.slow
def test_tgtd_killed_and_started_again_has_every_acknowledged_write(tmp_path, engine_name):
    with (
        restarting(tmp_path) as (tgt, restart),
        iscsi.open(tgt.url, engine_name, recovery=QUICK) as device,
    ):
        failed = []

        def go():
            try:
                time.sleep(0.2)
                restart()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=go)
        thread.start()
        number = 0
        while thread.is_alive() or number < 50:
            device.write(8 * number, stamped(number))
            number = (number + 1) % 8000
        thread.join(WAIT_S)
        assert not failed
        count = 0
        wait_for(lambda: device.read(0, 1) and device.recoveries, "the reconnection")
        for at in range(number):
            assert device.read(8 * at, 8) == stamped(at).tobytes(), f"write {at} is lost"
            count += 1
        assert count == number


@tgtd
@pytest.mark.slow
def test_tgtd_restarted_under_an_event_loop(tmp_path):
    async def main(url, restart):
        async with await iscsi.aopen(url, recovery=QUICK) as device:
            thread = threading.Thread(target=restart)
            thread.start()
            number = 0
            while thread.is_alive() or not device.recoveries:
                batch = range(number, number + 16)
                await asyncio.gather(*(device.write(8 * n, stamped(n)) for n in batch))
                number += 16
            thread.join(WAIT_S)
            for at in range(number):
                assert await device.read(8 * at, 8) == stamped(at).tobytes()

    with restarting(tmp_path) as (tgt, restart):
        asyncio.run(main(tgt.url, restart))


def test_cuts_under_an_engine_in_another_process(daemon):
    disk = Disk()
    with (
        mock_target(disk.serve) as url,
        relay_to(url) as (relay, there),
        iscsi.open(there, daemon, recovery=QUICK) as device,
    ):
        for number in range(60):
            relay.cut_after(up=37 * number + 1)
            device.write(8 * number, stamped(number))
            relay.cut_after(down=23 * number + 1)
            assert device.read(8 * number, 8) == stamped(number).tobytes()
        assert device.recoveries > 30


def test_cuts_under_an_engine_in_another_process_with_asyncio(daemon):
    disk = Disk()

    async def main(relay, url):
        async with await iscsi.aopen(url, daemon, recovery=QUICK) as device:
            for number in range(30):
                relay.cut_after(up=137 * number + 1)
                await asyncio.gather(*(device.write(8 * n, stamped(n)) for n in range(20)))
            found = await asyncio.gather(*(device.read(8 * n, 8) for n in range(20)))
            assert found == [stamped(n).tobytes() for n in range(20)]
            assert device.recoveries > 15

    with mock_target(disk.serve) as url, relay_to(url) as (relay, there):
        asyncio.run(main(relay, there))


# --- the engine ------------------------------------------------------------------------------


class Engines:
    """Engines of one name, one after the other, in a runtime directory of the test's own."""

    def __init__(self, folder, patch):
        patch.setenv("PPE_RUNTIME_DIR", str(folder / "run"))
        patch.setenv("PPE_CPU_LOCK_DIR", str(folder / "locks"))
        self.pid = 0

    def start(self):
        command = [sys.executable, "-m", "ppe", "up", "--name", "mortal", "--json"]
        command += ["--idle", "sleep", "--force"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=READY_S, check=False, env=os.environ
        )
        assert done.returncode == 0, done.stderr
        self.pid = json.loads(done.stdout)["pid"]

    def kill(self):
        if not self.pid:
            return
        pid, self.pid = self.pid, 0
        os.kill(pid, signal.SIGKILL)

        def gone():
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
            return False

        wait_for(gone, f"engine {pid} to end")


@pytest.fixture
def engines(tmp_path, monkeypatch):
    found = Engines(tmp_path, monkeypatch)
    found.start()
    try:
        yield found
    finally:
        found.kill()


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_device_survives_the_death_of_its_engine(engines, placement):
    disk = Disk()
    with (
        mock_target(disk.serve) as url,
        host.connect("mortal") as handle,
        iscsi.open(url, handle, recovery=QUICK, placement=placement) as device,
        device.alloc(8 * BLOCK) as buffer,
    ):
        device.write(0, stamped(1))
        for number in (2, 3):
            engines.kill()
            engines.start()
            buffer.array[:] = stamped(number)
            device.write(8 * number, buffer)
            buffer.array[:] = 0
            device.readinto(8 * number, buffer)
            assert (buffer.array == stamped(number)).all(), "the buffer is used in place again"
            assert device.read(0, 8) == stamped(1).tobytes()
        assert device.recoveries == 2
        assert handle.is_running


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_an_engine_that_dies_in_mid_transfer_loses_nothing(engines, placement):
    """Half of a READ's data is here and half of a WRITE's was asked for."""
    disk, left = Disk(), [0x28, 0x2A]
    size = 512 * BLOCK

    def before(peer, header, data):
        if header.cdb_bytes[0] not in left:
            return False
        left.remove(header.cdb_bytes[0])
        if header.cdb_bytes[0] == 0x28:
            pdu = bhs.encode_pdu(
                Opcode.DATA_IN, bytes(65536), itt=header.itt, exp_cmd_sn=header.cmd_sn + 1,
                max_cmd_sn=header.cmd_sn + 8, final=0,
            )  # fmt: skip
            peer.stream.sendall(pdu[:40000])
        else:
            peer.send(
                Opcode.R2T, to=header, counted=False, stat_sn=peer.stat_sn, ttt=1,
                desired_data_transfer_length=size // 2, buffer_offset=0,
            )  # fmt: skip
            peer.read(40000)  # of what was asked for
        engines.kill()
        engines.start()
        raise ConnectionResetError

    disk.before = before
    with (
        mock_target(disk.serve) as url,
        iscsi.open(url, "mortal", recovery=PATIENT, placement=placement) as device,
    ):
        data = np.random.default_rng(1).integers(0, 256, size, np.uint8)
        device.write(0, data)
        assert device.read(0, 512) == data.tobytes()
        assert device.recoveries == 2
    assert not left


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_device_in_asyncio_survives_the_death_of_its_engine(engines, placement):
    disk = Disk()

    async def main(url):
        async with await iscsi.aopen(url, "mortal", recovery=QUICK, placement=placement) as device:
            await device.write(0, stamped(1))
            engines.kill()
            tasks = [asyncio.create_task(device.write(8 * n, stamped(n))) for n in range(1, 20)]
            await asyncio.sleep(0.1)
            await asyncio.to_thread(engines.start)
            await asyncio.gather(*tasks)
            found = await asyncio.gather(*(device.read(8 * n, 8) for n in range(1, 20)))
            assert found == [stamped(n).tobytes() for n in range(1, 20)]

    with mock_target(disk.serve) as url:
        asyncio.run(main(url))


# --- our own target --------------------------------------------------------------------------


def test_cuts_in_front_of_our_own_target_reinstate_the_session():
    with Serving() as serving:
        url = f"iscsi://127.0.0.1:{serving.port}/{NAME}/0"
        with relay_to(url) as (relay, there), iscsi.open(there, recovery=QUICK) as device:
            for number in range(2):
                relay.cut_after(up=700 * number + 30)
                device.write(8 * number, stamped(number))
                relay.cut_after(down=60 * number + 30)
                assert device.read(8 * number, 8) == stamped(number).tobytes()
            assert device.recoveries == 4
        serving.wait_idle()


def test_our_own_target_restarted_is_found_again():
    """Its memory is gone with it, as the tests' server fills it; what is written later stays."""
    with Serving() as first:
        port = first.port
        device = iscsi.open(f"iscsi://127.0.0.1:{port}/{NAME}/0", recovery=QUICK)
        before = device.read(0, 64)
    with device, Serving(portals=(Portal("127.0.0.1", port),)):
        assert device.read(0, 64) == before, "the same seed filled it"
        device.write(0, stamped(5))
        assert device.read(0, 8) == stamped(5).tobytes()
        assert device.recoveries == 1
