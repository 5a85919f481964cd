"""Parameters that several methods share."""

from __future__ import annotations

from plait.ops.method import Param

WEIGHT = Param("weight", float, "How much this model counts.", default=1.0, per_expert=True, required=True)
LAMBDA = Param("lambda", float, "Scale of the merged task vector before it is added to the base.", default=1.0, python="lam")
SEED = Param("seed", int, "Seed of the random masks; the masks depend on seed, model, tensor and element alone.", default=0, low=0, gradient=False)
INT8_MASK = Param("int8_mask", bool, "Accepted for mergekit recipes and without effect: masks take no memory here.", default=False)
NO_NORMALIZE = Param("normalize", bool, "Divide by the sum of the weights.", default=False)


def density(default: float = 1.0) -> Param:
    """The fraction of a task vector's elements that is kept."""
    return Param("density", float, "Fraction of the task vector's elements kept, 0 to 1.", default=default, per_expert=True, low=0.0, high=1.0)
