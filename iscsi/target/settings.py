"""What a target server is to serve, as plain frozen data, read from one TOML file, or from flags
that say the same. Nothing is opened here and every fault is named with its line: what passes can be
compared with what runs (`iscsi.target.daemon`), because equal settings mean the same server.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from iscsi.target.access import AccessPolicy, Grant, Redirect, TargetAccess
from iscsi.target.backends import CACHE_MODES
from iscsi.target.config import ENGINES_MAX, ServedPortal, ServerConfig
from iscsi.target.placement import PLACEMENTS, STREAM
from iscsi.target.toml_lines import key_lines
from iscsi.target.toml_reader import Faults, SettingsError, Table
from iscsi.target.units import BLOCK_SIZES
from iscsi.wire.chap import ALGORITHM_NUMBERS, ALGORITHMS, ChapAccount
from iscsi.wire.names import DEFAULT_PORT, Portal, name_fault, parse_address
from iscsi.wire.scsi import MAX_LUN
from ppe.errors import ConfigError

BACKENDS: Final = ("ram", "file", "thin", "null")
DEFAULT_IQN: Final = "iqn.2026-01.org.ppe:ram"
DEFAULT_PORTAL: Final = f"127.0.0.1:{DEFAULT_PORT}"
INLINE: Final = "inline:"
_ALL: Final = ("*",)
_SECRET_MAX: Final = 4096
_DEFAULT_LIMITS: Final = {each.name: each.default for each in fields(ServerConfig)}


@dataclass(frozen=True, slots=True)
class LunSettings:
    """One unit: what it is stored in, and how it presents itself. `backend`: ram, file, thin (a
    sparse file that gives unmapped ranges back) or null. Sizes are bytes; 0: as the file is.
    """

    lun: int
    backend: str
    size: int = 0
    max_size: int = 0
    path: str = ""
    cache: str = "writeback"
    thin: bool = False
    read_only: bool = False
    removable: bool = False
    block_size: int = 512
    serial: str = ""
    vendor: str = ""
    product: str = ""
    reservations: str = ""
    # Warn when more than this is used, or less is left: a share of the size, or bytes, as given.
    warn_used: str = ""
    warn_free: str = ""

    @property
    def shown(self) -> str:
        """Where its blocks are, for people."""
        return f"{self.backend} {self.path}".rstrip()


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """One target and its units. `access` None: everybody may log in."""

    name: str
    alias: str = ""
    luns: tuple[LunSettings, ...] = ()
    access: TargetAccess | None = None

    def lun(self, number: int) -> LunSettings | None:
        """The unit of this number."""
        return next((found for found in self.luns if found.lun == number), None)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything. `drain_s`: how long sessions are given to log out when the server ends."""

    targets: tuple[TargetSettings, ...]
    portals: tuple[ServedPortal, ...]
    advertise: tuple[Portal, ...] = ()
    engine: str = INLINE
    name: str = ""
    control: str = ""
    drain_s: float = 3.0
    limits: Mapping[str, Any] = field(default_factory=dict)  # fields of ServerConfig
    discovery: tuple[Grant, ...] | None = None
    short_secrets: bool = False
    algorithms: tuple[int, ...] = tuple(ALGORITHMS)

    @property
    def access(self) -> AccessPolicy:
        """Who may do what. ValueError for secrets that are too short."""
        return AccessPolicy(
            {found.name: found.access for found in self.targets if found.access is not None},
            discovery=(Grant(),) if self.discovery is None else self.discovery,
            short_secrets=self.short_secrets,
            algorithms=self.algorithms,
        )

    def limit(self, name: str) -> Any:
        """A field of ServerConfig, as the file has it or as it is by default."""
        if name == "advertise":
            return self.advertise
        return self.limits.get(name, _DEFAULT_LIMITS[name])

    def target(self, name: str) -> TargetSettings | None:
        """The target of this name."""
        return next((found for found in self.targets if found.name == name), None)


