"""Freed memory goes back to the system: the C library keeps large arrays that were freed in its heap otherwise, up to 64 MiB for each thread."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

#: Arrays of at least so many bytes are mapped each for itself.
LARGE = 4 << 20
_M_MMAP_THRESHOLD = -3  # of mallopt, in glibc's malloc.h


def keep_large_apart() -> None:
    """From now on large arrays leave the process when they are freed.

    The C library begins so, but takes arrays as large as any that was freed, up to 32 MiB, from its heaps thereafter, where what lies behind
    them keeps their memory. Matrices of several tensors, made and freed by several threads, left 5 % more there than the ops had declared.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE)
    except (AttributeError, OSError, TypeError):
        return  # another C library, with habits of its own


@cache
def _trim() -> Callable[[int], int] | None:
    """The C library's own way, where it has one (glibc)."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return trim


def give_back() -> None:
    """Give freed memory back; a few milliseconds, for use between steps that take much."""
    trim = _trim()
    if trim is not None:
        trim(0)
