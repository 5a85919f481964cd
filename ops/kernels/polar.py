"""The polar factor U Vh of a matrix, within a declared workspace.

The factor needs only the short side's singular vectors: with X = [short, long] and G = X Xᵀ = V Λ Vᵀ,
polar(X) = (V Λ^-½ Vᵀ) X. G is accumulated in float64 over blocks of the long side, and the product is
formed over the same blocks, so the workspace is a few [short, short] matrices whatever the long side.

A Gram matrix squares the condition number κ = σ_1 / σ_min of the directions kept: the error is about
eps64 · κ². Directions with σ <= tol · σ_1, tol = max(m, n) · eps32, are rounding noise of float32 and are
left out, so κ <= 1 / tol and the estimate is at most `ERROR_LIMIT` for every matrix with a side of 500 or
more. Only smaller matrices can exceed it; those are decomposed by SVD in float64, which costs nothing.

Large matrices on the CPU are multiplied in float32 where that is harmless: rounding costs about 3e-7 times
rms(σ) · rms(1/σ) over the directions that it concerns, and half of that where none is missing (`_multiply_narrow`).
The strongest and the weakest are taken out of the matrix and multiplied in float64 until that product is `_SPREAD`;
as a rule they are few.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from plait.ops.errors import KernelError
from plait.ops.kernels.gram import (
    add_columns,
    add_products,
    block_buffer,
    block_columns,
    blocks,
    eigh,
    library_bytes,
    lie_as,
    mirror,
    new_gram,
    not_finite,
    require_finite,
    svd64_bytes,
)

if TYPE_CHECKING:
    import torch

RankPolicy = Literal["numerical", "full"]

_EPS32, _EPS64 = 2.0**-23, 2.0**-52
#: Largest estimated relative error of the Gram route before SVD takes over.
ERROR_LIMIT = 1e-6
_GRAM_FACTOR = 16.0  # with κ up to 1e6 the measured error is below 0.1 · eps64 · κ²; the rest is margin
_SVD_SIDE = 512
# float32 products pay from this side on, and where at most this part of the directions wants float64
_NARROW_SIDE, _NARROW_COLUMNS, _WIDE_PART = 256, 256, 0.3
_SPREAD = 1.6
_STRONG_PARTS = 64, 32, 16, 8  # parts of the directions that may count as strong


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
    block = 8 * short * block_columns(short, max(short, long))
    # G, its eigenvectors, and LAPACK's dsyevd, which wants two more; or a block beside G; or eigenvectors, their scaled part, the factor and a block;
    # or eigenvectors, factor, block and product
    gram = max(32 * short * short, 24 * short * short + block, 16 * short * short + 2 * block)
    svd = svd64_bytes(short, long)
    slack = library_bytes(short, threads)
    if rank_policy == "full":
        return svd + slack
    return max(gram, svd if long < _SVD_SIDE else 0) + slack


def polar_flops(m: int, n: int, rank_policy: RankPolicy = "numerical") -> float:
    """Time of `polar` as float64 operations at the speed of a product of large matrices; LAPACK's by what was measured on 2 cores."""
    short, long = sorted((m, n))
    if rank_policy == "full" or long < _SVD_SIDE:
        return 2.0 * short * short * long + 100.0 * short**3
    # Gram matrix and factor by half, the product in float32 or, on a GPU and for many weak directions, in float64
    return 3.2 * short * short * long + 18.2 * short**3


def _polar_short(source: torch.Tensor, target: torch.Tensor, device: torch.device, *, full: bool) -> int:
    """Polar factor of `[short, long]`, written to `target`; returns the rank kept."""
    short, long = source.shape
    if full:
        return _by_svd(source, target, device, tolerance=0.0)
    tolerance = long * _EPS32
    gram = add_columns(new_gram(short, device), source)
    require_finite(gram, tuple(source.shape), "polar factor")
    values, vectors = eigh(gram, tuple(source.shape))
    del gram
    largest = float(values[-1])
    if largest <= 0.0:
        target.zero_()
        return 0
    rank = int((values > tolerance**2 * largest).sum())
    kappa_squared = largest / float(values[short - rank])
    if _GRAM_FACTOR * _EPS64 * kappa_squared > ERROR_LIMIT:
        return _by_svd(source, target, device, tolerance=tolerance)
    scales, basis = values[short - rank :].rsqrt(), vectors[:, short - rank :]
    del vectors
    weak, strong = _exceptions(values[short - rank :])
    if device.type == "cpu" and short >= _NARROW_SIDE and weak + strong <= _WIDE_PART * rank:
        _multiply_narrow(source, target, basis, scales, weak, strong)
    else:
        _multiply_wide(source, target, (basis * scales) @ basis.T, device)
    return rank