def load_file(path: Path) -> Settings:
    """Read a settings file. Raises ConfigError; SettingsError with every fault in it."""
    try:
        text = path.read_text()
        table = tomllib.loads(text)
    except OSError as error:
        hint = "name another file"
        if isinstance(error, PermissionError):
            hint = f"let the server's user (uid {os.geteuid()}) read it"
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", "correct that line") from error
    return read(table, Faults(str(path), key_lines(text)), path.parent)


def read(values: dict[str, Any], faults: Faults, folder: Path) -> Settings:
    """Settings from a parsed table; relative paths in it begin at `folder`. SettingsError."""
    table = Table(values, faults)
    server = table.table("server")
    accounts = _accounts(table.table("chap"), folder)
    portals, advertise = _portals(table), _addresses(server, "advertise")
    targets = tuple(_target(found, accounts, folder) for found in table.tables("target"))
    _check_twice(targets, faults)
    discovery = None
    if table.has("discovery"):
        about = table.table("discovery")
        discovery = _grants(about, accounts)
        about.done()
    result = Settings(
        targets=targets,
        portals=portals or (ServedPortal(Portal("127.0.0.1", DEFAULT_PORT)),),
        advertise=advertise,
        engine=server.text("engine", INLINE),
        name=server.text("name"),
        control=_path(server, "control", folder),
        drain_s=server.seconds("drain_s", 3.0),
        limits=_limits(server),
        discovery=discovery,
        short_secrets=server.switch("short_secrets", False),
        algorithms=_algorithms(server),
    )
    server.done()
    table.done()
    if not targets and not faults.found:
        faults.add((), "there is no target: write [[target]] with its name and [[target.lun]]")
    faults.raise_if_any()
    try:
        assert result.access is not None, "made to find out whether it can be"
    except ValueError as error:
        faults.fail(("chap",), str(error))
    return result


def read_lun(values: dict[str, Any], name: str, folder: Path) -> LunSettings:
    """One unit's settings from a table of its own, for `ppe target add`. SettingsError."""
    faults = Faults(name, {})
    found = _lun(Table(values, faults), folder)
    faults.raise_if_any()
    return found


# --- the server ------------------------------------------------------------------------------


def _limits(server: Table) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, low, high in (
        ("max_connections", 1, 4096),
        ("max_logins", 1, 4096),
        ("file_workers", 1, 256),
        ("slow_workers", 1, 256),
        ("engines", 0, ENGINES_MAX),
    ):
        if server.has(key):
            found[key] = server.number(key, low, low, high)
    for key in ("login_timeout_s", "nop_interval_s", "nop_timeout_s", "data_timeout_s"):
        if server.has(key):
            found[key] = server.seconds(key, 0.0)
    if server.has("mpa_crc"):
        found["mpa_crc"] = server.switch("mpa_crc", True)
    if server.has("placement"):
        found["placement"] = server.choice("placement", STREAM, PLACEMENTS)
    return found


def _algorithms(server: Table) -> tuple[int, ...]:
    names = server.texts("algorithms", tuple(ALGORITHM_NUMBERS))
    unknown = [name for name in names if name not in ALGORITHM_NUMBERS]
    if unknown or not names:
        server.fault("algorithms", f"{unknown}: choose from {', '.join(ALGORITHM_NUMBERS)}")
        return tuple(ALGORITHMS)
    return tuple(ALGORITHM_NUMBERS[name] for name in names)


def parse_listen(text: str) -> Portal | None:
    """`host[:port]`, where port 0 asks for any free one, which is no address of a target."""
    host, colon, port = text.rpartition(":")
    found = parse_address(host if colon and port == "0" else text)
    return Portal(found.host, 0) if found is not None and colon and port == "0" else found


def _address(table: Table, key: str, text: str) -> Portal | None:
    found = parse_listen(text)
    if found is None:
        table.fault(key, f"{text!r} is no address: expected host, host:port or [IPv6]:port")
    return found


