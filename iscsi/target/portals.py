"""Portals: listening on them, and what SendTargets says of them (RFC 7143 appendix C)."""

import errno
import ipaddress
import os
import socket
from typing import Any

from iscsi.target.config import ServerConfig
from iscsi.wire.names import Portal


def listen(channel: Any, portal: Portal) -> tuple[int, int]:
    """Listen on a portal: the listener and the port it got. Raises OSError that names it."""
    try:
        listener, port = channel.listen(portal.host, portal.port)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            reason = "another server listens there"
        raise type(error)(
            error.errno, f"portal {portal.address}: {reason or os.strerror(error.errno or 0)}"
        ) from error
    return int(listener), int(port)


def is_wildcard(host: str) -> bool:
    """Whether listening on this address means listening on all of them."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_unspecified
    except ValueError:
        return host in ("", "*")


def advertised(config: ServerConfig, bound: list[tuple[str, int]], peer: str) -> list[Portal]:
    """The addresses a discovering peer is told, with the portal group tag.

    A wildcard portal is told as the address of ours that this peer reaches.
    """
    tag = config.portal_group_tag
    if config.advertise:
        return [Portal(portal.host, portal.port, tag) for portal in config.advertise]
    found = []
    for host, port in bound:
        shown = own_address(peer) if is_wildcard(host) else host
        if shown is not None:
            found.append(Portal(shown, port, tag))
    return found


def own_address(peer: str) -> str | None:
    """Our address on the route to a peer, or None. Sends nothing: a datagram socket only asks."""
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((peer, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])
