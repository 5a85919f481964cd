"""What open components hold together: they are opened in order, so only neighbours meet."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from plait.planner.cost import Lease

#: Components are opened no further than this many times the number of workers beyond the oldest open one.
WINDOW = 2


def widest_window(held: Sequence[Lease], workers: int, limit: int) -> tuple[int, int]:
    """Most that the open components hold together, and which of them holds most at its peak."""
    together = windows(held, workers, limit)
    best = max(together, default=0)
    first = together.index(best) if best else 0
    return best, max(range(first, min(first + WINDOW * workers, len(held))), key=lambda i: held[i].most, default=0)


def windows(held: Sequence[Lease], workers: int, limit: int) -> list[int]:
    """For each component, most that the open ones hold together while it is the oldest of them.

    The engine opens components in order, at most `workers` at a time, none further than `WINDOW * workers` from the oldest
    open one, and only within `limit`. One of them has its turn at a whole op.
    """
    reach, found = WINDOW * workers, list[int]()
    near = sorted(held[:reach])  # the window that begins at `first`, sorted while it slides
    for first, leaving in enumerate(held):
        found.append(_together(near, workers))
        del near[bisect_left(near, leaving)]
        insort(near, held[first + reach] if first + reach < len(held) else Lease(0))
    most = max(limit, max((h.most for h in held), default=0))
    return [min(bytes_held, most) for bytes_held in found]


def _together(near: Sequence[Lease], workers: int) -> int:
    """Most that so many of these leases, which are sorted, hold at once: one has its turn, beside the largest of the others."""
    largest = near[-workers:]
    base = sum(h.always for h in largest)
    best = base + max((h.in_turn for h in largest), default=0)
    beside = base - largest[0].always if largest else 0
    return max(best, max((beside + h.most for h in near[:-workers]), default=0))
