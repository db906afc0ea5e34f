"""Reading an engine from outside: its accounts mapped read-only, and its control plane's answers.

Needs nothing of the engine but its accounts, which are plain words, read as they are.
"""

import contextlib
import mmap
import os
import socket
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppe.errors import OperatorError
from ppe.paths import find_engine
from shm import messages
from shm.rendezvous import socket_candidates


class Observer:
    """A connection to an engine's control socket that only looks (and may ask it to stop)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._connection = self._dial(name)
        from shm.records import LAYOUT_HASH, VERSION

        self.hello = self.order("hello", version=VERSION, layout=LAYOUT_HASH)

    @staticmethod
    def _dial(name: str) -> socket.socket:
        for path in socket_candidates(name):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            connection.settimeout(15)
            try:
                connection.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                continue
            except PermissionError as error:
                connection.close()
                raise OperatorError(
                    f"{path} is not open to uid {os.geteuid()}", "run as the engine's user"
                ) from error
            return connection
        found = find_engine(name)
        if found is not None:  # Its lock is held, and nobody listens: a first start compiles.
            raise OperatorError(
                f"engine {name!r} (pid {found.pid()}) is still starting, or is just ending",
                f"wait for `ppe up`, or see {found.directory / name}.log",
            )
        raise OperatorError(f"no engine named {name!r} is running", f"ppe up --name {name}")

    def order(self, call: str, **fields: Any) -> dict[str, Any]:
        """Ask the control plane; raises OperatorError with its refusal."""
        answer, descriptors = self._ask(call, **fields)
        messages.close_all(descriptors)
        return answer

    def _ask(self, call: str, **fields: Any) -> tuple[dict[str, Any], list[int]]:
        try:
            messages.send(self._connection, {"call": call, **fields}, [])
            answer, descriptors = messages.receive(self._connection)
        except (messages.ControlClosed, TimeoutError) as error:
            raise OperatorError(f"engine {self.name!r} does not answer", "see `ppe up`") from error
        if "error" in answer:
            messages.close_all(descriptors)
            raise OperatorError(f"engine {self.name!r}: {answer['error']}")
        return answer, descriptors

    def accounts(self) -> list["Accounts"]:
        """The accounts of each engine, mapped read-only."""
        from ppe.cycle.accounts import AccountsLayout

        answer, descriptors = self._ask("accounts")
        found = []
        for descriptor, size, shape in zip(
            descriptors, answer["sizes"], answer["shapes"], strict=True
        ):
            memory = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
            os.close(descriptor)
            found.append(Accounts(AccountsLayout(*shape), np.frombuffer(memory, np.uint8)))
        return found

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def __enter__(self) -> "Observer":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.close()


@dataclass(frozen=True, slots=True)
class Accounts:
    """One engine's accounts as arrays over its memory."""

    layout: Any
    array: NDArray[Any]

    def snapshot(self) -> dict[str, Any]:
        """Everything worth printing, as plain Python values. Times in microseconds."""
        from ppe.cycle import accounts as described

        layout, array = self.layout, self.array
        info = layout.rows(array, "info", described.ENGINE_INFO)[0]
        per_us = max(int(info["cycles_per_us"]), 1)
        values = layout.part(array, "values").view(np.int64)
        return {
            "engine": int(info["engine"]),
            "cpu": int(info["cpu"]),
            "thread": int(info["thread"]),
            "passes": int(info["passes"]),
            "useful_passes": int(info["useful_passes"]),
            "useful_us": int(info["useful_cycles"]) / per_us,
            "empty_us": int(info["empty_cycles"]) / per_us,
            "asleep_us": int(info["asleep_cycles"]) / per_us,
            "active_channels": int(info["active_channels"]),
            "longest_pass_us": int(info["max_pass_cycles"]) / per_us,
            "stalls": int(info["stalls"]),
            "pass_us": self._durations(per_us),
            "stages": self._stages(per_us),
            "counters": {
                name: int(value)
                for (name, _), value in zip(described.COUNTERS.rows, values, strict=True)
            },
            "channels": self._rows("channels", described.CHANNEL_STATS, "client"),
            "endpoints": self._rows("endpoints", described.ENDPOINT_STATS, "state"),
        }

    def _durations(self, per_us: int) -> dict[str, float]:
        from shm.histogram import Histogram

        histogram = Histogram(self.layout.part(self.array, "durations").view(np.int64))
        summary = histogram.summary(scale=1 / per_us)
        return {f"p{percent:g}": value for percent, value in summary.percentiles.items()}

    def _stages(self, per_us: int) -> list[dict[str, Any]]:
        from ppe.cycle import accounts as described

        rows = self.layout.rows(self.array, "stages", described.STAGE_ROW)
        return [
            {
                "stage": name,
                "useful_us": int(row["useful_cycles"]) / per_us,
                "empty_us": int(row["empty_cycles"]) / per_us,
                "work": int(row["work"]),
                "runs": int(row["runs"]),
            }
            for name, row in zip(described.STAGES, rows, strict=True)
        ]

    def _rows(self, part: str, dtype: Any, used: str) -> list[dict[str, int]]:
        rows = self.layout.rows(self.array, part, dtype)
        shown = []
        for index in np.nonzero(rows[used])[0]:
            row = rows[index]
            shown.append({"row": int(index)} | {n: int(row[n]) for n in dtype.names})
        return shown

    def errors(self) -> list[dict[str, Any]]:
        """The distinct errors, oldest first."""
        from ppe.cycle import accounts as described
        from shm.error_log import read_errors

        part = self.layout.part(self.array, "errors")
        return [
            {
                "what": described.ERROR_NAMES.get(record.code, f"error {record.code}"),
                "detail": os.strerror(record.detail) if record.detail else "",
                "count": record.count,
                "first_ns": record.first_ns,
                "last_ns": record.last_ns,
                "context": record.last_context,
            }
            for record in read_errors(part)
        ]
