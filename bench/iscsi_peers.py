"""The processes of the iSCSI benchmark: our target, an engine's daemon, tgtd and the bare server,
each a child.

The one rule: a process runs only inside `running`; otherwise it is stopped (SIGSTOP), so one that
spins takes no core away from what is measured meanwhile. Each is ended by its own pid.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bench import reference_build
from bench.cores import pinned
from bench.peers import PeerFailed
from bench.reference_build import ReferenceMissing

LUN_BYTES: Final = 64 << 20
READY_TIMEOUT_S: Final = 180  # the first start compiles
STOP_TIMEOUT_S: Final = 15
TGT_TIMEOUT_S: Final = 10
TGT_IQN: Final = "iqn.2026-01.org.ppe:tgt"
TGT_ATTEMPTS: Final = 50
BLOCK: Final = 512
BARE_IQN: Final = "iqn.2026-01.org.ppe:bare"
BARE_SECONDS: Final = 3600  # it is ended long before
ENGINE_NAME: Final = "bench-iscsi"
# The `target` command by its class, so that it also runs where no entry points are installed.
SERVE: Final = (
    "import sys, ppe.cli as cli;"
    "cli._plugins = lambda: {'target': 'iscsi.tools.target:TargetCommand'};"
    "sys.exit(cli.main(sys.argv[1:]))"
)
_SERVE_COMMAND: Final = (
    *(sys.executable, "-c", SERVE, "target", "serve", "--json"),
    *("--ram", str(LUN_BYTES), "--portal", "127.0.0.1:0"),
)
SBIN: Final = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


class Process:
    """One child: pinned to `core` (negative: anywhere), stopped until it is to run."""

    def __init__(
        self, name: str, command: list[str], core: int, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `close`
        with pinned(core):
            self._process = subprocess.Popen(
                [*_dies_with_us(), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**os.environ, **(environment or {})},
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it ended by itself."""
        return self._process.poll() is not None

    def said(self) -> str:
        """What it wrote to its standard error."""
        self._log.seek(0)
        return self._log.read().strip()

    def read_object(self) -> dict[str, object]:
        """Wait for one JSON object on its standard output. Raises PeerFailed."""
        assert self._process.stdout is not None
        text, deadline = b"", time.monotonic() + READY_TIMEOUT_S
        while True:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._process.stdout], [], [], max(left, 0))
            piece = os.read(self._process.stdout.fileno(), 4096) if ready else b""
            if not piece:
                raise PeerFailed(f"{self.name} is not ready: {self.said() or 'it says nothing'}")
            text += piece
            with contextlib.suppress(json.JSONDecodeError):
                found: dict[str, object] = json.loads(text)
                return found

    def pin(self, core: int) -> None:
        """Put all its threads on `core`; negative: on every CPU this process may use."""
        self.pin_to({core} if core >= 0 else os.sched_getaffinity(0))

    def pin_to(self, cores: Collection[int]) -> None:
        """Put all its threads on these cores."""
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # a thread that just ended
                os.sched_setaffinity(int(task.name), cores)

    def cpu_ns(self) -> int:
        """CPU time of all its threads so far."""
        # What clock_getcpuclockid(3) makes of a pid; Python's time module does not have it.
        return time.clock_gettime_ns(~self.pid << 3 | 2)

    def wakeups(self) -> int:
        """How often its threads have gone to sleep so far, each to be woken."""
        return wakeups_of(self.pid)

    def halt(self) -> None:
        """Stop it where it is."""
        self._process.send_signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Let it run inside the block. Raises PeerFailed when it has ended."""
        if self.has_ended:
            raise PeerFailed(f"{self.name} ended: {self.said()}")
        self._process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.halt()

    def close(self, *, by: int = signal.SIGTERM) -> None:
        """End it, and kill it if it does not. Idempotent."""
        if self._process.poll() is None:
            self._process.send_signal(by)
            self._process.send_signal(signal.SIGCONT)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_TIMEOUT_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()


def wakeups_of(pid: int) -> int:
    """Voluntary context switches of all threads of a process, those that ended excepted."""
    count = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = (task / "status").read_text()
            count += int(status.partition("\nvoluntary_ctxt_switches:")[2].split(None, 1)[0])
    return count


class Target:
    """Something with a LUN: its process, its URL, its name and how it waits. `rdma_url`: the same
    LUN over iSER, of the same engine.
    """

    def __init__(
        self, process: Process, url: str, name: str, waits: str, rdma_url: str = ""
    ) -> None:
        self.process, self.url, self.name, self.waits = process, url, name, waits
        self.rdma_url = rdma_url

    @property
    def over_rdma(self) -> "Target":
        """It, as it is reached over iSER."""
        return Target(self.process, self.rdma_url, f"{self.name} over iSER", self.waits)

    def close(self) -> None:
        """End its process."""
        self.process.close()


def our_target(core: int, idle: str, placement: str, *, iser: bool = False) -> Target:
    """Start our target with an inline engine that waits as `idle` says; `placement` is "stream" or,
    where that engine serves READ and WRITE itself, "engine". With `iser` it has a portal for that,
    too, where the initiator says whether there is a CRC. Raises PeerFailed.
    """
    return ready_target(start_target(core, idle, placement, iser=iser), idle, placement, iser=iser)


def target_in(engine: "Engine", core: int) -> Target:
    """Start our target on `core`; READ and WRITE are that engine's. Raises PeerFailed."""
    with engine.running():
        process = Process(
            "our target",
            [*_SERVE_COMMAND, "--engine", engine.engine_name, "--placement", "engine"],
            core,
            engine.environment,
        )
        return ready_target(process, "sleep", "engine")


