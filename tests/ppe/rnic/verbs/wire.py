"""Two forms of our software RNIC against the kernel's siw in the guest, with one interface: its
core on a plain socket in the test's thread, and all of it, through the host's verbs on an inline
engine. Both work only while somebody waits: `step` is a little of it.
"""

import contextlib
import select
import socket
import time
from abc import ABC, abstractmethod
from dataclasses import replace

import host
from host.verbs import ConnParam, Device, QpCap, RecvWr, SendWr, mpa
from ppe.cycle.rnic.iwarp.core import QpSpec
from tests.ppe.rnic.joined import ALL, QueuePair, Rnic

RUN_S = 30
SIZE = 256 << 10
DEPTHS = {"ird": 4, "ord": 4}
PEER = "tests.ppe.rnic.verbs.on_device.peer"


class Side(ABC):
    """Our side. `data` is registered memory, which all call `iova`, with `key`; `startup` is what
    MPA agreed on; `found` are completions that nobody has taken.
    """

    def __init__(self, startup):
        self.startup, self.found, self.is_closed = startup, [], False

    @abstractmethod
    def step(self, others=()):
        """Work a little, or wait a little for one of `others`."""

    def run(self, until, others=()):
        """Work until `until()`; `others` are sockets that may change what it says."""
        end = time.monotonic() + RUN_S
        while not until():
            assert time.monotonic() < end, f"nothing more came in {RUN_S} s: {self.found}"
            self.step(others)

    def completions(self, count):
        """The next `count` completions."""
        self.run(lambda: len(self.found) >= count)
        taken, self.found = self.found[:count], self.found[count:]
        return taken

    def completion(self, status=0):
        (found,) = self.completions(1)
        assert found["status"] == status, found
        return found

    def bytes(self, start, length):
        return self.data[start : start + length].tobytes()


class Core(Side):
    """The core, on a socket."""

    def __init__(self, connection, startup, **spec):
        super().__init__(startup)
        self.connection = connection
        self.rnic = Rnic()
        self.region = self.rnic.region(SIZE)
        self.data, self.iova, self.key = self.region.data, self.region.iova, self.region.key
        made = QpSpec(
            active=startup.active,
            crc=startup.crc,
            markers_rx=startup.markers_rx,
            markers_tx=startup.markers_tx,
            ird=startup.ird,
            ord=startup.ord,
            rtr=int(startup.rtr),
            **spec,
        )
        self.qp = QueuePair(self.rnic, made)
        self._unsent = b""
        self._exported = []
        connection.setblocking(False)

    @classmethod
    @contextlib.contextmanager
    def connecting(cls, port, wishes, **spec):
        """Connect as the active side."""
        with socket.create_connection(("127.0.0.1", port), RUN_S) as connection:
            connection.sendall(mpa.request(wishes).encode())
            yield cls(connection, mpa.agree(wishes, _frame(connection, True)), **spec)

    @classmethod
    @contextlib.contextmanager
    def accepting(cls, call, wishes, **spec):
        """Accept the connection that `call(port)` brings about."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(RUN_S)
            call(listener.getsockname()[1])
            connection, _ = listener.accept()
        with connection:
            connection.settimeout(RUN_S)
            reply, startup = mpa.answer(_frame(connection, False), wishes)
            connection.sendall(reply.encode())
            yield cls(connection, startup, **spec)

    @property
    def may_send(self):
        return bool(self.qp.record["started"])

    def post(self, opcode, *piece, **values):
        return self.qp.post(opcode, [self.region.piece(*piece)] if piece else (), **values)

    def receive(self, start, length):
        return self.qp.receive(self.region.piece(start, length))

    def export(self, size, access=ALL):
        """Other memory: what it is called and its key."""
        self._exported.append(self.rnic.region(size, access))
        return self._exported[-1].iova, self._exported[-1].key

    def step(self, others=(), wait_s=0.05):
        """Send what there is, take what came."""
        if not self.is_closed:
            self._unsent += self.qp.data_to_send(1 << 16)
        reading = [*others] if self.is_closed else [self.connection, *others]
        writing = [self.connection] if self._unsent and not self.is_closed else []
        readable, writable, _ = select.select(reading, writing, [], wait_s)
        try:
            if writable:
                self._unsent = self._unsent[self.connection.send(self._unsent) :]
            if self.connection in readable:
                data = self.connection.recv(1 << 16)
                self.is_closed = not data
                self.qp.take(data)
        except ConnectionError:
            self.is_closed = True
        self.found += self.qp.completions()
        if self.is_closed:
            self.found += self.qp.end()

    def disconnect(self):
        self.connection.shutdown(socket.SHUT_WR)


def _frame(connection, reply):
    """Read one Request or Reply and nothing behind it."""
    reader = mpa.FrameReader(reply, time.monotonic())
    while reader.wanted:
        data = connection.recv(reader.wanted)
        assert data, "the peer closed during the start-up"
        reader.receive(data)
    return reader.frame


class Engine(Side):
    """All of it, through the host's verbs."""

    def __init__(self, engine, channel, device, wishes):
        super().__init__(None)
        self.engine, self.channel, self.device = engine, channel, device
        self.parameters = ConnParam(
            private_data=wishes.private_data,
            responder_resources=wishes.ird,
            initiator_depth=wishes.ord,
            crc=wishes.crc,
            rtr=wishes.rtr,
            timeout_s=RUN_S,
        )
        self.pd, self.cq = device.alloc_pd(), device.create_cq(256)
        self._buffer = engine.alloc(SIZE)
        self.data = self._buffer.array
        self.data[:] = 0
        self._mr = self.pd.reg_mr(self._buffer, ALL)
        self.iova, self.key = self._mr.addr, self._mr.rkey
        self.qp = device.create_qp(self.pd, self.cq, cap=QpCap(64, 64))
        self._tokens = iter(range(1, 1 << 30))
        self._exported = []

    @classmethod
    @contextlib.contextmanager
    def _made(cls, wishes):
        with contextlib.ExitStack() as stack:
            engine = stack.enter_context(host.connect("inline:"))
            channel = stack.enter_context(engine.channel(work=1024, events=1024))
            with Device(engine, channel) as device:
                yield cls(engine, channel, device, wishes)

    @classmethod
    @contextlib.contextmanager
    def connecting(cls, port, wishes):
        """Connect as the active side."""
        with cls._made(wishes) as made:
            made.startup = made.qp.connect(("127.0.0.1", port), made.parameters)
            yield made

    @classmethod
    @contextlib.contextmanager
    def accepting(cls, call, wishes):
        """Accept the connection that `call(port)` brings about."""
        with cls._made(wishes) as made:
            listener = made.device.listen()
            call(listener.address[1])
            request = listener.get_request(RUN_S)
            made.startup = request.accept(made.qp, made.parameters)
            listener.close()
            yield made

    @property
    def may_send(self):
        return True  # The engine holds back what may not be sent yet.

    def post(self, opcode, *piece, flags=None, **values):
        token = next(self._tokens)
        request = SendWr(opcode, [self._mr.sge(*piece)] if piece else [], token, **values)
        if flags is not None:
            request.send_flags = flags
        assert self.qp.post_send(request)
        return token

    def receive(self, start, length):
        token = next(self._tokens)
        assert self.qp.post_recv(RecvWr([self._mr.sge(start, length)], token))
        return token

    def export(self, size, access=ALL):
        buffer = self.engine.alloc(size)
        made = self.pd.reg_mr(buffer, access)
        self._exported.append((buffer, made))
        return made.addr, made.rkey

    def step(self, others=()):
        self.channel.wait_n(1, timeout_s=0.02)
        self.found += [
            {
                "token": one.wr_id,
                "status": one.status,
                "opcode": one.opcode,
                "byte_len": one.byte_len,
                "flags": one.wc_flags,
                "invalidated_rkey": one.invalidated_rkey,
                "vendor_err": one.vendor_err,
            }
            for one in self.cq.poll_cq()
        ]
        event = self.device.poll_async_event()
        self.is_closed |= event is not None

    def disconnect(self):
        self.qp.disconnect()


