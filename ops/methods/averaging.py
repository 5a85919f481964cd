"""Averages of whole models: soups and copies."""

from __future__ import annotations

from plait.ops.algebra import mean, weighted_sum
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, method
from plait.ops.methods.parameters import WEIGHT
from plait.ops.tensor import LazyTensor


@method(
    "linear",
    family="averaging",
    base="unused",
    experts=(1, None),
    source="Model soups, Wortsman et al. 2022, section 2",
    kinds=("map",),
    params=(WEIGHT, Param("normalize", bool, "Divide by the sum of the weights.", default=True)),
)
def linear(t: MergeInputs, *, weight: tuple[float, ...], normalize: bool = True) -> LazyTensor:
    """Weighted average of the models.

    theta = sum_i w_i theta_i / sum_i w_i, every tensor alike. A model of weight 0 is not read.

    Idea:
        Models fine-tuned from one base with other data or other seeds lie in one valley of the loss; their mean lies lower in it.
    Differs:
        - mergekit computes in the recipe's dtype, bfloat16 mostly; here sums are float32 and rounded once.
        - mergekit divides by a sum of weights of zero and writes NaN; here it is refused.
    Caveats:
        - Models that were not fine-tuned from one base average to noise.
    """
    if not normalize:
        return weighted_sum(t.experts, weight) or 0.0 * t.experts[0]
    share = sum(weight)
    if abs(share) < 1e-12:
        raise ValueError(
            f"the weights {', '.join(f'{w:g}' for w in weight)} sum to zero, so their average is not defined: change a weight or set normalize: false"
        )
    if len(set(weight)) == 1:
        return mean(t.experts)
    return weighted_sum(t.experts, [w / share for w in weight]) or t.experts[0]


@method(
    "passthrough",
    family="averaging",
    base="unused",
    experts=(1, 1),
    source="mergekit; known as frankenmerging",
    kinds=("map",),
    params=(Param("scale", float, "Multiply the tensor by this; without it the bytes are copied.", default=None, per_expert=True),),
)
def passthrough(t: MergeInputs, *, scale: tuple[float | None, ...] = (None,)) -> LazyTensor:
    """One model's tensors as they are, for stacking layers.

    theta = s theta_1. Without a scale, and without a change of dtype, the stored bytes are copied unread.

    Caveats:
        - Stacked layers need training, or luck: the output of a layer is not the input that a later one was trained on.
    """
    return t.experts[0] if scale[0] is None else t.experts[0] * scale[0]


@method(
    "uniform_soup",
    family="averaging",
    base="unused",
    experts=(1, None),
    source="Model soups, Wortsman et al. 2022, section 2",
    kinds=("map",),
    params=(),
)
def uniform_soup(t: MergeInputs) -> LazyTensor:
    """The plain mean of the models.

    theta = sum_i theta_i / K: `linear` with equal weights.
    """
    return mean(t.experts)