def start_target(core: int, idle: str, placement: str, *, iser: bool = False) -> Process:
    """The same, not waited for: `ready_target` does that."""
    command = [*_SERVE_COMMAND, "--engine", f"inline:?idle={idle}", "--placement", placement]
    if iser:
        command += ["--iser", "127.0.0.1:0", "--no-mpa-crc"]
    return Process("our target", command, core, quiet_environment())


def ready_target(process: Process, idle: str, placement: str, *, iser: bool = False) -> Target:
    """Wait until a target that was started so is ready, and stop it. Raises PeerFailed."""
    try:
        said = process.read_object()
        process.halt()
    except BaseException:
        process.close()
        raise
    urls = said["urls"]
    assert isinstance(urls, list)
    waits = "spinning" if idle == "spin" else "sleeping"
    name = f"our target ({placement})"
    return Target(process, str(urls[0]), name, waits, rdma_url=str(urls[-1]) if iser else "")


def bare_server(core: int) -> Target:
    """Start the C program that answers commands without looking at them. Raises ReferenceMissing.

    It takes any address and any name for its own.
    """
    command = reference_build.command_line(
        "iscsi_bare_server", core=core, blocks=LUN_BYTES // BLOCK, seconds=BARE_SECONDS
    )
    process = Process("the bare server", command, -1)
    try:
        port = process.read_object()["port"]
        process.halt()
    except PeerFailed as error:
        process.close()
        raise ReferenceMissing(str(error)) from error
    return Target(process, f"iscsi://127.0.0.1:{port}/{BARE_IQN}/0", "a bare server", "spinning")


class Engine(Process):
    """An engine's daemon in a run directory of its own; `directory` is where it is found. Ready and
    stopped when it is made, unless it is to be `awaited` later.
    """

    def __init__(
        self,
        directory: str,
        core: int | Collection[int],
        idle: str,
        *,
        awaited: bool = False,
    ) -> None:
        cores = (core,) if isinstance(core, int) else core  # one engine on each
        self.directory, self.engine_name, self.idle = directory, f"{ENGINE_NAME}-{idle}", idle
        command = [sys.executable, "-m", "ppe", "up", "--name", self.engine_name]
        command += [
            "--cpu",
            ",".join(map(str, cores)),
            "--idle",
            idle,
            "--force",
            "--foreground",
            "--json",
        ]
        super().__init__(f"engine --idle {idle}", command, -1, self.environment)
        if not awaited:
            self.await_ready()

    def await_ready(self) -> None:
        """Wait until it is, and stop it. Raises PeerFailed when it does not come to that."""
        try:
            self.read_object()
            self.halt()
        except BaseException:
            self.close()
            raise

    @property
    def environment(self) -> Mapping[str, str]:
        """Where its socket and its lock lie."""
        places = ("PPE_RUNTIME_DIR", "PPE_CPU_LOCK_DIR")
        return MappingProxyType(dict.fromkeys(places, self.directory) | dict(quiet_environment()))

    @contextlib.contextmanager
    def findable(self) -> Iterator[str]:
        """Have this process find it by the name it gives."""
        before = os.environ.get("PPE_RUNTIME_DIR")
        os.environ["PPE_RUNTIME_DIR"] = self.directory
        try:
            yield self.engine_name
        finally:
            if before is None:
                del os.environ["PPE_RUNTIME_DIR"]
            else:
                os.environ["PPE_RUNTIME_DIR"] = before


