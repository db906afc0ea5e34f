"""Where a server's connections are served: which of the layers of a target run in the engine. With
`stream` it moves bytes; with `datamover` it frames PDUs and moves data where the server says; with
`engine` it also serves READ and WRITE of units in memory by itself, as far as the gates are open.
"""

from typing import Final

STREAM: Final = "stream"
DATAMOVER: Final = "datamover"
ENGINE: Final = "engine"
PLACEMENTS: Final = (STREAM, DATAMOVER, ENGINE)


def check_placement(name: str) -> str:
    """The name itself; ValueError for one that names no placement."""
    if name not in PLACEMENTS:
        raise ValueError(f"placement {name!r} is none of {', '.join(PLACEMENTS)}")
    return name
