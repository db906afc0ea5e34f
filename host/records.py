"""The host's private record of a channel: what compiled workers get as `context`."""

from typing import Final

from shm.layout import Field, record
from shm.view import opener

# How the memory a channel may name is laid out in this process: address ranges and region ids.
MAPPING: Final = record(
    Field("address", "<i8"),
    Field("size", "<i8"),
    Field("region", "<i8"),
    Field("offset", "<i8"),  # of `address` within the region
    size=32,
)
MAPPINGS_MAX: Final = 256

CONTEXT: Final = record(
    Field("channel", "<i8"),  # address of the HOST_CHANNEL
    Field("mappings", "<i8"),  # address of MAPPING[MAPPINGS_MAX]
    Field("mapping_count", "<i8"),
    Field("run", "<i8"),  # inline: address of the cycle's `run`; 0: an engine runs elsewhere
    Field("engine", "<i8"),  # inline: address of the ENGINE record
    Field("spin_rounds", "<i8"),  # polls before a wait sleeps
    size=64,
)
# Channels of one thread with one wake word (`host.group`).
GROUP: Final = record(
    Field("count", "<i8"),
    Field("contexts", "<i8"),  # address of int64[count]: each one's CONTEXT
    Field("watched", "<i8"),  # address of WATCHED[count]
    size=32,
)
context_at = opener(CONTEXT)
group_at = opener(GROUP)
mapping_at = opener(MAPPING)
MAPPING_SIZE: Final = MAPPING.itemsize
