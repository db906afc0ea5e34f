"""`Context`, `Task` and `URL` in the shape of cython-iscsi, so that programs written for libiscsi's
Python binding (python-scsi among them) drive this initiator unchanged. New programs are better
served by `iscsi.open`. One rule: a password never becomes part of a name or of a message.
"""

from dataclasses import dataclass
from typing import Any, Final

import host
from iscsi.session.credentials import Credentials
from iscsi.session.discovery import discover
from iscsi.session.errors import SessionClosed
from iscsi.session.initiator import InitiatorSession
from iscsi.session.options import DEFAULT_INITIATOR
from iscsi.wire.chap import ChapAccount
from iscsi.wire.errors import ScsiError
from iscsi.wire.names import Portal, name_fault, parse_address
from iscsi.wire.sense import Sense, encode_sense
from iscsi.wire.url import SCHEMES, IscsiUrl, UrlError, parse_url

ISCSI_SESSION_DISCOVERY: Final = 1
ISCSI_SESSION_NORMAL: Final = 2
ISCSI_HEADER_DIGEST_NONE: Final = 0
ISCSI_HEADER_DIGEST_NONE_CRC32C: Final = 1
ISCSI_HEADER_DIGEST_CRC32C_NONE: Final = 2
ISCSI_HEADER_DIGEST_CRC32C: Final = 3
SCSI_XFER_NONE: Final = 0
SCSI_XFER_READ: Final = 1
SCSI_XFER_WRITE: Final = 2

_DIGESTS: Final = ("none", "none_crc32c", "crc32c_none", "crc32c")
_DEFERRED: Final = 0x01  # of the response code: 71h instead of 70h


class Task:
    """One SCSI command: its CDB of 6 to 260 bytes, direction (SCSI_XFER_*) and bytes to move.

    After `Context.command`: `status` (SCSI status), `raw_sense` (bytes, fixed format whichever one
    the unit used), `residual` (positive: so many bytes fewer than there was room for).
    """

    def __init__(self, cdb: Any, direction: int, xferlen: int) -> None:
        if direction not in (SCSI_XFER_NONE, SCSI_XFER_READ, SCSI_XFER_WRITE):
            raise ValueError(f"direction {direction}: use SCSI_XFER_NONE, _READ or _WRITE")
        if xferlen < 0:
            raise ValueError(f"{xferlen} bytes to move")
        self.cdb, self.direction, self.xferlen = bytes(cdb), direction, xferlen
        self.status = -1  # not executed yet
        self.raw_sense = b""
        self.residual = 0

    def __repr__(self) -> str:
        return f"Task(cdb={self.cdb.hex()}, status={self.status})"


class URL:
    """A parsed `iscsi://` URL. A context that has no credentials yet takes those of the URL."""

    def __init__(self, context: "Context", url: str) -> None:
        parsed = parse_url(url)
        self.portal: str = parsed.portal.address
        self.target: str = parsed.target or ""
        self.user: str = parsed.user or ""
        self.passwd: str = parsed.password or ""
        self.lun: int = parsed.lun or 0
        context._adopt(parsed)

    def __repr__(self) -> str:
        return f"URL(portal={self.portal!r}, target={self.target!r}, lun={self.lun})"


@dataclass(frozen=True, slots=True)
class _Secret:
    """A name and its password."""

    user: str
    password: str

    @classmethod
    def of(cls, user: str, password: str) -> "_Secret":
        ChapAccount(user, password.encode())  # which says what is wrong with it
        return cls(user, password)

    def __repr__(self) -> str:
        return f"_Secret({self.user!r})"


