"""Means on the sphere: every result is a linear combination whose coefficients follow from norms and inner products alone."""

from __future__ import annotations

import math
from typing import Any

from plait.ops.algebra import gram, solve, solver, total
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, method
from plait.ops.methods.parameters import WEIGHT
from plait.ops.tensor import LazyTensor


@solver
def multislerp_coefficients(products: Any, *, weight: tuple[float, ...], eps: float) -> Any:
    """The factor of each x_i: sum_j w_j |x_j| / |m| times w_i / |x_i|, with m = sum_i w_i x_i / |x_i|, from the Gram matrix of the x_i."""
    import numpy as np

    norms = np.sqrt(np.diag(products))
    if not norms.any():
        return np.zeros(len(norms))
    w = np.array(weight)
    units = np.where(norms > 0.0, w / (norms + eps), 0.0)
    length = float(np.sqrt(max(units @ products @ units, 0.0)))
    if length < max(eps, 1e-7 * float(np.abs(w).sum())):  # below it the direction is rounding noise of the inner products
        return w
    return float(w @ norms) / length * units


@method(
    "multislerp",
    family="geometry",
    base="optional",
    experts=(1, None),
    source="mergekit; the closed form that its tangent step leaves",
    kinds=("fold", "map"),
    params=(
        WEIGHT,
        Param("normalize_weights", bool, "Divide the weights by their sum first.", default=True),
        Param("eps", float, "Added to norms, and the length below which a mean direction counts as none.", default=1e-8, low=0.0, gradient=False),
    ),
)
def multislerp(t: MergeInputs, *, weight: tuple[float, ...], normalize_weights: bool = True, eps: float = 1e-8) -> LazyTensor:
    """The models' mean direction, as long as they are on average.

    x = (sum_i w_i |x_i|) m / |m| with m = sum_i w_i x_i / |x_i|; with a base, x_i = theta_i - theta_0 and theta = theta_0 + x. Where
    directions cancel out, as signs of single numbers do, x = sum_i w_i x_i. A model of weight 0 is not read. `karcher` gives the mean on
    the sphere itself.
    """
    share = sum(weight)
    if normalize_weights and abs(share) < 1e-12:
        raise ValueError(f"the weights {', '.join(f'{w:g}' for w in weight)} sum to zero: change a weight or set normalize_weights: false")
    kept = [w / share if normalize_weights else w for w in weight]
    chosen = [i for i, w in enumerate(kept) if w != 0.0]
    if len(weight) == 1:
        return t.experts[0]
    if not chosen:
        return t.origin if t.base is not None else 0.0 * t.experts[0]
    return t.add(_combined(t.only(chosen), "multislerp_coefficients", weight=tuple(kept[i] for i in chosen), eps=eps))


def _combined(t: MergeInputs, name: str, **params: Any) -> LazyTensor:
    """The linear combination of the models, or of their task vectors, whose coefficients a solver finds from the Gram matrix."""
    xs = t.vectors
    c = solve(name, gram(xs), shape=(len(xs),), **params)
    return total([c[i] * x for i, x in enumerate(xs)])


@solver
def karcher_coefficients(products: Any, *, weight: tuple[float, ...], max_iter: int, tol: float) -> Any:
    """The factor of each x_i in the Karcher mean: the iteration on the sphere in coordinates of the unit vectors u_i, with C = <u_i, u_j>."""
    import numpy as np

    norms = np.sqrt(np.diag(products))
    valid = np.flatnonzero(norms > tol)
    factors = np.zeros(len(norms))
    share = np.array(weight) / sum(weight)
    if not valid.size or not share[valid].any():
        return factors
    alpha = share[valid] / share[valid].sum()
    cosines = products[np.ix_(valid, valid)] / np.outer(norms[valid], norms[valid])
    mean = alpha.copy()
    length = _length(mean, cosines)
    mean = np.eye(len(alpha))[0] if length < tol else mean / length
    for _ in range(max_iter):
        towards = np.clip(cosines @ mean, -1.0, 1.0)
        angles = np.arccos(towards)
        moving = (angles >= tol) & (angles < math.pi - 1e-6)  # from the opposite point all ways are equally short
        pull = np.where(moving, alpha * angles / np.where(moving, np.sin(angles), 1.0), 0.0)
        tangent = pull - (pull @ towards) * mean
        step = _length(tangent, cosines)
        if step < tol:
            break
        mean = np.cos(step) * mean + np.sin(step) * tangent / step
        mean /= _length(mean, cosines)
    factors[valid] = float(share @ norms) * mean / norms[valid]
    return factors


def _length(x: Any, cosines: Any) -> float:
    return math.sqrt(max(float(x @ cosines @ x), 0.0))


@method(
    "karcher",
    family="geometry",
    base="optional",
    experts=(1, None),
    source="Karcher 1977; mergekit; arXiv 2603.04972",
    kinds=("fold", "map"),
    params=(
        Param("weight", float, "How much this model counts.", default=1.0, per_expert=True, low=0.0),
        Param("max_iter", int, "Most steps of the iteration.", default=10, low=1, gradient=False),
        Param("tol", float, "Length of a step at which it ends, and norm below which a tensor has no direction.", default=1e-5, low=0.0, gradient=False),
        Param(
            "task_vectors", bool, "Average the task vectors and add the base back; without it a base counts as one more model, as in mergekit.", default=False
        ),
    ),
)
def karcher(t: MergeInputs, *, weight: tuple[float, ...], max_iter: int = 10, tol: float = 1e-5, task_vectors: bool = False) -> LazyTensor:
    """The Karcher mean of the models' directions on the sphere, as long as they are on average.

    u minimises sum_i alpha_i angle(u, x_i)^2; theta = (sum_i alpha_i |x_i|) u. With `task_vectors`, x_i = theta_i - theta_0 and
    theta = theta_0 + (sum_i alpha_i |x_i|) u.
    """
    if t.base is not None and not task_vectors:
        if len(set(weight)) > 1:
            raise ValueError("karcher counts a base as one more model, of the same weight as the others: set task_vectors: true, or give all one weight")
        t, weight = MergeInputs(None, (*t.experts, t.base), (*t.labels, "base"), t.shape, t.name, t.role), (*weight, weight[0])
    if task_vectors and t.base is None:
        raise ValueError("karcher with task_vectors needs a base model: give base_model")
    chosen = [i for i, w in enumerate(weight) if w != 0.0]
    if not chosen:
        raise ValueError("karcher: every weight is 0, so there is nothing to average")
    if len(chosen) == 1:
        return t.experts[chosen[0]]
    return t.add(_combined(t.only(chosen), "karcher_coefficients", weight=tuple(weight[i] for i in chosen), max_iter=max_iter, tol=tol))
