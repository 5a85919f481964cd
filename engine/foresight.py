"""Where an order statistic of magnitudes lies, judged by a sample: it decides how many passes it takes to find, never its value.

A sample gives the key (the bits of |x|) of its own order statistic, and the tensor's lies near: a window of keys around it is counted
exactly. Where the counts show that the threshold lies beside the window, they also tell on which side, and by how many elements; how far
that is in keys the sample tells, which knows the shape well though not the place.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plait.engine.blockrun import Window
from plait.ops.kernels.select import keys as magnitudes
from plait.ops.kernels.select import rank_from_top
from plait.planner.blocks import NARROW, SPAN

#: Fewer elements of a sample say nothing about which value of their window is common.
_HEAVY_SEEN = 8
#: Samples are counted in bins of so many bits of keys: eight to a window.
_BIN_BITS = 14
#: Bins on either side of the one foreseen that are remembered: half a power of two.
_NEAR = 256
#: Bins below the largest key that are told apart, 2^24 between them; all smaller ones share the first.
_BINS = 24 << (23 - _BIN_BITS)
_PIECE = 1 << 16  #: elements counted at once, which bounds the memory
_KEYS = 1 << 31


class Guess(NamedTuple):
    """What a sample says of a threshold.

    Attributes:
        window: that it is looked for in.
        near: how many elements of the sample lie in each bin of keys around it.
        first: the first key of the first bin; it may be below 0.
        size: elements of the sample.
    """

    window: Window = Window()
    near: tuple[int, ...] = ()
    first: int = 0
    size: int = 0

    def beside(self, rank: int, above: int, inside: int, numel: int) -> Window | None:
        """The window to look into next, beside this one, or None where the sample does not reach so far.

        Args:
            rank: of the threshold, from the top; it is not in this window.
            above, inside: elements above this window, and in it.
            numel: all elements.
        """
        if not self.near:
            return None
        below = np.concatenate([[0.0], np.cumsum(self.near)])  # elements of the sample below each edge of a bin
        edges = self.first + (np.arange(below.size) << _BIN_BITS)
        low, end = self.window.low, self.window.low + self.window.width
        higher = above >= rank
        left = above - rank + 0.5 if higher else above + inside + 0.5 - rank
        wanted = float(np.interp(end if higher else low, edges, below)) + left * self.size / numel
        if not 0.0 < wanted < below[-1]:
            return None
        middle = int(np.interp(wanted, below, edges))
        start = max(middle - SPAN // 2, end) if higher else min(middle + SPAN // 2, low) - SPAN
        start = max(start, 0)
        width = min(SPAN, _KEYS - start if higher else low - start)
        return Window(start, width) if width > 0 else None


class Sampled:
    """Values of a sample, from which thresholds of several ranks are foreseen.

    Args:
        values: float32, one-dimensional.
    """

    def __init__(self, values: npt.NDArray[np.float32]) -> None:
        self._keys = magnitudes(values)
        if not self._keys.size:
            return
        last = int(self._keys.max()) >> _BIN_BITS
        self._first = max(last - _BINS, 0)  # few bins, for fresh memory is what costs here
        self._bins = np.zeros(last - self._first + 1, np.int64)
        for at in range(0, self._keys.size, _PIECE):
            bins = self._keys[at : at + _PIECE] >> np.uint32(_BIN_BITS)
            np.maximum(bins, np.uint32(self._first), out=bins)
            bins -= np.uint32(self._first)
            self._bins += np.bincount(bins, minlength=self._bins.size)
        self._up_to = np.cumsum(self._bins)

    def guess(self, rank: str, *, nonzero: bool = False) -> Guess:
        """Judge where a threshold lies.

        Args:
            rank: of the threshold (`plait.ops.kernels.select.rank_from_top`).
            nonzero: the rank is one among the elements that are not zero.
        """
        size = self._keys.size
        if not size:
            return Guess()
        k = rank_from_top(rank, int(np.count_nonzero(self._keys)) if nonzero else size)
        place = size - max(k, 1)  # from the bottom
        at = int(np.searchsorted(self._up_to, place, side="right"))
        low = 0 if not at else (self._first + at) << _BIN_BITS
        inside = self._within(low, ((self._first + at + 1) << _BIN_BITS) - low)
        place -= int(self._up_to[at]) - inside.size
        key = int(np.partition(inside, place)[place])
        near = self._bins[max(at - _NEAR, 0) : at + _NEAR + 1]
        return Guess(self._window(key), tuple(near.tolist()), (self._first + max(at - _NEAR, 0)) << _BIN_BITS, size)

    def _within(self, low: int, width: int) -> npt.NDArray[np.uint32]:
        """Keys of a window."""
        found: npt.NDArray[np.uint32] = self._keys[self._keys - np.uint32(low) < np.uint32(width)]  # those below it wrap round
        return found

    def _window(self, key: int) -> Window:
        """Around a key: a narrow one where most elements share one value, so that no other common value lies in it."""
        low = min(max(key - NARROW // 2, 0), _KEYS - NARROW)
        values, counts = np.unique(self._within(low, NARROW), return_counts=True)
        most = int(np.argmax(counts))
        if 2 * int(counts[most]) > int(counts.sum()) >= _HEAVY_SEEN:
            return Window(low, NARROW, int(values[most]) - low)
        return Window(min(max(key - SPAN // 2, 0), _KEYS - SPAN))
