"""`ppe up`: start an engine, as a daemon or in the foreground.

The daemon is a new process, started, not forked; it reports its progress through a pipe until it is
ready, and its later notes go to a log file in the run directory.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from typing import Any, Final

from ppe import output, paths
from ppe.config import EngineConfig, add_arguments, load
from ppe.errors import OperatorError

REPORT_VARIABLE: Final = "PPE_REPORT_FD"


class UpCommand:
    """Start an engine and return when it is ready."""

    name = "up"
    help = "start an engine pinned to a CPU"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        add_arguments(parser)
        output.add_json_flag(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Start it; 0 when ready (foreground: when it was stopped in order)."""
        config = load(args)
        if config.cpu_target != "native":
            # Read by numba at import, so it must be set before anything compiled is loaded.
            os.environ["NUMBA_CPU_NAME"] = config.cpu_target
            os.environ["NUMBA_CPU_FEATURES"] = ""
        if config.foreground or REPORT_VARIABLE in os.environ:
            return _foreground(config, args.json)
        return _spawn(config, args.json)


def _reporter(as_json: bool) -> Any:
    descriptor = os.environ.pop(REPORT_VARIABLE, None)
    if descriptor is not None:
        pipe = os.fdopen(int(descriptor), "w")

        def to_parent(kind: str, text: str) -> None:
            try:
                pipe.write(json.dumps({"kind": kind, "text": text, "pid": os.getpid()}) + "\n")
                pipe.flush()
                if kind in ("ready", "error"):
                    pipe.close()
            except (ValueError, BrokenPipeError):  # The parent has what it waited for: log.
                output.say(text)

        return to_parent

    def to_terminal(kind: str, text: str) -> None:
        if kind == "ready" and as_json:
            output.write_json({"ready": True, "pid": os.getpid(), "text": text})
        elif kind == "ready":
            output.say(f"ready: {text}")
        elif kind != "error":  # An error is raised, too, and whoever catches it says it.
            output.say(text)

    return to_terminal


def _foreground(config: EngineConfig, as_json: bool) -> int:
    from ppe.daemon import Daemon

    report = _reporter(as_json)
    try:
        with Daemon(config, report) as daemon:
            daemon.serve()
    except OperatorError as error:
        report("error", json.dumps([error.message, error.hint]))
        raise
    return 0


def _spawn(config: EngineConfig, as_json: bool) -> int:
    directory = paths.ensure_runtime_directory()
    log_path = directory / f"{config.name}.log"
    read, write = os.pipe()
    environment = dict(os.environ, **{REPORT_VARIABLE: str(write)})
    command = [sys.executable, "-m", "ppe", *sys.argv[1:]]
    with log_path.open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(write,),
            env=environment,
            start_new_session=True,
        )
    os.close(write)
    try:
        return _follow(os.fdopen(read), child, as_json, str(log_path))
    except KeyboardInterrupt:
        child.send_signal(signal.SIGTERM)
        child.wait()
        raise


def _follow(pipe: Any, child: "subprocess.Popen[bytes]", as_json: bool, log: str) -> int:
    """Show what the daemon reports until it is ready or gives up."""
    notes: list[str] = []
    with pipe:
        for line in pipe:
            message = json.loads(line)
            if message["kind"] == "ready":
                if as_json:
                    output.write_json({"ready": True, "pid": message["pid"], "notes": notes})
                else:
                    output.say(f"ready: {message['text']}")
                return 0
            if message["kind"] == "error":
                child.wait()
                text, hint = json.loads(message["text"])
                raise OperatorError(text, hint)
            notes.append(message["text"])
            output.say(message["text"])
    status = child.wait()
    raise OperatorError(f"the engine ended with status {status} before it was ready", f"see {log}")
