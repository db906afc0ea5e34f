"""Memory that two processes share: records, atomics, one-way rings, waiting, segments.

The foundation of the house: it imports nothing of this project, knows no protocol, and everything
that another process may write is read and written through `shm.atomics`.
"""

from shm import imported

imported.watch()
