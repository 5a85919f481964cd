"""PCB-Merging: parameters compete, within their task vector and with those of the other experts, and only the best stay."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from plait.ops.algebra import exp, largest, maximum, minimum, sign, tanh, total, where
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, method
from plait.ops.methods.election import SCOPE, add_delta
from plait.ops.methods.parameters import LAMBDA
from plait.ops.order import quantile
from plait.ops.tensor import LazyTensor

#: Fraction of magnitudes that each variant clips at either end.
_CLIP = {"A": 0.0001, "B": 0.01, "C": 0.01}


@method(
    "pcb",
    family="magnitude selection",
    base="required",
    experts=(1, None),
    source="PCB-Merging, Du et al. 2024, section 3; the three variants of its released code",
    kinds=("fold", "map"),
    params=(
        Param("weight", float, "How much this model counts among those that stay at a position.", default=1.0, per_expert=True),
        Param("ratio", float, "Fraction of each task vector's elements that stays.", default=0.05, low=0.0, high=1.0, gradient=False),
        LAMBDA,
        SCOPE,
        Param(
            "variant",
            str,
            "How agreement with the others is scored: C, pairwise (closest to the paper); B, with the sum of scaled signs; A, with the sum of changes.",
            default="C",
            choices=("A", "B", "C"),
            gradient=False,
        ),
        Param("clip", float, "Fraction of magnitudes clipped at either end; by default 0.0001 for A and 0.01 else.", low=0.0, high=0.5, gradient=False),
    ),
)
def pcb(
    t: MergeInputs,
    *,
    weight: tuple[float, ...],
    ratio: float = 0.05,
    lam: float = 1.0,
    scope: str = "tensor",
    variant: str = "C",
    clip: float | None = None,
) -> LazyTensor:
    """Score every change by its size and by its agreement with the other experts', drop the low scores, weight the rest by theirs.

    a_i = |delta_i| clipped to its quantiles, s_i = a_i scaled to 0..1; b_i = exp(K s_i^2) inter_i with inter_i = sum_j tanh(sgn_i s_i sgn_j s_j);
    scale_i = b_i above its (1 - ratio) quantile, scaled to 0..1; theta = theta_0 + lambda sum_i scale_i w_i sgn_i a_i / sum_i scale_i.
    """
    if ratio <= 0.0:
        return t.origin
    names = [label if scope == "global" else "" for label in t.labels]
    clipped = [_clipped(d, _CLIP[variant] if clip is None else clip, name) for d, name in zip(t.deltas, names, strict=True)]
    sizes = [size for size, _ in clipped]
    signed = [sign(d) * scaled for d, (_, scaled) in zip(t.deltas, clipped, strict=True)]
    scores = [exp(len(names) * (s * s - 1.0)) * _agreement(i, t.deltas, signed, variant) for i, (_, s) in enumerate(clipped)]
    scales = [_best(b, ratio, name) for b, name in zip(scores, names, strict=True)]
    parts = [scale * (sign(d) * a * w) for scale, d, a, w in zip(scales, t.deltas, sizes, weight, strict=True)]
    return add_delta(t.origin, total(parts) / maximum(total(scales), 1e-12), lam)


def _clipped(delta: LazyTensor, share: float, name: str) -> tuple[LazyTensor, LazyTensor]:
    """Magnitudes clipped to their quantiles sorted[floor(share n)] and sorted[floor((1 - share) n - 1)], and the same scaled to 0..1."""
    low, high = (quantile(delta, f"{rule} {share!r}", scope=name and f"{name} {rule}") for rule in ("low", "high"))
    high = maximum(high, low)  # of a few elements they may cross
    size = minimum(maximum(abs(delta), low), high)
    return size, where(high > low, (size - low) / (high - low), 0.0)


def _agreement(i: int, deltas: Sequence[LazyTensor], signed: Sequence[LazyTensor], variant: str) -> LazyTensor:
    if variant == "A":
        return tanh(deltas[i] * total(deltas))
    if variant == "B":
        return tanh(deltas[i] * total(signed))
    return total([tanh(signed[min(i, j)] * signed[max(i, j)]) for j in range(len(signed))])


def _best(score: LazyTensor, ratio: float, name: str) -> LazyTensor:
    """Scores above the (1 - ratio) quantile scaled to 0..1, others 0; where none is above, 1 for those that equal it."""
    cut = quantile(score, f"low {1 - Fraction(repr(ratio))}", scope=name and f"{name} scores", signed=True)
    most = largest(score, name and f"{name} scores")
    return where(most > cut, (maximum(score, cut) - cut) / (most - cut), where(score >= cut, 1.0, 0.0))
