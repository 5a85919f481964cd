"""What TIES shares with its relatives: trimming, election of a sign, then a mean of those who agree."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from plait.ops.algebra import dot, maximum, scaled, sign, sum_all, total, where
from plait.ops.method import Param
from plait.ops.order import top
from plait.ops.tensor import LazyTensor, Operand

SCOPE = Param(
    "scope", str, "One threshold for each tensor, or one for each model over all its tensors.", default="tensor", choices=("tensor", "global"), gradient=False
)
ELECT = Param(
    "elect",
    str,
    "How the sign is elected: by sum, by count, or by mass or largest share of the norm.",
    default="sum",
    choices=("sum", "count", "normmass", "normfrac"),
    gradient=False,
)
ZERO_SIGN = Param(
    "zero_sign",
    str,
    "Sign where the vote is zero: positive (mergekit), the majority's over the scope (the paper's code), or drop.",
    default="positive",
    choices=("positive", "majority", "drop"),
    gradient=False,
)
AGGREGATE = Param("aggregate", str, "How agreeing values are joined.", default="mean", choices=("mean", "sum", "max"), gradient=False)
KEEP = Param(
    "keep",
    str,
    "exact: floor(density * n) elements, of ties the first; threshold: every element at or above the threshold, as the paper's code.",
    default="exact",
    choices=("exact", "threshold"),
    gradient=False,
)


def trim(delta: LazyTensor, density: float, scope: str = "", keep: str = "exact", rescale: bool = False, among: LazyTensor | None = None) -> LazyTensor:
    """Zero all but the largest magnitudes of a task vector, of `among` elements where only so many count; density 1 keeps it whole, 0 nothing."""
    if density >= 1.0:
        return delta
    if density <= 0.0:
        return 0.0 * delta
    kept = where(top(delta, density, scope=scope, ties="first" if keep == "exact" else "all", among=among), delta, 0.0)
    return same_l1(kept, delta) if rescale else kept


def trim_mask(x: LazyTensor, by: LazyTensor, density: float, scope: str = "") -> LazyTensor:
    """`x` where `by` is among its own largest magnitudes, ties included, else 0."""
    if density >= 1.0:
        return x
    return where(top(by, density, scope=scope, ties="all"), x, 0.0) if density > 0.0 else 0.0 * x


def same_l1(sparse: LazyTensor, dense: LazyTensor) -> LazyTensor:
    """`sparse` scaled to the L1 norm of `dense`; left alone where either norm is below 1e-7 (mergekit's rescale)."""
    before, after = sum_all(abs(dense)), sum_all(abs(sparse))
    return sparse * where((before < 1e-7) | (after < 1e-7), 1.0, before / after)


def add_delta(base: LazyTensor, delta: LazyTensor | None, lam: float) -> LazyTensor:
    """base + lam * delta; the base itself when there is no delta or lam is 0, the expert itself when delta is all that sets it apart."""
    if delta is None or lam == 0.0:
        return base
    if lam == 1.0 and delta.op.name == "sub" and delta.inputs[1] is base:
        return delta.inputs[0]  # base + (expert - base) without its two roundings: bit for bit, and copied unread
    return base + scaled(lam, delta)


class Ballot:
    """Election of a sign for each parameter and the disjoint merge of the changes that agree with it.

    Args:
        scopes: for each expert the model-wide statistic that its norms and the majority use, empty for the tensor's own.
        elect, zero_sign, aggregate: as the parameters of `ties`.
        normalize: divide by the summed weights of the agreeing experts; of a negative weight the sign goes to the change and its size to
            the sum (mergekit sums signed weights, which may cancel).
    """

    def __init__(self, scopes: Sequence[str], elect: str = "sum", zero_sign: str = "positive", aggregate: str = "mean", normalize: bool = True) -> None:
        self.scopes, self.elect, self.zero_sign, self.aggregate, self.normalize = scopes, elect, zero_sign, aggregate, normalize

    def merge(self, deltas: Sequence[LazyTensor], weights: Sequence[float]) -> LazyTensor | None:
        """The merged change, or None when no expert votes."""
        if not deltas:
            return None
        mean_wanted = self.aggregate == "mean" and self.normalize
        if len(deltas) == 1:  # one expert always agrees with itself
            return deltas[0] * (1.0 if mean_wanted and weights[0] > 0 else -1.0 if mean_wanted else weights[0])
        if mean_wanted and len(set(weights)) == 1 and weights[0] > 0:
            weights = [1.0] * len(weights)
        weighted = [d * w for d, w in zip(deltas, weights, strict=True)]
        elected = self._elect(weighted)
        agrees = [s * elected > 0.0 for s in weighted]
        if self.aggregate == "max":
            return elected * reduce(maximum, [where(a, abs(s), 0.0) for a, s in zip(agrees, weighted, strict=True)])
        merged = total([where(a, s, 0.0) for a, s in zip(agrees, weighted, strict=True)])
        if not mean_wanted:
            return merged
        share = total([where(a, abs(w), 0.0) for a, w in zip(agrees, weights, strict=True)])
        return merged / where(share > 0.0, share, 1.0)

    def _elect(self, votes: Sequence[LazyTensor]) -> LazyTensor:
        tally = self._tally(votes)
        if self.zero_sign == "positive":
            return where(tally >= 0.0, 1.0, -1.0)
        if self.zero_sign == "drop":
            return sign(tally)
        majority = sum_all(sign(tally), "signs" if self.scopes[0] else "")
        default: Operand = where(majority > 0.0, 1.0, -1.0)
        return where(tally > 0.0, 1.0, where(tally < 0.0, -1.0, default))

    def _tally(self, votes: Sequence[LazyTensor]) -> LazyTensor:
        if self.elect == "sum":
            return total(votes)
        if self.elect == "count":
            return total([sign(v) for v in votes])
        squares = [v * v / self._norm2(v, scope) for v, scope in zip(votes, self.scopes, strict=True)]
        if self.elect == "normmass":
            return total([sign(v) * s for v, s in zip(votes, squares, strict=True)])
        winner, largest = votes[0], squares[0]
        for vote, square in zip(votes[1:], squares[1:], strict=True):
            winner, largest = where(square > largest, vote, winner), maximum(square, largest)
        return sign(winner)

    def _norm2(self, vote: LazyTensor, scope: str) -> LazyTensor:
        norm2 = dot(vote, vote, f"{scope} norm" if scope else "")
        return where(norm2 > 0.0, norm2, 1.0)
