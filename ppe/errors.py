"""Errors that a person at a shell can act on.

Each one carries what is wrong and what to change, as separate sentences; a traceback is for bugs.
"""

from typing import Final

EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, what a shell reports too.


class OperatorError(Exception):
    """Something the operator can put right: `message` says what is wrong, `hint` what to change."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(OperatorError):
    """The command line itself is wrong; exits with 2."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting is unknown or out of its range, on the command line or in the file."""


class CpuError(OperatorError):
    """A CPU cannot be given to an engine."""


class CpuUnknown(CpuError):
    """The machine has no such CPU."""


class CpuOffline(CpuError):
    """The CPU exists but is switched off."""


class CpuOutsideCpuset(CpuError):
    """A cgroup or the inherited affinity keeps this process off the CPU."""


class CpuTaken(CpuError):
    """Another engine holds the CPU. `pid` is its process, 0 when that cannot be seen."""

    def __init__(self, cpu: int, pid: int) -> None:
        holder = f"pid {pid}" if pid else "a process this one cannot see"
        super().__init__(
            f"CPU {cpu} already belongs to an engine ({holder})",
            "pass another --cpu, stop that engine with `ppe down`, or share the CPU with --force",
        )
        self.cpu = cpu
        self.pid = pid


class NoHousekeepingCpu(CpuError):
    """Spinning engines would leave no CPU for anything else."""


class EngineNameError(UsageError):
    """An engine name that cannot be a file name in the run directory."""


class RuntimeDirectoryError(OperatorError):
    """The run directory cannot be trusted or made."""


class EngineNameTaken(OperatorError):
    """A live engine has this name. `pid` is its process, 0 when that cannot be seen."""

    def __init__(self, name: str, pid: int) -> None:
        holder = f"pid {pid}" if pid else "a process this one cannot see"
        super().__init__(
            f"engine {name!r} is already running ({holder})",
            f"stop it with `ppe down --name {name}`, or start this one under another --name",
        )
        self.name = name
        self.pid = pid
