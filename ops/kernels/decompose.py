"""Singular value decompositions as the matrix ops use them: the one place that chooses an algorithm.

A float64 Gram matrix of the short side is decomposed, which costs a few [short, short] matrices of workspace and reads the long side by
blocks; small matrices go to LAPACK's SVD in float64. The Gram route squares the condition number: directions below about 1e-7 of the
largest singular value are noise there, and are zero in the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from plait.ops.errors import KernelError

if TYPE_CHECKING:
    import torch

_SVD_SIDE = 512
_BLOCK_BYTES = 4 << 20
_SLACK_BYTES = 16 << 20  # packing buffers of the matrix library
#: Singular values up to this times the largest cannot be told from rounding in a float64 Gram matrix.
_GRAM_NOISE = 1e-7


def svd_into(x: torch.Tensor, u: torch.Tensor, vh: torch.Tensor, accuracy: str, tolerance: float) -> torch.Tensor:
    """The largest `u.shape[1]` triplets of float32 `x`, written to `u` and `vh`.

    Args:
        x: `[m, n]`.
        u, vh: `[m, k]` and `[k, n]`, float32, on the device of `x`.
        accuracy: `exact` or `fast`.
        tolerance: triplets with singular values up to this times the largest are zero.

    Returns:
        The singular values, float64 `(k,)`, on the CPU.

    Raises:
        KernelError: `x` holds NaN or infinity, or the decomposition did not converge.
    """
    import torch

    if not u.shape[1]:
        return torch.zeros(0, dtype=torch.float64)
    try:
        if max(x.shape) < _SVD_SIDE:
            return _by_lapack(x, u, vh, tolerance)
        wide = x.shape[0] <= x.shape[1]
        short, long = (u, vh.T) if wide else (vh.T, u)
        return _by_gram([x if wide else x.T], short, long, max(tolerance, _GRAM_NOISE), 0.0)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise KernelError(f"the decomposition of a {x.shape[0]} x {x.shape[1]} matrix did not converge: {error}", shape=tuple(x.shape)) from error


def svd_workspace_bytes(m: int, n: int, rank: int, accuracy: str) -> int:
    """Most bytes that `svd_into` takes beside its operands."""
    short, long = sorted((m, n))
    if long < _SVD_SIDE:
        return 8 * (3 * m * n + 7 * short * short) + _SLACK_BYTES
    return _gram_bytes(short, long, rank) + _SLACK_BYTES


def svd_flops(m: int, n: int, rank: int, accuracy: str) -> float:
    """Work of `svd_into`, as float64 operations of a matrix product."""
    short, long = sorted((m, n))
    return 2.0 * short * short * long + 20.0 * short**3 + 2.0 * short * rank * long


def joint_basis_into(xs: Sequence[torch.Tensor], basis: torch.Tensor, tolerance: float, floor: float) -> torch.Tensor:
    """Left singular vectors of `[X_1 | ... | X_K]`, written to `basis`; directions at or below the tolerance are zero.

    Args:
        xs: float32, each `[m, n]`, perhaps transposed views.
        basis: `[m, min(m, K n)]`.
        tolerance, floor: relative to the largest singular value, and absolute.

    Returns:
        The singular values, float64, zero where they are left out, on the CPU.
    """
    import torch

    m, n = xs[0].shape
    try:
        if m <= len(xs) * n:
            return _by_gram(xs, basis, None, tolerance, floor)
        return _by_tall_gram(xs, basis, tolerance, floor)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise KernelError(f"the decomposition of {len(xs)} matrices of {m} x {n} did not converge: {error}", shape=(m, n)) from error


def joint_workspace_bytes(count: int, m: int, n: int) -> int:
    """Most bytes that `joint_basis_into` takes beside its operands."""
    if m <= count * n:
        return _gram_bytes(m, n, 0) + _SLACK_BYTES
    return _gram_bytes(count * n, m, 0) + _SLACK_BYTES


def joint_flops(count: int, m: int, n: int) -> float:
    """Work of `joint_basis_into`."""
    short, long = sorted((m, count * n))
    return 2.0 * short * short * long * (1 if m <= count * n else 2) + 20.0 * short**3


# -- routes ------------------------------------------------------------------------------------------
def _gram_bytes(short: int, long: int, rank: int) -> int:
    # the matrix, its vectors and what LAPACK's divide and conquer wants; blocks of the long side and their products
    return 4 * 8 * short * short + 2 * 8 * short * _width(short, long) + 8 * short * rank


def _width(short: int, long: int) -> int:
    return min(long, max(256, _BLOCK_BYTES // (8 * max(short, 1))))


def _blocks(x: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Float64 blocks of columns, each in the same memory."""
    import torch

    short, long = x.shape
    width = _width(short, long)
    buffer = torch.empty(short * width, dtype=torch.float64, device=x.device)
    for first in range(0, long, width):
        part = slice(first, min(long, first + width))
        yield part, buffer[: short * (part.stop - first)].view(short, -1).copy_(x[:, part])


