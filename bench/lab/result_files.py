"""The files of a result set: the experiment as it ran, its plan, and one file for each run.

The one rule: a file appears whole or not at all; nothing that was finished is ever written again.
"""

import json
import os
from pathlib import Path
from typing import Any, Final

from ppe.errors import OperatorError

SCHEMA: Final = 1
SPEC_FILE: Final = "experiment.toml"
PLAN_FILE: Final = "plan.json"
RUNS_FOLDER: Final = "runs"
FINISHED: Final = ("done", "refused")  # what is not run again


class NotResumable(OperatorError):
    """A folder holds no plan that can be gone on with."""


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, see it on the disk, and give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """The same for a value. What JSON has no number for (NaN) is a fault of ours: ValueError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def run_file(directory: Path, identity: str) -> Path:
    """Where a run's result is."""
    return directory / RUNS_FOLDER / f"{identity}.json"


def has_plan(directory: Path) -> bool:
    """Whether a folder is a result set already."""
    return (directory / PLAN_FILE).exists()


def read_plan(directory: Path) -> dict[str, Any]:
    """The plan of a result set. Raises NotResumable."""
    path = directory / PLAN_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotResumable(
            f"{directory} holds no {PLAN_FILE}: nothing was begun there", "run it without --resume"
        ) from None
    except (OSError, ValueError) as error:
        raise NotResumable(f"{path} cannot be read: {error}", "begin anew in another folder") from (
            error
        )
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        version = found.get("schema") if isinstance(found, dict) else None
        raise NotResumable(
            f"{path} is of schema {version!r}, this version goes on with {SCHEMA}",
            "go on with the version that began it, or begin anew in another folder",
        )
    return found


def finished(directory: Path) -> set[str]:
    """The ids of the runs that need not run again; a file that says nothing counts for none."""
    found = set()
    for path in sorted((directory / RUNS_FOLDER).glob("*.json")):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(value, dict) and value.get("status") in FINISHED:
            found.add(path.stem)
    return found
