"""Nearest orthogonal maps and whitening, both by the polar factor, whose errors they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plait.ops.kernels.gram import add_rows, eigh, new_gram, require_finite
from plait.ops.kernels.polar import polar, polar_workspace_bytes

if TYPE_CHECKING:
    import torch

_EPS32 = 2.0**-23


def procrustes(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The orthogonal R that brings A nearest to B: min ‖A R - B‖_F over RᵀR = I (Schönemann 1966), R = polar(Aᵀ B).

    The product is formed in float64 and rounded once; where Aᵀ B is rank-deficient, R maps its null directions to zero, for
    any choice there is as good as another.

    Args:
        a, b: float32 `[n, p]` of one shape.

    Returns:
        float32 `[p, p]`, off by at most `polar.ERROR_LIMIT` relatively besides what rounding Aᵀ B to float32 moves it.

    Raises:
        KernelError: the matrices hold NaN or infinity.
        ValueError: their shapes differ.
    """
    import torch

    if a.shape != b.shape or a.dim() != 2:
        raise ValueError(f"procrustes takes two matrices of one shape, not {tuple(a.shape)} and {tuple(b.shape)}")
    product = a.T.to(torch.float64) @ b.to(torch.float64)
    return polar(product.to(torch.float32), device=a.device)[0]


def procrustes_workspace_bytes(n: int, p: int, threads: int = 2) -> int:
    """Upper bound of the memory of `procrustes` beyond its input and result: both matrices and their product in float64, or the polar factor."""
    return 4 * p * p + max(16 * n * p + 12 * p * p, polar_workspace_bytes(p, p, threads=threads))


def whitening(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The symmetric W with W Xᵀ X W = I along the directions that X has: the inverse square root of its Gram matrix (ZCA).

    X W is the polar factor of X. Directions with σ <= max(n, p) · eps32 · σ_1 are left out, so W W⁺ projects on the others.

    Args:
        rows: X, float `[n, p]`.

    Returns:
        float64 `[p, p]`, and the number of directions kept. X W has singular values 1 within p · eps64 · κ² of the kept condition κ.

    Raises:
        KernelError: X holds NaN or infinity, or the decomposition did not converge.
    """
    shape = tuple(rows.shape)
    gram = add_rows(new_gram(shape[1], rows.device), rows)
    require_finite(gram, shape, "whitening")
    values, vectors = eigh(gram, shape)
    if not len(values) or float(values[-1]) <= 0:
        return gram.zero_(), 0
    rank = int((values > (max(shape) * _EPS32) ** 2 * values[-1]).sum())
    first = len(values) - rank
    basis = vectors[:, first:] * values[first:].rsqrt().sqrt()
    return basis @ basis.T, rank
