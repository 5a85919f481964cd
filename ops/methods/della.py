"""DELLA: drop small changes of a row more often than large ones and rescale the rest."""

from __future__ import annotations

from plait.ops.inputs import MergeInputs
from plait.ops.method import method
from plait.ops.methods.dropping import EPSILON, NORMALIZE, RESCALE, RESCALE_BY, add_up, elected, rank_drop, voters
from plait.ops.methods.election import ELECT
from plait.ops.methods.parameters import INT8_MASK, LAMBDA, NO_NORMALIZE, SEED, WEIGHT, density
from plait.ops.tensor import LazyTensor

_DELLA = {"base": "required", "experts": (1, None), "source": "DELLA-Merging, Deep et al. 2024, section 3", "kinds": ("rows", "map")}


@method("della", family="random dropping", params=(WEIGHT, density(), EPSILON, LAMBDA, NORMALIZE, RESCALE, RESCALE_BY, SEED, ELECT, INT8_MASK), **_DELLA)
def della(
    t: MergeInputs,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    epsilon: tuple[float, ...],
    lam: float = 1.0,
    normalize: bool = True,
    rescale: bool = True,
    rescale_by: str = "probability",
    seed: int = 0,
    elect: str = "sum",
    **_: object,
) -> LazyTensor:
    """Drop small changes of each row more often than large ones, rescale, elect signs.

    The keep probability runs linearly with the rank of |delta| in its row from d - epsilon to d + epsilon; survivors are divided
    by their own; then sign election and mean as in TIES.

    Idea:
        Dropping at random keeps a model's skill; dropping small changes more often keeps more of it.
    Differs:
        - mergekit restores each tensor's L1 norm instead of dividing each element by its own probability (`rescale_by: l1`).
        - mergekit ranks in bfloat16, where 4096 ranks become 768, and divides by zero in rows of one element; here ranks are exact and such a row keeps d.
    Caveats:
        - `epsilon` is the half-width, as in mergekit; the paper's window is twice that.
    Example:
        weight: 0.5
        density: 0.4
        epsilon: 0.1
    """
    chosen = voters(t, weight, density)
    deltas = [rank_drop(t, i, d, epsilon[i], seed, rescale, rescale_by) for i, _w, d in chosen]
    return elected(t, deltas, [w for _, w, _ in chosen], lam, normalize, elect)


@method("della_linear", family="random dropping", params=(WEIGHT, density(), EPSILON, LAMBDA, NO_NORMALIZE, RESCALE, RESCALE_BY, SEED, INT8_MASK), **_DELLA)
def della_linear(
    t: MergeInputs,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    epsilon: tuple[float, ...],
    lam: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    rescale_by: str = "probability",
    seed: int = 0,
    **_: object,
) -> LazyTensor:
    """DELLA's magnitude-ranked dropping without the election of signs.

    delta_i as in `della`; theta = theta_0 + lambda sum_i w_i delta_i.

    Example:
        weight: 0.5
        density: 0.4
        epsilon: 0.1
    """
    chosen = voters(t, weight, density)
    deltas = [rank_drop(t, i, d, epsilon[i], seed, rescale, rescale_by) for i, _w, d in chosen]
    return add_up(t, deltas, [w for _, w, _ in chosen], lam, normalize)
