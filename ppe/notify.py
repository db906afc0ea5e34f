"""Tell the service manager how the daemon is doing, by systemd's notify protocol (sd_notify(3)).

Outside a service manager every call does nothing and returns False; none ever raises.
"""

import os
import socket


def notify(state: str) -> bool:
    """Send `state` (lines `KEY=value`) to $NOTIFY_SOCKET; return whether it was sent."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # The abstract namespace, spelled so that it fits a variable.
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # The manager drains its socket; should it not, the engine does not wait for it.
            sender.setblocking(False)
            sender.connect(address)
            sender.sendall(state.encode())
    except OSError:
        return False
    return True


def ready(status: str) -> bool:
    """Say that clients can attach: call once, after the last compilation and the pinning."""
    return notify(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={_one_line(status)}")


def status(text: str) -> bool:
    """Show `text` in `systemctl status`, for instance while compiling."""
    return notify(f"STATUS={_one_line(text)}")


def extend_start(timeout_s: float) -> bool:
    """Ask for `timeout_s` more seconds to start: a first start compiles."""
    return notify(f"EXTEND_TIMEOUT_USEC={int(timeout_s * 1e6)}")


def stopping() -> bool:
    """Say that the engine drains and will exit."""
    return notify("STOPPING=1")


def watchdog() -> bool:
    """Say that the control plane and every engine core still make progress."""
    return notify("WATCHDOG=1")


def watchdog_interval_s() -> float | None:
    """Return how often to call `watchdog` (half of WatchdogSec), or None when nobody watches."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    limit_us = os.environ.get("WATCHDOG_USEC", "")
    return int(limit_us) / 2e6 if limit_us.isdigit() and int(limit_us) else None


def _one_line(text: str) -> str:
    return " ".join(text.split())
