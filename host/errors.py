"""What can go wrong between a host and its engine; each error says what to do about it."""

import os

from shm.operations import CANCELLED, END_OF_STREAM, FLUSHED


class HostError(Exception):
    """Anything the host library raises on its own account."""


class EngineNotRunning(HostError, ConnectionRefusedError):
    """No engine of this name listens. Start one, or use `inline:`."""


class EngineDied(HostError, ConnectionResetError):
    """The engine went away while it was used. Connect again, to a new one or `inline:`."""


class EngineRefused(HostError):
    """The engine does not grant what was asked; the message is the engine's."""


class EngineMismatch(HostError):
    """Engine and host were built from different releases."""


class EngineForbidden(HostError, PermissionError):
    """This user may not use that engine."""


class WrongThread(HostError, RuntimeError):
    """A channel belongs to the thread that opened it, and to no forked child."""


class NothingOutstanding(HostError, ValueError):
    """`wait_n` would sleep for ever: no operation is outstanding and no timeout was given."""


class EndOfStream(HostError, EOFError):
    """The peer half-closed before everything that was asked for had come."""


class TimedOut(HostError, TimeoutError):
    """An operation was taken back after its timeout; `length` bytes of it had been moved."""

    def __init__(self, message: str, length: int = 0) -> None:
        super().__init__(message)
        self.length = length


class Cancelled(HostError):
    """The operation was cancelled, or its endpoint was closed."""


def error_of(status: int, what: str) -> Exception:
    """The exception that a completion's negative status stands for.

    A transport's errno becomes the OSError subclass Python has for it (ConnectionResetError, ...).
    """
    if status == END_OF_STREAM:
        return EndOfStream(f"{what}: the peer closed the stream")
    if status == CANCELLED:
        return Cancelled(f"{what}: cancelled")
    if status == FLUSHED:
        return EngineDied(f"{what}: the engine went away; connect again")
    return OSError(-status, f"{what}: {os.strerror(-status)}")
