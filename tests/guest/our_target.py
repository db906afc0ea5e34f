"""Our target server in a thread of the test, with the units that a test makes, on loopback ports
that it tells as the guest sees them.
"""

import contextlib
import threading

import host
from iscsi.target.config import ServerConfig
from iscsi.target.server import TargetServer
from iscsi.wire.names import Portal
from tests.guest.machine import HOST
from tests.iscsi.session.tgt import free_port

START_S = 120  # a first start compiles
STOP_S = 30


class OurTarget:
    """A running server. `make(engine)` returns its targets; `ports` are those of its portals."""

    def __init__(self, make, *, portals=1, **options):
        self._make, self._options = make, options
        self.ports = [free_port() for _ in range(portals)]
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="our target", daemon=True)
        self._error = None
        self.server = None
        self.targets = ()

    def __enter__(self):
        self._thread.start()
        assert self._started.wait(START_S), f"the server did not start in {START_S} s"
        if self._error:
            raise self._error
        return self

    def __exit__(self, *_):
        if self.server is not None:
            self.server.stop()
        self._thread.join(STOP_S)
        assert not self._thread.is_alive(), f"the server did not stop in {STOP_S} s"
        if self._error:
            raise self._error

    def call(self, function):
        """Run something in the server's thread, where targets and units may change."""
        return self.server.call(function)

    def _run(self):
        try:
            with contextlib.ExitStack() as stack:
                engine = stack.enter_context(host.connect("inline:?idle=sleep"))
                self.targets = tuple(self._make(engine))
                config = ServerConfig(
                    self.targets,
                    tuple(Portal("127.0.0.1", port) for port in self.ports),
                    tuple(Portal(HOST, port) for port in self.ports),
                    **self._options,
                )
                self.server = stack.enter_context(TargetServer(engine, config))
                self._started.set()
                self.server.serve_forever()
        except BaseException as error:
            self._error = error
        finally:
            self._started.set()
