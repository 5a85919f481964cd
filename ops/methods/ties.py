"""Task arithmetic, and TIES-Merging, which trims task vectors and elects signs first."""

from __future__ import annotations

from plait.ops.algebra import weighted_sum
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, method
from plait.ops.methods.election import AGGREGATE, ELECT, KEEP, SCOPE, ZERO_SIGN, Ballot, add_delta, trim
from plait.ops.methods.parameters import INT8_MASK, LAMBDA, NO_NORMALIZE, WEIGHT, density
from plait.ops.tensor import LazyTensor


@method(
    "task_arithmetic",
    family="task vectors",
    base="required",
    experts=(1, None),
    source="Editing models with task arithmetic, Ilharco et al. 2023, section 2",
    kinds=("map",),
    params=(WEIGHT, LAMBDA, NO_NORMALIZE, density(), INT8_MASK, Param("rescale", bool, "Accepted for mergekit recipes and without effect.", default=False)),
)
def task_arithmetic(t: MergeInputs, *, weight: tuple[float, ...], lam: float = 1.0, normalize: bool = False, **_: object) -> LazyTensor:
    """Add the experts' task vectors to the base.

    theta = theta_0 + lambda sum_i w_i (theta_i - theta_0), divided by sum_i w_i where `normalize` is set. A negative weight
    forgets a task.

    Idea:
        What fine-tuning added to the weights is the skill; skills add up, and can be taken away.
    Differs:
        - mergekit forms task vectors in the recipe's dtype; in bfloat16 a small change may be lost before it is scaled.
    Caveats:
        - The more experts, the smaller lambda has to be.
    Example:
        weight: 1.0
        lambda: 0.4
    """
    share = sum(weight) if normalize else 1.0
    share = share if abs(share) >= 1e-8 else 1.0
    return add_delta(t.origin, weighted_sum(t.deltas, [w / share for w in weight]), lam)


@method(
    "ties",
    family="sign election",
    base="required",
    experts=(1, None),
    source="TIES-Merging, Yadav et al. 2023, section 3 and algorithm 1",
    kinds=("fold", "map"),
    params=(
        WEIGHT,
        density(),
        LAMBDA,
        Param("normalize", bool, "Divide by the summed weights of the experts that agree.", default=True),
        Param("rescale", bool, "Scale each trimmed task vector back to the L1 norm it had.", default=False),
        SCOPE,
        ELECT,
        ZERO_SIGN,
        AGGREGATE,
        KEEP,
        INT8_MASK,
    ),
)
def ties(
    t: MergeInputs,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...] = (1.0,),
    lam: float = 1.0,
    normalize: bool = True,
    rescale: bool = False,
    scope: str = "tensor",
    elect: str = "sum",
    zero_sign: str = "positive",
    aggregate: str = "mean",
    keep: str = "exact",
    **_: object,
) -> LazyTensor:
    """Trim small changes, elect one sign for each parameter, average the changes that agree.

    delta_i loses all but its largest magnitudes; sigma = sign(sum_i w_i delta_i); theta = theta_0 + lambda times the weighted
    mean of those delta_i whose sign is sigma.

    Idea:
        Most changes of fine-tuning are small and do nothing but disturb; of the large ones, those that pull against the majority disturb the others.
    Differs:
        - The defaults are mergekit's. The paper's algorithm: density 0.2, scope global, zero_sign majority, equal weights.
        - The paper's code keeps one element more than it says, and every tie (`keep: threshold`); mergekit keeps any of the ties, here the first.
        - mergekit finds thresholds in the recipe's dtype; here they are exact in float32, floor(density * n) with density as the decimal it is.
    Caveats:
        - `density: 1` trims nothing, and then no threshold is taken.
    Example:
        weight: 1.0
        density: 0.2
    """
    voters = [i for i, w in enumerate(weight) if w != 0.0]
    scopes = [f"{label}" if scope == "global" else "" for label in t.labels]
    trimmed = [trim(t.deltas[i], density[i], scopes[i], keep, rescale) for i in voters]
    weights = [weight[i] for i in voters]
    ballot = Ballot([scopes[i] for i in voters], elect, zero_sign, aggregate, normalize)
    return add_delta(t.origin, ballot.merge(trimmed, weights), lam)
