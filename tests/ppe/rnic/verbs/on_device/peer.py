"""The kernel's siw as one peer of a connection whose other end is software of ours: a verbs
application in the guest that does what it is told, one step a call. There is one at a time.
"""

import contextlib
import time

from ppe.cycle.rnic.verbs import connection
from ppe.cycle.rnic.verbs.device import Device
from shm import verbs_numbers as c
from tests.ppe.rnic.verbs.on_device.node import WAIT_S, End, Memory

_now = {}


def listen(device, address, port):
    """Open a device and listen there."""
    close()
    _now["device"] = Device(device)
    _now["end"] = End(_now["device"], inline=32)
    _now["listener"] = connection.Listener(address, port)
    return _memory()


def _memory():
    memory = _now["end"].memory
    return {"address": memory.address, "rkey": memory.rkey, "size": int(memory.data.size)}


def accept(private_data="", ird=4, ord=4):
    """Accept the next request; what it brought."""
    end = _now["end"]
    end.connection, request = _now["listener"].request(WAIT_S)
    end.connection.accept(end.qp, private_data=bytes.fromhex(private_data), ird=ird, ord=ord)
    return _told(request)


def refuse():
    """Reject the next request."""
    asked, _ = _now["listener"].request(WAIT_S)
    asked.reject()
    asked.close()


def connect(device, address, port, private_data="", ird=4, ord=4):
    """Open a device and connect; what the answer brought."""
    close()
    _now["device"] = Device(device)
    end = _now["end"] = End(_now["device"], inline=32)
    _now["channel"] = connection.CmChannel()
    end.connection = connection.resolve(_now["channel"], address, port)
    data = bytes.fromhex(private_data)
    return _told(end.connection.connect(end.qp, private_data=data, ird=ird, ord=ord)) | _memory()


def try_connect(device, address, port):
    """Connect to somebody who refuses: the event and the private data."""
    try:
        connect(device, address, port)
    except connection.ConnectionFailedError as error:
        return [error.event.kind, error.private_data.hex()]
    raise AssertionError("it connected")


def _told(event):
    return {"private_data": event.private_data.hex(), "ird": event.ird, "ord": event.ord}


def fill(start, text):
    """Write bytes into the registered memory."""
    data = bytes.fromhex(text)
    _now["end"].memory.data[start : start + len(data)] = list(data)


def read(start, length):
    """Bytes of the registered memory."""
    return _now["end"].memory.bytes(start, length).hex()


def export(size):
    """Register other memory."""
    end = _now["end"]
    memory = Memory(end.domain, size)
    _now.setdefault("exported", []).append(memory)
    return {"address": memory.address, "rkey": memory.rkey}


def receive(start, length):
    """Post a receive."""
    end = _now["end"]
    return end.receive(end.memory.piece(start, length))


def post(opcode, start, length, flags=c.SEND_SIGNALED, **values):
    """Post a send from the registered memory."""
    end = _now["end"]
    return end.post(opcode, end.memory.piece(start, length), flags=flags, **values)


def completions(count):
    """The next completions, as dictionaries."""
    return [vars(one) for one in _now["end"].completions(count)]


def event(timeout_s=WAIT_S):
    """The next event of the connection: its number, or None."""
    channel = _now["channel"] if "channel" in _now else _now["listener"].channel
    found = channel.next_event(timeout_s)
    return None if found is None else found.kind


def disconnect():
    """Close the connection in order."""
    _now["end"].connection.disconnect()


def flush(count):
    """What a lost connection flushes, of itself or once the queue pair is told."""
    end = _now["end"]
    stop = time.monotonic() + 2
    while len(end._waiting) < count and time.monotonic() < stop:
        end.look()
    if len(end._waiting) < count:
        end.qp.to_error()
    return completions(count)


def close():
    """Let go of all of it."""
    end = _now.get("end")
    if end is not None:
        with contextlib.suppress(Exception):
            end.connection.disconnect()
        end.close()
    for name in ("listener", "channel", "device"):
        if name in _now:
            _now[name].close()
    _now.clear()
