"""The control socket: who may attach, and what they get. One thread, on the housekeeping CPUs.

A client's death is its socket hanging up; everything it had is taken back at once. Nothing here is
on the engine's path, and nothing here waits for a client.
"""

import contextlib
import errno
import os
import selectors
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppe import __version__
from ppe.clients import Client, Refused, Registry, peer_of
from ppe.config import EngineConfig
from ppe.cycle.control_port import EngineSilent
from ppe.engine_thread import EngineThread
from shm import messages
from shm.records import LAYOUT_HASH, VERSION

FIRST_CLIENT = 2  # 1 is the control plane itself
SELECT_SECONDS = 1.0
NOTES_MAX = 100
Answer = tuple[dict[str, Any], list[int]]


class ControlServer:
    """Serves the control socket until `stop` is asked for."""

    def __init__(self, path: Path, config: EngineConfig, engines: list[EngineThread]) -> None:
        self._path, self._config, self._engines = path, config, engines
        self.stopping = False
        # What happened that an operator should see in `ppe stat`.
        self.notes: deque[str] = deque(maxlen=NOTES_MAX)
        self.stat: Callable[[], dict[str, Any]] = dict
        self._registry = Registry(config.limits.client_memory_bytes)
        for engine in engines:
            self._registry.add_engine(engine)
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._clients: dict[int, Client] = {}
        self._next_number = FIRST_CLIENT
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        before = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(before)
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        for engine in engines:
            self._selector.register(engine.port.alarm, selectors.EVENT_READ)

    def wake(self) -> None:
        """Have `step` return; safe in a signal handler."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b".")

    @property
    def client_count(self) -> int:
        """How many have a channel or memory here; who only looks is none."""
        return sum(1 for client in self._clients.values() if client.channels or client.regions)

    def step(self) -> None:
        """Serve what is there, for at most a second."""
        quiet = all([engine.port.arm() for engine in self._engines])
        for key, _ in self._selector.select(SELECT_SECONDS if quiet else 0):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.data, Client):
                self._serve(key.data)
            else:  # Our own waker, or an engine's alarm: there is something to look at.
                with contextlib.suppress(BlockingIOError):
                    os.read(key.fd, 4096)
        self._end_faulted()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
            return
        connection.setblocking(False)
        pid, uid = peer_of(connection)
        engine = min(self._engines, key=self._load)
        client = Client(connection, self._next_number, pid, uid, engine)
        self._next_number += 1
        if len(self._clients) >= self._config.limits.clients:
            self._reply(
                client, {"error": "every client's place is taken: raise --limit-clients"}, []
            )
            connection.close()
            return
        self._clients[client.number] = client
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _load(self, engine: EngineThread) -> tuple[int, int]:
        """How busy an engine is: its channels, and who is about to open some there."""
        clients = sum(client.engine is engine for client in self._clients.values())
        return self._registry.load(engine), clients

    def _turn_away(self) -> None:
        """No descriptor is left: hang up with the spare one, or the caller would ring for ever."""
        os.close(self._spare)
        with contextlib.suppress(OSError):
            self._listener.accept()[0].close()
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.notes.append("a client was turned away: raise the limit of open files (ulimit -n)")

    def _serve(self, client: Client) -> None:
        try:
            message, descriptors = messages.receive(client.connection)
        except BlockingIOError:
            return
        except (messages.ControlClosed, messages.BadMessage, OSError, RecursionError):
            self._drop(client)
            return
        try:
            answer, given = self._answer(client, message, descriptors)
        except Refused as refusal:
            answer, given = {"error": str(refusal)}, []
        except Exception as error:  # Whatever a client says, it must not end the engine.
            answer, given = {"error": f"{type(error).__name__}: {error}"}, []
        finally:
            messages.close_all(descriptors)
        if "id" in message:  # So that a client that was interrupted can tell the answers apart.
            answer["id"] = message["id"]
        try:
            self._reply(client, answer, given)
        finally:
            messages.close_all(given)

    def _reply(self, client: Client, answer: dict[str, Any], given: list[int]) -> None:
        """Answer at once or never: a client that does not read loses its place, not our time."""
        try:
            messages.send(client.connection, answer, given)
        except (OSError, ValueError):
            self._drop(client)

    def _answer(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> Answer:
        call = message.get("call")
        if call == "hello":
            return self._hello(client, message), []
        if not client.greeted:
            raise Refused("say hello first")
        if call == "attach":
            channel, given = self._registry.attach(client, message, descriptors)
            return {"channel": channel}, given
        if call == "register":
            region = self._registry.register(client, message["size"], descriptors)
            return {"region": region}, []
        if call == "detach":
            self._registry.detach(client, message["channel"])
            return {}, []
        if call == "unregister":
            return {"done": self._registry.unregister(client, message["region"])}, []
        if call == "share":
            region = self._registry.share(client, message["region"], message["engine"])
            return {"region": region}, []
        if call == "move":
            endpoint = self._registry.move(
                client, message["channel"], message["endpoint"], message["to"]
            )
            return {"endpoint": endpoint}, []
        if call == "mover":
            self._registry.enable_mover(client, message["channel"], message)
            return {}, []
        if call == "pool":
            return {"pool": self._registry.make_pool(client, message["channel"])}, []
        if call == "table":
            table = self._registry.make_table(client, message["channel"], message["count"])
            return {"table": table}, []
        if call == "rdma":
            return self._registry.rdma(client, message["channel"], message), []
        if call == "accounts":
            return self._accounts()
        if call == "stat":
            return self.stat(), []
        if call == "stop":
            self.stopping = True
            self.wake()
            return {"pid": os.getpid()}, []
        raise Refused(f"unknown call {call!r}")

    def _hello(self, client: Client, message: dict[str, Any]) -> dict[str, Any]:
        if message.get("version") != VERSION or message.get("layout") != LAYOUT_HASH:
            return {
                "kind": "mismatch",
                "error": f"engine {self._config.name!r} is release {__version__} with shared "
                f"layout {VERSION}/{LAYOUT_HASH}, the client has {message.get('version')}/"
                f"{message.get('layout')}: install the same release on both sides",
            }
        client.greeted = True
        return {
            "pid": os.getpid(),
            "release": __version__,
            "name": self._config.name,
            "idle": self._config.idle,
            "engine": client.engine.number,
            "engines": len(self._engines),
            "cpu": client.engine.cpu,
            "readiness": client.engine.tables.poller_name,
        }

    def _accounts(self) -> Answer:
        given, sizes, shapes = [], [], []
        for engine in self._engines:
            accounts = engine.tables.accounts
            given.append(os.open(f"/proc/self/fd/{accounts.descriptor}", os.O_RDONLY))
            sizes.append(accounts.size)
            shapes.append([engine.tables.limits.channels, engine.tables.limits.endpoints])
        return {"sizes": sizes, "shapes": shapes}, given

    def _drop(self, client: Client) -> None:
        if self._clients.pop(client.number, None) is None:
            return
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(client.connection)
        try:
            self._registry.end(client)
        except (OSError, EngineSilent) as error:
            # Its memory stays mapped: the engine may still touch it.
            self.notes.append(f"client {client.number} (pid {client.pid}) did not end: {error}")

    def _end_faulted(self) -> None:
        for engine in self._engines:
            for number in engine.port.poll_faults():
                client = self._clients.get(number)
                if client is not None:
                    self.notes.append(
                        f"client {number} (pid {client.pid}) took its shared memory away; ended"
                    )
                    self._drop(client)

    def close(self) -> None:
        """Let every client go and remove the socket."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        for client in list(self._clients.values()):
            self._drop(client)
        self._listener.close()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        os.close(self._spare)
