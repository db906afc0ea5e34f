"""The laboratory: experiments described in a file, run on one's own machine, and read back.

The measuring side writes result sets, the reading side turns them into answers; they meet only in
result files.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.lab.results import Results, load

__all__ = ["Results", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from bench.lab import results

        return getattr(results, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
