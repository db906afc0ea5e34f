"""The laboratory: experiments described in a file, run on one's own machine, and read back.

The measuring side writes result sets, the reading side turns them into answers; they meet only in
result files.

    from bench.lab import Experiment, load, run

    run(Experiment.from_toml("mine.toml"), into="results/mine")
    table = load("results/mine").table()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from bench.lab.driver import run
    from bench.lab.spec import Experiment

_PLACES: Final = {
    "Experiment": "bench.lab.spec",
    "Results": "bench.lab.results",
    "load": "bench.lab.results",
    "run": "bench.lab.driver",
}
__all__ = ["Experiment", "run"]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
