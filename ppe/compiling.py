"""The first start of a command compiles for a minute or more: this says so, and asks the service
manager for the time. Where everything is compiled already nothing is said.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from ppe import notify, output

FIRST: Final = "compiling for this processor, first start only …"
EVERY: Final = 100  # functions from one line to the next
EXTEND_S: Final = 60.0  # what each function may take at most


@contextmanager
def shown(say: Callable[[str], None] = output.say) -> Iterator[None]:
    """Report what is compiled inside the block."""
    from shm.jit import compilations

    def progress(count: int, name: str) -> None:
        if count == 1:
            say(FIRST)
            notify.status(FIRST)
        elif count % EVERY == 0:
            say(f"compiled {count} functions, now {name}")
        notify.extend_start(EXTEND_S)

    with compilations(progress):
        yield
