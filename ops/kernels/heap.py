"""Freed memory goes back to the system.

The C library keeps large arrays that were freed in its heap otherwise, up to 64 MiB for each thread. Torch's matrix library (MKL, on x86) keeps
the buffers that it packs products into, up to 20 MiB for each thread that ever asked for one. To let it free them after every call
(MKL_DISABLE_FAST_MM) costs a twentieth of the time; between two ops it costs nothing.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

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


@cache
def _free(name: str) -> Callable[[], None] | None:
    """A function of MKL, where torch brings it; torch is loaded."""
    library = Path(str(sys.modules["torch"].__file__)).with_name("lib") / "libtorch_cpu.so"
    try:
        function: Callable[[], None] = ctypes.CDLL(str(library))[name]
    except (AttributeError, OSError):
        return None
    return function


def free_buffers(*, all_threads: bool) -> None:
    """Free the buffers that torch's matrix library keeps: those of the calling thread, or of all threads while none of them computes."""
    free = _free("mkl_serv_free_buffers" if all_threads else "mkl_serv_thread_free_buffers") if "torch" in sys.modules else None
    if free is not None:
        free()


def give_back() -> None:
    """Give freed memory back; a few milliseconds, for use between steps that take much."""
    trim = _trim()
    if trim is not None:
        trim(0)
