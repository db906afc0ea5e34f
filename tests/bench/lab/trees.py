"""Which processes a process has started, and those they have, as /proc tells it."""

from pathlib import Path


def descendants(pid):
    """Find every living process below `pid`."""
    found, left = set(), [pid]
    while left:
        for task in Path(f"/proc/{left.pop()}/task").glob("*"):
            try:
                children = (task / "children").read_text().split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            left += map(int, children)
            found |= set(map(int, children))
    return found
