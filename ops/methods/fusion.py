"""Arcee Fusion: an expert's change is taken only where it matters most."""

from __future__ import annotations

from plait.ops.algebra import exp, log, row_largest, row_sum, where
from plait.ops.columns import by_row, row_values
from plait.ops.inputs import MergeInputs
from plait.ops.method import method
from plait.ops.order import quantile
from plait.ops.tensor import LazyTensor

#: Terms of (e^-u - 1 + u) / u^2, highest power first: to float32's precision for |u| up to 1/2.
_SERIES = tuple((-1.0) ** k / f for k, f in zip(range(7, -1, -1), (362880, 40320, 5040, 720, 120, 24, 6, 2), strict=True))


def divergence(p_logits: LazyTensor, q_logits: LazyTensor) -> LazyTensor:
    """KL(softmax(p) || softmax(q)) of each row, never negative and without cancellation.

    With u = log p - log q, the sum of p u equals that of p (e^-u - 1 + u), since p and q both sum to 1; all its terms are positive. Rows of
    weights are nearly uniform distributions, of which the terms p u would nearly cancel.
    """
    p_most, q_most = row_largest(p_logits), row_largest(q_logits)
    p, q = exp(p_logits - p_most), exp(q_logits - q_most)
    p_sum, q_sum = row_sum(p), row_sum(q)
    u = (p_logits - q_logits) - ((p_most - q_most) + log(p_sum / q_sum))
    series = u * _SERIES[0] + _SERIES[1]
    for term in _SERIES[2:]:
        series = series * u + term
    p_share, q_share = p * (1.0 / p_sum), q * (1.0 / q_sum)
    return row_sum(where(abs(u) < 0.5, p_share * (series * (u * u)), (q_share - p_share) + p_share * u))


@method(
    "arcee_fusion",
    family="magnitude selection",
    base="required",
    experts=(1, 1),
    source="mergekit",
    symmetric=False,
    kinds=("fold", "rows", "map"),
    params=(),
)
def arcee_fusion(t: MergeInputs) -> LazyTensor:
    """Take an expert's changes where their importance stands out in the tensor.

    I = |delta| KL(softmax(theta_1) || softmax(theta_0)) by rows along the last axis; theta = theta_1 where I >= median + 1.5 (Q3 - Q1), the
    quantiles sorted[floor(q (n - 1))] of all elements, exactly; theta_0 elsewhere.
    """
    base, expert = t.origin, t.experts[0]
    along = row_values(divergence(expert, base))  # one number a row, so that exponentials are taken in one pass alone
    importance = abs(expert - base) * by_row(along, base)
    lower, median, upper = (quantile(importance, f"quantile {q}") for q in ("1/4", "1/2", "3/4"))
    return where(importance >= median + 1.5 * (upper - lower), expert, base)
