"""Freed memory goes back to the system: the C library keeps large arrays that were freed in its heap otherwise, up to 64 MiB for each thread."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


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