def _addresses(table: Table, key: str) -> tuple[Portal, ...]:
    found = (_address(table, key, text) for text in table.texts(key))
    return tuple(each for each in found if each is not None)


def _portals(table: Table) -> tuple[ServedPortal, ...]:
    portals = []
    for each in table.tables("portal"):
        listen = _address(each, "listen", each.text("listen", DEFAULT_PORTAL, required=True))
        advertise = _address(each, "advertise", text) if (text := each.text("advertise")) else None
        tag = each.number("tag", 1, 0, 65535) if each.has("tag") else None
        is_rdma = each.switch("iser", False)
        each.done()
        if listen is not None:
            portal = Portal(listen.host, listen.port, tag)
            portals.append(ServedPortal(portal, advertise, is_rdma))
    listens = [found.portal.address for found in portals if found.portal.port]
    for address in {text for text in listens if listens.count(text) > 1}:
        table.fault("portal", f"{address} is given twice")
    return tuple(portals)


# --- who may -----------------------------------------------------------------------------------


def _accounts(table: Table, folder: Path) -> dict[str, ChapAccount]:
    found = {}
    for name, each in table.named_tables():
        user = each.text("user", name)
        secret = _secret(each, folder)
        each.done()
        if secret:
            try:
                found[name] = ChapAccount(user, secret)
            except ValueError as error:
                each.fault("", str(error))
    return found


def _secret(table: Table, folder: Path) -> bytes:
    """A secret from where the table says; it is never part of a message."""
    given = [key for key in ("secret", "secret_file", "secret_env") if table.has(key)]
    if len(given) != 1:
        table.fault("", "expected one of secret, secret_file and secret_env")
        return b""
    text = table.text(given[0])
    if given[0] == "secret" or not text:
        return text.encode()
    if given[0] == "secret_env":
        if text not in os.environ:
            table.fault("secret_env", f"the environment has no {text}")
        return os.environb.get(text.encode(), b"")
    try:
        with (folder / text).open("rb") as file:
            secret = file.read(_SECRET_MAX).rstrip(b"\r\n")
    except OSError as error:
        table.fault("secret_file", f"{text}: {error.strerror}")
        return b""
    if not secret:
        table.fault("secret_file", f"{text} is empty")
    return secret


def _grants(table: Table, accounts: dict[str, ChapAccount]) -> tuple[Grant, ...]:
    grants = []
    for each in table.tables("access"):
        names = each.texts("accounts")
        own = each.text("own")
        for key, name in (*(("accounts", name) for name in names), ("own", own)):
            if name and name not in accounts and not _is_faulty(each, name):
                each.fault(key, f"there is no [chap.{name}]")
        options: dict[str, Any] = {
            "initiators": each.texts("initiators", _ALL),
            "addresses": each.texts("addresses"),
            "accounts": tuple(accounts[name] for name in names if name in accounts),
            "own": accounts.get(own),
            "required": each.switch("required", True),
            "read_only": each.switch("read_only", False),
        }
        each.done()
        try:
            grants.append(Grant(**options))
        except ValueError as error:
            each.fault("", str(error))
    return tuple(grants)


def _is_faulty(table: Table, account: str) -> bool:
    """Whether an account is there but could not be read, which was said already."""
    return any(f"chap.{account}" in fault for fault in table.faults.found)


def _access(table: Table, accounts: dict[str, ChapAccount]) -> TargetAccess | None:
    redirect = None
    if text := table.text("redirect"):
        try:
            redirect = Redirect(text, table.switch("redirect_permanent", False))
        except ValueError as error:
            table.fault("redirect", str(error))
    else:
        table.has("redirect_permanent")
    if not table.has("access"):
        return TargetAccess(redirect=redirect) if redirect else None
    return TargetAccess(_grants(table, accounts), redirect)


# --- targets and units ---------------------------------------------------------------------------