FORMS = {"core": Core, "engine": Engine}


class Both:
    """A connection between our side and siw, whose memory is at `told`."""

    def __init__(self, guest, ours, told):
        self.guest, self.ours, self.told = guest, ours, told

    def ask(self, call, **arguments):
        """Run a call in the guest while our side goes on working; what it returned."""
        self.guest.start(f"{PEER}:{call}", **arguments)
        self.ours.run(self.guest.has_answer, [self.guest.socket])
        return self.guest.result()

    def theirs(self, start=0):
        """Siw's memory, as a request names it."""
        return {"remote_addr": self.told["address"] + start, "rkey": self.told["rkey"]}

    def mine(self, start=0):
        """Ours, likewise."""
        return {"remote_addr": self.ours.iova + start, "rkey": self.ours.key}


NUDGE_S = 1.5


@contextlib.contextmanager
def we_connect(guest, form, wishes, *, answer=b"", port=7401, **spec):
    """We are the active side. The first message comes from us."""
    told = guest.call(f"{PEER}:listen", device="siw0", address="10.0.2.15", port=port)
    guest.start(f"{PEER}:accept", private_data=answer.hex(), **DEPTHS)
    with form.connecting(guest.wire_ports[port], wishes, **spec) as ours:
        # Writes of no bytes. siw tells its application of a peer-to-peer connection when something
        # came, and now and then misses what comes right behind its Reply, until more comes.
        ours.post(0)
        posted = [time.monotonic()]

        def is_told():
            if guest.has_answer():
                return True
            if time.monotonic() > posted[-1] + NUDGE_S:
                ours.post(0)
                posted.append(time.monotonic())
            return False

        ours.run(is_told, [guest.socket])
        both = Both(guest, ours, told | guest.result())
        for _ in posted:
            ours.completion()
        yield both
    guest.call(f"{PEER}:close")


@contextlib.contextmanager
def siw_connects(guest, form, wishes, *, asked=b"", **spec):
    """siw is the active side, and sends the first message."""

    def call(port):
        guest.start(
            f"{PEER}:connect",
            device="siw0",
            address="10.0.2.2",
            port=port,
            private_data=asked.hex(),
            **DEPTHS,
        )

    with form.accepting(call, wishes, **spec) as ours:
        ours.run(guest.has_answer, [guest.socket])
        both = Both(guest, ours, guest.result())
        both.ask("post", opcode=0, start=0, length=0, **both.mine())
        both.ask("completions", count=1)
        ours.run(lambda: ours.may_send)
        yield both
    guest.call(f"{PEER}:close")


ROLES = {"we connect": we_connect, "siw connects": siw_connects}
WISHES = mpa.Wishes(ird=4, ord=4)


def wishes(**changes):
    """What our side wants: what siw is asked for, too, but for the changes."""
    return replace(WISHES, **changes)
