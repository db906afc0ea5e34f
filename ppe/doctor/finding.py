"""What one check of the doctor says."""

from dataclasses import dataclass
from typing import Final, Literal

Status = Literal["ok", "warn", "bad", "unknown"]

OK: Final = "ok"
WARN: Final = "warn"
BAD: Final = "bad"
UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result: `detail` is what was seen, `fix` one line to run or to change."""

    name: str
    status: Status
    detail: str
    fix: str = ""
