"""The polar factor U Vh of a matrix, within a declared workspace.

The factor needs only the short side's singular vectors: with X = [short, long] and G = X Xᵀ = V Λ Vᵀ,
polar(X) = (V Λ^-½ Vᵀ) X. G is accumulated in float64 over blocks of the long side, and the product is
formed over the same blocks, so the workspace is a few [short, short] matrices whatever the long side.

A Gram matrix squares the condition number κ = σ_1 / σ_min of the directions kept: the error is about
eps64 · κ². Directions with σ <= tol · σ_1, tol = max(m, n) · eps32, are rounding noise of float32 and are
left out, so κ <= 1 / tol and the estimate is at most `ERROR_LIMIT` for every matrix with a side of 500 or
more. Only smaller matrices can exceed it; those are decomposed by SVD in float64, which costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from plait.ops.errors import KernelError

if TYPE_CHECKING:
    import torch

RankPolicy = Literal["numerical", "full"]

_EPS32, _EPS64 = 2.0**-23, 2.0**-52
#: Largest estimated relative error of the Gram route before SVD takes over.
ERROR_LIMIT = 1e-6
_GRAM_FACTOR = 16.0  # with κ up to 1e6 the measured error is below 0.1 · eps64 · κ²; the rest is margin
_BLOCK_BYTES = 4 << 20
_SVD_SIDE = 512
# packing buffers of the matrix library, measured with 1 to 8 threads
_SLACK_BYTES, _THREAD_BYTES = 4 << 20, 3 << 20


def polar(
    x: torch.Tensor, *, rank_policy: RankPolicy = "numerical", device: torch.device | str = "cpu", out: torch.Tensor | None = None
) -> tuple[torch.Tensor, int]:
    """The polar factor of a matrix: its singular vectors with every kept singular value set to 1.

    Against U Vh of a float64 SVD over the same directions, the relative Frobenius error is at most
    `ERROR_LIMIT` plus the final rounding to float32 (6e-8 an element). No scaling is needed: squares of
    all finite float32 lie well inside float64.

    Args:
        x: float32 `[m, n]`.
        rank_policy: `numerical` keeps singular values above max(m, n) · eps32 · σ_1, and gives zero along
            the others. `full` keeps all, as the released Iso-C code does by a plain SVD: along null
            directions the result is then whatever orthonormal basis LAPACK finds, and the workspace is
            several times the matrix.
        device: where to compute; blocks are moved there and back.
        out: float32 `[m, n]` to write the result to, on the device of `x`.

    Returns:
        The factor, float32 `[m, n]` on the device of `x`, and the number of directions kept (0 for a zero matrix).

    Raises:
        KernelError: `x` holds NaN or infinity, or the decomposition did not converge.
    """
    import torch

    if x.dim() != 2 or x.dtype != torch.float32:
        raise ValueError(f"polar takes a float32 matrix, not {x.dtype} of shape {tuple(x.shape)}")
    result = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    m, n = x.shape
    if m == 0 or n == 0:
        return result, 0
    wide = m <= n
    source, target = (x, result) if wide else (x.T, result.T)
    try:
        rank = _polar_short(source, target, torch.device(device), full=rank_policy == "full")
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise KernelError(f"the decomposition of a {m} x {n} matrix did not converge: {error}", shape=(m, n)) from error
    return result, rank


def polar_workspace_bytes(m: int, n: int, rank_policy: RankPolicy = "numerical", threads: int = 2) -> int:
    """Upper bound of the memory that `polar` takes beyond its input and output.

    Args:
        m, n: shape of the float32 matrix.
        rank_policy: as for `polar`.
        threads: torch's threads on the CPU; each has buffers of its own.
    """
    short, long = sorted((m, n))
    blocks = 2 * 8 * short * _block_columns(short, long)
    # G, its eigenvectors, and LAPACK's dsyevd, which wants two more
    gram = 4 * 8 * short * short + blocks
    # the matrix in float64, LAPACK's copy and Vh; U and dgesdd's work
    svd = 8 * (3 * short * long + 7 * short * short)
    slack = _SLACK_BYTES + _THREAD_BYTES * threads
    if rank_policy == "full":
        return svd + slack
    return max(gram, svd if long < _SVD_SIDE else 0) + slack


def _block_columns(short: int, long: int) -> int:
    return min(long, max(256, _BLOCK_BYTES // (8 * short)))


def _blocks(source: torch.Tensor, device: torch.device) -> Iterator[tuple[slice, torch.Tensor]]:
    """Float64 blocks of columns, in order, each in the same buffer: a fresh one a block would fragment the heap."""
    import torch

    short, long = source.shape
    columns = _block_columns(short, long)
    buffer = torch.empty(short * columns, dtype=torch.float64, device=device)
    for start in range(0, long, columns):
        part = slice(start, min(long, start + columns))
        block = buffer[: short * (part.stop - start)].view(short, -1)
        yield part, block.copy_(source[:, part])


def _polar_short(source: torch.Tensor, target: torch.Tensor, device: torch.device, *, full: bool) -> int:
    """Polar factor of `[short, long]`, written to `target`; returns the rank kept."""
    import torch

    short, long = source.shape
    if full:
        return _by_svd(source, target, device, tolerance=0.0)
    tolerance = long * _EPS32
    values, vectors = torch.linalg.eigh(_gram(source, device))
    largest = float(values[-1])
    if largest <= 0.0:
        target.zero_()
        return 0
    kept = values > tolerance**2 * largest
    rank = int(kept.sum())
    kappa_squared = largest / float(values[short - rank])
    if _GRAM_FACTOR * _EPS64 * kappa_squared > ERROR_LIMIT:
        return _by_svd(source, target, device, tolerance=tolerance)
    basis = vectors[:, short - rank :]
    factor = (basis * values[short - rank :].rsqrt()) @ basis.T
    del vectors, basis
    buffer = torch.empty(short * _block_columns(short, long), dtype=torch.float64, device=device)
    for part, block in _blocks(source, device):
        product = buffer[: block.numel()].view_as(block)
        target[:, part] = torch.mm(factor, block, out=product)
    return rank


def _gram(source: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Float64 `[short, short]` Gram matrix, added up over blocks of the long side in order."""
    import torch

    short = source.shape[0]
    gram = torch.zeros((short, short), dtype=torch.float64, device=device)
    for _, block in _blocks(source, device):
        gram.addmm_(block, block.T)
    _require_finite(gram.diagonal(), source.shape)
    return gram


def _by_svd(source: torch.Tensor, target: torch.Tensor, device: torch.device, *, tolerance: float) -> int:
    import torch

    wide = source.to(device, torch.float64)
    _require_finite(wide, source.shape)
    u, s, vh = torch.linalg.svd(wide, full_matrices=False)
    del wide
    if float(s[0]) == 0.0:
        target.zero_()
        return 0
    rank = int((s > tolerance * s[0]).sum()) if tolerance else len(s)
    target.copy_(u[:, :rank] @ vh[:rank])
    return rank


def _require_finite(values: torch.Tensor, shape: tuple[int, ...]) -> None:
    if not bool(values.isfinite().all()):
        raise KernelError(f"a matrix of {shape[0]} x {shape[1]} (short side first) holds NaN or infinity, so it has no polar factor", shape=tuple(shape))