def _descending(gram: torch.Tensor, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular values and vectors of a Gram matrix, largest first."""
    import torch

    if not bool(gram.diagonal().isfinite().all()):
        raise KernelError(f"a matrix of {shape[0]} x {shape[1]} holds NaN or infinity, so it has no singular values", shape=tuple(shape))
    values, vectors = torch.linalg.eigh(gram)
    return values.clamp_(min=0.0).sqrt_().flip(0), vectors.flip(1)


def _kept(s: torch.Tensor, tolerance: float, floor: float) -> int:
    """How many of the descending singular values are large enough."""
    return int(((s > tolerance * s[0]) & (s > floor) & (s > 0.0)).sum()) if s.numel() else 0


def _by_gram(xs: Sequence[torch.Tensor], short: torch.Tensor, long: torch.Tensor | None, tolerance: float, floor: float) -> torch.Tensor:
    import torch

    size = xs[0].shape[0]
    gram = torch.zeros((size, size), dtype=torch.float64, device=xs[0].device)
    for x in xs:
        for _, block in _blocks(x):
            gram.addmm_(block, block.T)
    s, vectors = _descending(gram, tuple(xs[0].shape))
    del gram
    k = short.shape[1]
    s = s[:k]
    rank = _kept(s, tolerance, floor)
    s[rank:] = 0.0
    short[:, :rank].copy_(vectors[:, :rank])
    short[:, rank:] = 0.0
    if long is not None:
        scaled = vectors[:, :rank] / s[:rank]
        for part, block in _blocks(xs[0]):
            long[part, :rank] = (block.T @ scaled).to(long.dtype)
        long[:, rank:] = 0.0
    return s.cpu()


def _by_tall_gram(xs: Sequence[torch.Tensor], basis: torch.Tensor, tolerance: float, floor: float) -> torch.Tensor:
    """The same where there are more rows than columns in all: the Gram matrix of the columns."""
    import torch

    size = sum(x.shape[1] for x in xs)
    gram = torch.zeros((size, size), dtype=torch.float64, device=xs[0].device)
    for _, block in _row_blocks(xs):
        gram.addmm_(block.T, block)
    s, vectors = _descending(gram, tuple(xs[0].shape))
    del gram
    rank = _kept(s, max(tolerance, _GRAM_NOISE), floor)
    s[rank:] = 0.0
    vectors = vectors[:, :rank]
    vectors /= s[:rank]
    for part, block in _row_blocks(xs):
        basis[part, :rank] = (block @ vectors).to(basis.dtype)
    basis[:, rank:] = 0.0
    return s.cpu()


def _row_blocks(xs: Sequence[torch.Tensor]) -> Iterator[tuple[slice, torch.Tensor]]:
    """Float64 blocks of rows of the matrices side by side."""
    import torch

    rows, columns = xs[0].shape
    height = _width(len(xs) * columns, rows)
    buffer = torch.empty((height, len(xs) * columns), dtype=torch.float64, device=xs[0].device)
    for first in range(0, rows, height):
        part = slice(first, min(rows, first + height))
        block = buffer[: part.stop - first]
        for k, x in enumerate(xs):
            block[:, k * columns : (k + 1) * columns] = x[part]
        yield part, block


def _by_lapack(x: torch.Tensor, u: torch.Tensor, vh: torch.Tensor, tolerance: float) -> torch.Tensor:
    import torch

    wide = x.to(torch.float64)
    if not bool(wide.isfinite().all()):
        raise KernelError(f"a matrix of {x.shape[0]} x {x.shape[1]} holds NaN or infinity, so it has no singular values", shape=tuple(x.shape))
    left, s, right = torch.linalg.svd(wide, full_matrices=False)
    s = s[: u.shape[1]]
    rank = _kept(s, tolerance, 0.0)
    s = s.clone()
    s[rank:] = 0.0
    u.copy_(left[:, : u.shape[1]])
    vh.copy_(right[: vh.shape[0]])
    u[:, rank:] = 0.0
    vh[rank:] = 0.0
    return s.cpu()
