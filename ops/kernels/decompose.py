"""Singular vectors as the matrix ops use them: thin decompositions by `thin_svd`, and bases that several matrices share.

A joint basis of `[X_1 | ... | X_K]` comes from a float64 Gram matrix that is added up over the matrices, so they are never set side by side:
of the rows where there are fewer of them than columns in all, else of the columns. The Gram matrix squares the condition number, which leaves
directions above about 1e-7 of the largest singular value; what a method leaves out beyond that is its own choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from plait.ops.kernels import thin_svd
from plait.ops.kernels.gram import add_columns, block_buffer, block_columns, eigh, library_bytes, new_gram, require_finite
from plait.ops.kernels.heap import give_back
from plait.ops.kernels.thin_svd import Accuracy, svd_route

if TYPE_CHECKING:
    import torch

#: Singular values up to this times the largest cannot be told from rounding in a float64 Gram matrix.
_GRAM_NOISE = 1e-7
#: LAPACK's eigenvectors of one side³, in float64 operations at the speed of a large product.
_EIGH_FLOPS = 17.0


def joint_basis(xs: Sequence[torch.Tensor], columns: int, tolerance: float, floor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Left singular vectors of `[X_1 | ... | X_K]`; directions at or below the tolerance are zero.

    Args:
        xs: float32, each `[m, n]`, perhaps transposed views, on one device.
        columns: of the basis, min(m, K n).
        tolerance, floor: relative to the largest singular value, and absolute.

    Returns:
        The basis, float32 `[m, columns]` on the device, and the singular values, float64 on the CPU, zero where they are left out.

    Raises:
        KernelError: a matrix holds NaN or infinity, or the decomposition did not converge.
    """
    import torch

    m, n = xs[0].shape
    flat = m <= len(xs) * n
    gram = _gram(xs) if flat else _column_gram(xs)
    require_finite(gram, (m, len(xs) * n), "singular values")
    values, vectors = eigh(gram, (m, len(xs) * n))
    del gram
    s = values.flip(0)[:columns].clamp_(min=0.0).sqrt_()
    limit = max(float(s[0]) * max(tolerance, _GRAM_NOISE), floor) if s.numel() else floor
    rank = int((s > limit).sum())
    s[rank:] = 0.0
    basis = torch.zeros((m, columns), dtype=torch.float32, device=xs[0].device)
    leading = vectors[:, vectors.shape[1] - rank :]
    if flat:
        basis[:, :rank] = leading.flip(1)
    else:
        scaled = leading.flip(1).div_(s[:rank])
        del vectors, leading
        give_back()
        for part, block in _row_blocks(xs):
            basis[part, :rank] = torch.mm(block, scaled)
    return basis, s.cpu()


def joint_workspace_bytes(count: int, m: int, n: int, threads: int) -> int:
    """Most bytes that `joint_basis` takes on the CPU, on so many threads, beside its operands and its result, which comes late."""
    short, long = sorted((m, count * n))
    result = 4 * m * short
    block = 8 * short * block_columns(short, long)
    # first the Gram matrix, its eigenvectors, and LAPACK's work of two more; then the eigenvectors, or on the tall way, scaled, blocks and products
    early = max(32 * short * short, 8 * short * short + block)
    late = 16 * short * short + 2 * block if m > count * n else 8 * short * short
    return max(early - result, late) + library_bytes(short, threads)


def svd_workspace_bytes(m: int, n: int, rank: int, accuracy: Accuracy, threads: int) -> int:
    """Most bytes that `thin_svd.svd` takes on the CPU, on so many threads, beside its operand and its results, which come late on the way by a Gram matrix."""
    short, long = sorted((m, n))
    if svd_route(m, n, rank, accuracy) != "gram":
        return thin_svd.svd_workspace_bytes(m, n, rank, accuracy, threads)
    result, column = 4 * rank * (m + n), 8 * block_columns(short, long)
    early = max(32 * short * short, 8 * short * short + short * column, 8 * short * short + 8 * short * rank) - result
    return max(early, 8 * short * rank + (short + rank) * column) + library_bytes(short, threads)


def joint_flops(count: int, m: int, n: int) -> float:
    """Work of `joint_basis`, as float64 operations at the speed of a product of large matrices."""
    short, long = sorted((m, count * n))
    return (1.2 if m <= count * n else 3.2) * short * short * long + _EIGH_FLOPS * short**3


def _gram(xs: Sequence[torch.Tensor]) -> torch.Tensor:
    gram = new_gram(xs[0].shape[0], xs[0].device)
    buffer = block_buffer(xs[0].shape[0], xs[0].shape[1], xs[0].device)
    for x in xs:
        add_columns(gram, x, buffer)
    return gram


def _column_gram(xs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Gram matrix of the columns of all matrices together."""
    gram = new_gram(sum(x.shape[1] for x in xs), xs[0].device)
    for _, block in _row_blocks(xs):
        gram.addmm_(block.T, block)
    return gram


def _row_blocks(xs: Sequence[torch.Tensor]) -> Iterator[tuple[slice, torch.Tensor]]:
    """Float64 blocks of rows of the matrices side by side, each in the same memory."""
    import torch

    rows, each = xs[0].shape
    width = len(xs) * each
    height = block_columns(width, rows)
    buffer = torch.empty((height, width), dtype=torch.float64, device=xs[0].device)
    for first in range(0, rows, height):
        part = slice(first, min(rows, first + height))
        block = buffer[: part.stop - first]
        for k, x in enumerate(xs):
            block[:, k * each : (k + 1) * each] = x[part]
        yield part, block