class Context:
    """One initiator and at most one session of it; belongs to the thread that connects.

    `initiator_name` may be a URL, as python-scsi passes one: then the default name is used. Raises
    ValueError for anything else that is no iSCSI name.
    """

    def __init__(
        self, initiator_name: str = DEFAULT_INITIATOR, *, engine: Any = host.INLINE
    ) -> None:
        scheme, mark, _ = initiator_name.partition("://")
        if mark and scheme.lower() in SCHEMES:
            initiator_name = DEFAULT_INITIATOR
        fault = name_fault(initiator_name)
        if fault:
            # What was given may be a URL with a typo, and so hold a password: it is not shown.
            raise ValueError(f"this is no initiator name: {fault}")
        self.initiator_name = initiator_name
        self._wanted_engine = engine
        self._engine: Any = None
        self._session: InitiatorSession | None = None
        self._target: str | None = None
        self._session_type = ISCSI_SESSION_NORMAL
        self._digest = ISCSI_HEADER_DIGEST_NONE
        self._own: _Secret | None = None
        self._theirs: _Secret | None = None
        self._portal: Portal | None = None
        self._url: IscsiUrl | None = None

    # --- before connecting -----------------------------------------------------------------

    def set_targetname(self, name: str) -> None:
        """The target to log in to. Raises ValueError for what is no iSCSI name."""
        fault = name_fault(name, strict=False)
        if fault:
            raise ValueError(f"target name {name!r}: {fault}")
        self._target = name

    def set_session_type(self, kind: int) -> None:
        """ISCSI_SESSION_NORMAL or ISCSI_SESSION_DISCOVERY."""
        if kind not in (ISCSI_SESSION_NORMAL, ISCSI_SESSION_DISCOVERY):
            raise ValueError(f"session type {kind}: use ISCSI_SESSION_NORMAL or _DISCOVERY")
        self._session_type = kind

    def set_header_digest(self, digest: int) -> None:
        """One of ISCSI_HEADER_DIGEST_*."""
        if not 0 <= digest < len(_DIGESTS):
            raise ValueError(f"header digest {digest}: use one of ISCSI_HEADER_DIGEST_*")
        self._digest = digest

    def set_initiator_username_pwd(self, user: str, password: str) -> None:
        """The CHAP account that proves us. Raises ValueError for what cannot be one."""
        self._own = _Secret.of(user, password)

    def set_target_username_pwd(self, user: str, password: str) -> None:
        """The account by which the target has to prove itself (mutual CHAP)."""
        self._theirs = _Secret.of(user, password)

    def _adopt(self, url: IscsiUrl) -> None:
        """Keep what a URL says beyond a portal and a name, for the next connection to it."""
        self._url = url

    # --- the session -----------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Whether there is a session."""
        return self._session is not None

    def connect(self, portal: str, lun: int = 0) -> None:
        """Log in at `host[:port]`, and take the unit attention that every new session begins with.

        For a discovery session only the portal is noted: `discover` asks it. Raises what
        `iscsi.open` raises.
        """
        if self._session is not None:
            raise ValueError("this context is connected: disconnect it first")
        self._portal = parse_address(portal)
        if self._portal is None:
            raise UrlError(f"portal {portal!r}: expected host[:port] or [IPv6][:port]")
        if self._session_type == ISCSI_SESSION_DISCOVERY:
            return
        if self._target is None:
            raise ValueError("set_targetname before connect, or ask for a discovery session")
        wanted = self._wanted_engine
        handle = self._engine = host.connect(wanted) if isinstance(wanted, str) else wanted
        try:
            self._session = InitiatorSession(
                handle, self._address(self._portal, self._target, lun), **self._options()
            )
            self._settle(lun)
        except BaseException:
            self.disconnect()
            raise

    def _settle(self, lun: int) -> None:
        """Unit attentions of a new nexus are taken here; whether a unit is ready, commands tell."""
        assert self._session is not None, "only called with one"
        try:
            self._session.test_unit_ready()
        except ScsiError:
            return

    def _address(self, portal: Portal, target: str | None, lun: int | None) -> IscsiUrl:
        options = dict(self._url.options) if self._url is not None else {}
        if self._digest:
            options.setdefault("header_digest", _DIGESTS[self._digest])
        user = password = None
        if self._url is not None and self._own is None:
            user, password = self._url.user, self._url.password
        return IscsiUrl(portal.host, portal.port, target, lun, user, password, options)

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"initiator_name": self.initiator_name}
        if self._own is not None:
            options["credentials"] = Credentials.of(
                self._own.user,
                self._own.password,
                self._theirs.user if self._theirs else None,
                self._theirs.password if self._theirs else None,
            )
        elif self._theirs is not None:
            raise ValueError("set_target_username_pwd needs set_initiator_username_pwd too")
        return options

    def command(self, lun: int, task: Task, data_out: Any = b"", data_in: Any = None) -> Task:
        """Execute a task; `data_in` (writable) receives what it brings. The task, which tells how
        it ended: a status other than GOOD raises nothing.

        Raises ValueError for buffers smaller than `task.xferlen`, SessionClosed when there is no
        session, and what ends the session.
        """
        if self._session is None:
            raise SessionClosed("this context is not connected")
        wanted = task.xferlen if task.direction == SCSI_XFER_READ else 0
        sent = b""
        if task.direction == SCSI_XFER_WRITE:
            sent = bytes(memoryview(data_out).cast("B")[: task.xferlen])
            if len(sent) < task.xferlen:
                raise ValueError(f"{len(sent)} bytes to write of {task.xferlen}")
        into = memoryview(data_in).cast("B") if wanted else memoryview(b"")
        if len(into) < wanted:
            raise ValueError(f"room for {len(into)} bytes of {wanted}")
        task.raw_sense, task.residual = b"", 0
        try:
            result = self._session.command(task.cdb, length=wanted, data=sent, lun=lun)
        except ScsiError as error:
            task.status, task.raw_sense = error.status, _raw(error.sense)
            return task
        task.status, task.residual = 0, result.residual
        if result.data:
            into[: len(result.data)] = result.data
        return task

    def discover(self) -> dict[str, list[str]]:
        """The targets of the portal that `connect` named: `{name: ["host:port,tag", ...]}`."""
        if self._portal is None:
            raise SessionClosed("connect names the portal to discover")
        url = self._address(self._portal, None, None)
        found = discover(url, self._wanted_engine, **self._options())
        return {
            target.name: [str(portal) for portal in target.portals or (self._portal,)]
            for target in found
        }

    def disconnect(self) -> None:
        """Log out and give everything back. Idempotent; the context may connect again."""
        session, self._session = self._session, None
        engine, self._engine = self._engine, None
        self._portal = None
        try:
            if session is not None:
                session.close()
        finally:
            if engine is not None and isinstance(self._wanted_engine, str):
                engine.close()

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()


def _raw(sense: Sense | None) -> bytes:
    if sense is None:
        return b""
    raw = bytearray(
        encode_sense(sense.key, sense.code, information=sense.information, specific=sense.specific)
    )
    raw[0] |= _DEFERRED * sense.deferred
    return bytes(raw)
