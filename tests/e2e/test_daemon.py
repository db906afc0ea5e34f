"""The daemon from the outside: its life, its commands, and what its clients see when it ends."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import host
from host.errors import (
    EngineDied,
    EngineForbidden,
    EngineMismatch,
    EngineNotRunning,
    EngineRefused,
)
from shm.operations import FLUSHED
from shm.segment import DIRECTORY as SHARED_MEMORY
from shm.segment import PREFIX
from tests.e2e import worker
from tests.e2e.honest import Echo
from tests.e2e.running import ROOT, RunningEngine, environment_of, json_of, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PATIENCE_S = 15


def engine_of(directory, *flags, **options):
    """Start an engine of the test's own in `directory`."""
    return RunningEngine(directory, *flags, **options)


# --- its life --------------------------------------------------------------------------------


def test_up_starts_a_daemon_that_down_stops(tmp_path, shared_engine):
    environment = shared_engine.environment | {
        "PPE_RUNTIME_DIR": str(tmp_path),
        "PPE_CPU_LOCK_DIR": str(tmp_path),
    }

    def ppe(*words):
        return subprocess.run(
            [sys.executable, "-m", "ppe", *words], cwd=ROOT, env=environment, text=True,
            capture_output=True, timeout=110, check=False,
        )  # fmt: skip

    up = ppe("up", "--name", "d", "--idle", "sleep", "--force", "--json")
    assert up.returncode == 0, up.stderr
    pid = json_of(up)["pid"]
    try:
        assert pid != os.getpid()
        again = ppe("up", "--name", "d", "--idle", "sleep", "--force")
        assert again.returncode == 1
        assert f"already running (pid {pid})" in again.stderr
        assert "Traceback" not in again.stderr
    finally:
        down = ppe("down", "--name", "d", "--json")
    assert json_of(down) == {"stopped": True, "pid": pid}
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()
    assert [path.suffix for path in tmp_path.iterdir()] == [".log"]
    assert ppe("down", "--name", "d").returncode == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_foreground_engine_ends_in_order_on_a_signal(tmp_path, number):
    engine = engine_of(tmp_path)
    with Echo(engine) as echo:
        echo.verify(1)
        engine.process.send_signal(number)
        assert engine.process.wait(30) == 0, engine.complaints()
    assert engine.stop() == 0
    assert not engine.socket_path.exists()
    assert "Traceback" not in engine.complaints()


