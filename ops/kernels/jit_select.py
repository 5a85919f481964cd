"""Counting kernels for exact order statistics, over one block of float32 values (see `select`)."""

# numba shows mypy an intrinsic as its typing function, with one argument more
# mypy: disable-error-code="call-arg,operator,no-untyped-call"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int64, njit, uint32, uint64

from plait.ops.kernels.jit_bits import f32_to_bits

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_COARSE_SHIFT = np.uint32(16)
_FINE_MASK = np.uint32(0xFFFF)
_SCAN = 1024


@njit(nogil=True, boundscheck=False, error_model="numpy")
def hist_coarse_fine(x: Any, n: Any, coarse: Any, bucket: Any, fine: Any) -> None:
    """Add `x[:n]` to the histogram of coarse digits, and the elements of one bucket to that of fine digits.

    Args:
        x: float32 values.
        n: how many of them, int64.
        coarse: int64 `[32768]`, added to.
        bucket: int64, the coarse digit whose elements `fine` counts; -1 for none.
        fine: int64 `[65536]`, added to.
    """
    for i in range(uint64(n)):
        key = f32_to_bits(x[i]) & _MAGNITUDE
        digit = key >> _COARSE_SHIFT
        coarse[digit] += 1
        if int64(digit) == bucket:
            fine[key & _FINE_MASK] += 1


@njit(nogil=True, boundscheck=False, error_model="numpy")
def count_equal(x: Any, n: Any, key: Any) -> Any:
    """How many of `x[:n]` (float32) have the magnitude whose key is `key` (uint32); int64."""
    return _count_equal(x, uint64(0), uint64(n), uint32(key))


@njit(inline="always")
def _count_equal(x: Any, first: Any, last: Any, key: Any) -> Any:
    found = uint64(0)
    for i in range(first, last):
        found += uint64(uint32(f32_to_bits(x[i]) & _MAGNITUDE) == key)
    return int64(found)


@njit(nogil=True, boundscheck=False, error_model="numpy")
def nth_equal_index(x: Any, n: Any, key: Any, nth: Any) -> Any:
    """Index in `x[:n]` of the `nth` element (from 1) whose key is `key`, int64; -1 where there are fewer."""
    wanted = uint32(key)
    if nth < 1:
        return int64(-1)
    seen = int64(0)
    for first in range(0, n, _SCAN):
        last = min(n, first + _SCAN)
        here = _count_equal(x, uint64(first), uint64(last), wanted)
        if seen + here < nth:
            seen += here
            continue
        for i in range(first, last):
            seen += int64(uint32(f32_to_bits(x[i]) & _MAGNITUDE) == wanted)
            if seen == nth:
                return int64(i)
    return int64(-1)
