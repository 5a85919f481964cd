"""Ranks of magnitudes within one row, by counting: for rows with few different magnitudes, such as changes of 16-bit weights.

The magnitudes fall into about as many buckets of equal width as the row has elements. Counting gives each bucket its first
rank, and an element's rank is that of its bucket plus the elements of it seen before: two light passes, and no element moves.
This is exact where a bucket holds one magnitude, or several in ascending order. The counting pass sees where magnitudes fall;
elements of such buckets, a few in a hundred, are put in order by insertion. Rows for which that would not pay are left to the
caller's sort.
"""

# numba shows mypy an intrinsic as its typing function, with one argument more
# mypy: disable-error-code="call-arg,operator,no-untyped-call"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, int32, njit, uint32, uint64

from plait.ops.kernels.jit_bits import f32_to_bits

#: Buckets beyond one for each element: in short rows magnitudes meet by accident more often.
MORE_BUCKETS = 256

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_FALLS = np.uint32(0x80000000)
_SPAN = 4.0  # mean magnitudes that the buckets span: all but one in a thousand of a normal distribution
_LOOKED_AT = 32  # elements that tell whether a row's magnitudes are continuous
_FINE = np.uint32(0x3F)  # differences of 16-bit numbers leave these bits of a float32 empty, but for a few
_ZEROS = 8  # buckets of zeros: when each waits for the count of the one before, a row of zeros takes twice as long


