"""The course of a run in a bounded number of rows, however long it takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_ROWS = 240


class Series:
    """Rows of numbers over time. When it is full, every two neighbours become one, and from then on so many more make up a row.

    Args:
        levels: how many numbers at the beginning of a row are levels, of which the highest counts; the others grow, and the last counts.
        most: rows that are kept.
    """

    def __init__(self, levels: int, most: int = MOST_ROWS) -> None:
        self._levels, self._most = levels, most
        self._table: NDArray[np.float64] = np.empty((0, 0))
        self._rows, self._each, self._pending = 0, 1, 0

    def add(self, row: Sequence[float]) -> None:
        """Add a row; all are of one length."""
        if not self._table.size:
            self._table = np.empty((self._most + 1, len(row)))
        place = self._table[self._rows]
        if self._pending:
            self._merge(place, np.asarray(row))
        else:
            place[:] = row
        self._pending += 1
        if self._pending == self._each:
            self._pending, self._rows = 0, self._rows + 1
            if self._rows == self._most:
                self._halve()

    def _merge(self, into: NDArray[np.float64], later: NDArray[np.float64]) -> None:
        into[: self._levels] = np.maximum(into[: self._levels], later[: self._levels])
        into[self._levels :] = later[self._levels :]

    def _halve(self) -> None:
        half = self._most // 2
        for n in range(half):
            self._table[n] = self._table[2 * n]
            self._merge(self._table[n], self._table[2 * n + 1])
        self._rows, self._each = half, 2 * self._each

    def rows(self) -> NDArray[np.float64]:
        """What there is, the row that is not complete yet included."""
        return self._table[: self._rows + (self._pending > 0)]
