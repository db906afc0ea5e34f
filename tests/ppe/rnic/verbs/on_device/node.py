"""What runs in the guest: a device with memory and queues, two ends of a connection over it, and
the compiled loop that polls. Nothing here is a test; the scenarios are.
"""

import contextlib
import time
from threading import Thread

import numpy as np

from ppe.cycle.rnic.records import SGE, WC, WR, WR_SGES
from ppe.cycle.rnic.verbs import connection, poll, receive, send
from ppe.cycle.rnic.verbs.device import Device, Domain, Region
from ppe.cycle.rnic.verbs.queues import Block, CompletionQueue, QueuePair
from shm import verbs_numbers as c
from shm.jit import entry
from shm.memory import store_64
from shm.view import address_of, window

ALL = c.ACCESS_LOCAL_WRITE | c.ACCESS_REMOTE_WRITE | c.ACCESS_REMOTE_READ
SIGNALLED = c.SEND_SIGNALED
BUFFER = 256 << 10
WAIT_S = 10.0
_SPINS = 2000  # polls between two looks at the clock
_ROOM = 64
WC_SIZE = WC.itemsize


@entry("int64(intp, intp, intp, int64, int64)")
def poll_some(cq, out, qps, most, spins):
    """Poll until `most` completions are in `out`, their queue pairs in `qps`, or `spins` polls gave
    nothing: how many came, or -errno.
    """
    count = 0
    while count < most and spins > 0:
        qp = poll.wc_next(cq, out + count * WC_SIZE)
        if qp < 0:
            return qp
        if qp > 0:
            store_64(qps + 8 * count, qp)
            count += 1
        else:
            spins -= 1
    return count


@entry("int64(intp, intp)")
def post_send(qp, wr):
    return send.post_send(qp, wr)


@entry("int64(intp, intp)")
def post_recv(rq, wr):
    return receive.post_recv(rq, wr)


@entry("int64(intp, intp)")
def flush_next(qp, wc):
    return int(poll.flush_next(qp, wc))


@entry("int64(intp, int64)")
def req_notify(cq, solicited_only):
    return poll.req_notify(cq, solicited_only)


class Completion:
    """A completion as plain numbers."""

    def __init__(self, row, qp):
        self.qp = qp
        for name in WC.names:
            setattr(self, name, int(row[name]))

    def __repr__(self):
        return f"{self.token}: status {self.status}, opcode {self.opcode}, flags {self.flags:#x}"


class Memory:
    """Registered memory; `data` are its bytes."""

    def __init__(self, domain, size=BUFFER, access=ALL, fill=0):
        self.data = np.full(size, fill, np.uint8)
        self.address = address_of(self.data)
        self.region = Region(domain, self.address, size, access)
        self.lkey, self.rkey = self.region.lkey, self.region.rkey

    def piece(self, start=0, length=None):
        return (
            self.address + start,
            self.data.size - start if length is None else length,
            self.lkey,
        )

    def bytes(self, start, length):
        return self.data[start : start + length].tobytes()


