"""Exact order statistics of magnitudes from histograms that were counted block by block.

Keys are the bits of |x| as integers. A sample foresees a window of keys in which the threshold lies; one pass counts the elements above
it and each key within it. If the sample was right the threshold is known. If not, the exact counts say on which side it lies and how many
elements away, and a second pass looks into the window that the sample gives with that put right. Only if that fails too, one pass counts
the coarse digits of all keys, their upper halves, and another looks into the right one. The result is the same.

Of elements equal to the threshold only the first few may be kept; `limit` is the flat index from
which they no longer are. Blocks remember how often each key occurs where these are few (they are, where ties
are many: deltas of 16-bit weights take few values), so that at most one block is read again for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.engine.blockrun import Counts, Window
from plait.engine.foresight import Guess
from plait.ops.kernels.select import coarse_digit, place_in_window, rank_from_top
from plait.planner.blocks import NARROW, SEARCH_PIECE, SPARSE_LIMIT

Histogram = npt.NDArray[np.int64]
#: Every tie is kept.
NO_LIMIT = float(1 << 62)
#: Above every key: the threshold of rank 0, which nothing reaches.
NOTHING = 1 << 31


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
        window: that is looked into, or that asks for the coarse digits.
        above, inside: elements above the window, and in it.
        dense: how often each key of the window occurs, once a block had too many of them to be remembered one by one.
        coarse: how often each coarse digit occurs, once that was counted.
        marks: for each block how often the window's heavy key occurs up to the end of each of its pieces, where that was counted.
        sparse: for each block the places in the window whose keys occur in it, or None where there were too many.
    """

    rank: str
    ties: str
    numel: int
    guess: Guess = field(default_factory=Guess)
    among: int | None = None
    window: Window = field(init=False)
    above: int = 0
    inside: int = 0
    dense: Histogram | None = None
    coarse: Histogram | None = None
    marks: dict[Any, npt.NDArray[np.int32]] = field(default_factory=dict)
    sparse: dict[Any, tuple[npt.NDArray[np.uint32], Histogram] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with the window that was foreseen."""
        self.window = self.guess.window

    def foreseen_by(self, guess: Guess) -> None:
        """Begin with the window that a sample gives."""
        self.guess, self.window = guess, guess.window

    @property
    def k(self) -> int:
        """Rank of the threshold from the top."""
        return rank_from_top(self.rank, self.numel if self.among is None else self.among)

    def add(self, block: Any, counts: Counts) -> None:
        """Add what one block counted."""
        if counts.coarse is not None:
            self.coarse = counts.coarse.copy() if self.coarse is None else self.coarse + counts.coarse
        self.above += counts.above
        if counts.dense is not None:
            self.inside += int(counts.dense.sum())
            self.sparse[block] = None
            self._counters()[:] += counts.dense
        if counts.places is not None and counts.fine is not None:
            self.inside += int(counts.fine.sum())
            few = counts.places.size <= SPARSE_LIMIT
            if self.dense is not None or not few:
                self._counters()[counts.places] += counts.fine
            if counts.marks is not None:
                self.marks[block] = counts.marks
            self.sparse[block] = (counts.places.astype(np.uint32), counts.fine) if few else None

    def _counters(self) -> Histogram:
        """One for each key of the window, with all that was added so far; few statistics need them: deltas of 16-bit weights take few values."""
        if self.dense is None:
            places, times = self._few()
            self.dense = np.zeros(self.window.width, np.int64)
            self.dense[places] = times
        return self.dense

    def _few(self) -> tuple[npt.NDArray[np.uint32], Histogram]:
        """Places in the window whose keys occur, ascending, and how often, of all blocks that remember them."""
        known = [entry for entry in self.sparse.values() if entry is not None and entry[0].size]
        if not known:
            return np.zeros(0, np.uint32), np.zeros(0, np.int64)
        places, where = np.unique(np.concatenate([entry[0] for entry in known]), return_inverse=True)
        times = np.zeros(places.size, np.int64)
        np.add.at(times, where, np.concatenate([entry[1] for entry in known]))
        return places, times

    def counts(self) -> Counts:
        """Everything counted so far, to be added to a wider statistic."""
        if self.window.low < 0:
            return Counts(coarse=self.coarse)
        if self.dense is not None:
            return few_or_dense(self.above, self.dense)
        return Counts(self.above, *self._few())

    def foreseen(self) -> bool:
        """Whether the threshold lies in the window that was looked into."""
        return self.k == 0 or (self.window.low >= 0 and self.above < self.k <= self.above + self.inside)

    def guess_again(self) -> bool:
        """Prepare for a pass over the window that the sample gives, once the exact counts at the first guess put it right; False where it gives none."""
        better = self.guess.beside(self.k, self.above, self.inside, self.numel) if self.window.low >= 0 else None
        self.guess = Guess()
        if better is not None:
            self.look_into(better)
        return better is not None

    def start_over(self) -> None:
        """Prepare for a pass that counts the coarse digits."""
        self.look_into(Window())
        self.coarse = None

    def look_into_right_digit(self) -> None:
        """Prepare for a pass over the digit that the coarse counts tell."""
        assert self.coarse is not None
        self.look_into(Window(coarse_digit(self.coarse, self.k)[0] << 16, NARROW))

    def look_into(self, window: Window) -> None:
        """Prepare for a pass over a window."""
        self.window, self.above, self.inside, self.dense = window, 0, 0, None
        self.sparse.clear()
        self.marks.clear()

    def threshold(self) -> Threshold:
        """The exact threshold; the window that was looked into must be the right one."""
        if self.k == 0:
            return Threshold(NOTHING, 0, 0)
        if self.dense is not None:
            place, greater, equal = place_in_window(self.dense, self.k - self.above)
        else:
            places, times = self._few()
            number, greater, equal = place_in_window(times, self.k - self.above)
            place = int(places[number])
        quota = equal if self.ties == "all" else self.k - self.above - greater
        return Threshold(self.window.low + place, quota, equal)

    def before_nth(self, block: Any, threshold: Threshold, nth: int) -> tuple[int, int]:
        """Elements of a block that lie before its n-th tie for certain, and how many ties are among them."""
        marks = self.marks.get(block)
        if marks is None or threshold.key - self.window.low != self.window.heavy:
            return 0, 0
        piece = int(np.searchsorted(marks, nth))  # the first piece at whose end as many were seen
        return piece * SEARCH_PIECE, int(marks[piece - 1]) if piece else 0

    def equal_in(self, block: Any, threshold: Threshold) -> int | None:
        """How many elements of a block equal the threshold, if the block remembers."""
        entry = self.sparse.get(block)
        if entry is None:
            return None
        places, counts = entry
        place = threshold.key - self.window.low
        at = int(np.searchsorted(places, place))
        return int(counts[at]) if at < places.size and places[at] == place else 0


def few_or_dense(above: int, fine: npt.NDArray[Any]) -> Counts:
    """What was counted in a window as `Counts`: the keys that occur where they are few, else all counters, which must not change then."""
    places = np.flatnonzero(fine)
    return Counts(above, places, fine[places]) if places.size <= SPARSE_LIMIT else Counts(above, dense=fine)


def settled(found: npt.NDArray[np.uint32], rank: str, ties: str, among: int | None = None) -> tuple[int, float]:
    """Threshold key and tie limit of magnitudes (as keys) that are all there; arguments as the fields of `Statistic`."""
    k = rank_from_top(rank, found.size if among is None else among)
    if k == 0:
        return NOTHING, NO_LIMIT
    key = int(np.partition(found, found.size - k)[found.size - k])
    places = np.flatnonzero(found == key)
    quota = k - int(np.count_nonzero(found > key))
    return key, NO_LIMIT if ties == "all" or quota >= places.size else float(places[quota - 1] + 1)


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
