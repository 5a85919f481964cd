"""WIDEN: experts weighted column by column, by how far the column moved in size and direction among the expert's own columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plait.ops.algebra import exp, maximum, row_dot, solve, solver, sum_all, total, where
from plait.ops.columns import by_column, by_row, column_dot, row_values
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, method
from plait.ops.tensor import LazyTensor


@solver
def widen_ranks(expert: Any, base: Any, both: Any) -> Any:
    """Ranks of the columns by change of norm and by change of direction, two rows of position / n; ties by position.

    Args:
        expert, base, both: squared norms of the expert's and the base's columns and their inner products, float64 `[n]`. The direction of a
            column whose norm is zero has not changed.
    """
    import numpy as np

    size = np.abs(np.sqrt(expert) - np.sqrt(base))
    product = np.sqrt(expert * base)
    turn = np.where(product > 0.0, 1.0 - both / np.where(product > 0.0, product, 1.0), 0.0)
    found = np.empty((2, base.size))
    for row, change in zip(found, (size, turn), strict=True):
        row[np.argsort(change, kind="stable")] = np.arange(base.size) / base.size
    return found


@solver
def widen_weights(*ranks: Any, expert: int, ratio: float, calibration: float) -> Any:
    """Weight of one expert's columns, float64 `[n]`: the mean, over size and direction, of its softmax among the experts; `calibration` above average."""
    import numpy as np

    powers = [np.exp(r) for r in ranks]
    share = powers[expert] / sum(powers)
    mine = ranks[expert]
    scores = np.where(mine > ratio * mine.mean(axis=1, keepdims=True), calibration, share)
    return 0.5 * (scores[0] + scores[1])


@method(
    "widen",
    family="importance",
    base="required",
    experts=(1, None),
    uses_name=True,
    source="WIDEN, Yu et al. 2024, arXiv 2408.03092, section 3",
    kinds=("fold", "rows", "map"),
    params=(
        Param("above_average_value_ratio", float, "Columns ranked above this multiple of the average are calibrated.", default=1.0, low=0.0),
        Param("score_calibration_value", float, "Weight of the columns that are calibrated.", default=1.0),
    ),
)
def widen(t: MergeInputs, *, above_average_value_ratio: float = 1.0, score_calibration_value: float = 1.0) -> LazyTensor:
    """Weight each expert's columns by how far they moved, compared with the expert's other columns.

    rho_k ranks the columns of expert k by the change of their norm, and by 1 - cos to the base's column; s_k = softmax of rho over the experts,
    or the calibration value where rho_k is above ratio times its mean; theta = theta_0 + sum_k delta_k (s_k^norm + s_k^direction) / 2. Columns
    of a table of tokens are its rows; of a vector the elements, with rho_k = |delta_k|.
    """
    if len(t.experts) == 1 and score_calibration_value == 1.0:
        return t.experts[0]
    ratio, calibration = above_average_value_ratio, score_calibration_value
    weights = _element_weights(t.deltas, ratio, calibration) if len(t.shape) < 2 else _column_weights(t, ratio, calibration)
    return t.origin + total([d * w for d, w in zip(t.deltas, weights, strict=True)])


def _column_weights(t: MergeInputs, ratio: float, calibration: float) -> list[LazyTensor]:
    base, tokens = t.origin, "embed_tokens" in t.name or (t.role == "embedding" and len(t.shape) == 2)

    def inner(x: LazyTensor, y: LazyTensor) -> LazyTensor:
        return row_values(row_dot(x, y, rows="output")) if tokens else column_dot(x, y, rows="output")

    count = inner(base, base).shape[0]
    ranks = [solve("widen_ranks", inner(e, e), inner(base, base), inner(e, base), shape=(2, count)) for e in t.experts]
    spread = by_row if tokens else by_column
    facts: dict[str, Any] = {"ratio": ratio, "calibration": calibration}
    return [spread(solve("widen_weights", *ranks, shape=(count,), expert=k, **facts), base, rows="output") for k in range(len(ranks))]


def _element_weights(deltas: Sequence[LazyTensor], ratio: float, calibration: float) -> list[LazyTensor]:
    sizes = [abs(d) for d in deltas]
    most = sizes[0]
    for size in sizes[1:]:
        most = maximum(most, size)
    powers = [exp(size - most) for size in sizes]
    every = total(powers)
    means = [sum_all(size) * (ratio / max(size.numel, 1)) for size in sizes]
    return [where(size > m, calibration, p / every) for size, m, p in zip(sizes, means, powers, strict=True)]
