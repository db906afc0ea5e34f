"""`ppe bench engine`: how long an empty pass of the duty cycle takes, and what makes it longer.

Durations come from the engine's own accounts: empty cycles over passes. The one rule: the compared
engines differ in nothing but the number of idle clients or connections.
"""

import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from bench.harness import Measurement, Result, Run
from bench.plan import Goal, Plan
from bench.private_engine import CLIENT, HostEnd, PrivateEngine
from host.channel import Channel
from host.memory import Arenas
from ppe.cycle.tables import Settings
from shm.clock import cycles_per_ns

CLIENTS: Final = 256
CONNECTIONS: Final = 1024
# Both ends of every connection live in this process, and the interpreter wants some too.
DESCRIPTORS_SPARE: Final = 256
CAPACITY: Final = 2048  # of the channel that all connections share: a receive is posted on each
BATCH: Final = 64
NEVER_PARK_US: Final = 1 << 40
CONNECT_TIMEOUT_S: Final = 30
GOALS: Final = (
    Goal("cycle_256_clients_over_1", "≤", 1.5, "empty pass, 256 idle clients / one"),
    Goal("cycle_1024_connections_over_1", "≤", 1.5, "empty pass, 1,024 idle connections / one"),
)
METHOD: Final = (
    "empty cycles over passes of the engine's accounts, the engine alone on its core, spinning "
    "(each pass includes its pause); idle clients are parked after 1 ms, which is the default",
    "polled clients: the same with parking switched off, so that every pass looks into every ring; "
    "each connection is established over loopback and has a receive posted",
)


@dataclass(slots=True)
class Setting:
    """One engine with what is attached to it."""

    engine: PrivateEngine
    name: str
    placement: str
    hosts: list[HostEnd] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=list)

    def close(self) -> None:
        """End the engine first: then nothing else is in use."""
        self.engine.close()
        for host in self.hosts:
            host.close()
        for accepted in self.sockets:
            accepted.close()

    def pass_ns(self, seconds: float) -> Measurement:
        """Let the engine run empty and return what a pass took, in ns."""
        with self.engine.running():  # What is idle is parked before the measurement.
            time.sleep(min(seconds, 0.02))
        before = self.engine.info
        with self.engine.running():
            time.sleep(seconds)
        after = self.engine.info
        passes = after["passes"] - before["passes"]
        empty = after["empty_cycles"] - before["empty_cycles"]
        details = {
            "passes": passes,
            "useful_passes": after["useful_passes"] - before["useful_passes"],
            "active_channels": after["active_channels"],
        }
        value = empty / passes / cycles_per_ns()
        return Measurement(self.name, value, "ns", self.placement, details=details)


def measure(plan: Plan) -> Result:
    """Run the whole benchmark. Raises OSError when descriptors or memory do not suffice."""
    result = Result("engine", plan.config(), (plan.b,), plan.clock())
    seconds = 0.02 if plan.quick else 0.2
    with contextlib.ExitStack() as stack:
        stack.enter_context(descriptors(2 * CONNECTIONS + 2 * CLIENTS + DESCRIPTORS_SPARE))

        def setting(made: Setting) -> Run:
            stack.callback(made.close)
            return lambda: made.pass_ns(seconds)

        plan.say("an engine with one client")
        one = setting(with_clients(plan.b, 1))
        plan.say(f"an engine with {CLIENTS} clients")
        many = setting(with_clients(plan.b, CLIENTS))
        result.pair("cycle_256_clients_over_1", many, one, plan.repeats)
        polled_one = setting(with_clients(plan.b, 1, parking=False))
        polled = setting(with_clients(plan.b, CLIENTS, parking=False))
        result.pair("cycle_256_polled_clients_over_1", polled, polled_one, plan.repeats)
        plan.say(f"an engine with {CONNECTIONS} connections")
        alone = setting(with_connections(plan.b, 1))
        crowd = setting(with_connections(plan.b, CONNECTIONS))
        result.pair("cycle_1024_connections_over_1", crowd, alone, plan.repeats)
    return result


def with_clients(core: int, count: int, parking: bool = True) -> Setting:
    """Make an engine with so many attached clients that post nothing."""
    settings = Settings() if parking else Settings(park_after_us=NEVER_PARK_US)
    kind = "parked" if parking else "polled"
    made = Setting(
        PrivateEngine(core, settings),
        f"empty pass, {count} {kind} client{'s' * (count > 1)}",
        f"core {core}, spinning",
    )
    with made.engine.running():
        for number in range(count):
            made.hosts.append(HostEnd())
            made.engine.attach(made.hosts[-1].segment, made.hosts[-1].bell, CLIENT + number)
    return made


def with_connections(core: int, count: int) -> Setting:
    """Make an engine with so many established connections, each with a receive posted."""
    made = Setting(
        PrivateEngine(core),
        f"empty pass, {count} connection{'s' * (count > 1)}",
        f"core {core}, spinning",
    )
    with made.engine.running():
        host = HostEnd(Arenas(made.engine.register), CAPACITY)
        made.hosts.append(host)
        made.engine.attach(host.segment, host.bell, CLIENT, CAPACITY)
        with socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS) as server:
            server.settimeout(CONNECT_TIMEOUT_S)
            while len(made.sockets) < count:
                batch = min(BATCH, count - len(made.sockets))
                _connect(host, server, batch, made.sockets)
    return made


def _connect(
    host: HostEnd, server: socket.socket, count: int, accepted: list[socket.socket]
) -> None:
    """Make `count` connections and leave a receive on each. Raises OSError, TimeoutError."""
    channel = host.channel
    for _ in range(count):
        _must(channel.post_connect(server.getsockname()[:2], timeout_s=CONNECT_TIMEOUT_S))
        accepted.append(server.accept()[0])
    for endpoint in _reap(channel, count):
        _must(channel.post_recv(endpoint, host.arenas.alloc(64)))


def _reap(channel: Channel, count: int) -> list[int]:
    """Wait for `count` connects. Return their endpoints."""
    endpoints: list[int] = []
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while len(endpoints) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{count - len(endpoints)} of {count} connects did not complete")
        endpoints += [completion.check().endpoint for completion in channel.poll()]
        time.sleep(0.0005)
    return endpoints


def _must(posted: bool) -> None:
    if not posted:
        raise RuntimeError("the channel has no room for what this benchmark posts")


@contextlib.contextmanager
def descriptors(wanted: int) -> Iterator[None]:
    """Have room for `wanted` open files inside the block. Raises OSError naming the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise OSError(f"{wanted} open files are needed, the hard limit is {hard}: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
