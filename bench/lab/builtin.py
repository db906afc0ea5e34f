"""The experiments that come with the project, as files of this package; they are copied, changed
and run like anyone's own.
"""

from pathlib import Path
from typing import Final

from bench.lab.spec import Experiment
from ppe.cli import suggestion
from ppe.errors import UsageError

FOLDER: Final = Path(__file__).parent / "experiments"


def names() -> list[str]:
    """Those there are."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def path_of(name: str) -> Path:
    """The file of one. Raises UsageError."""
    path = FOLDER / f"{name}.toml"
    if name not in names():
        hint = suggestion(name, names()) or f"there are {', '.join(names())}, and TOML files"
        raise UsageError(f"there is no experiment {name!r}, and no file of that name", hint)
    return path


def find(what: str) -> Experiment:
    """The experiment that a name or a file's path means. Raises UsageError, ConfigError."""
    if what in names():
        return Experiment.from_toml(path_of(what))
    path = Path(what)
    if path.suffix == ".toml" or path.is_file():
        return Experiment.from_toml(path)
    return Experiment.from_toml(path_of(what))
