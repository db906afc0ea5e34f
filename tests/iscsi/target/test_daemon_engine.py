"""The server over an engine of its own process: the same promises, other ways of waking."""

import os
import threading

import pytest

import host
from iscsi.target.backends import FileBackend
from iscsi.target.config import ServerConfig
from iscsi.target.server import TargetServer
from iscsi.target.units import LogicalUnit, Target
from iscsi.wire.names import Portal
from tests.e2e.running import RunningEngine, environment_of
from tests.iscsi.target.serving import NAME, Raw

SIZE = 1 << 20
BLOCK = 512


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with RunningEngine(tmp_path_factory.mktemp("engine")) as made, environment_of(made):
        yield made


class OverEngine:
    """A server of one file in a thread, over the engine called `name`."""

    def __init__(self, name, path, cache):
        self._name, self._path, self._cache = name, path, cache
        self._ready, self.error = threading.Event(), None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            backend = FileBackend(self._path, size=SIZE, cache=self._cache)
            with host.connect(self._name) as handle:
                target = Target(NAME, {0: LogicalUnit(backend)})
                config = ServerConfig((target,), (Portal("127.0.0.1", 0),))
                with TargetServer(handle, config) as self.server:
                    self.port = self.server.bound[0][1]
                    self._ready.set()
                    self.server.serve_forever()
            backend.close()
        except BaseException as error:
            self.error = error
        finally:
            self._ready.set()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(90), "the server does not start"
        if self.error:
            raise self.error
        return self

    def __exit__(self, *_):
        self.server.stop()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the server does not stop"
        if self.error:
            raise self.error


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["writeback", "directsync"])
def test_files_are_served_and_calls_answered_over_a_daemon(engine, tmp_path, monkeypatch, cache):
    # With a tick of ten minutes nothing but a kick, or a worker's, can end a sleep in time.
    monkeypatch.setattr("iscsi.target.server.TICK_NS", 600 * 10**9)
    with OverEngine(engine.name, tmp_path / "disk", cache) as serving, Raw(serving.port) as raw:
        raw.log_in()
        raw.clear_attention()
        data = os.urandom(8192)
        for lba in range(0, 320, 16):
            assert raw.write(lba, data).status == 0
            assert raw.read(lba, 16) == data
        for _ in range(20):
            assert serving.server.call(lambda: 1, timeout_s=30) == 1
    assert (tmp_path / "disk").read_bytes()[: 320 * BLOCK] == data * 20
