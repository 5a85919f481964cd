"""Parameters that several methods share."""

from __future__ import annotations

from plait.ops.algebra import mean, scaled
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param
from plait.ops.tensor import LazyTensor

WEIGHT = Param("weight", float, "How much this model counts.", default=1.0, per_expert=True, required=True)
LAMBDA = Param("lambda", float, "Scale of the merged task vector before it is added to the base.", default=1.0, python="lam")
SEED = Param("seed", int, "Seed of the random masks; the masks depend on seed, model, tensor and element alone.", default=0, low=0, gradient=False)
INT8_MASK = Param("int8_mask", bool, "Accepted for mergekit recipes and without effect: masks take no memory here.", default=False)
NO_NORMALIZE = Param("normalize", bool, "Divide by the sum of the weights.", default=False)


def density(default: float = 1.0) -> Param:
    """The fraction of a task vector's elements that is kept."""
    return Param("density", float, "Fraction of the task vector's elements kept, 0 to 1.", default=default, per_expert=True, low=0.0, high=1.0)


# -- methods on singular vectors --------------------------------------------------------------------
ACCURACY = Param(
    "accuracy",
    str,
    "exact: the full decomposition; fast: a randomised one of the triplets that are used, within about 1 % of the best approximation.",
    default="exact",
    choices=("exact", "fast"),
    gradient=False,
)
TEXT_PROJECTION = Param("exclude", list, "Matrices whose name contains one of these are averaged instead.", default=("text_projection",), gradient=False)


def others(default: str) -> Param:
    """What becomes of tensors that a method for matrices does not treat."""
    return Param(
        "others", str, "Tensors that are no matrices: the mean of the task vectors, or the base.", default=default, choices=("mean", "base"), gradient=False
    )


def is_matrix(t: MergeInputs, exclude: tuple[str, ...] = (), *, flatten: bool = False) -> bool:
    """Whether a method for matrices treats this tensor: two dimensions (up to five where it flattens), not empty, not excluded by name."""
    most = 5 if flatten else 2
    return 2 <= len(t.shape) <= most and 0 not in t.shape and not any(word in t.name for word in exclude)


def beside(t: MergeInputs, rule: str = "mean", lam: float = 1.0) -> LazyTensor:
    """The other tensors: base + lambda mean of the task vectors, or the base."""
    return t.origin if rule == "base" or lam == 0.0 else t.origin + scaled(lam, mean(t.deltas))
