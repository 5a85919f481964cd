"""Merges that are told how important each weight is: Fisher averaging and LED.

The statistics are inputs like weights: files that some other tool, or an earlier step, computed from gradients.
"""

from __future__ import annotations

from functools import reduce
from operator import or_

from plait.ops.algebra import dot, equal, sqrt, total, weighted_sum, where
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, method
from plait.ops.methods.election import add_delta
from plait.ops.methods.parameters import LAMBDA, WEIGHT
from plait.ops.order import beyond
from plait.ops.statistics import Statistic
from plait.ops.tensor import LazyTensor, Operand

OWN_WEIGHT = Param("weight", float, WEIGHT.doc, default=1.0, per_expert=True)
IMPORTANCE = Statistic("importance", "tensors", "How important each weight of this model is, never negative: its Fisher information, or a gradient score.")


@method(
    "fisher",
    family="importance",
    base="unused",
    experts=(1, None),
    statistics=(IMPORTANCE,),
    source="Merging models with Fisher-weighted averaging, Matena & Raffel 2022, section 3",
    kinds=("fold", "map"),
    params=(
        OWN_WEIGHT,
        Param(
            "normalize",
            str,
            "Divide a model's Fisher information by its norm over the whole model, over each tensor, or not.",
            default="model",
            choices=("model", "tensor", "none"),
            gradient=False,
        ),
        Param("floor", float, "Added to all Fisher information, and to its norm.", default=1e-6, low=0.0),
    ),
)
def fisher(t: MergeInputs, *, weight: tuple[float, ...], normalize: str = "model", floor: float = 1e-6) -> LazyTensor:
    """Average of the models in which each weight counts as much as it is certain.

    theta = sum_i c_i F_i theta_i / sum_i c_i F_i with F_i the model's diagonal Fisher information plus a floor, and c_i its weight over
    the norm of F_i. Where all F_i are 0 the models are averaged by weight.
    """
    chosen = [i for i, w in enumerate(weight) if w != 0.0]
    if not chosen or min(weight) < 0.0:
        raise ValueError("fisher needs weights that are not negative, and one above 0")
    if len(chosen) == 1:
        return t.experts[chosen[0]]
    t, weight = t.only(chosen), tuple(weight[i] for i in chosen)
    scale: list[Operand] = list(weight)
    if normalize != "none":
        scopes = [f"{label} fisher" if normalize == "model" else "" for label in t.labels]
        norms = [sqrt(dot(f, f, scope)) + floor for f, scope in zip(t.importance, scopes, strict=True)]
        scale = [w / where(n > 0.0, n, 1.0) for w, n in zip(weight, norms, strict=True)]
        scale = [c / reduce(lambda a, b: a + b, scale) for c in scale]
    precisions = [(f + floor) * c for f, c in zip(t.importance, scale, strict=True)]
    below = total(precisions)
    merged = total([p * x for p, x in zip(precisions, t.experts, strict=True)]) / below
    plain = total([x * (w / sum(weight)) for x, w in zip(t.experts, weight, strict=True)])
    return where(equal(below, 0.0), plain, merged)


@method(
    "led",
    family="importance",
    base="required",
    experts=(1, None),
    statistics=(IMPORTANCE, Statistic("base_importance", "tensors", "How important each weight of the base is to this model's task.")),
    source="LED-Merging, Ma et al. 2025, section 3",
    kinds=("fold", "map"),
    params=(
        OWN_WEIGHT,
        Param("density", float, "Fraction of each tensor that is located as important to this model's task.", default=0.4, per_expert=True, low=0.0, high=1.0),
        LAMBDA,
        Param(
            "keep",
            str,
            "exact: floor(density * n) elements, of ties the first; threshold: as the released code, one's own above the threshold, others' at it too.",
            default="exact",
            choices=("exact", "threshold"),
            gradient=False,
        ),
    ),
)
def led(t: MergeInputs, *, weight: tuple[float, ...], density: tuple[float, ...], lam: float = 1.0, keep: str = "exact") -> LazyTensor:
    """Locate, elect, disjoint: keep changes where only one task needs the weight, in the base and in the expert alike.

    N_i: among the largest of I(theta_0; task i) and among the largest of I(theta_i; task i); M_i = N_i without all other N_j;
    theta = theta_0 + lambda sum_i w_i M_i delta_i.
    """
    ties = ("first", "first") if keep == "exact" else ("none", "all")
    own = [_located(t, i, d, ties[0]) for i, d in enumerate(density)]
    others = own if keep == "exact" else [_located(t, i, d, ties[1]) for i, d in enumerate(density)]
    changes, weights = [], []
    for i, (mask, delta, w) in enumerate(zip(own, t.deltas, weight, strict=True)):
        rivals = [m for j, m in enumerate(others) if j != i and m is not None]
        if mask is not None:
            changes.append(where(mask & ~reduce(or_, rivals) if rivals else mask, delta, 0.0))
            weights.append(w)
    return add_delta(t.origin, weighted_sum(changes, weights), lam)


def _located(t: MergeInputs, expert: int, density: float, ties: str) -> LazyTensor | None:
    """Where a task's important weights are; None where there are none."""
    if density <= 0.0:
        return None
    scores = (t.base_importance[expert], t.importance[expert])
    if density >= 1.0:
        return equal(scores[0], scores[0])
    return beyond(scores[0], density, ties) & beyond(scores[1], density, ties)
