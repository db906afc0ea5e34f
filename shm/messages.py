"""Messages on the control socket: one JSON object a packet, descriptors beside it.

A SOCK_SEQPACKET socket keeps message boundaries, so nothing is framed here. Both sides bound what
they read and close descriptors they did not ask for.
"""

import array
import contextlib
import json
import os
import socket
from typing import Any, Final

MESSAGE_MAX: Final = 65536
DESCRIPTORS_MAX: Final = 8


class ControlClosed(ConnectionError):
    """The other end of the control socket is gone."""


class BadMessage(ValueError):
    """What came over the control socket is not one of our messages."""


def send(connection: socket.socket, message: dict[str, Any], descriptors: list[int]) -> None:
    """Send one message with descriptors. Raises ControlClosed when nobody is there."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MESSAGE_MAX:
        raise BadMessage(f"a control message of {len(data)} bytes is too long")
    ancillary: list[Any] = []
    if descriptors:
        rights = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
    try:
        connection.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionError) as error:
        raise ControlClosed("the control socket is closed") from error


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receive one message and its descriptors, which the caller then owns.

    Raises ControlClosed at the end, BadMessage (with every descriptor closed) for anything else.
    """
    space = socket.CMSG_SPACE(4 * DESCRIPTORS_MAX)
    try:
        data, ancillary, flags, _ = connection.recvmsg(MESSAGE_MAX, space, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError as error:
        raise ControlClosed("the control socket is closed") from error
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % 4])
    if not data and not descriptors:
        raise ControlClosed("the control socket is closed")
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise BadMessage("a control message was too long")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise BadMessage("a control message is not an object")
    except (ValueError, RecursionError) as error:  # RecursionError: lists nested without end
        close_all(list(descriptors))
        raise BadMessage(str(error)) from error
    return message, list(descriptors)


def close_all(descriptors: list[int]) -> None:
    """Close descriptors that nobody wants."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