@njit(nogil=True, boundscheck=False, error_model="numpy")
def ranks_by_counting(x: Any, n: Any, ranks: Any, counts: Any, latest: Any, columns: Any, listed: Any) -> Any:
    """Write the ascending, stable rank of |x| within the row to `ranks[:n]`, or return False and leave `ranks` undefined.

    Args:
        x: float32, one row.
        n: its length, at least `_LOOKED_AT` and below 2^31.
        ranks: int32 result.
        counts, latest: uint32 scratch of `n + MORE_BUCKETS` elements each.
        columns, listed: uint32 scratch of `n` elements each.
    """
    if _continuous(x):
        return False
    buckets = (n + MORE_BUCKETS - _ZEROS) // 4 * 4  # a multiple of four, for `_first_ranks`
    scale = _scale(x, n, float32(buckets))
    if not (scale > float32(0) and scale < float32(np.inf)):
        return False
    last = float32(buckets - 1)
    for i in range(uint64(n)):
        ranks[i] = int32(buckets + (i & uint64(_ZEROS - 1))) if x[i] == float32(0) else _bucket(x[i], scale, last)
    falls = _count(x, n, ranks, counts, latest, buckets, listed)
    if falls > uint64(n // 8):
        return False
    zeros = _first_ranks(counts, buckets)
    for k in range(falls):
        counts[uint64(uint32(ranks[uint64(listed[k])]))] |= _FALLS
    disordered = _place(n, ranks, counts, buckets, listed)
    return _repair(x, n, ranks, counts, scale, last, zeros, columns, listed, disordered)


@njit(nogil=True, boundscheck=False, error_model="numpy")
def _continuous(x: Any) -> Any:
    """Most of the first elements use a float32 to its last bits: hardly any two magnitudes of the row are equal."""
    fine = uint32(0)
    for i in range(uint64(_LOOKED_AT)):
        fine += uint32((f32_to_bits(x[i]) & _FINE) != uint32(0))
    return fine > uint32(_LOOKED_AT // 2)


@njit(nogil=True, boundscheck=False, error_model="numpy", fastmath={"reassoc"})  # the scale decides how fast the ranks are found, not which
def _scale(x: Any, n: Any, buckets: Any) -> Any:
    """Buckets to a unit of magnitude; zeros, of which a row may be full, say nothing of the width."""
    whole, found = float32(0), int32(0)
    for i in range(uint64(n)):
        magnitude = abs(x[i])
        whole += magnitude
        found += int32(magnitude != float32(0))
    return buckets * float32(found) / (float32(_SPAN) * whole)


@njit(inline="always")
def _bucket(value: Any, scale: Any, last: Any) -> Any:
    """Never falls as |value| grows; NaN is in the last, with all that lies beyond the span."""
    place = abs(value) * scale
    return int32(place if place < last else last)


@njit(nogil=True, boundscheck=False, error_model="numpy")
def _count(x: Any, n: Any, where: Any, counts: Any, latest: Any, buckets: Any, listed: Any) -> Any:
    """Count each bucket's elements, and list those below the one before in their bucket. Returns the number of these."""
    counts[: buckets + _ZEROS] = uint32(0)
    latest[: buckets + _ZEROS] = uint32(0)
    falls = uint64(0)
    for i in range(uint64(n)):
        b = uint64(uint32(where[i]))
        key = f32_to_bits(x[i]) & _MAGNITUDE
        counts[b] += uint32(1)
        before = latest[b]
        latest[b] = key
        listed[falls] = uint32(i)  # overwritten by the next unless it counts: no branch to guess wrong
        falls += uint64(before > key)
    return falls


@njit(nogil=True, boundscheck=False, error_model="numpy")
def _first_ranks(counts: Any, buckets: Any) -> Any:
    """Turn counts into first ranks, zeros before all; four buckets wait for one addition, not four. Returns the number of zeros."""
    zeros = uint32(0)
    for z in range(uint64(buckets), uint64(buckets + _ZEROS)):
        zeros += counts[z]
    rank: Any = zeros
    for quarter in range(uint64(buckets // 4)):
        b: Any = quarter * uint64(4)
        c0, c1, c2, c3 = counts[b], counts[b + uint64(1)], counts[b + uint64(2)], counts[b + uint64(3)]
        two = c0 + c1
        counts[b] = rank
        counts[b + uint64(1)] = rank + c0
        counts[b + uint64(2)] = rank + two
        counts[b + uint64(3)] = rank + (two + c2)
        rank += two + (c2 + c3)
    return zeros


@njit(nogil=True, boundscheck=False, error_model="numpy")
def _place(n: Any, ranks: Any, counts: Any, buckets: Any, listed: Any) -> Any:
    """Turn each element's bucket into its rank, and list the elements of buckets that fall. Returns the number of these."""
    found, zeros = uint64(0), uint32(0)
    for i in range(uint64(n)):
        b = uint64(uint32(ranks[i]))
        rank = counts[b]
        counts[b] = rank + uint32(1)
        zero = b >= uint64(buckets)
        ranks[i] = int32(zeros if zero else rank & _MAGNITUDE)
        zeros += uint32(zero)
        listed[found] = uint32(i)
        found += uint64(rank >> uint32(31))
    return found


@njit(nogil=True, boundscheck=False, error_model="numpy")
def _repair(x: Any, n: Any, ranks: Any, ends: Any, scale: Any, last: Any, zeros: Any, columns: Any, listed: Any, found: Any) -> Any:
    """Insert the listed elements, which come in column order, within their buckets. False where that takes too many steps."""
    left = uint64(4) * uint64(n)
    for k in range(found):
        i = uint64(listed[k])
        key = f32_to_bits(x[i]) & _MAGNITUDE
        b = uint64(uint32(_bucket(x[i], scale, last)))
        first = uint64(ends[b - uint64(1)] & _MAGNITUDE if b else zeros)  # where the bucket before ends
        place = own = uint64(uint32(ranks[i]))
        while place > first:
            before = uint64(columns[place - uint64(1)])
            if f32_to_bits(x[before]) & _MAGNITUDE <= key:
                break
            columns[place] = uint32(before)
            ranks[before] = int32(place)
            place -= uint64(1)
        columns[place] = uint32(i)
        ranks[i] = int32(place)
        steps = own - place
        if steps > left:
            return False
        left -= steps
    return True
