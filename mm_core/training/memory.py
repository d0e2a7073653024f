"""The C library's memory while a CPU trains.

A step's activations are freed and asked for again in every step. glibc gives blocks of that size back to the kernel at
once, and the kernel clears each page again: a quarter of a U2-Net step was spent there (benchmarks/training_step.md).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_ALL = 2**31 - 1
_LARGEST_DYNAMIC = 32 * 2**20
"""What glibc raises its own threshold to at most; a program's memory is mostly there already after one step."""


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within, freed memory stays with the process; afterwards what is free goes back. Nothing happens without glibc."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _ALL)
    libc.mallopt(_TRIM_THRESHOLD, _ALL)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_DYNAMIC)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_DYNAMIC)
        libc.malloc_trim(0)
