"""The control socket of a running target server: one JSON object a line, a question and its answer.
Only root and the server's own user are answered, whatever the file's mode says (SO_PEERCRED), and a
caller that stalls or talks too much loses its connection and nothing else.
"""

import contextlib
import errno
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from ppe import lockfile
from ppe.errors import OperatorError
from ppe.paths import DIRECTORY_VARIABLE, ensure_runtime_directory, runtime_directory

LINE_MAX: Final = 64 << 10
ANSWER_MAX: Final = 64 << 20
CALLERS_MAX: Final = 8
PATIENCE_S: Final = 10.0  # for a caller's question; ours may take as long as it takes
SUFFIX: Final = ".sock"
FOLDER: Final = "targets"
SERVICES: Final = Path("/run/ppe-target")  # of servers that run as services
_PATH_MAX: Final = 107  # unix(7)
_CREDENTIALS: Final = struct.Struct("3i")
Handler = Callable[[dict[str, Any]], Any]


class ControlSocket:
    """Answers `{"call": name, ...}` by the handlers, each in a thread of the socket's own.

    A socket that a dead server left is taken over; a live one's is OperatorError with its pid.
    """

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        if len(os.fsencode(path)) > _PATH_MAX:
            raise OperatorError(
                f"the control socket's path {path} is longer than {_PATH_MAX} bytes",
                "use a shorter --control",
            )
        self.path, self._handlers = path, handlers
        self._places = threading.Semaphore(CALLERS_MAX)
        try:
            self._lock = lockfile.acquire(path.with_name(path.name + ".lock"))
        except lockfile.LockHeld as held:
            raise OperatorError(
                f"a target server (pid {held.pid}) answers on {path} already",
                "stop it, or use another --name or --control",
            ) from None
        except OSError as error:
            raise OperatorError(f"control socket {path}: {error.strerror}") from error
        try:
            self._listener = _listen(path)
        except BaseException as error:
            self._lock.release()
            if isinstance(error, OSError):
                raise OperatorError(f"control socket {path}: {error.strerror}") from error
            raise
        threading.Thread(target=self._accept, name="target-control", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return  # `close` shut it down
            if not self._places.acquire(blocking=False):
                caller.close()
                continue
            threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        try:
            with caller, contextlib.suppress(OSError, ValueError):
                caller.settimeout(PATIENCE_S)
                line = _line(caller, LINE_MAX)
                answer = self._answer(caller, line)
                caller.sendall(json.dumps(answer).encode() + b"\n")
        finally:
            self._places.release()

    def _answer(self, caller: socket.socket, line: bytes) -> dict[str, Any]:
        size = _CREDENTIALS.size
        raw = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        _, uid, _ = _CREDENTIALS.unpack(raw)
        if uid not in (0, os.geteuid()):
            return {"error": "this server belongs to another user"}
        try:
            question = json.loads(line)
            handler = self._handlers[question.pop("call")]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {"error": "not understood", "hint": f"calls: {', '.join(self._handlers)}"}
        try:
            return {"answer": handler(question)}
        except OperatorError as error:
            return {"error": error.message, "hint": error.hint}
        except KeyError as error:
            return {"error": str(error.args[0] if error.args else error)}
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            return {"error": place + (error.strerror or str(error))}
        except Exception as error:  # Whatever is asked, the server goes on.
            return {"error": str(error) or type(error).__name__}

    def close(self) -> None:
        """Answer nobody any more, and remove the socket. Idempotent."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._lock.descriptor >= 0:
            self.path.unlink(missing_ok=True)
        self._lock.release()

    def __enter__(self) -> "ControlSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _listen(path: Path) -> socket.socket:
    if path.exists() and not path.is_socket():
        raise FileExistsError(errno.EEXIST, "there is a file of that name, and it is no socket")
    path.unlink(missing_ok=True)  # With the lock held, whoever made it is dead.
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
        listener.listen(CALLERS_MAX)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _line(connection: socket.socket, most: int) -> bytes:
    """A line without its end. ValueError for one that is too long or not ended."""
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = connection.recv(65536)
        line += piece
        if not piece or len(line) > most:
            raise ValueError("no line")
    return bytes(line[:-1])


# --- the other side ----------------------------------------------------------------------------


def folder(*, make: bool = False) -> Path:
    """Where the control sockets of target servers are; `make`: see to it that it is there."""
    if not make:
        return runtime_directory() / FOLDER
    found = ensure_runtime_directory() / FOLDER
    found.mkdir(mode=0o700, exist_ok=True)
    return found


def folders() -> list[Path]:
    """Where control sockets may be: of this user's servers, then of services. A run directory that
    the environment names is the only one.
    """
    own = folder()
    return [own] if os.environ.get(DIRECTORY_VARIABLE) else [own, SERVICES]


def socket_of(name: str) -> Path:
    """The control socket of the server called `name`, or where it would be."""
    found = [place / (name + SUFFIX) for place in folders()]
    return next((path for path in found if path.is_socket()), found[0])


def running() -> list[Path]:
    """The control sockets of the target servers that live and may answer us."""
    found = []
    for path in (path for place in folders() for path in sorted(place.glob("*" + SUFFIX))):
        with contextlib.suppress(OSError):
            if lockfile.holder(path.with_name(path.name + ".lock")) is not None:
                found.append(path)
    return found


def ask(path: Path, call: str, patience_s: float = 60.0, **words: Any) -> Any:
    """Ask a server. Raises OperatorError: its refusal, or that there is none."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(patience_s)
            connection.connect(str(path))
            connection.sendall(json.dumps({"call": call, **words}).encode() + b"\n")
            answer = json.loads(_line(connection, ANSWER_MAX))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise OperatorError(
            f"no target server answers on {path}", "start one with `ppe target serve`"
        ) from error
    except PermissionError as error:
        raise OperatorError(
            f"{path} is closed to uid {os.geteuid()}", "ask as the server's user, or as root"
        ) from error
    except TimeoutError as error:
        raise OperatorError(f"the server did not answer within {patience_s:g} s") from error
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise OperatorError(f"{path} hung up without an answer", "ask again") from error
    if "error" in answer:
        raise OperatorError(answer["error"], answer.get("hint", ""))
    return answer["answer"]
