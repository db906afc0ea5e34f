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


def look_at(portal: Portal) -> None:
    """Raise what `listen` would raise now for an address that is taken or not ours; every other
    fault is left to it. Nothing is listened on.
    """
    try:
        found = socket.getaddrinfo(
            portal.host, portal.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            trial.bind(address)
    except OSError as error:
        code = error.errno or 0
        if not isinstance(error, socket.gaierror) and code in (errno.EADDRINUSE, errno.EACCES):
            reason = f"listen: {os.strerror(code)}"
            raise describe_failure(portal, code, reason) from error


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
