"""Gram matrices in float64, added up over blocks, and their eigenvectors.

A Gram matrix squares the condition number, so one in float32 loses every singular value below 3e-4 of the largest; in
float64 the limit is 1.5e-8, beyond what float32 input holds. Products of two float32 are exact in float64, so all that
is rounded are the sums.

Only the lower triangle is computed: band i of the rows meets the columns up to its own end, which leaves out nearly half
of the work. `mirror` fills the rest where it is wanted; `eigh` does not want it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from plait.ops.errors import KernelError

if TYPE_CHECKING:
    import torch

#: Columns of a block: enough that reading and writing the Gram matrix costs little beside the products added to it.
_COLUMNS = 1024
_BLOCK_BYTES = 4 << 20
_BANDS = 8
# what the matrix library takes for itself: packing buffers of products, and per thread and row those of dsyevd, measured with 1, 2 and 4 threads
_LIBRARY_BYTES, _THREAD_BYTES, _THREAD_ROW_BYTES = 4 << 20, 3 << 20, 3500
_BAND_ROWS = 64  # smaller bands than this cost more in calls than they leave out


def block_columns(short: int, long: int) -> int:
    """Columns of one float64 block `[short, columns]` of a `[short, long]` matrix; fixed by the shape alone."""
    return min(long, max(_COLUMNS, _BLOCK_BYTES // (8 * max(short, 1))))


def block_buffer(short: int, long: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Room for one float64 block of `[short, long]`, or of any narrower matrix: a fresh one for every use would fragment the heap."""
    import torch

    return torch.empty(short * block_columns(short, long), dtype=torch.float64, device=device)


def lie_as(source: torch.Tensor, flat: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The beginning of a flat buffer as a matrix whose rows, or columns, lie in memory like those of `source`, so that copies go straight."""
    room = flat[: rows * columns]
    return room.view(columns, rows).T if source.stride(0) == 1 < source.stride(1) else room.view(rows, columns)


def blocks(source: torch.Tensor, device: torch.device, buffer: torch.Tensor | None = None) -> Iterator[tuple[slice, torch.Tensor]]:
    """Float64 blocks of columns of `[short, long]`, in order, each in the same buffer, made here when none is given."""
    short, long = source.shape
    columns = block_columns(short, long)
    if buffer is None:
        buffer = block_buffer(short, long, device)
    for start in range(0, long, columns):
        part = slice(start, min(long, start + columns))
        yield part, lie_as(source, buffer, short, part.stop - start).copy_(source[:, part])


def library_bytes(side: int, threads: int) -> int:
    """Memory that the matrix library takes on the CPU beyond LAPACK's declared workspace, for a symmetric matrix of that side."""
    return _LIBRARY_BYTES + threads * (_THREAD_BYTES + _THREAD_ROW_BYTES * side)


def svd64_bytes(short: int, long: int) -> int:
    """Memory of torch's SVD of a matrix in float64 on the CPU, the float64 copy included: that, LAPACK's and Vh; U and dgesdd's work."""
    # dgesdd takes an LQ factorization first where the long side is 11/6 of the short one, and then wants less
    return 8 * (3 * short * long + (5 if 6 * long >= 11 * short else 7) * short * short)


def new_gram(side: int, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> torch.Tensor:
    """A Gram matrix of nothing yet: zeros `[side, side]`, float64 unless another dtype is given."""
    import torch

    return torch.zeros((side, side), dtype=dtype or torch.float64, device=device)


def add_columns(gram: torch.Tensor, source: torch.Tensor, buffer: torch.Tensor | None = None) -> torch.Tensor:
    """Add X Xᵀ to the lower triangle of a Gram matrix, over blocks of the columns of X in order.

    Each element is a float64 sum of exact products: its error is at most n · eps64 · |x_i| |x_j| for rows i and j of n columns in all.

    Args:
        gram: float64 `[side, side]`, changed in place; what is above the diagonal is left undefined.
        source: `[side, n]` in any float dtype, on any device; blocks are moved to that of `gram`.

    Returns:
        `gram`.
    """
    there = source.dtype == gram.dtype and source.device == gram.device
    for block in [source] if there else (block for _, block in blocks(source, gram.device, buffer)):
        add_products(gram, block, block)
    return gram


def add_products(gram: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Add the lower triangle of left · rightᵀ, a product that is symmetric, in the dtype of all three, by bands; returns `gram`."""
    side = gram.shape[0]
    bands = max(1, min(_BANDS, side // _BAND_ROWS))
    start = 0
    for band in range(bands):
        end = side * (band + 1) // bands
        gram[start:end, :end].addmm_(left[start:end], right[:end].T)
        start = end
    return gram


def add_rows(gram: torch.Tensor, rows: torch.Tensor, buffer: torch.Tensor | None = None) -> torch.Tensor:
    """Add Xᵀ X for some rows X `[n, side]` of a taller matrix: what a stream of row blocks calls once a block.

    The sum over all calls is the Gram matrix of the stacked rows; bounds and arguments are those of `add_columns`.
    """
    return add_columns(gram, rows.T, buffer)


def mirror(gram: torch.Tensor) -> torch.Tensor:
    """Copy the lower triangle over the upper one, in place, by bands."""
    side = gram.shape[0]
    for start in range(0, side, 256):
        end = min(side, start + 256)
        gram[start:end, end:] = gram[end:, start:end].T
        square = gram[start:end, start:end]
        square.copy_(square.tril() + square.tril(-1).T)
    return gram


def require_finite(gram: torch.Tensor, shape: tuple[int, ...], what: str) -> None:
    """Refuse a Gram matrix of data with NaN or infinity, by its diagonal.

    Raises:
        KernelError: names the shape and what cannot be made of it.
    """
    if not bool(gram.diagonal().isfinite().all()):
        raise not_finite(shape, what)


def not_finite(shape: tuple[int, ...], what: str) -> KernelError:
    """The error of a matrix that holds NaN or infinity."""
    size = " x ".join(map(str, shape))
    return KernelError(f"a matrix of {size} holds NaN or infinity, so it has no {what}", shape=tuple(shape))


def eigh(gram: torch.Tensor, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric float64 matrix, read from its lower triangle.

    Eigenvalues are within n · eps64 · λ_max of the true ones (backward stability of LAPACK's dsyevd). Where the iteration
    does not converge, the same problem is tried with rows and columns in reverse order, which takes it along another path.

    Args:
        gram: float64 `[side, side]`.
        shape: of the matrix that it came from, for the error.

    Raises:
        KernelError: neither order converged.
    """
    import torch

    first: Exception | None = None
    for reverse in (False, True):
        try:
            # transposed, it lies in memory as LAPACK reads it, and torch's copy of it is a plain one
            values, vectors = torch.linalg.eigh(gram.flip(0, 1).mT, UPLO="L") if reverse else torch.linalg.eigh(gram.mT, UPLO="U")
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            first = first or error
            continue
        if bool(values.isfinite().all()):
            return values, vectors.flip(0) if reverse else vectors
    size = " x ".join(map(str, shape))
    raise KernelError(f"the decomposition of a {size} matrix did not converge, in either order of its rows: {first}", shape=tuple(shape)) from first
