"""Merging in a basis that all experts share: KnOTS, and the rotation that DRM uses too."""

from __future__ import annotations

from plait.ops.algebra import below, random_bits, total, where
from plait.ops.inputs import MergeInputs
from plait.ops.matrix import joint_svd, matmul, matrix, rank_of, rows, stream
from plait.ops.method import Param, method
from plait.ops.methods.election import AGGREGATE, SCOPE, ZERO_SIGN, Ballot, trim
from plait.ops.methods.parameters import SEED, beside, is_matrix, others
from plait.ops.tensor import LazyTensor

#: Large, and neither method's papers merge them.
VOCABULARY = ("embed_tokens", "lm_head")


class Rotated:
    """Task vectors in the basis of the joint singular vectors of `[D_1 | ... | D_K]` (`output`), or of the matrices stacked (`input`).

    Args:
        t: the merge.
        direction: `output`: R_k = U^T D_k; `input`: R_k = V^T D_k^T.
        tolerance, floor: which directions are left out, as for `joint_svd`.

    Attributes:
        shape: of each R_k as a tensor; rows beyond the rank are zero.
        basis, rank: the vectors, and how many are not zero.
        coordinates: R_k, matrices.
    """

    def __init__(self, t: MergeInputs, direction: str, tolerance: float, floor: float = 0.0) -> None:
        self.output = direction == "output"
        self.shape = t.shape if self.output else t.shape[::-1]
        deltas = [matrix(d) for d in t.deltas]
        self.basis, singular = joint_svd(deltas, side="left" if self.output else "right", tolerance=tolerance, floor=floor)
        self.rank = rank_of(singular)
        self.coordinates = [matmul(self.basis, d, transpose_a=True, transpose_b=not self.output) for d in deltas]

    def back(self, merged: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
        """The update that merged coordinates (a tensor) stand for."""
        r = rows(matrix(merged), 0, self.basis.shape[1])
        return stream(matmul(self.basis, r) if self.output else matmul(r, self.basis, transpose_a=True, transpose_b=True), shape)


@method(
    "knots",
    family="subspace",
    base="required",
    experts=(1, None),
    uses_name=True,
    source="KnOTS: Model Merging with SVD to Tie the Knots, Stoica et al. 2025, section 4",
    kinds=("whole", "fold", "map"),
    params=(
        Param(
            "merge", str, "What merges the aligned coordinates: ties, or ta (task arithmetic, which alignment does not change).", "ties", choices=("ties", "ta")
        ),
        Param("topk", float, "Percent of an expert's coordinates that are kept.", default=100.0, low=0.0, high=100.0),
        Param("scale", float, "Scale of the merged update.", default=1.0),
        SCOPE,
        Param("concat", str, "Align along the outputs, [D_1 | ... | D_K], or along the inputs.", "output", choices=("output", "input"), gradient=False),
        Param("cut", float, "Singular values up to this are left out, beside those below 1e-6 of the largest; the released code has 1e-5.", 0.0, low=0.0),
        ZERO_SIGN,
        AGGREGATE,
        Param("drop", float, "Share of the coordinates that are dropped at random before, the others rescaled (DARE).", default=0.0, low=0.0, high=0.999),
        SEED,
        Param("exclude", list, "Matrices whose name contains one of these are treated as other tensors.", default=VOCABULARY, gradient=False),
        others("base"),
    ),
)
def knots(
    t: MergeInputs,
    *,
    merge: str = "ties",
    topk: float = 100.0,
    scale: float = 1.0,
    scope: str = "tensor",
    concat: str = "output",
    cut: float = 0.0,
    zero_sign: str = "positive",
    aggregate: str = "mean",
    drop: float = 0.0,
    seed: int = 0,
    exclude: tuple[str, ...] = VOCABULARY,
    others: str = "base",
) -> LazyTensor:
    """Align the experts' updates in one joint basis, then trim, elect signs and average there.

    [D_1 | ... | D_K] = U S V^T; R_k = U^T D_k = S V_k^T; theta = theta_0 + scale U TIES(R_1 ... R_K). Each R_k keeps the entries at or
    above its topk-th percent, floor(topk d) + 1 of d as the released code, ties included. merge: ta is task arithmetic.
    """
    if scale == 0.0 or not is_matrix(t, exclude):
        return beside(t, others)
    if merge == "ta":
        return t.origin + scale * total(t.deltas)
    aligned = Rotated(t, concat, 1e-6, cut)
    among = aligned.rank * float(aligned.shape[1])
    scopes = [f"knots {label}" if scope == "global" else "" for label in t.labels]
    coordinates = [_dropped(stream(r, aligned.shape), drop, seed, label) for r, label in zip(aligned.coordinates, t.labels, strict=True)]
    trimmed = [trim(r, topk / 100.0, s, "threshold", among=among) for r, s in zip(coordinates, scopes, strict=True)]
    merged = Ballot(scopes, zero_sign=zero_sign, aggregate=aggregate).merge(trimmed, [1.0] * len(trimmed))
    assert merged is not None
    return t.origin + scale * aligned.back(merged, t.shape)


def _dropped(r: LazyTensor, drop: float, seed: int, label: str) -> LazyTensor:
    """Coordinates of which each is kept with probability 1 - drop, and divided by it."""
    if drop == 0.0:
        return r
    return where(below(random_bits(r, seed, "knots", label), float(round((1.0 - drop) * 2**32))), r, 0.0) / (1.0 - drop)
