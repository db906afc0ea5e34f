"""Which cores a measurement uses, and pinning for just as long as it runs.

The one rule: the process gets the affinity back that it had, so nothing started later inherits one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ppe.errors import UsageError


def choose(text: str | None) -> tuple[int, int]:
    """Return the two cores named in `text` ("a,b"), by default the first two usable ones.

    Raises UsageError when they are not two different cores this process may use.
    """
    usable = sorted(os.sched_getaffinity(0))
    if text is None:
        if len(usable) < 2:
            raise UsageError("two CPUs are needed, this process may use one", "give it another")
        return usable[0], usable[1]
    try:
        a, b = (int(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"--cores {text!r} is not two numbers", "write --cores 0,1") from None
    if a == b or a not in usable or b not in usable:
        raise UsageError(
            f"--cores {text}: not two different CPUs this process may use",
            f"choose from {', '.join(map(str, usable))}",
        )
    return a, b


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keep the calling thread on `core` inside the block; a negative core changes nothing."""
    before = os.sched_getaffinity(0)
    if core >= 0:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
