"""Measurements and what they are held against. Nothing outside this package imports it."""

import shm as _shm  # noqa: F401 - notes every later import of the project
