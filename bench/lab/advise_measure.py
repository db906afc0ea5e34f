"""The short measured run of `ppe advise`: what the model needs of both placements, and no more.

The one rule: it is an experiment like any other, so what it wrote can be reported, compared, and
learnt from again with --from.
"""

from importlib import import_module
from pathlib import Path
from typing import Final

from ppe.errors import OperatorError

TEXT: Final = """\
# Two placements at three depths, and a second N: what `ppe advise` learns from.
name = "advise"
title = "What an operation costs, by placement and depth"
question = "Which split of the cores suits this workload?"
impossible = "skip"
repeats = 3
warm_up_s = 0.2
measure_s = 0.5

[workload]
operation = "{operation}"
block_bytes = {block_bytes}
transport = "{transport}"

[partition]
shared = true

[[together]]
placement = ["inline", "inline", "inline", "datamover", "datamover", "datamover", "datamover"]
depth = [1, 8, 32, 1, 8, 32, 32]
wait_n = [0, 0, 0, 1, 1, 1, 16]
"""


def measure(into: Path, operation: str, block_bytes: int, transport: str) -> None:
    """Run it into a new folder. Raises OperatorError where it cannot be run.

    Unusable folders and impossible workloads are refused by the experiment's own errors.
    """
    text = TEXT.format(operation=operation, block_bytes=block_bytes, transport=transport)
    try:
        spec, driver = import_module("bench.lab.spec"), import_module("bench.lab.driver")
    except ModuleNotFoundError as error:
        raise OperatorError(
            f"this version cannot measure by itself: it has no {error.name}",
            "learn from runs that are there, with --from DIR",
        ) from error
    driver.run(spec.Experiment.from_text(text, "advise"), into)
