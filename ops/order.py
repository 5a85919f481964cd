"""Order statistics over lazy tensors: masks of the largest, of an interval of ranks, and exact quantiles, all without sorting.

Ranks follow one canonical order: larger magnitudes first, of equal ones the first by tensor name and row-major position. Several ranks of one
tensor are counted in the same pass over it.
"""

from __future__ import annotations

from typing import Any

from plait.ops.algebra import maximum, solve, solver, where
from plait.ops.op import KTH
from plait.ops.tensor import LazyTensor, const, elementwise


def order_statistic(x: LazyTensor, rank: str, *, scope: str = "", ties: str = "first", among: LazyTensor | None = None) -> LazyTensor:
    """One rank of the magnitudes of x, found without sorting: bits of the threshold, and the index from which ties lie below the rank.

    Args:
        x: a tensor.
        rank: as `plait.ops.kernels.select.rank_from_top` reads it, such as `top 0.2`.
        scope: as for `sum_all`; one statistic for all tensors that name it.
        ties: `first` ranks elements that equal the threshold in canonical order (tensor name, then row-major position); `all` takes every one.
        among: a small value that the rank's fractions are taken of, in place of the number of elements: how many elements are not zero. It may
            come from the same pass. Of a model-wide statistic each tensor counts as many as this.

    Returns:
        Small `(2,)`, for `ranked_above` and `threshold_of`.
    """
    inputs = (x,) if among is None else (x, among)
    return LazyTensor(KTH, inputs, (("rank", rank), ("scope", scope), ("ties", ties)), shape=(2,), dtype="float64", space="small")


def ranked_above(x: LazyTensor, cut: LazyTensor) -> LazyTensor:
    """Mask of the elements of x down to the rank of an order statistic of x, that one included."""
    return elementwise("keep_top", elementwise("magnitude_key", x), cut[0], cut[1])


def top(x: LazyTensor, density: float, *, scope: str = "", ties: str = "first", among: LazyTensor | None = None) -> LazyTensor:
    """Mask of the largest magnitudes: exactly floor(density * n) of them, at least one, without sorting.

    Args:
        x: a tensor.
        density: fraction kept, 0 < density < 1.
        scope, among: as for `order_statistic`.
        ties: `first` keeps, of elements that equal the threshold, the first in canonical order (tensor name, then row-major
            position); `all` keeps every element at or above the (n - floor(density * n))-th smallest, as the TIES code does.
    """
    rank = f"{'released' if ties == 'all' else 'top'} {density!r}"
    return ranked_above(x, order_statistic(x, rank, scope=scope, ties=ties, among=among))


def beyond(x: LazyTensor, density: float, ties: str) -> LazyTensor:
    """Mask of the largest magnitudes as `top` gives it (`first`), or without (`none`) or with (`all`) every element that equals the k-th largest."""
    if ties == "first":
        return top(x, density)
    cut = order_statistic(x, f"top {density!r}")
    return elementwise("keep_top", elementwise("magnitude_key", x), cut[0], const(0.0 if ties == "none" else 2.0**62))


def middle(x: LazyTensor, above: float, density: float, *, scope: str = "") -> LazyTensor:
    """Mask of an interval of magnitudes: exactly floor(density * n), at least one, below the floor(above * n) largest (fewer at the end).

    Ranks follow the canonical order: larger magnitudes first, of equal ones the first in name and position.

    Args:
        x: a tensor.
        above: fraction passed over, 0 <= above <= 1.
        density: fraction kept, 0 < density <= 1.
        scope: as for `order_statistic`.
    """
    lower = order_statistic(x, f"top {above!r} {density!r}", scope=scope)
    upper = order_statistic(x, f"above {above!r}", scope=f"{scope} outliers" if scope else "")
    return ranked_above(x, lower) & ~ranked_above(x, upper)


@solver
def magnitude_of_key(cut: Any) -> Any:
    """The magnitude whose bits an order statistic found."""
    import numpy as np

    return np.array([int(cut[0])], np.uint32).view(np.float32)[0]


def threshold_of(cut: LazyTensor) -> LazyTensor:
    """The magnitude that an order statistic found, as a small value."""
    return solve("magnitude_of_key", cut)


def quantile(x: LazyTensor, rank: str, *, scope: str = "", signed: bool = False) -> LazyTensor:
    """The element of x at a rank, exactly: of the magnitudes of x, or with `signed` of x itself.

    Magnitudes are what can be counted: a positive quantile is one of max(x, 0), any other minus the mirrored one of max(-x, 0).
    """
    if not signed:
        return threshold_of(order_statistic(x, rank, scope=scope, ties="all"))
    positive = quantile(maximum(x, 0.0), rank, scope=scope)
    negative = quantile(maximum(-x, 0.0), f"mirrored {rank}", scope=f"{scope} negative" if scope else "")
    return where(positive > 0.0, positive, -negative)
