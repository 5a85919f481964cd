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
_LANES = 64


@njit(nogil=True, boundscheck=False, error_model="numpy")
def count_digits(x: Any, n: Any, bucket: Any, coarse: Any, fine: Any, lanes: Any) -> Any:
    """Count `x[:n]` for an order statistic, in one of two ways.

    Args:
        x: float32 values.
        n: how many of them, int64.
        bucket: int64; -1 counts the coarse digits, 0 or more looks into that bucket, below -1 counts nothing.
        coarse: int64 `[32768]`, added to when `bucket` is -1.
        fine: int32 `[65536]`, the fine digits of the bucket's elements, added to.
        lanes: uint32 scratch of 64 elements.

    Returns:
        How many elements lie above the bucket (int64), 0 without one.
    """
    if bucket < -1:
        return int64(0)
    if bucket == -1:
        for i in range(uint64(n)):
            coarse[(f32_to_bits(x[i]) & _MAGNITUDE) >> _COARSE_SHIFT] += 1
        return int64(0)
    low = uint32(bucket) << uint32(16)
    above = int64(0)
    whole = uint64(n) // uint64(_SCAN) * uint64(_SCAN)
    for first in range(uint64(0), whole, uint64(_SCAN)):
        above += _count_above(x, first, first + uint64(_SCAN), low | _FINE_MASK)
        _mark_lanes(x, first, low, lanes)
        for lane in range(uint64(_LANES)):
            if lanes[lane] != uint32(0):
                for i in range(first + lane, first + uint64(_SCAN), uint64(_LANES)):
                    _count_fine(x, i, low, fine)
    above += _count_above(x, whole, uint64(n), low | _FINE_MASK)
    for i in range(whole, uint64(n)):
        _count_fine(x, i, low, fine)
    return above


@njit(inline="always")
def _mark_lanes(x: Any, first: Any, low: Any, lanes: Any) -> None:
    """Mark the lanes (elements _LANES apart) that hold an element of the bucket: SIMD down the lanes, nothing across them."""
    for lane in range(uint64(_LANES)):
        lanes[lane] = uint32(0)
    for row in range(first, first + uint64(_SCAN), uint64(_LANES)):
        for lane in range(uint64(_LANES)):
            lanes[lane] |= uint32(((f32_to_bits(x[row + lane]) & _MAGNITUDE) - low) <= _FINE_MASK)


@njit(inline="always")
def _count_above(x: Any, first: Any, last: Any, high: Any) -> Any:
    found = uint32(0)
    for i in range(first, last):
        found += uint32((f32_to_bits(x[i]) & _MAGNITUDE) > high)
    return int64(found)


@njit(inline="always")
def _count_fine(x: Any, i: Any, low: Any, fine: Any) -> None:
    digit = (f32_to_bits(x[i]) & _MAGNITUDE) - low
    if digit <= _FINE_MASK:
        fine[digit] += 1


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
