"""Counting kernels for exact order statistics, over one block of float32 values (see `select`)."""

# numba shows mypy an intrinsic as its typing function, with one argument more
# mypy: disable-error-code="call-arg,operator,no-untyped-call"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int32, int64, njit, uint32, uint64

from plait.ops.kernels.jit_bits import f32_to_bits

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_COARSE_SHIFT = np.uint32(16)
_FINE_MASK = np.uint32(0xFFFF)
_SCAN = 1024
_LANES = 64


@njit(nogil=True, boundscheck=False, error_model="numpy")
def count_digits(x: Any, n: Any, bucket: Any, heavy: Any, coarse: Any, fine: Any, lanes: Any) -> Any:
    """Count `x[:n]` for an order statistic, in one of two ways.

    Args:
        x: float32 values.
        n: how many of them, int64.
        bucket: int64; -1 counts the coarse digits, 0 or more looks into that bucket, below -1 counts nothing.
        heavy: int64; a fine digit that most elements of the bucket are thought to have, or -1. It decides the speed, not the counts.
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
    low = uint32(bucket) << _COARSE_SHIFT
    whole = uint64(n) // uint64(_SCAN) * uint64(_SCAN)
    if heavy >= 0:
        above = _count_beside(x, whole, low, uint32(heavy), fine, lanes)
    else:
        above = int64(0)
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


@njit(nogil=True, boundscheck=False, error_model="numpy")
def _count_beside(x: Any, n: Any, low: Any, heavy: Any, fine: Any, lanes: Any) -> Any:
    """Count a bucket where one value is most of it: comparisons count that one, and only what lies beside it is scattered."""
    # keys are below 2^31: as signed numbers they compare in one instruction
    bottom, top, value = int32(low), int32(low | _FINE_MASK), int32(low | heavy)
    above = int64(0)
    for first in range(uint64(0), n, uint64(_SCAN)):
        higher, inside, equal = int32(0), int32(0), int32(0)
        for i in range(first, first + uint64(_SCAN)):
            key = int32(f32_to_bits(x[i]) & _MAGNITUDE)
            higher += int32(key > top)
            inside += int32(key >= bottom)
            equal += int32(key == value)
        inside -= higher
        above += int64(higher)
        fine[heavy] += equal
        if inside != equal:
            for lane in range(uint64(_LANES)):
                lanes[lane] = uint32(0)
            for row in range(first, first + uint64(_SCAN), uint64(_LANES)):
                for lane in range(uint64(_LANES)):
                    key = int32(f32_to_bits(x[row + lane]) & _MAGNITUDE)
                    lanes[lane] |= uint32((key - bottom) ^ int32(heavy)) if (key >= bottom) & (key <= top) else uint32(0)
            for lane in range(uint64(_LANES)):
                if lanes[lane] != uint32(0):
                    for i in range(first + lane, first + uint64(_SCAN), uint64(_LANES)):
                        digit = (f32_to_bits(x[i]) & _MAGNITUDE) - low
                        if digit <= _FINE_MASK and digit != heavy:
                            fine[digit] += 1
    return above


@njit(nogil=True, boundscheck=False, error_model="numpy")
def harvest(fine: Any, places: Any, times: Any, most: Any) -> Any:
    """Gather the fine digits that occur.

    Args:
        fine: int32 `[65536]` counts.
        places: uint32 `[most]`, the digits found, ascending.
        times: int64 `[most]`, how often each occurs.
        most: int64.

    Returns:
        How many occur (int64); one more than `most` stands for any larger number.
    """
    found = int64(0)
    for first in range(uint64(0), uint64(_FINE_MASK) + uint64(1), uint64(_LANES)):
        some = int32(0)
        for i in range(first, first + uint64(_LANES)):
            some |= fine[i]
        if some != 0:
            for i in range(first, first + uint64(_LANES)):
                if fine[i] != 0:
                    if found == most:
                        return found + 1
                    places[found] = uint32(i)
                    times[found] = int64(fine[i])
                    found += 1
    return found


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
