"""The other process of a benchmark: does one thing at a time as told, and sleeps in between.

Orders come as JSON lines on stdin, answers go as JSON lines to stdout; shared memory is named by
the descriptors it inherited. The one rule: it ends when stdin does.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from bench.cores import pinned

_engines: list[Any] = []
_sides: dict[int, Any] = {}


def _side(descriptor: int) -> Any:
    from bench.ring_pair import Side

    if descriptor not in _sides:
        _sides[descriptor] = Side.inherited(descriptor)
    return _sides[descriptor]


def prepare(module: str) -> int:
    """Import what will run, so that compiling and loading is over before anything is timed."""
    __import__(module)
    return 0


def reset(descriptor: int) -> int:
    """Begin the pair anew on this side."""
    _side(descriptor).reset()
    return 0


def answer(descriptor: int, core: int) -> int:
    """Send back every entry until told to stop."""
    from bench.workers import answer as work

    with pinned(core):
        return work(_side(descriptor).address)


def produce(descriptor: int, core: int, burst: int, entries: int) -> int:
    """Post so many entries in bursts."""
    from bench.workers import produce as work

    with pinned(core):
        return work(_side(descriptor).address, burst, entries)


def sleep_rounds(descriptor: int, core: int, rounds: int, n: int, deadline_ns: int) -> int:
    """Sleep in wait_n, `rounds` times."""
    from bench.wait_workers import sleep_rounds as work

    with pinned(core):
        return work(_side(descriptor).address, rounds, n, deadline_ns)


def engine_open(core: int, descriptor: int, bell: int) -> int:
    """Make an engine on `core` with the one channel whose descriptors these are."""
    from bench.private_engine import PrivateEngine

    engine = PrivateEngine(core)
    _engines.append(engine)
    with engine.running():
        return engine.attach_inherited(descriptor, bell)


def engine_start() -> int:
    """Let the cycle run."""
    _engines[-1].start()
    return 0


def engine_stop() -> dict[str, int]:
    """Stop it. Return what it has counted since it was made."""
    _engines[-1].stop()
    return engine_counts()


def engine_counts() -> dict[str, int]:
    """What the engine has counted since it was made."""
    return {name: _engines[-1].counter(name) for name in ("wakes", "operations", "doorbells")}


def python_receive(core: int, descriptor: int, kind: str, **options: Any) -> dict[str, float]:
    """Take entries in interpreted Python until told to stop."""
    from bench.python_calls import RECEIVERS

    with pinned(core):
        return RECEIVERS[kind](_side(descriptor), **options)


ORDERS: Final[dict[str, Callable[..., Any]]] = {
    order.__name__: order
    for order in (
        prepare,
        reset,
        answer,
        produce,
        sleep_rounds,
        engine_open,
        engine_start,
        engine_stop,
        engine_counts,
        python_receive,
    )
}


def serve(orders: Mapping[str, Callable[..., Any]]) -> None:
    """Do what each line asks, until stdin ends."""
    for line in sys.stdin:
        order = json.loads(line)
        try:
            reply = {"done": orders[order.pop("order")](**order)}
        except Exception as error:
            reply = {"failed": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Serve orders until stdin ends."""
    serve(ORDERS)
    for engine in _engines:
        engine.close()
    for side in _sides.values():
        side.close()


if __name__ == "__main__":
    main()
