"""A target with one unit in a file, as a program: what is killed, and whose plug is pulled.

`python -m tests.guest.serve_file PATH SIZE CACHE ADDRESS PORT` prints `ready` once initiators can
log in.
"""

import signal
import sys

import host
from iscsi.target.backends import FileBackend
from iscsi.target.config import ServerConfig
from iscsi.target.server import TargetServer
from iscsi.target.units import LogicalUnit, Target
from iscsi.wire.names import Portal

IQN = "iqn.2026-01.org.example:plug"


def main(path, size, cache, address, port):
    backend = FileBackend(path, size=int(size), cache=cache)
    with host.connect("inline:?idle=sleep") as engine:
        config = ServerConfig(
            (Target(IQN, {0: LogicalUnit(backend)}),), (Portal(address, int(port)),)
        )
        with TargetServer(engine, config) as server:
            signal.signal(signal.SIGTERM, lambda *_: server.stop())
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            server.serve_forever()
    backend.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
