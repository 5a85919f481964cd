"""Sens-Merging: coefficients layer by layer, from how sensitive a model's layers are and how far it reaches into other tasks."""

from __future__ import annotations

from math import exp

from plait.ops.algebra import weighted_sum
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, method
from plait.ops.methods.dropping import drop
from plait.ops.methods.election import Ballot, add_delta, trim
from plait.ops.methods.parameters import LAMBDA, SEED
from plait.ops.statistics import Statistic
from plait.ops.tensor import LazyTensor


@method(
    "sens",
    family="importance",
    base="required",
    experts=(1, None),
    statistics=(
        Statistic(
            "sensitivity",
            "layers",
            "`layers`: the sensitivity of each layer of this model; `transfer`: how its outputs differ from the others' on their tasks.",
        ),
    ),
    source="Sens-Merging, Liu et al. 2025, section 3",
    kinds=("fold", "map"),
    params=(
        LAMBDA,
        Param("temperature", float, "Of the softmax over the models: the higher, the more alike they count.", default=1.0, low=1e-6),
        Param(
            "tau",
            str,
            "Whether models whose outputs differ from the others' on their tasks count more (distance), or less (alignment).",
            default="distance",
            choices=("distance", "alignment"),
            gradient=False,
        ),
        Param(
            "vector",
            str,
            "What the coefficients weigh: the task vectors, or those of ties or dare.",
            default="task_arithmetic",
            choices=("task_arithmetic", "ties", "dare"),
            gradient=False,
        ),
        Param("density", float, "With `vector` ties or dare, the fraction of each task vector that is kept.", default=1.0, per_expert=True, low=0.0, high=1.0),
        SEED,
    ),
)
def sens(
    t: MergeInputs,
    *,
    lam: float = 1.0,
    temperature: float = 1.0,
    tau: str = "distance",
    vector: str = "task_arithmetic",
    density: tuple[float, ...],
    seed: int = 0,
) -> LazyTensor:
    """Weigh the models layer by layer, by how sensitive their layers are and how far they reach into other tasks.

    sigma_i = softmax_i(alpha_i tau_i / T) with alpha_i the layer's share of the model's sensitivity and tau_i the model's share of all
    `transfer` numbers (1 where none is given); theta = theta_0 + K lambda sum_i sigma_i delta_i.
    """
    weights = [len(t.experts) * s for s in coefficients(t, temperature, tau)]
    if vector == "task_arithmetic":
        return add_delta(t.origin, weighted_sum(t.deltas, weights), lam)
    if vector == "dare":
        return add_delta(t.origin, weighted_sum([drop(t, i, d, seed, True, "probability") for i, d in enumerate(density)], weights), lam)
    trimmed = [trim(delta, d) for delta, d in zip(t.deltas, density, strict=True)]
    return add_delta(t.origin, Ballot([""] * len(trimmed), aggregate="sum").merge(trimmed, weights), lam)


def coefficients(t: MergeInputs, temperature: float, tau: str) -> list[float]:
    """sigma_i of Sens-Merging for one tensor; they sum to 1."""
    transfers = [score.transfer for score in t.sensitivity]
    reach = [1.0] * len(transfers)
    given = [x for x in transfers if x is not None]
    if given:
        if len(given) < len(transfers) or min(given) < 0.0 or sum(given) <= 0.0:
            raise ValueError("sens needs a `transfer` number in the sensitivity file of every model or of none, not negative and not all 0")
        reach = [x / sum(given) if tau == "distance" else 1.0 - x / sum(given) for x in given]
    raised = [score.share * r / temperature for score, r in zip(t.sensitivity, reach, strict=True)]
    powers = [exp(x - max(raised)) for x in raised]
    return [p / sum(powers) for p in powers]
