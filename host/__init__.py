"""The client library: connect to an engine, post work, poll or wait for completions.

import host
with host.connect("inline:") as engine, engine.channel() as channel:
    endpoint = channel.connect("127.0.0.1", 3260)
"""

from typing import TYPE_CHECKING, Any, Union

import shm as _shm  # noqa: F401 - notes every later import of the project

if TYPE_CHECKING:
    from host.handle import EngineHandle
    from host.inline import InlineHandle

INLINE = "inline:"

_EXPORTS = {
    "Buffer": "host.memory",
    "Channel": "host.channel",
    "Completion": "host.channel",
    "Group": "host.group",
    "WaitResult": "host.channel",
    "AsyncChannel": "host.aio",
    "HostError": "host.errors",
    "EngineNotRunning": "host.errors",
    "EngineDied": "host.errors",
    "EngineRefused": "host.errors",
    "EngineMismatch": "host.errors",
    "EngineForbidden": "host.errors",
    "WrongThread": "host.errors",
    "NothingOutstanding": "host.errors",
    "TimedOut": "host.errors",
    "EndOfStream": "host.errors",
    "Cancelled": "host.errors",
}
__all__ = ["connect", *_EXPORTS]  # noqa: PLE0604


def connect(name: str = "default", **options: Any) -> Union["EngineHandle", "InlineHandle"]:
    """Connect to the engine called `name`, or run one in this thread with `inline:`.

    `inline:?idle=spin|yield|sleep` chooses what an inline wait does. `arena_size` is the size of
    the shared memory areas buffers are cut from. Raises EngineNotRunning, EngineForbidden,
    EngineMismatch, EngineRefused; each says what to do.
    """
    if name == INLINE or name.startswith(INLINE + "?"):
        from host.inline import InlineHandle

        return InlineHandle(name.partition("?")[2], **options)
    from host.handle import EngineHandle

    return EngineHandle(name, **options)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'host' has no attribute {name!r}")
