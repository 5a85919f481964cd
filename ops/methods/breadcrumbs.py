"""Model Breadcrumbs: a task vector loses its largest changes as well as its smallest."""

from __future__ import annotations

from plait.ops.algebra import row_length, row_rank_from_top, weighted_sum, where
from plait.ops.inputs import MergeInputs
from plait.ops.kernels.select import rank_from_top
from plait.ops.method import Param, method
from plait.ops.methods.election import ELECT, Ballot, add_delta, same_l1
from plait.ops.methods.parameters import INT8_MASK, LAMBDA, NO_NORMALIZE, WEIGHT, density
from plait.ops.order import middle
from plait.ops.tensor import LazyTensor

GAMMA = Param("gamma", float, "Fraction of the task vector's elements, the largest, that is dropped.", default=0.01, per_expert=True, low=0.0, high=1.0)
SCOPE = Param(
    "scope",
    str,
    "Magnitudes are ranked within each tensor (mergekit), each row (the paper's code: along the last axis) or each whole model (global).",
    default="tensor",
    choices=("tensor", "row", "global"),
    gradient=False,
)
RESCALE = Param("rescale", bool, "Scale what is kept back to the L1 norm that the task vector had.", default=False)
_COMMON = {"base": "required", "experts": (1, None), "source": "Model Breadcrumbs, Davari and Belilovsky 2023, section 3", "kinds": ("fold", "rows", "map")}


def crumbs(t: MergeInputs, expert: int, density: float, gamma: float, scope: str, rescale: bool) -> LazyTensor:
    """A task vector with the ranks floor(gamma n) + 1 to floor(gamma n) + floor(density n) of its magnitudes, the others zero.

    A density above 0 keeps at least one element; where both fractions together exceed n, fewer are kept than the density says.
    """
    delta = t.deltas[expert]
    if density <= 0.0 or gamma >= 1.0:
        return 0.0 * delta
    if density >= 1.0 and gamma <= 0.0:
        return delta
    if scope == "row":
        length = row_length(t.shape, "last")
        above, last = (rank_from_top(rank, length) for rank in (f"above {gamma!r}", f"top {gamma!r} {density!r}"))
        rank = row_rank_from_top(delta)
        mask = (rank >= float(above)) & (rank < float(last))
    else:
        mask = middle(delta, gamma, density, scope=t.labels[expert] if scope == "global" else "")
    kept = where(mask, delta, 0.0)
    return same_l1(kept, delta) if rescale else kept


def _chosen(t: MergeInputs, weight: tuple[float, ...], density: tuple[float, ...], gamma: tuple[float, ...], scope: str, rescale: bool) -> list[LazyTensor]:
    return [crumbs(t, i, density[i], gamma[i], scope, rescale) for i, w in enumerate(weight) if w != 0.0]


@method("breadcrumbs", family="magnitude selection", params=(WEIGHT, density(), GAMMA, LAMBDA, NO_NORMALIZE, RESCALE, SCOPE, INT8_MASK), **_COMMON)
def breadcrumbs(
    t: MergeInputs,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    gamma: tuple[float, ...],
    lam: float = 1.0,
    normalize: bool = False,
    rescale: bool = False,
    scope: str = "tensor",
    **_: object,
) -> LazyTensor:
    """Drop the largest and the smallest changes of each task vector, then add.

    delta_i keeps the ranks (gamma n, gamma n + density n] of its magnitudes; theta = theta_0 + lambda sum_i w_i delta_i.

    Example:
        weight: 0.5
        density: 0.9
        gamma: 0.01
    """
    weights = [w for w in weight if w != 0.0]
    share = sum(weights) if normalize and abs(sum(weights)) >= 1e-8 else 1.0
    return add_delta(t.origin, weighted_sum(_chosen(t, weight, density, gamma, scope, rescale), [w / share for w in weights]), lam)


@method(
    "breadcrumbs_ties",
    family="magnitude selection",
    params=(WEIGHT, density(), GAMMA, LAMBDA, NO_NORMALIZE, RESCALE, SCOPE, ELECT, INT8_MASK),
    **_COMMON,
)
def breadcrumbs_ties(
    t: MergeInputs,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    gamma: tuple[float, ...],
    lam: float = 1.0,
    normalize: bool = False,
    rescale: bool = False,
    scope: str = "tensor",
    elect: str = "sum",
    **_: object,
) -> LazyTensor:
    """Drop the largest and the smallest changes of each task vector, then elect signs as TIES does.

    delta_i as in `breadcrumbs`; then the elected sign and the sum (or mean) of the changes that agree.

    Example:
        weight: 0.5
        density: 0.9
        gamma: 0.01
    """
    weights = [w for w in weight if w != 0.0]
    deltas = _chosen(t, weight, density, gamma, scope, rescale)
    return add_delta(t.origin, Ballot([""] * len(deltas), elect, normalize=normalize).merge(deltas, weights), lam)
