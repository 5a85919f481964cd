"""Interpolation by angle: every result is a linear combination whose coefficients come from the Gram matrix."""

from __future__ import annotations

from typing import Any

from plait.ops.algebra import dot, gram, maximum, mean, minimum, number, row_dot, solve, solver, sqrt, total, where
from plait.ops.angles import arccos, sine_and_versine
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, method
from plait.ops.tensor import LazyTensor


@solver
def slerp_coefficients(products: Any, *, t: float) -> Any:
    """The two factors of slerp from the 2 x 2 Gram matrix; nearly parallel tensors (|cos| > 0.9995) are interpolated linearly."""
    import numpy as np

    norms = np.sqrt(np.diag(products))
    scale = np.where(norms > 1e-8, norms, 1.0)
    cosine = float(np.clip(products[0, 1] / (scale[0] * scale[1]), -1.0, 1.0))
    if abs(cosine) > 0.9995:
        return np.array([1.0 - t, t])
    angle = np.arccos(cosine)
    return np.array([np.sin((1.0 - t) * angle), np.sin(t * angle)]) / np.sin(angle)


@method(
    "slerp",
    family="geometry",
    base="required",
    experts=(1, 1),
    endpoint_base=True,
    symmetric=False,
    source="Shoemake 1985; mergekit",
    kinds=("fold", "map"),
    params=(Param("t", float, "Where between the base (0) and the other model (1).", required=True, default=0.5),),
)
def slerp(t_in: MergeInputs, *, t: float) -> LazyTensor:
    """Spherical interpolation between two models.

    theta = [sin((1-t) w) a + sin(t w) b] / sin w, with w the angle between the flattened tensors a (base) and b; the tensors
    themselves are combined, not their unit vectors. Linear where |cos w| > 0.9995.

    Idea:
        The straight line between two models of one norm runs through models of a smaller one; the great circle does not.
    Differs:
        - mergekit takes norms and cosine in float32 on the CPU; here they are exact float64 sums, and the two factors are applied in one pass.
    Caveats:
        - Fine-tuned models of one base are nearly parallel: most tensors are interpolated linearly.
    Example:
        t: 0.4
    """
    a, b = t_in.origin, t_in.experts[0]
    if t == 0.0 or t == 1.0:
        return b if t else a
    c = solve("slerp_coefficients", gram([a, b]), shape=(2,), t=t)
    return c[0] * a + c[1] * b


@method(
    "model_stock",
    family="geometry",
    base="required",
    experts=(2, None),
    source="Model Stock, Jang et al. 2024, equation 4",
    kinds=("fold", "rows", "map"),
    params=(
        Param("filter_wise", bool, "One ratio for each output row instead of one a tensor.", default=False),
        Param(
            "clamp",
            bool,
            "Keep the mean cosine within 0 and 1, so that opposed experts give the base; without it they extrapolate, as in mergekit.",
            default=False,
        ),
        Param(
            "angle_mean",
            str,
            "What is averaged over the pairs: their cosines (cos), or their angles (angle).",
            default="cos",
            choices=("cos", "angle"),
            gradient=False,
        ),
    ),
)
def model_stock(t: MergeInputs, *, filter_wise: bool = False, clamp: bool = False, angle_mean: str = "cos") -> LazyTensor:
    """Pull the experts' mean towards the base by the angle between their task vectors.

    theta = r mean(theta_i) + (1-r) theta_0 with r = K c / (1 + (K-1) c), c the mean pairwise cosine of the K task vectors.

    Idea:
        Fine-tuned weights lie on a shell around an unknown centre; the angle between two of them tells how far their mean is from it.
    Differs:
        - mergekit clamps products of norms at 1e-6, which shrinks the cosine of tensors that hardly changed; here only zero task vectors are left out.
    Caveats:
        - Experts that oppose each other give a ratio below 0 and extrapolate away from them; `clamp` gives the base instead.
    """
    count = len(t.experts)
    c = _mean_cosine(t.deltas, filter_wise, angle_mean)
    if clamp:
        c = minimum(maximum(c, 0.0), 1.0)
    pole = 1.0 + (count - 1.0) * c
    ratio = where(abs(pole) < 1e-6, 0.0, count * c / pole)
    return ratio * mean(t.experts) + (1.0 - ratio) * t.origin


def _mean_cosine(deltas: tuple[LazyTensor, ...], by_rows: bool, angle_mean: str) -> LazyTensor:
    """Mean of the pairwise cosines, or cosine of the mean pairwise angle; a pair with a zero task vector does not count."""

    def inner(x: LazyTensor, y: LazyTensor) -> LazyTensor:
        return row_dot(x, y, rows="output") if by_rows else dot(x, y)

    norms = [sqrt(inner(d, d)) for d in deltas]
    cosines, valid = [], []
    for i, x in enumerate(deltas):
        for j in range(i + 1, len(deltas)):
            both = norms[i] * norms[j]
            valid.append(where(both > 0.0, 1.0, 0.0))
            cosine = inner(x, deltas[j]) / both
            cosines.append(where(both > 0.0, arccos(cosine) if angle_mean == "angle" else cosine, number(0.0)))
    mean_of = total(cosines) / maximum(total(valid), 1.0)
    if angle_mean == "cos":
        return mean_of
    return where(total(valid) > 0.0, 1.0 - sine_and_versine(mean_of)[1], 0.0)
