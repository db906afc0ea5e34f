"""The packet processing engine: a pinned process that never yields, and its command line.

Importing this package costs nothing: no compiler, no array library, no other module of the engine.
"""

from typing import Final

import shm as _shm  # noqa: F401 - notes every later import of the project

__version__: Final = "0.1.0"