def _target(table: Table, accounts: dict[str, ChapAccount], folder: Path) -> TargetSettings:
    name = table.text("name", required=True)
    fault = name_fault(name) if name else None
    if fault:
        table.fault("name", f"{name!r}: {fault}")
    luns = tuple(_lun(found, folder) for found in table.tables("lun"))
    for index, lun in enumerate(luns):
        if any(lun.lun == other.lun for other in luns[:index]):
            table.faults.add((*table.path, "lun", index, "lun"), f"LUN {lun.lun} is given twice")
    found = TargetSettings(name, table.text("alias"), luns, _access(table, accounts))
    table.done()
    return found


def _check_twice(targets: tuple[TargetSettings, ...], faults: Faults) -> None:
    names, paths = set(), set()
    for index, target in enumerate(targets):
        if target.name in names:
            faults.add(("target", index, "name"), f"{target.name} is given twice")
        names.add(target.name)
        for place, lun in enumerate(target.luns):
            if lun.path and lun.path in paths:
                faults.add(("target", index, "lun", place, "path"), f"{lun.path} is served already")
            paths.add(lun.path)


def _path(table: Table, key: str, folder: Path) -> str:
    text = table.text(key)
    return str(folder.absolute() / text) if text else ""


def _lun(table: Table, folder: Path) -> LunSettings:
    faults = len(table.faults.found)
    backend = table.choice("backend", "file" if table.has("path") else "ram", BACKENDS)
    is_file = backend in ("file", "thin")
    block_size = table.number("block_size", 512, 512, 4096)
    if block_size not in BLOCK_SIZES:
        table.fault("block_size", f"{block_size}: 512 and 4096 are possible")
    found = LunSettings(
        lun=table.number("lun", 0, 0, MAX_LUN, required=True),
        backend="file" if is_file else backend,
        size=table.size("size", required=not is_file and len(table.faults.found) == faults),
        max_size=table.size("max_size"),
        path=_path(table, "path", folder),
        cache=table.choice("cache", "writeback", CACHE_MODES),
        thin=table.switch("thin", backend == "thin"),
        read_only=table.switch("read_only", False),
        removable=table.switch("removable", False),
        block_size=block_size,
        serial=table.text("serial"),
        vendor=table.text("vendor"),
        product=table.text("product"),
        reservations=_path(table, "reservations", folder),
        warn_used=table.share("warn_used"),
        warn_free=table.share("warn_free"),
    )
    _check_lun(table, found, is_file)
    table.done()
    return found


def _check_lun(table: Table, lun: LunSettings, is_file: bool) -> None:
    """What only the keys together can get wrong."""
    if is_file and not lun.path:
        table.fault("", f"path is missing: backend {lun.backend!r} needs one")
    for key in ("path", "cache"):
        if table.has(key) and not is_file:
            table.fault(key, f"backend {lun.backend!r} has none")
    if table.has("max_size") and lun.backend != "ram":
        table.fault("max_size", "only a RAM unit has to know how large it may become")
    if lun.max_size and lun.max_size < lun.size:
        table.fault("max_size", f"{lun.max_size} is less than the size, {lun.size}")
    if lun.thin and lun.backend == "null":
        table.fault("thin", "a null unit keeps nothing that could be thin")
    for key in ("warn_used", "warn_free"):
        if getattr(lun, key) and not lun.thin:
            table.fault(key, "only a thin unit takes more and more room")
    if lun.size % lun.block_size:
        table.fault("size", f"{lun.size} is no whole number of blocks of {lun.block_size}")
    for key, width in (("vendor", 8), ("product", 16), ("serial", 252)):
        text = getattr(lun, key)
        if len(text) > width or not text.isascii() or (text and not text.isprintable()):
            table.fault(key, f"{text!r}: at most {width} ASCII characters")


__all__ = ["LunSettings", "Settings", "SettingsError", "TargetSettings", "load_file", "read"]
