"""How an initiator opens its buffers to its peer: the strategies that a session can choose, in the
order in which the engine's records number them. Nothing is loaded for their names.
"""

from typing import Final

# By a tag for each command, by a memory window for each, by a tag for each buffer that is kept, or
# by one for each region of the client's memory.
REGISTRATIONS: Final = ("per-io", "window", "cache", "pool")
POOL: Final = REGISTRATIONS[3]
# Those whose tags end with their command, so that its Response may invalidate them.
ONE_COMMAND: Final = REGISTRATIONS[:2]
