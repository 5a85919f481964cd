"""Ranks of magnitudes within one row, in the caller's scratch memory: by counting, or by a radix sort of the float bits."""

# numba shows mypy an intrinsic as its typing function, with one argument more
# mypy: disable-error-code="call-arg,operator,no-untyped-call"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int32, int64, njit, uint32, uint64

from plait.ops.kernels.jit_bits import f32_to_bits
from plait.ops.kernels.jit_buckets import MORE_BUCKETS, ranks_by_counting

#: Elements of the `counts` scratch of `row_ranks`.
COUNTS = 3 << 11

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_TINY = 48  # rows up to this length are sorted by insertion
_SHORT = 2048  # rows below this length use 4 digits of 8 bits: clearing 3 x 2048 counters would cost more than a pass


def scratch_bytes(n: int) -> int:
    """Bytes of scratch that `row_ranks` needs for rows of `n` elements: two uint64 `[n + MORE_BUCKETS]` and the counters."""
    return 2 * 8 * (n + MORE_BUCKETS) + 4 * COUNTS


@njit(nogil=True, boundscheck=False, error_model="numpy")
def row_ranks(x: Any, n: Any, ranks: Any, a: Any, b: Any, counts: Any) -> None:
    """Write the ascending, stable rank of |x| within the row to `ranks[:n]`: 0 is the smallest, ties rank by column.

    Args:
        x: float32, one row; NaN ranks above infinity.
        n: its length, int64, below 2^31.
        ranks: int32 result.
        a, b: uint64 scratch of at least `n + MORE_BUCKETS` elements each.
        counts: uint32 scratch of `COUNTS` elements.
    """
    if n <= _TINY:
        _insertion(x, n, ranks, a)
        return
    buckets, elements = a.view(np.uint32), b.view(np.uint32)
    if ranks_by_counting(x, n, ranks, buckets[: n + MORE_BUCKETS], buckets[n + MORE_BUCKETS :], elements[:n], elements[n:]):
        return
    varying = _varying(x, n)
    low, high = _lowest(varying), _highest(varying)
    width = high - low + 1
    if width <= 16:
        _radix(x, n, ranks, a, b, counts, low, 8, 2)
    elif width <= 20:
        _radix(x, n, ranks, a, b, counts, low, 10, 2)
    elif width <= 22:
        _radix(x, n, ranks, a, b, counts, low, 11, 2)
    elif n >= _SHORT:
        _radix(x, n, ranks, a, b, counts, low, 11, 3)
    elif width <= 24:
        _radix(x, n, ranks, a, b, counts, low, 8, 3)
    else:
        _radix(x, n, ranks, a, b, counts, low, 8, 4)


@njit(nogil=True, boundscheck=False, error_model="numpy")
def _varying(x: Any, n: Any) -> Any:
    """The bits of |x| in which elements of a row differ: of changes of 16-bit weights the lower half has few, and one pass less is enough."""
    first: Any = f32_to_bits(x[0])
    varying = np.uint32(0)
    for i in range(uint64(n)):
        varying |= f32_to_bits(x[i]) ^ first
    return varying & _MAGNITUDE


@njit(nogil=True, boundscheck=False, error_model="numpy")
def _lowest(bits: Any) -> Any:
    """Place of the lowest set bit, 0 where there is none."""
    place = int64(0)
    while place < 31 and bits != 0 and not (bits >> np.uint32(place)) & np.uint32(1):
        place += 1
    return place


@njit(nogil=True, boundscheck=False, error_model="numpy")
def _highest(bits: Any) -> Any:
    """Place of the highest set bit, 0 where there is none."""
    place = int64(0)
    while bits > np.uint32(1):
        bits = np.uint32(bits >> np.uint32(1))
        place += 1
    return place


@njit(inline="always")  # so that the width of a digit is a constant in the machine code
def _radix(x: Any, n: Any, ranks: Any, a: Any, b: Any, counts: Any, low: Any, bits: Any, digits: Any) -> None:
    """Digits of the keys, least significant first; each pass is stable, so equal keys stay in column order.

    They begin at bit `low` or, where they would end beyond bit 30, below it.
    """
    low = min(low, max(31 - bits * digits, 0))
    _count_digits(x, n, counts, a, low, bits, digits)
    source, target = a, b
    for digit in range(digits):
        starts = counts[digit << bits : (digit + 1) << bits]
        shift = uint64(32 + low + digit * bits)
        if digit + 1 < digits:
            _scatter(source, target, n, starts, shift)
            source, target = target, source
        else:
            _scatter_ranks(source, ranks, n, starts, shift)


@njit(boundscheck=False)
def _insertion(x: Any, n: Any, ranks: Any, a: Any) -> None:
    """Sort (key, column) pairs; the column in the low half makes equal keys rank by column."""
    for i in range(n):
        pair = _pair(x, i)
        j = i
        while j > 0 and a[uint64(j - 1)] > pair:
            a[uint64(j)] = a[uint64(j - 1)]
            j -= 1
        a[uint64(j)] = pair
    for i in range(n):
        ranks[a[uint64(i)] & uint64(0xFFFFFFFF)] = int32(i)


@njit(inline="always")
def _pair(x: Any, i: Any) -> Any:
    return (uint64(f32_to_bits(x[uint64(i)]) & _MAGNITUDE) << uint64(32)) | uint64(i)


@njit(inline="always")
def _count_digits(x: Any, n: Any, counts: Any, a: Any, low: Any, bits: Any, digits: Any) -> None:
    """Fill `a` with pairs and `counts` with the first place of every value of every digit."""
    size = 1 << bits
    counts[: digits * size] = uint32(0)
    mask = uint64(size - 1)
    for i in range(n):
        pair = _pair(x, i)
        a[uint64(i)] = pair
        for digit in range(digits):
            counts[uint64(digit * size) + ((pair >> uint64(32 + low + digit * bits)) & mask)] += uint32(1)
    for digit in range(digits):
        place = uint32(0)
        for value in range(digit * size, (digit + 1) * size):
            here = counts[uint64(value)]
            counts[uint64(value)] = place
            place += here


@njit(boundscheck=False)
def _scatter(source: Any, target: Any, n: Any, starts: Any, shift: Any) -> None:
    mask = uint64(starts.size - 1)
    for i in range(n):
        pair = source[uint64(i)]
        value = (pair >> shift) & mask
        target[uint64(starts[value])] = pair
        starts[value] += uint32(1)


@njit(boundscheck=False)
def _scatter_ranks(source: Any, ranks: Any, n: Any, starts: Any, shift: Any) -> None:
    """The last digit needs no pairs any more: a pair's place is its column's rank."""
    mask = uint64(starts.size - 1)
    for i in range(n):
        pair = source[uint64(i)]
        value = (pair >> shift) & mask
        ranks[pair & uint64(0xFFFFFFFF)] = int32(int64(starts[value]))
        starts[value] += uint32(1)
