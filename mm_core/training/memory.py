"""Keep freed memory in the process while a CPU trains.

Each training step frees and allocates the same activations. glibc returns blocks of that size to the kernel, which
clears every page again: a quarter of a U2-Net step was spent there (benchmarks/training_step.md).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Option numbers of mallopt in malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_ALL = 2**31 - 1
_LARGEST_DYNAMIC = 32 * 2**20
"""Upper limit in bytes to which glibc raises its own threshold; most programs reach it within one step."""


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory in the process; at exit restore the thresholds and return free memory. No-op without glibc."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    # Serve all blocks from the heap and never shrink it.
    libc.mallopt(_MMAP_THRESHOLD, _ALL)
    libc.mallopt(_TRIM_THRESHOLD, _ALL)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_DYNAMIC)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_DYNAMIC)
        libc.malloc_trim(0)