def _exceptions(values: torch.Tensor) -> tuple[int, int]:
    """How many of the smallest and of the largest of ascending eigenvalues to leave out, few, so that the others are `_SPREAD` or less apart."""
    import torch

    rank, best = len(values), (len(values), 0)
    below = torch.cat([values.new_zeros(1), values.cumsum(0)])
    inverse = torch.cat([values.reciprocal().flip(0).cumsum(0).flip(0), values.new_zeros(1)])
    for strong in (0, *(rank // part for part in _STRONG_PARTS)):
        end = rank - strong
        weak = torch.arange(end + 1, device=values.device)
        count = (end - weak).clamp_min(1)
        spread = (below[end] - below[: end + 1]) * (inverse[: end + 1] - inverse[end]) / count**2
        fits = (spread <= _SPREAD**2).nonzero()
        if len(fits) and int(fits[0]) + strong < sum(best):
            best = int(fits[0]), strong
    return best


def _multiply_wide(source: torch.Tensor, target: torch.Tensor, factor: torch.Tensor, device: torch.device) -> None:
    """target = factor · source in float64, by blocks."""
    import torch

    short, long = source.shape
    buffer = block_buffer(short, long, device)
    for part, block in blocks(source, device):
        target[:, part] = torch.mm(factor, block, out=lie_as(source, buffer, *block.shape))


def _multiply_narrow(source: torch.Tensor, target: torch.Tensor, basis: torch.Tensor, scales: torch.Tensor, weak: int, strong: int) -> None:
    """target = basis · diag(scales) · basisᵀ · source on the CPU, in float32 but for the `weak` first and `strong` last directions, by blocks.

    With c the mean of the other scales, basis · diag(scales) · basisᵀ = c·I + basis · diag(scales − c) · basisᵀ where no direction is missing. c·I
    needs no product, and the rest is so much smaller that float32 is good enough to form it.
    """
    import torch

    short, long = source.shape
    end = len(scales) - strong
    whole = len(scales) == short
    common = float(scales[weak:end].mean()) if whole else 0.0
    inner, rest_scales = basis[:, weak:end], scales[weak:end] - common
    if whole:
        inner, rest_scales = inner.to(torch.float32), rest_scales.to(torch.float32)
    depth = short + weak + strong
    # the directions that are taken out come back with the same product, as more of its inner side
    factor = torch.empty((short, depth), dtype=torch.float32)
    factor[:, :short] = mirror(add_products(new_gram(short, dtype=inner.dtype), inner * rest_scales, inner))
    del inner
    near = torch.cat([basis[:, :weak], basis[:, end:]], dim=1)
    factor[:, short:] = near
    far, weights = near.T.contiguous(), torch.cat([scales[:weak], scales[end:]])[:, None]
    columns = min(block_columns(short, long), max(_NARROW_COLUMNS, short // 2))
    # held over all blocks: fresh ones would fragment the heap
    wides, rests, products = torch.empty(short * columns, dtype=torch.float64), torch.empty(depth * columns), torch.empty(short * columns)
    for start in range(0, long, columns):
        part = slice(start, min(long, start + columns))
        rows_of = ((wides, short), (rests, depth), (products, short))
        wide, rest, product = (lie_as(source, buffer, rows, part.stop - start) for buffer, rows in rows_of)
        parts = far @ wide.copy_(source[:, part])
        rest[:short] = wide.addmm_(near, parts, alpha=-1)
        rest[short:] = parts.mul_(weights)
        target[:, part] = torch.addmm(rest[:short], factor, rest, beta=common, out=product)


def _by_svd(source: torch.Tensor, target: torch.Tensor, device: torch.device, *, tolerance: float) -> int:
    import torch

    wide = source.to(device, torch.float64)
    if not bool(wide.isfinite().all()):
        raise not_finite(tuple(source.shape), "polar factor")
    u, s, vh = torch.linalg.svd(wide, full_matrices=False)
    del wide
    if float(s[0]) == 0.0:
        target.zero_()
        return 0
    rank = int((s > tolerance * s[0]).sum()) if tolerance else len(s)
    target.copy_(u[:, :rank] @ vh[:rank])
    return rank
