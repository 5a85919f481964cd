"""Exact order statistics of magnitudes from histograms that were counted block by block.

Keys are the bits of |x| as integers, read as two digits: upper half (coarse) and lower half (fine). A
sample foresees the coarse digit of the threshold; one pass counts the elements above it and the fine
digits within it. If the sample was right the threshold is known. If not, the exact count says how far off
it was, and a second pass looks into the digit that the sample gives with that put right. Only if that fails
too, one pass counts the coarse digits and another looks into the right one. The result is the same.

Of elements equal to the threshold only the first few may be kept; `limit` is the flat index from
which they no longer are. Blocks remember their fine counts where these are few (they are, where ties
are many: deltas of 16-bit weights take few values), so that at most one block is read again for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plait.engine.blockrun import Counts
from plait.ops.kernels.select import coarse_bucket, fine_threshold, rank_from_top
from plait.ops.kernels.select import keys as magnitudes
from plait.planner.blocks import COARSE, FINE, SEARCH_PIECE, SPARSE_LIMIT

Histogram = npt.NDArray[np.int64]
#: Every tie is kept.
NO_LIMIT = float(1 << 62)
#: Above every key: the threshold of rank 0, which nothing reaches.
NOTHING = 1 << 31
#: Fewer elements of a sample say nothing about which value of their bucket is common.
_HEAVY_SEEN = 8
#: Coarse digits on either side of the one foreseen of which the sample is remembered: one power of two.
_NEAR = 128
#: Every so many elements of the sample are remembered so: it is needed only where the first guess fails.
_REMEMBERED = 4


class Guess(NamedTuple):
    """What a sample says of a threshold; it decides the speed alone.

    Attributes:
        bucket: the coarse digit in which it lies, -1 where nothing is known.
        heavy: a fine digit that most elements there have, or -1.
        near: how many elements of the sample have each coarse digit from `bucket - 128` to `bucket + 128`.
        size: elements of the sample that `near` is taken of.
    """

    bucket: int = -1
    heavy: int = -1
    near: tuple[int, ...] = ()
    size: int = 0


@dataclass(slots=True)
class Threshold:
    """The k-th largest magnitude of `numel` elements.

    Attributes:
        key: bits of the threshold.
        quota: how many of the elements equal to it are kept.
        equal: how many there are.
    """

    key: int
    quota: int
    equal: int

    @property
    def all_ties(self) -> bool:
        """Whether every element equal to the threshold is kept."""
        return self.quota >= self.equal


@dataclass(slots=True)
class Statistic:
    """One order statistic, counted by blocks in any order.

    Attributes:
        rank: of the threshold, as `plait.ops.kernels.select.rank_from_top` reads it.
        ties: `first` or `all`, as in `plait.ops.algebra.top`.
        numel: elements counted, once complete.
        guess: what a sample said of it.
        among: the number that the rank's fractions are taken of; None for `numel`.
        bucket: coarse digit that is looked into; -1 while the coarse digits themselves are counted.
        heavy: a fine digit that most elements of the bucket are thought to have, or -1; it decides the speed alone.
        above: elements above the bucket.
        fine: how often each fine digit occurs in the bucket.
        coarse: how often each coarse digit occurs, once that was counted.
        marks: for each block how often the heavy digit occurs up to the end of each of its pieces, where that was counted.
        sparse: for each block the fine digits that occur in it, or None where there were too many.
    """

    rank: str
    ties: str
    numel: int
    guess: Guess = field(default_factory=Guess)
    among: int | None = None
    bucket: int = -1
    heavy: int = -1
    above: int = 0
    fine: Histogram = field(default_factory=lambda: np.zeros(FINE, np.int64))
    coarse: Histogram | None = None
    marks: dict[Any, npt.NDArray[np.int32]] = field(default_factory=dict)
    sparse: dict[Any, tuple[npt.NDArray[np.uint16], Histogram] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with the digit that was foreseen."""
        self.bucket, self.heavy = self.guess.bucket, self.guess.heavy

    def foreseen_by(self, guess: Guess) -> None:
        """Begin with the digit that a sample gives."""
        self.guess = guess
        self.bucket, self.heavy = guess.bucket, guess.heavy

    @property
    def k(self) -> int:
        """Rank of the threshold from the top."""
        return rank_from_top(self.rank, self.numel if self.among is None else self.among)

    def add(self, block: Any, counts: Counts) -> None:
        """Add what one block counted."""
        if counts.coarse is not None:
            self.coarse = counts.coarse.copy() if self.coarse is None else self.coarse + counts.coarse
        if counts.places is not None and counts.fine is not None:
            self.above += counts.above
            self.fine[counts.places] += counts.fine
            few = counts.places.size <= SPARSE_LIMIT
            if counts.marks is not None:
                self.marks[block] = counts.marks
            self.sparse[block] = (counts.places.astype(np.uint16), counts.fine) if few else None

    def counts(self) -> Counts:
        """Everything counted so far, to be added to a wider statistic."""
        if self.bucket < 0:
            return Counts(coarse=self.coarse)
        places = np.flatnonzero(self.fine)
        return Counts(self.above, places, self.fine[places])

    def foreseen(self) -> bool:
        """Whether the threshold lies in the digit that was looked into."""
        return self.k == 0 or (self.bucket >= 0 and self.above < self.k <= self.above + int(self.fine.sum()))

    def guess_again(self) -> bool:
        """Prepare for a pass over the digit that the sample gives, once the exact counts at the first guess put it right; False where it gives none."""
        if self.bucket < 0 or not self.guess.near:
            return False
        inside = int(self.fine.sum())
        step, left = (1, self.above - self.k + 1) if self.above >= self.k else (-1, self.k - self.above - inside)
        wanted = (left - 0.5) * self.guess.size / self.numel
        bucket = self.bucket
        for digit in range(1, _NEAR + 1):
            wanted -= self.guess.near[_NEAR + step * digit]
            if wanted <= 0:
                bucket += step * digit
                break
        self.guess = Guess()
        if bucket == self.bucket or not 0 <= bucket < COARSE:
            return False
        self.look_into(bucket)
        return True

    def start_over(self) -> None:
        """Prepare for a pass that counts the coarse digits."""
        self.look_into(-1)
        self.coarse = None

    def look_into_right_digit(self) -> None:
        """Prepare for a pass over the digit that the coarse counts tell."""
        assert self.coarse is not None
        self.look_into(coarse_bucket(self.coarse, self.k)[0])

    def look_into(self, bucket: int) -> None:
        """Prepare for a pass over a coarse digit."""
        self.bucket, self.heavy, self.above = bucket, -1, 0
        self.fine[:] = 0
        self.sparse.clear()
        self.marks.clear()

    def threshold(self) -> Threshold:
        """The exact threshold; the digit that was looked into must be the right one."""
        if self.k == 0:
            return Threshold(NOTHING, 0, 0)
        low, greater, equal = fine_threshold(self.fine, self.k - self.above)
        quota = equal if self.ties == "all" else self.k - self.above - greater
        return Threshold((self.bucket << 16) | low, quota, equal)

    def before_nth(self, block: Any, threshold: Threshold, nth: int) -> tuple[int, int]:
        """Elements of a block that lie before its n-th tie for certain, and how many ties are among them."""
        marks = self.marks.get(block)
        if marks is None or threshold.key & 0xFFFF != self.heavy:
            return 0, 0
        piece = int(np.searchsorted(marks, nth))  # the first piece at whose end as many were seen
        return piece * SEARCH_PIECE, int(marks[piece - 1]) if piece else 0

    def equal_in(self, block: Any, threshold: Threshold) -> int | None:
        """How many elements of a block equal the threshold, if the block remembers."""
        entry = self.sparse.get(block)
        if entry is None:
            return None
        places, counts = entry
        at = int(np.searchsorted(places, threshold.key & 0xFFFF))
        return int(counts[at]) if at < places.size and places[at] == threshold.key & 0xFFFF else 0


