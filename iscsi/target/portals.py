"""Portals: listening on them, and what SendTargets says of them (RFC 7143 appendix C)."""

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable
from typing import Any

from iscsi.target.config import ServedPortal, ServerConfig
from iscsi.wire.names import Portal


class Listening:
    """A portal that is listened on: the engine's `listener`, and the `port` it got."""

    def __init__(
        self, served: ServedPortal, listener: int, port: int, config: ServerConfig
    ) -> None:
        self.served, self.listener, self.port = served, listener, port
        self.is_rdma = served.rdma
        tag = served.portal.portal_group_tag
        self.tag = config.portal_group_tag if tag is None else tag

    @property
    def portal(self) -> Portal:
        """As it was configured."""
        return self.served.portal


def listen(channel: Any, portal: Portal) -> tuple[int, int]:
    """Listen on a portal: the listener and the port it got. Raises OSError that names it."""
    try:
        listener, port = channel.listen(portal.host, portal.port)
    except OSError as error:
        raise describe_failure(portal, error.errno or 0, error.strerror or str(error)) from error
    return int(listener), int(port)


def describe_failure(portal: Portal, code: int, reason: str = "") -> OSError:
    """The OSError of a portal that cannot be listened on; it names the portal."""
    if code == errno.EADDRINUSE:
        reason = "another server listens there"
    return OSError(code, f"portal {portal.address}: {reason or os.strerror(code)}")


def is_wildcard(host: str) -> bool:
    """Whether listening on this address means listening on all of them."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_unspecified
    except ValueError:
        return host in ("", "*")


def advertised(
    config: ServerConfig, listening: Iterable[Listening], peer: str, *, rdma: bool = False
) -> list[Portal]:
    """The addresses a discovering peer is told, with their portal group tags: those of the
    transport that it came over.

    A wildcard portal is told as the address of ours that this peer reaches.
    """
    if config.advertise:
        tag = config.portal_group_tag
        return [Portal(portal.host, portal.port, tag) for portal in config.advertise]
    found = []
    for each in listening:
        if each.is_rdma != rdma:
            continue
        instead = each.served.advertise
        if instead is not None:
            found.append(Portal(instead.host, instead.port or each.port, each.tag))
            continue
        shown = own_address(peer) if is_wildcard(each.portal.host) else each.portal.host
        if shown is not None:
            found.append(Portal(shown, each.port, each.tag))
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
