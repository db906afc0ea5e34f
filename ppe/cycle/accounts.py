"""What the engine tells about itself: one segment that observers map read-only.

Layout: segment header, ENGINE_INFO, counter labels, counter values, stage rows, error log, the
histogram of pass durations, channel rows, endpoint rows. The engine thread is the only writer of
all but the header and ENGINE_INFO's identity, and it writes whole words, so a reader needs no lock
and costs nothing.
"""

from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray

from shm.atomics import load_relaxed, store_relaxed
from shm.counters import CounterSet
from shm.error_log import ERROR_LOG_SIZE
from shm.histogram import HISTOGRAM_SIZE
from shm.jit import nopython
from shm.layout import Field, Record, offset, record
from shm.records import SEGMENT_HEADER
from shm.segment import KIND_COUNTERS, Segment, create, publish

ENGINE_INFO: Final = record(
    Field("engine", "<i8"),
    Field("cpu", "<i8"),
    Field("thread", "<i8"),
    Field("pid", "<i8"),
    Field("cycles_per_us", "<i8"),
    Field("started_ns", "<i8"),
    Field("channel_count", "<i8"),
    Field("endpoint_count", "<i8"),
    Field("passes", "<i8", own_span=True),
    Field("useful_passes", "<i8"),
    Field("useful_cycles", "<i8"),
    Field("empty_cycles", "<i8"),
    Field("asleep_cycles", "<i8"),
    Field("active_channels", "<i8"),
    Field("max_pass_cycles", "<i8"),
    Field("stalls", "<i8"),  # passes longer than the stall threshold
    size=256,
)
STAGE_ROW: Final = record(
    Field("useful_cycles", "<i8"),
    Field("work", "<i8"),
    Field("runs", "<i8"),  # passes in which the stage did something
    Field("empty_cycles", "<i8"),  # sampled: see `cycle.SAMPLE_EVERY`
    size=64,
)
CHANNEL_STATS: Final = record(
    Field("client", "<i8"),
    Field("pid", "<i8"),
    Field("taken", "<i8"),
    Field("completed", "<i8"),
    Field("wakes", "<i8"),
    Field("parked", "<i8"),
    Field("refused", "<i8"),  # operations completed with an error of the client's making
    Field("endpoints", "<i8"),
    size=64,
)
ENDPOINT_STATS: Final = record(
    Field("id", "<i8"),
    Field("channel", "<i8"),
    Field("state", "<i8"),
    Field("bytes_in", "<i8"),
    Field("bytes_out", "<i8"),
    Field("receive_calls", "<i8"),
    Field("transmit_calls", "<i8"),
    Field("completions", "<i8"),
    size=64,
)

STAGES: Final = (
    "control",
    "submissions",
    "readiness",
    "completions",
    "receive",
    "transmit",
    "timers",
    "events",
)
STAGE_INDEX: Final = {name: index for index, name in enumerate(STAGES)}

COUNTERS: Final = CounterSet(
    (
        ("operations", "operations taken from work rings"),
        ("refused", "operations completed with an error of the client's making"),
        ("doorbells", "doorbells answered (a parked channel was rung)"),
        ("parks", "times a channel without work was parked"),
        ("wakes", "wake-ups sent to waiting hosts"),
        ("sleeps", "times the engine slept for lack of work"),
        ("yields", "times the engine gave the core away for lack of work"),
        ("poller_enters", "system calls made to learn readiness"),
        ("readiness_events", "readiness events from the kernel"),
        ("receive_calls", "receive system calls"),
        ("receive_empty", "receive system calls that found nothing"),
        ("transmit_calls", "transmit system calls"),
        ("transmit_full", "transmit system calls that found no room"),
        ("bytes_in", "bytes received"),
        ("bytes_out", "bytes transmitted"),
        ("bytes_placed", "of a datamover's bytes, those received straight into their buffer"),
        ("bytes_staged", "and those, headers among them, that went through the staging area"),
        ("hot_polls", "receive calls made for an endpoint that was busy a moment ago"),
        ("accepted", "connections accepted"),
        ("connected", "connections made"),
        ("connect_failures", "connections refused or timed out"),
        ("disconnects", "connections broken by the peer or the network"),
        ("cancelled", "operations cancelled"),
        ("table_full", "operations refused because an engine table was full"),
        ("client_faults", "clients whose memory went away under the engine"),
    )
)
INDEX: Final = {name: COUNTERS.index(name) for name, _ in COUNTERS.rows}