def _dies_with_us() -> list[str]:
    """What to put before a command, so that it is not left behind, stopped, when we are killed."""
    program = shutil.which("setpriv")
    return [program, "--pdeathsig", "KILL", "--"] if program else []


def quiet_environment() -> Mapping[str, str]:
    """Children find the packages where this process did, whatever directory it is in."""
    root = str(Path(__file__).parent.parent)
    path = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{root}:{path}" if path else root}


class Tgt(Target):
    """A tgtd with one LUN on a file of the page cache. Raises ReferenceMissing."""

    def __init__(self, folder: str, io_threads: int) -> None:
        self._control = _free_control_port()
        self._program = _find("tgtd")
        self._admin = _find("tgtadm")
        port = _free_port()
        command = [self._program, "-f", "-C", str(self._control), "-t", str(io_threads)]
        command += ["--iscsi", f"portal=127.0.0.1:{port}"]
        process = Process("tgtd", command, -1, {"PATH": SBIN})
        url = f"iscsi://127.0.0.1:{port}/{TGT_IQN}/1"
        super().__init__(process, url, f"tgt, {io_threads} I/O threads", "sleeping")
        try:
            self._set_up(Path(folder) / f"tgt-{io_threads}")
            process.halt()
        except BaseException:
            self.close()
            raise

    def _set_up(self, disk: Path) -> None:
        # Every block is written: reading a hole is not what a RAM-backed LUN does.
        block = bytes(range(256)) * 4096
        with disk.open("wb") as file:
            for _ in range(LUN_BYTES // len(block)):
                file.write(block)
        for attempt in range(TGT_ATTEMPTS):
            if self.process.has_ended:
                raise ReferenceMissing(f"tgtd does not start: {self.process.said()}")
            if self._order("--mode", "sys", "--op", "show") is None:
                break
            if attempt == TGT_ATTEMPTS - 1:
                raise ReferenceMissing(f"tgtd does not answer tgtadm: {self.process.said()}")
            time.sleep(0.1)
        target = ("--op", "new", "--mode", "target", "--tid", "1", "-T", TGT_IQN)
        lun = ("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", str(disk))
        for order in (target, lun, ("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")):
            if (complaint := self._order(*order)) is not None:
                raise ReferenceMissing(f"tgtadm failed: {complaint}")

    def _order(self, *words: str) -> str | None:
        """Give tgtadm an order; None when it was done, else what it says."""
        command = [self._admin, "-C", str(self._control), "--lld", "iscsi", *words]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TGT_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return "no answer"
        return None if done.returncode == 0 else done.stderr.strip() or "it does not say why"

    def close(self) -> None:
        """End the daemon and what it leaves: its control socket and the lock beside it."""
        # It ends on SIGTERM only when it has no LUN (its documented behaviour), so kill it.
        self.process.close(by=signal.SIGKILL)
        for suffix in ("", ".lock"):
            Path(f"/var/run/tgtd/socket.{self._control}{suffix}").unlink(missing_ok=True)


def _find(program: str) -> str:
    path = shutil.which(program, path=SBIN)
    if path is None:
        raise ReferenceMissing(f"{program} is not installed")
    return path


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _free_control_port() -> int:
    """A number tgtd's control socket can have: its files are named by it."""
    number = 10000 + os.getpid() % 20000
    while Path(f"/var/run/tgtd/socket.{number}").exists():
        number += 1
    return number