def settled(found: npt.NDArray[np.uint32], rank: str, ties: str, among: int | None = None) -> tuple[int, float]:
    """Threshold key and tie limit of magnitudes (as keys) that are all there; arguments as the fields of `Statistic`."""
    k = rank_from_top(rank, found.size if among is None else among)
    if k == 0:
        return NOTHING, NO_LIMIT
    key = int(np.partition(found, found.size - k)[found.size - k])
    places = np.flatnonzero(found == key)
    quota = k - int(np.count_nonzero(found > key))
    return key, NO_LIMIT if ties == "all" or quota >= places.size else float(places[quota - 1] + 1)


def foresee(sample: npt.NDArray[np.float32], rank: str, *, nonzero: bool = False) -> Guess:
    """Judge by a sample where a threshold lies.

    Args:
        sample: values.
        rank: of the threshold.
        nonzero: the rank is one among the elements that are not zero.
    """
    if sample.size == 0:
        return Guess()
    found = magnitudes(sample)
    k = rank_from_top(rank, int(np.count_nonzero(found)) if nonzero else sample.size)
    place = sample.size - max(k, 1)
    bucket = int(np.partition(found, place)[place] >> 16)
    digits, counts = np.unique(found[found >> 16 == bucket] & 0xFFFF, return_counts=True)
    most = int(np.argmax(counts))
    heavy = 2 * int(counts[most]) > int(counts.sum()) >= _HEAVY_SEEN
    some = found[::_REMEMBERED]
    return Guess(bucket, int(digits[most]) if heavy else -1, _near(some, bucket), some.size)


def _near(found: npt.NDArray[np.uint32], bucket: int) -> tuple[int, ...]:
    """How many keys have each coarse digit from `bucket - 128` to `bucket + 128`."""
    wide, first = 2 * _NEAR + 1, max(bucket - _NEAR, 0)
    # what lies below the first digit wraps round to the far end, and is counted with what lies above the last
    places = np.minimum((found - np.uint32(first << 16)) >> np.uint32(16), np.uint32(wide))
    counts = np.bincount(places.astype(np.intp), minlength=wide)[:wide].tolist()
    below = first - (bucket - _NEAR)
    return (*([0] * below), *counts[: wide - below])


def tie_limit(
    threshold: Threshold, before: int, blocks: list[tuple[Any, int, int]], equal_in: Callable[[Any], int], nth_in: Callable[[Any, int], int]
) -> float:
    """Flat index in a tensor from which ties are no longer kept.

    Args:
        threshold: of the statistic.
        before: ties in tensors that come earlier in canonical order.
        blocks: `(block, first element, elements)` of the tensor, in order.
        equal_in: counts a block's ties.
        nth_in: position in a block of its n-th tie, counted from 1.
    """
    left = threshold.quota - before
    if threshold.all_ties:
        return NO_LIMIT
    if left <= 0:
        return 0.0
    for block, first, _elements in blocks:
        here = equal_in(block)
        if here >= left:
            return float(first + nth_in(block, left) + 1)
        left -= here
    return NO_LIMIT
