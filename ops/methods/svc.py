"""A step after a merge that scales each direction of the merged update by how far it overshoots the experts: SVC."""

from __future__ import annotations

from typing import Any

from plait.ops.algebra import later, solve, solver
from plait.ops.inputs import MergeInputs
from plait.ops.matrix import joint_svd, matmul, matrix, row_dots, scale_rows, stream
from plait.ops.method import Param, step
from plait.ops.methods.parameters import is_matrix
from plait.ops.tensor import LazyTensor


@step(
    "svc",
    family="calibration",
    base="required",
    experts=(1, None),
    uses_name=True,
    source="SVC: Singular Value Calibration, arXiv 2602.05536",
    kinds=("whole", "map"),
    params=(
        Param("alpha", float, "Smallest overshoot that counts; 1 / K where it is not given.", default=None, low=1e-6),
        Param("side", str, "Calibrate along left singular vectors, or along right ones.", "left", choices=("left", "right"), gradient=False),
        Param("exclude", list, "Matrices whose name contains one of these stay as merged.", default=("text_projection",), gradient=False),
    ),
)
def svc(t: MergeInputs, merged: LazyTensor, *, alpha: float | None = None, side: str = "left", exclude: tuple[str, ...] = ("text_projection",)) -> LazyTensor:
    """Scale each singular direction of the merged update by K / sum_i max(alpha, s_i).

    D_m = U S V^T; a_r = u_r^T D_m, a_r^i = u_r^T D_i; s_r^i = <a_r, a_r^i> / |a_r^i|^2; D = U diag(gamma) U^T D_m. Only matrices.
    """
    if not is_matrix(t, exclude):
        return merged
    left, update = side == "left", matrix(merged - t.origin)
    basis, _ = joint_svd([update], side=side, tolerance=1e-7)

    def along(d: LazyTensor) -> LazyTensor:
        return matmul(basis, d, transpose_a=True, transpose_b=not left)

    a = along(update)
    products: list[LazyTensor] = []
    for delta in t.deltas:  # one after the other, so that a single expert's is held
        own = along(matrix(later(delta, a) if not products else later(delta, products[-1])))
        products += [row_dots(a, own), row_dots(own, own)]
    gains = solve("svc_gains", *products, shape=(a.shape[0],), alpha=1.0 / len(t.experts) if alpha is None else alpha)
    scaled = scale_rows(a, gains)
    calibrated = matmul(basis, scaled) if left else matmul(scaled, basis, transpose_a=True, transpose_b=True)
    return t.origin + stream(calibrated, t.shape)


@solver
def svc_gains(*products: Any, alpha: float) -> Any:
    """gamma_r = K / sum_i max(alpha, <a_r, a_r^i> / max(|a_r^i|^2, 1e-12))."""
    import numpy as np

    shares = [np.maximum(alpha, np.nan_to_num(p / np.maximum(q, 1e-12), nan=alpha)) for p, q in zip(products[::2], products[1::2], strict=True)]
    return len(shares) / np.sum(shares, axis=0)