class End:
    """One end of a connection."""

    def __init__(self, device, domain=None, *, srq=None, sends=32, receives=32, sges=4, inline=0):
        self.device, self.domain = device, domain or Domain(device)
        self.cq = CompletionQueue(device, 256)
        self.qp = QueuePair(
            self.domain,
            self.cq,
            sends=sends,
            receives=receives,
            sges=sges,
            inline=inline,
            srq=srq,
        )
        self.memory = Memory(self.domain)
        self.connection = None
        self._wr = Block(WR.itemsize)
        self._out, self._qps = Block(_ROOM * WC_SIZE), Block(_ROOM * 8)
        self._waiting = []
        self._token = 0

    def _fill(self, opcode, pieces, values):
        row = window(self._wr.address, 1, WR)[0]
        row["opcode"], row["sge_count"] = opcode, len(pieces)
        for name in WR.names:
            if name not in ("opcode", "sge_count", "sges"):
                row[name] = values.get(name, 0)
        if pieces:
            window(self._wr.address + WR_SGES, len(pieces), SGE)[:] = list(pieces)
        return self._wr.address

    def try_post(self, opcode, *pieces, flags=SIGNALLED, **values):
        """Post a send: 0 or -errno."""
        return post_send(self.qp.address, self._fill(opcode, pieces, {**values, "flags": flags}))

    def post(self, opcode, *pieces, **values):
        """Post a send; its token."""
        self._token += 1
        outcome = self.try_post(opcode, *pieces, token=self._token, **values)
        assert outcome == 0, f"post of opcode {opcode}: {outcome}"
        return self._token

    def receive(self, *pieces, rq=None):
        """Post a receive; its token."""
        self._token += 1
        outcome = post_recv(rq or self.qp.rq, self._fill(0, pieces, {"token": self._token}))
        assert outcome == 0, f"post of a receive: {outcome}"
        return self._token

    def look(self, spins=_SPINS):
        """Poll a little."""
        found = poll_some(self.cq.address, self._out.address, self._qps.address, _ROOM, spins)
        assert found >= 0, f"polling failed: {found}"
        qps = window(self._qps.address, _ROOM, "<i8")
        rows = window(self._out.address, _ROOM, WC)
        self._waiting += [Completion(rows[at], int(qps[at])) for at in range(found)]

    def completions(self, count):
        """The next `count` completions, in order."""
        end = time.monotonic() + WAIT_S
        while len(self._waiting) < count and time.monotonic() < end:
            self.look()
        assert len(self._waiting) >= count, f"{len(self._waiting)} of {count}: {self._waiting}"
        found, self._waiting = self._waiting[:count], self._waiting[count:]
        return found

    def completion(self, status=c.WC_SUCCESS):
        (found,) = self.completions(1)
        assert found.status == status, found
        return found

    def rest(self):
        """What is left when the connection is lost, with what the device never completes."""
        self.look(spins=20_000)
        found, self._waiting = self._waiting, []
        while flush_next(self.qp.address, self._out.address):
            found.append(Completion(window(self._out.address, 1, WC)[0], self.qp.address))
        return found

    def nothing_more(self):
        self.look(spins=20_000)
        assert self._waiting == [], self._waiting

    def close(self):
        if self.connection is not None:
            self.connection.close()
        self.qp.close()
        self.memory.region.close()
        self.cq.close()


class Answer(Thread):
    """Accepts one request in a thread of its own, as a control plane would."""

    def __init__(self, listener, end, **parameters):
        super().__init__(daemon=True)
        self.listener, self.end, self.parameters = listener, end, parameters
        self.request = self.established = self.error = None
        self.start()

    def run(self):
        try:
            self.end.connection, self.request = self.listener.request(WAIT_S)
            self.established = self.end.connection.accept(self.end.qp, **self.parameters)
        except BaseException as error:
            self.error = error

    def wait(self):
        self.join(WAIT_S)
        assert not self.is_alive(), "nobody came"
        if self.error is not None:
            raise self.error


class Link:
    """Two connected ends on one device; `left` is the active one."""

    def __init__(self, name, address, port, *, left=None, right=None, active=None, passive=None):
        self.device = Device(name)
        self.left = End(self.device, **(left or {}))
        self.right = End(self.device, **(right or {}))
        self.listener = connection.Listener(address, port)
        self.channel = connection.CmChannel()
        answer = Answer(self.listener, self.right, **(passive or {}))
        self.left.connection = connection.resolve(self.channel, address, port)
        self.reply = self.left.connection.connect(self.left.qp, **(active or {}))
        answer.wait()
        self.request = answer.request

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for end in (self.left, self.right):
            with contextlib.suppress(Exception):
                end.connection.disconnect()
        for end in (self.left, self.right):
            end.close()
        self.listener.close()
        self.channel.close()
        self.device.close()


def raised(kind, function, *arguments):
    """The error that a call must raise. (pytest is too dear to import in the guest.)"""
    try:
        function(*arguments)
    except kind as error:
        return error
    raise AssertionError(f"{function.__name__} raised no {kind.__name__}")
