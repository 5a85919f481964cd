"""The exact k-th largest magnitude from histograms of float bits: no sort, no sampling error.

For finite float32, |x| < |y| exactly when key(x) < key(y), where key is the bits without the sign
(0 to 0x7F7FFFFF). So the k-th largest magnitude is an order statistic of integers, found by counting:

1. count the coarse digits `key >> 16`; the digit of the k-th largest follows from the counts;
2. count each key of a window that holds this digit, and the elements above the window; they give the key itself.

Where the window is known without the first step, as from a sample, the second alone is enough.

Counts are integers, so they may be added up over blocks, tensors and workers in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

COARSE_BINS = 1 << 15
SPAN_BINS = 1 << 17
SCAN = 64  #: counters of a window that are looked at together when those in use are gathered
MAGNITUDE_MASK = 0x7FFFFFFF

Counts = npt.NDArray[np.int64]
Number = float | int | str | Decimal | Fraction


def keys(x: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Keys of float32 values, in the order of their magnitudes."""
    return np.ascontiguousarray(x, np.float32).view(np.uint32) & np.uint32(MAGNITUDE_MASK)


def key_value(key: int) -> float:
    """The magnitude, exactly a float32, whose key is `key`."""
    return float(np.array([key], np.uint32).view(np.float32)[0])


def coarse_digit(hist: Counts, k: int) -> tuple[int, int]:
    """The coarse digit of the k-th largest key.

    Args:
        hist: int64 `[32768]`, elements by `key >> 16`.
        k: rank from the top, 1 for the largest.

    Returns:
        The digit, and how many elements have higher ones; the wanted element is the `k - above`-th largest of this digit.

    Raises:
        ValueError: `k` is below 1 or more than the elements counted.
    """
    if hist.shape != (COARSE_BINS,):
        raise ValueError(f"the histogram has shape {hist.shape}, not ({COARSE_BINS},)")
    return _kth_bin(hist, k)


def place_in_window(fine: Counts, k_remaining: int) -> tuple[int, int, int]:
    """Where in a window of keys the `k_remaining`-th largest of its elements lies.

    Args:
        fine: int64, how often each key of the window occurs; those that do not may be left out.
        k_remaining: `k` less the elements above the window.

    Returns:
        The index into `fine`; how many elements of the window are greater;
        how many equal it. With G = above + greater, the top k are the G greater ones and the first
        k - G of the equal ones.

    Raises:
        ValueError: `k_remaining` is below 1 or more than the elements counted.
    """
    place, greater = _kth_bin(fine, k_remaining)
    return place, greater, int(fine[place])


def _kth_bin(hist: Counts, k: int) -> tuple[int, int]:
    """The highest bin b with at least k elements in bins b and above, and the count strictly above b."""
    from_top = np.cumsum(hist[::-1])
    counted = int(from_top[-1]) if from_top.size else 0
    if not 1 <= k <= counted:
        raise ValueError(f"rank {k} is outside 1 to {counted}, the number of elements counted")
    place = int(np.searchsorted(from_top, k))
    return hist.size - 1 - place, int(from_top[place - 1]) if place else 0


def count_from_density(density: Number, n: int) -> int:
    """How many of `n` elements a density keeps: floor(density * n), at least 1 where density and n are not 0.

    Exact in the decimal text: 0.29 of 100 is 29, where binary floats give 28.

    Raises:
        ValueError: `density` is not a number from 0 to 1, or `n` is negative.
    """
    return max(_floor_count(density, n), 1 if n and exact_fraction(density) > 0 else 0)


def order_stat(density: Number, n: int) -> int:
    """Rank from the top of the threshold in TIES as released: keep |x| >= its (n - r)-th smallest, r = floor(density * n).

    The (n - r)-th smallest is the (r + 1)-th largest, so r + 1 elements and all ties of the last are kept.
    For density 1, where the released code fails, the rank is n: everything is kept.

    Raises:
        ValueError: `density` is not a number from 0 to 1, or `n` is not positive.
    """
    if n < 1:
        raise ValueError(f"an order statistic of {n} elements does not exist")
    return min(_floor_count(density, n) + 1, n)


@lru_cache(maxsize=4096, typed=True)  # a few texts, asked for by every tensor
def exact_fraction(number: Number) -> Fraction:
    """The exact value of a number's decimal text: 0.29 is 29/100, not the nearest binary float.

    Raises:
        ValueError: the text is no finite number.
    """
    if isinstance(number, Fraction):
        return number
    try:
        return Fraction(str(number))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{number!r} is not a number") from None


def _floor_count(density: Number, n: int) -> int:
    exact = exact_fraction(density)
    if not 0 <= exact <= 1 or n < 0:
        raise ValueError(f"density {density} must be from 0 to 1 and the element count {n} not negative")
    return int(exact * n)


#: How a rank among n elements follows from fractions q: the conventions of the methods' papers and codes, as ranks from the top, 1 for the largest.
RANKS: dict[str, Callable[..., int]] = {
    # the sum of floor(q n), of which the last is at least 1: what lies above the lower end of an interval
    "top": lambda n, *q: min(n, sum(_floor_count(f, n) for f in q[:-1]) + count_from_density(q[-1], n)),
    # floor(q n), which may be 0: what lies above the upper end of an interval
    "above": lambda n, q: _floor_count(q, n),
    # TIES as released
    "released": lambda n, q: order_stat(q, n),
    # sorted[floor(q (n - 1))], ascending: a quantile without interpolation
    "quantile": lambda n, q: n - _floor_count(q, n - 1),
    # sorted[floor(q n)]
    "low": lambda n, q: n - min(_floor_count(q, n), n - 1),
    # sorted[floor((1 - q) n - 1)]
    "high": lambda n, q: n - max(_floor_count(1 - exact_fraction(q), n) - 1, 0),
}


@lru_cache(maxsize=4096)
def rank_from_top(rank: str, n: int) -> int:
    """The rank that a text names among `n` elements, counted from the top: 1 for the largest, 0 where nothing is above.

    Args:
        rank: a rule of `RANKS` and its fractions as decimal or rational text, such as `top 0.2` or `quantile 3/4`; with `mirrored` before it, as
            far from the bottom as the rule is from the top.
        n: elements; of none the rank is 0.

    Raises:
        ValueError: there is no such rule, or a fraction is not a number from 0 to 1.
    """
    words = rank.split()
    mirrored = words[0] == "mirrored"
    name, *fractions = words[mirrored:]
    if name not in RANKS:
        raise ValueError(f"{rank!r} names no rank: the rules are {', '.join(RANKS)}")
    if n == 0:
        return 0
    k = RANKS[name](n, *fractions)
    return n + 1 - k if mirrored else k
