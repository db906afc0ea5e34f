"""The packet processing engine: a pinned process that never yields, and its command line.

Importing this package costs nothing: no compiler, no array library, no other module of the engine.
"""

from typing import Final

__version__: Final = "0.1.0"
