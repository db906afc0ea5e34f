"""Stands for what an engine compiles itself at its first start."""

from shm.jit import entry


@entry("int64(int64)")
def twice(value):
    return value * 2
