"""DARE: drop elements of a task vector at random and rescale the rest."""

from __future__ import annotations

from plait.ops.inputs import MergeInputs
from plait.ops.method import method
from plait.ops.methods.dropping import RESCALE, RESCALE_BY, add_up, drop, elected, voters
from plait.ops.methods.election import ELECT
from plait.ops.methods.parameters import INT8_MASK, LAMBDA, NO_NORMALIZE, SEED, WEIGHT, density
from plait.ops.tensor import LazyTensor

_DARE = {"base": "required", "experts": (1, None), "source": "DARE, Yu et al. 2024, section 3.2", "kinds": ("map",)}


@method("dare_linear", family="random dropping", params=(WEIGHT, density(), LAMBDA, NO_NORMALIZE, RESCALE, RESCALE_BY, SEED, INT8_MASK), **_DARE)
def dare_linear(
    t: MergeInputs,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    lam: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    rescale_by: str = "probability",
    seed: int = 0,
    **_: object,
) -> LazyTensor:
    """Drop elements of each task vector at random, rescale, add.

    delta_i <- m_i delta_i / d_i with m_i ~ Bernoulli(d_i); theta = theta_0 + lambda sum_i w_i delta_i.

    Idea:
        Changes of fine-tuning are redundant: drop nine tenths at random, scale up the rest, and a model does the same; fewer collide when added.
    Differs:
        - mergekit restores each tensor's L1 norm instead of dividing by the density (`rescale_by: l1`).
        - Masks of reference codes depend on the order of tensors and on the device; here on seed, model, tensor and element alone.
    Caveats:
        - Experts that changed much, by continued pretraining for example, suffer from a low density.
    Example:
        weight: 0.5
        density: 0.3
    """
    chosen = voters(t, weight, density)
    return add_up(t, [drop(t, i, d, seed, rescale, rescale_by) for i, _w, d in chosen], [w for _, w, _ in chosen], lam, normalize)


@method("dare_ties", family="random dropping", params=(WEIGHT, density(), LAMBDA, NO_NORMALIZE, RESCALE, RESCALE_BY, SEED, ELECT, INT8_MASK), **_DARE)
def dare_ties(
    t: MergeInputs,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    lam: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    rescale_by: str = "probability",
    seed: int = 0,
    elect: str = "sum",
    **_: object,
) -> LazyTensor:
    """Drop elements of each task vector at random, rescale, then elect signs as TIES does.

    delta_i as in `dare_linear`; then the elected sign and the sum (or mean) of the changes that agree.

    Differs:
        - mergekit restores each tensor's L1 norm instead of dividing by the density (`rescale_by: l1`).
        - FusionBench trims by magnitude after dropping; here, as in mergekit, dropping takes the place of trimming.
    Example:
        weight: 0.5
        density: 0.3
    """
    chosen = voters(t, weight, density)
    return elected(t, [drop(t, i, d, seed, rescale, rescale_by) for i, _w, d in chosen], [w for _, w, _ in chosen], lam, normalize, elect)
