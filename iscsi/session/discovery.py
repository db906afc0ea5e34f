"""Discovery: a session of its own that asks a portal for its targets and ends."""

from dataclasses import replace
from typing import Any

import host
from iscsi.session.initiator import InitiatorSession
from iscsi.wire.discovery import DiscoveredTarget
from iscsi.wire.url import IscsiUrl, parse_url


def discover(
    url: str | IscsiUrl, engine: Any = host.INLINE, **options: Any
) -> list[DiscoveredTarget]:
    """The targets behind a portal (`iscsi://host[:port]`), with their portals.

    A target without portals is reached through the portal that was asked. Raises what
    `iscsi.open` raises for connections and logins.
    """
    parsed = parse_url(url) if isinstance(url, str) else url
    portal = replace(parsed, target=None, lun=None)
    owns_engine = isinstance(engine, str)
    handle = host.connect(engine) if owns_engine else engine
    try:
        with InitiatorSession(handle, portal, **options) as session:
            return session.discover()
    finally:
        if owns_engine:
            handle.close()