def test_a_foreground_engine_that_cannot_start_says_so_once(engine):
    done = engine.ppe("up", "--name", "n", "--foreground", "--cpu", "1000", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("ppe up: there is no CPU 1000")
    assert len(done.stderr.splitlines()) == 2


def test_what_a_dead_engine_left_does_not_block_the_next(tmp_path):
    engine = engine_of(tmp_path)
    engine.kill()
    engine.stop()
    assert engine.socket_path.exists()  # it had no time to tidy up
    with environment_of(engine), pytest.raises(EngineNotRunning, match="ppe up"):
        host.connect(engine.name)
    command = [sys.executable, "-m", "ppe", "up", "--name", engine.name, "--idle", "sleep",
               "--force", "--json"]  # fmt: skip
    up = subprocess.run(
        command, cwd=ROOT, env=engine.environment, capture_output=True, text=True, timeout=110,
        check=False,
    )  # fmt: skip
    assert up.returncode == 0, up.stderr
    try:
        with environment_of(engine), host.connect(engine.name) as handle:
            assert handle.info["pid"] == json_of(up)["pid"]
    finally:
        engine.ppe("down", "--name", engine.name)


def test_a_cpu_that_is_taken_names_its_holder(engine):
    cpu = engine.stat()["engines"][0]["cpu"]
    done = engine.ppe("up", "--name", "other", "--cpu", str(cpu), "--idle", "sleep", check=False)
    assert done.returncode == 1
    assert f"pid {engine.pid}" in done.stderr
    assert "--force" in done.stderr


def test_an_unknown_cpu_is_named(engine):
    done = engine.ppe("up", "--name", "other", "--cpu", "4095", "--idle", "sleep", check=False)
    assert done.returncode == 1
    assert "4095" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs util-linux")
def test_too_little_memory_to_lock_is_said_and_the_engine_works(tmp_path):
    prefix = ["prlimit", "--memlock=65536:65536", "setpriv", "--bounding-set=-ipc_lock"]
    if os.geteuid() != 0:
        prefix = prefix[:2]  # who is not root has no capability to drop
    with engine_of(tmp_path, prefix=prefix) as engine, Echo(engine) as echo:
        echo.verify(3)
        assert "tables are not locked" in engine.complaints()
        assert "ulimit -l" in engine.complaints()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a smaller /dev/shm")
def test_a_dev_shm_that_is_too_small_is_named(tmp_path):
    mount = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$0" "$@"'
    with pytest.raises(AssertionError, match="the engine ended") as ended:
        engine_of(tmp_path, prefix=["unshare", "--mount", "sh", "-c", mount])
    assert "/dev/shm has" in str(ended.value)
    assert "enlarge" in str(ended.value)
    assert "Traceback" not in str(ended.value)


def test_a_portable_engine_starts(tmp_path, monkeypatch):
    with engine_of(tmp_path, "--cpu-target", "x86-64-v2") as engine, Echo(engine) as echo:
        echo.verify(3)
        assert engine.stat()["compilations_since_ready"] == 0


@pytest.mark.pinned
def test_two_engines_share_the_clients(tmp_path):
    with (
        engine_of(tmp_path, "--engines", "2") as engine,
        Echo(engine) as first,
        Echo(engine) as second,
    ):
        first.verify(3)
        second.verify(3)
        engines = engine.stat()["engines"]
        assert [facts["engine"] for facts in engines] == [0, 1]
        assert len({facts["cpu"] for facts in engines}) == 2
        assert all(facts["counters"]["operations"] > 0 for facts in engines)
        chosen = {first.handle.info["engine"], second.handle.info["engine"]}
        assert chosen == {0, 1}


@pytest.mark.pinned
def test_a_thread_that_is_moved_off_its_cpu_is_reported(tmp_path):
    with engine_of(tmp_path) as engine:
        facts = engine.stat()["engines"][0]
        others = os.sched_getaffinity(0) - {facts["cpu"]}
        os.sched_setaffinity(facts["thread"], others)
        wait_until(lambda: engine.stat()["affinity"][0], "the complaint", 5)
        wait_until(lambda: engine.stat()["notes"], "the note", 5)
        assert str(facts["cpu"]) in engine.stat()["notes"][-1]
        os.sched_setaffinity(facts["thread"], {facts["cpu"]})  # And again: that is news.
        wait_until(lambda: not engine.stat()["affinity"][0], "the end of the complaint", 5)
        time.sleep(1.5)  # It looks once a second.
        os.sched_setaffinity(facts["thread"], others)
        wait_until(lambda: len(engine.stat()["notes"]) == 2, "the second note", 5)


def test_a_name_that_a_killed_client_left_is_swept_away(engine):
    child = subprocess.Popen(["true"])
    child.wait()
    orphan = SHARED_MEMORY / f"{PREFIX}{child.pid}-test"
    try:
        orphan.write_bytes(b"")
        wait_until(lambda: not orphan.exists(), "the name to go", PATIENCE_S)
    finally:
        orphan.unlink(missing_ok=True)


def test_an_idle_engine_sleeps_and_wakes_for_work(engine):
    with Echo(engine) as echo:
        wait_until(lambda: engine.stat()["engines"][0]["active_channels"] == 0, "it to park all")
        before = engine.stat()["engines"][0]
        time.sleep(0.5)
        after = engine.stat()["engines"][0]
        assert after["counters"]["sleeps"] > before["counters"]["sleeps"]
        # It wakes a few times a second at most, not thousands: it does not poll in its sleep.
        assert after["passes"] - before["passes"] < 5000
        echo.verify(3)
        assert engine.counters()["doorbells"] > before["counters"]["doorbells"]


def test_a_spinning_engine_never_sleeps(tmp_path):
    with engine_of(tmp_path, "--idle", "spin") as engine:
        before = engine.stat()["engines"][0]
        with Echo(engine) as echo:
            echo.verify(3)
        wait_until(
            lambda: engine.stat()["engines"][0]["passes"] > before["passes"] + 1000, "passes"
        )
        assert engine.counters()["sleeps"] == 0


def test_nothing_is_compiled_once_it_is_ready(engine):
    with Echo(engine) as echo:
        echo.verify(5)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with pytest.raises(ConnectionRefusedError):
                echo.channel.connect(*unused.getsockname())
    assert engine.stat()["compilations_since_ready"] == 0


# --- its commands ----------------------------------------------------------------------------


def test_stat_counts_what_was_done(engine):
    with Echo(engine) as echo:
        before = json_of(engine.ppe("stat", "--name", engine.name, "--json"))
        echo.verify(10)
        after = json_of(engine.ppe("stat", "--name", engine.name, "--format", "json"))
        moved = [facts["engines"][0]["counters"] for facts in (before, after)]
        assert moved[1]["bytes_in"] - moved[0]["bytes_in"] == 20 * 4096
        assert moved[1]["bytes_out"] - moved[0]["bytes_out"] == 20 * 4096
        assert moved[1]["operations"] - moved[0]["operations"] >= 40
        rows = [row for row in after["engines"][0]["channels"] if row["pid"] == os.getpid()]
        assert [row["endpoints"] for row in rows] == [2], rows
        assert after["pid"] == engine.pid
        table = engine.ppe("stat", "--name", engine.name).stdout
        assert "bytes_in" in table
        assert str(engine.pid) in table


def test_the_prometheus_text_parses(engine):
    text = engine.ppe("stat", "--name", engine.name, "--format", "prometheus").stdout
    sample = re.compile(r'^[a-z_][a-z0-9_]*(\{([a-z_]+="[^"\\]*",?)*\})? -?[0-9.e+]+$')
    families = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            assert family not in families
            families[family] = kind
        elif not line.startswith("# HELP "):
            assert sample.match(line), line
            assert line.partition("{")[0] in families, line
    assert families["ppe_bytes_in_total"] == "counter"
    assert families["ppe_clients"] == "gauge"


def test_top_shows_rates(engine):
    with Echo(engine) as echo:
        stop = threading.Event()
        lines = []

        def look():
            done = engine.ppe(
                "top", "--name", engine.name, "--count", "2", "--interval", "0.2", "--json"
            )
            lines.extend(done.stdout.splitlines())
            stop.set()

        thread = threading.Thread(target=look)
        thread.start()
        while not stop.wait(0):
            echo.verify(2)
        thread.join(PATIENCE_S)
    views = [json.loads(line)["engines"][0] for line in lines]
    assert len(views) == 2
    assert any(view["counters"]["bytes_in"] > 0 for view in views)


def test_top_shows_every_look_also_where_there_is_no_terminal(engine):
    words = ("top", "--name", engine.name, "--count", "2", "--interval", "0.1")
    shown = engine.ppe(*words).stdout
    assert shown.count("passes") == 2
    assert shown.endswith("\n")
    for wrong in (("--interval", "0"), ("--count", "-1")):
        done = engine.ppe("top", "--name", engine.name, *wrong, check=False)
        assert done.returncode == 2
        assert wrong[0] in done.stderr


def test_who_only_looks_is_no_client(engine):
    facts = json_of(engine.ppe("stat", "--name", engine.name, "--json"))
    with Echo(engine):
        more = json_of(engine.ppe("stat", "--name", engine.name, "--json"))
    assert more["clients"] == facts["clients"] + 1
    assert facts["clients"] == len({row["client"] for row in facts["engines"][0]["channels"]}) - 1


def test_errors_are_listed_once_each(engine):
    with environment_of(engine), host.connect(engine.name) as handle, handle.channel() as channel:
        for _ in range(5):
            channel.post_cancel(12345, 1, 1)
            channel.complete(1, PATIENCE_S)
    found = json_of(engine.ppe("errors", "--name", engine.name, "--json"))["errors"]
    bad = [e for e in found if "cannot be done" in e["what"] and e["detail"] == os.strerror(9)]
    assert len(bad) == 1
    assert bad[0]["count"] >= 5


@pytest.mark.parametrize("command", ["stat", "top", "errors", "down"])
def test_commands_say_when_there_is_no_engine(engine, command):
    done = engine.ppe(command, "--name", "nobody", check=False)
    assert done.returncode == 1
    assert "no engine named 'nobody'" in done.stderr
    assert "ppe up --name nobody" in done.stderr


# --- what clients see ------------------------------------------------------------------------


def test_the_engines_death_is_known_at_once_and_flushes_every_post(tmp_path):
    engine = engine_of(tmp_path)
    with Echo(engine) as echo:
        channel = echo.channel
        for number in range(10):
            channel.post_recv(echo.server, echo.handle.alloc(64), number, exact=True)
        timer = threading.Timer(0.1, engine.kill)
        timer.start()
        waited = channel.wait_n(10, timeout_s=PATIENCE_S)
        timer.join()
        assert waited == (10, "peer")
        flushed = channel.poll()
        assert sorted(c.user_data for c in flushed) == list(range(10))
        assert {c.status for c in flushed} == {FLUSHED}
        with pytest.raises(EngineDied):
            flushed[0].check()
        assert channel.counts["outstanding"] == 0
        for call in (
            lambda: channel.post_nop(1),
            lambda: channel.wait_n(1),
            lambda: channel.complete(1),
            echo.handle.channel,
            lambda: echo.handle.alloc(64 << 20),
        ):
            with pytest.raises(EngineDied):
                call()
        assert channel.poll() == []
        assert not echo.handle.is_running
    engine.stop()


def test_a_call_that_waits_ends_when_the_engine_dies(tmp_path):
    engine = engine_of(tmp_path)
    with Echo(engine) as echo:
        timer = threading.Timer(0.1, engine.kill)
        timer.start()
        with pytest.raises(EngineDied):
            echo.channel.recv(echo.server, echo.back, timeout_s=PATIENCE_S)
        timer.join()
    engine.stop()


def test_tasks_end_when_the_engine_dies(tmp_path):
    engine = engine_of(tmp_path)

    async def main(echo):
        bridge = host.AsyncChannel(echo.channel)
        for number in range(3):
            echo.channel.post_recv(echo.server, echo.handle.alloc(64), number)
        tasks = [asyncio.create_task(bridge.complete(number)) for number in range(3)]
        await asyncio.sleep(0.05)
        engine.kill()
        done = await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)
        with pytest.raises(EngineDied):
            await bridge.complete(9)
        with pytest.raises(EngineDied):
            await bridge.wait_n(1)
        bridge.close()
        return {completion.status for completion in done}

    with Echo(engine) as echo:
        assert asyncio.run(main(echo)) == {FLUSHED}
    engine.stop()


