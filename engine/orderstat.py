"""Exact k-th magnitudes from histograms that were counted block by block.

Keys are the bits of |x| as integers. One pass counts their upper halves (coarse) and, for the one
upper half that a sample foresaw, the lower halves (fine). If the sample was right the threshold is
known; if not, one more pass counts the lower halves of the right one. The result is the same.

Of elements equal to the threshold only the first few may be kept; `limit` is the flat index from
which they no longer are. Blocks remember their fine counts where these are few (they are, where ties
are many: deltas of 16-bit weights take few values), so that at most one block is read again for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.ops.kernels.select import coarse_bucket, count_from_density, fine_threshold, order_stat
from plait.planner.blocks import COARSE, FINE
from plait.planner.cost import SPARSE_LIMIT

Counts = npt.NDArray[np.int64]
#: Every tie is kept.
NO_LIMIT = float(1 << 62)


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
    """Histograms of one order statistic, filled by blocks in any order.

    Attributes:
        density: decimal text of the fraction kept.
        ties: `first` or `all`, as in `plait.ops.algebra.top`.
        numel: elements counted, once complete.
        bucket: coarse digit that the fine histogram looks into, -1 before one is known.
        coarse, fine: totals.
        sparse: for each block the fine counts that are not zero, or None where there were too many.
    """

    density: str
    ties: str
    numel: int
    bucket: int = -1
    coarse: Counts = field(default_factory=lambda: np.zeros(COARSE, np.int64))
    fine: Counts = field(default_factory=lambda: np.zeros(FINE, np.int64))
    sparse: dict[Any, tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]] | None] = field(default_factory=dict)

    @property
    def k(self) -> int:
        """Rank of the threshold from the top."""
        if self.ties == "all":
            return min(self.numel, order_stat(self.density, self.numel))
        return count_from_density(self.density, self.numel)

    def add(self, block: Any, coarse: Counts | None, fine: Counts) -> None:
        """Add one block's histograms; `coarse` is None in a pass that only counts the fine ones."""
        if coarse is not None:
            self.coarse += coarse
        if self.bucket < 0:
            return
        places = np.flatnonzero(fine)
        self.fine[places] += fine[places]
        self.sparse[block] = (places.astype(np.uint16), fine[places]) if places.size <= SPARSE_LIMIT else None

    def foreseen(self) -> bool:
        """Whether the fine histogram is that of the right coarse digit."""
        return self.bucket == coarse_bucket(self.coarse, self.k)[0]

    def look_again(self) -> None:
        """Prepare for a pass over the right coarse digit."""
        self.bucket = coarse_bucket(self.coarse, self.k)[0]
        self.fine[:] = 0
        self.sparse.clear()

    def threshold(self) -> Threshold:
        """The exact threshold; the fine histogram must be that of the right digit."""
        bucket, above = coarse_bucket(self.coarse, self.k)
        low, greater, equal = fine_threshold(self.fine, self.k - above)
        quota = equal if self.ties == "all" else self.k - above - greater
        return Threshold((bucket << 16) | low, quota, equal)

    def equal_in(self, block: Any, threshold: Threshold) -> int | None:
        """How many elements of a block equal the threshold, if the block remembers."""
        entry = self.sparse.get(block)
        if entry is None:
            return None
        places, counts = entry
        at = int(np.searchsorted(places, threshold.key & 0xFFFF))
        return int(counts[at]) if at < places.size and places[at] == threshold.key & 0xFFFF else 0


def foresee(sample: npt.NDArray[np.float32], density: str) -> int:
    """Coarse digit in which the threshold of a tensor probably lies, judged by a sample of it."""
    if sample.size == 0:
        return -1
    k = count_from_density(density, sample.size)
    keys = sample.view(np.uint32) & np.uint32(0x7FFFFFFF)
    place = sample.size - k
    return int(np.partition(keys, place)[place] >> 16)


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