# Kinds in the distinct-error log.
ERROR_TRANSPORT: Final = 1
ERROR_BAD_OPERATION: Final = 2
ERROR_CLIENT_FAULT: Final = 3
ERROR_TABLE_FULL: Final = 4
ERROR_CONNECT: Final = 5
ERROR_AFFINITY: Final = 6
ERROR_NAMES: Final = {
    ERROR_TRANSPORT: "a connection broke",
    ERROR_BAD_OPERATION: "a client posted an operation that cannot be done",
    ERROR_CLIENT_FAULT: "a client's memory went away under the engine",
    ERROR_TABLE_FULL: "an engine table is full",
    ERROR_CONNECT: "a connection could not be made",
    ERROR_AFFINITY: "the engine thread was moved off its CPU",
}


@dataclass(frozen=True, slots=True)
class AccountsLayout:
    """Offsets of the parts, for so many channels and endpoints."""

    channels: int
    endpoints: int

    def parts(self) -> dict[str, tuple[int, int]]:
        """Name -> (offset, size) of every part, in order."""
        sizes = {
            "header": SEGMENT_HEADER.itemsize,
            "info": ENGINE_INFO.itemsize,
            "labels": COUNTERS.labels_size,
            "values": COUNTERS.values_size,
            "stages": len(STAGES) * STAGE_ROW.itemsize,
            "errors": ERROR_LOG_SIZE,
            "durations": HISTOGRAM_SIZE,
            "channels": self.channels * CHANNEL_STATS.itemsize,
            "endpoints": self.endpoints * ENDPOINT_STATS.itemsize,
        }
        found, at = {}, 0
        for name, size in sizes.items():
            found[name] = (at, size)
            at += -(-size // 128) * 128
        return found

    @property
    def size(self) -> int:
        """Bytes of the whole segment."""
        start, size = self.parts()["endpoints"]
        return start + size

    def part(self, array: NDArray[Any], name: str) -> NDArray[Any]:
        """The bytes of one part of a mapped segment."""
        start, size = self.parts()[name]
        return array[start : start + size]

    def rows(self, array: NDArray[Any], name: str, dtype: Record) -> NDArray[Any]:
        """One part as an array of records."""
        return self.part(array, name).view(dtype)


def create_accounts(layout: AccountsLayout) -> Segment:
    """Make the segment with its header and labels; the engine fills in the rest."""
    segment = create(layout.size, KIND_COUNTERS, header=True)
    COUNTERS.write_labels(layout.part(segment.array, "labels"))
    info = layout.rows(segment.array, "info", ENGINE_INFO)[0]
    info["channel_count"], info["endpoint_count"] = layout.channels, layout.endpoints
    publish(segment)
    return segment


STAGE_SIZE: Final = STAGE_ROW.itemsize
ENDPOINT_STATS_SIZE: Final = ENDPOINT_STATS.itemsize
CHANNEL_STATS_SIZE: Final = CHANNEL_STATS.itemsize
E_BYTES_IN: Final = offset(ENDPOINT_STATS, "bytes_in")
E_BYTES_OUT: Final = offset(ENDPOINT_STATS, "bytes_out")
E_RECEIVE_CALLS: Final = offset(ENDPOINT_STATS, "receive_calls")
E_TRANSMIT_CALLS: Final = offset(ENDPOINT_STATS, "transmit_calls")
E_COMPLETIONS: Final = offset(ENDPOINT_STATS, "completions")


@nopython
def add(address: int, amount: int) -> None:
    """Add to a word of which the engine is the only writer."""
    store_relaxed(address, load_relaxed(address) + amount)