def test_an_engine_that_does_not_run_says_how_to_start_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PPE_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(EngineNotRunning, match="ppe up --name nobody"):
        host.connect("nobody")
    with pytest.raises(EngineNotRunning, match="cannot name"):
        host.connect("../etc/passwd")


def test_another_release_is_told_apart(engine, monkeypatch):
    monkeypatch.setattr("host.handle.LAYOUT_HASH", 12345)
    with pytest.raises(EngineMismatch, match="same release"):
        host.connect(engine.name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused(tmp_path_factory):
    directory = Path("/tmp") / f"ppe-forbidden-{os.getpid()}"  # which that user can look into
    directory.mkdir(mode=0o755)
    try:
        with engine_of(directory) as engine, environment_of(engine):
            child = os.fork()
            if child == 0:
                outcome = 1
                try:
                    os.setgid(65534)
                    os.setuid(65534)
                    with contextlib.suppress(EngineForbidden):
                        host.connect(engine.name)
                        os._exit(2)
                    outcome = 0
                finally:
                    os._exit(outcome)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


def test_limits_are_refusals_that_name_their_setting(tmp_path):
    flags = ("--limit-channels", "4", "--limit-client-memory-bytes", "1M", "--limit-clients", "2")
    with (
        engine_of(tmp_path, *flags) as engine,
        environment_of(engine),
        host.connect(engine.name, arena_size=256 << 10) as handle,
    ):
        channels = [handle.channel(8, 8) for _ in range(3)]
        with pytest.raises(EngineRefused, match="--limit-channels"):
            handle.channel(8, 8)
        with pytest.raises(EngineRefused, match="--limit-client-memory"):
            handle.alloc(2 << 20)
        channels[0].close()
        handle.channel(8, 8)  # what was given back can be had again
        with host.connect(engine.name), pytest.raises((EngineRefused, EngineDied)):
            host.connect(engine.name)


def test_a_nopython_worker_uses_the_same_channel(engine):
    with Echo(engine) as echo:
        echo.out.array[:] = np.arange(4096, dtype=np.uint16).view(np.uint8)[:4096]
        done = worker.bounce(
            echo.channel.context, echo.client, echo.server, echo.out.address, echo.back.address,
            4096, 200,
        )  # fmt: skip
        assert done == 400
        assert np.array_equal(echo.out.array, echo.back.array)
        assert echo.channel.counts["outstanding"] == 0


def test_an_interrupted_call_does_not_answer_the_next(engine):
    with environment_of(engine), host.connect(engine.name) as handle:
        from shm import messages

        # What Ctrl-C leaves behind: a question whose answer nobody took.
        messages.send(handle._connection, {"call": "stat", "id": -1}, [])
        with handle.channel() as channel:
            channel.post_nop(1)
            assert channel.complete(1, PATIENCE_S).ok


def test_the_engine_loads_no_host_code(engine):
    script = (
        "import sys, ppe.daemon, ppe.control\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('host', 'iscsi')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    loaded = [name for name in eval(done.stdout) if not name.startswith("iscsi.wire")]
    assert loaded in ([], ["iscsi"])
