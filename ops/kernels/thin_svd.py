"""The thin SVD of a matrix, all of it or its leading triplets, by the cheapest way that keeps the stated accuracy.

    direct      torch's SVD in float64: small matrices, where it costs nothing, and `rank_policy="full"`
    gram        G = X Xᵀ of the short side in float64, its eigenvectors, then the long side's vectors Vᵀ X / σ
    randomized  thin products with a random sketch (`randomized.py`): `accuracy="fast"` with few triplets

Error of the exact ways, against the SVD of the same float32 numbers: direct, rounding to float32. Gram: the Gram matrix
squares the condition number κ_i = σ_1 / σ_i of a triplet, so a singular value is off by eps64 · κ_i² relatively, besides
its rounding. Directions with σ <= tol · σ_1, tol = max(m, n) · eps32, are rounding noise of float32 and are left out (σ = 0
and zero vectors), so κ <= 1 / tol: under 1e-6 for every matrix with a side of 512 or more, and smaller ones go direct.
U S Vh is off by at most 1e-6 · ‖X‖ beyond the tail that was cut. Singular vectors whose values are closer than
eps64 · κ² are determined only as a subspace, as for every algorithm.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

from plait.ops.kernels.gram import (
    add_columns,
    block_buffer,
    block_columns,
    blocks,
    eigh,
    library_bytes,
    lie_as,
    new_gram,
    not_finite,
    require_finite,
    svd64_bytes,
)
from plait.ops.kernels.randomized import randomized_flops, randomized_svd, randomized_workspace_bytes, refuse, require_rank

if TYPE_CHECKING:
    import torch

Accuracy = Literal["exact", "fast"]
Route = Literal["direct", "gram", "randomized"]
RankPolicy = Literal["numerical", "full"]

_EPS32 = 2.0**-23
#: Matrices with a longer side below this go direct.
DIRECT_SIDE = 512
# what LAPACK takes for one side³ (eigenvectors) or short² · long (SVD), in float64 operations at the speed of a large product,
# measured on 2 cores at sides of 2048 and 4096
_EIGH_FLOPS, _DIRECT_FLOPS = 17.0, 60.0


_WIDEST = 1 << 31  # wider than any matrix, so the buffer serves all


class Svd(NamedTuple):
    """X = U diag(S) Vh: float32 `[m, q]`, `[q]` descending, `[q, n]`; with a leading batch dimension where the input had one."""

    u: torch.Tensor
    s: torch.Tensor
    vh: torch.Tensor


class Basis(NamedTuple):
    """Shared singular vectors of several matrices.

    Attributes:
        vectors: float32 `[side, q]`, orthonormal columns; zero columns for directions that are rounding noise.
        s: float32 `[q]`, descending: the singular values of the matrices set side by side.
        rank: how many of them are above the noise.
    """

    vectors: torch.Tensor
    s: torch.Tensor
    rank: int


def svd_route(rows: int, columns: int, rank: int | None = None, accuracy: Accuracy = "exact", rank_policy: RankPolicy = "numerical") -> Route:
    """The way that `svd` goes for a shape, a number of triplets and an accuracy; nothing else decides."""
    short, long = sorted((rows, columns))
    if rank_policy == "full" or long < DIRECT_SIDE:
        return "direct"
    wanted = short if rank is None else min(rank, short)
    if accuracy == "fast" and wanted < short and randomized_flops(rows, columns, wanted) < _gram_flops(short, long, wanted):
        return "randomized"
    return "gram"


def svd(
    x: torch.Tensor,
    rank: int | None = None,
    accuracy: Accuracy = "exact",
    device: torch.device | str | None = None,
    *,
    rank_policy: RankPolicy = "numerical",
    seed: int = 0,
) -> Svd:
    """The thin SVD, or its leading `rank` triplets.

    Args:
        x: float32 `[m, n]`, or `[b, m, n]`: small matrices of one shape are decomposed in one batch.
        rank: triplets wanted; None, or more than there are: all min(m, n).
        accuracy: `exact` as this module's docstring bounds it; `fast` allows random sketches, bounded in `randomized.py`.
        device: where to compute, and where the result lies; None: where `x` is.
        rank_policy: `numerical` gives zeros for directions below max(m, n) · eps32 · σ_1; `full` gives whatever orthonormal
            vectors LAPACK finds for them, for several times the memory.
        seed: of the sketch of `fast`.

    Raises:
        KernelError: `x` holds NaN or infinity, or no decomposition converged.
        ValueError: `x` is no float32 matrix, or `rank` is below 1.
    """
    import torch

    if x.dim() not in (2, 3) or x.dtype != torch.float32:
        raise ValueError(f"svd takes a float32 matrix or a batch of them, not {x.dtype} of shape {tuple(x.shape)}")
    if accuracy not in ("exact", "fast"):
        raise ValueError(f"accuracy is 'exact' or 'fast', not {accuracy!r}")
    m, n = x.shape[-2:]
    place = x.device if device is None else torch.device(device)
    q = require_rank(rank, min(m, n))
    if x.numel() == 0:
        return Svd(*(torch.zeros((*x.shape[:-2], *shape), device=place) for shape in ((m, q), (q,), (q, n))))
    route = svd_route(m, n, rank, accuracy, rank_policy)
    if route == "direct":
        return _direct(x, q, place, cut=rank_policy == "numerical")
    if x.dim() == 3:
        parts = [svd(one, rank, accuracy, device, rank_policy=rank_policy, seed=seed) for one in x]
        return Svd(*(torch.stack(values) for values in zip(*parts, strict=True)))
    if route == "randomized":
        return Svd(*randomized_svd(x, q, seed=seed, device=place, estimate=False)[:3])
    return _by_gram(x, q, place)


def _direct(x: torch.Tensor, q: int, device: torch.device, *, cut: bool) -> Svd:
    """LAPACK's SVD in float64; where it gives up, of the matrix with rows and columns in reverse order."""
    import torch

    wide = x.to(device, torch.float64)
    if not bool(wide.isfinite().all()):
        raise not_finite(tuple(x.shape), "singular values")
    try:
        u, s, vh = torch.linalg.svd(wide, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        try:
            u, s, vh = torch.linalg.svd(wide.flip(-2, -1), full_matrices=False)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise refuse(tuple(x.shape), error) from error
        u, vh = u.flip(-2), vh.flip(-1)
    del wide
    u, s, vh = u[..., :q], s[..., :q], vh[..., :q, :]
    if cut:
        kept = s > max(x.shape[-2:]) * _EPS32 * s[..., :1]
        u, s, vh = u * kept[..., None, :], s * kept, vh * kept[..., None]
    return Svd(*(t.to(torch.float32, memory_format=torch.contiguous_format) for t in (u, s, vh)))


def _by_gram(x: torch.Tensor, q: int, device: torch.device) -> Svd:
    import torch

    m, n = x.shape
    wide = m <= n
    source = x if wide else x.T
    short, long = source.shape
    gram = add_columns(new_gram(short, device), source)
    require_finite(gram, (m, n), "singular values")
    values, vectors = eigh(gram, (m, n))
    del gram
    s, rank = _values(values, q, long)
    left = _leading_rows(vectors, rank)
    del vectors
    u, vh = torch.zeros((m, q), device=device), torch.zeros((q, n), device=device)
    near, far = (u, vh) if wide else (vh.T, u.T)
    near[:, :rank] = left.T
    left.div_(s[:rank, None])
    buffer = torch.empty(rank * block_columns(short, long), dtype=torch.float64, device=device)
    for part, block in blocks(source, device):
        far[:rank, part] = torch.mm(left, block, out=lie_as(source, buffer, rank, block.shape[1]))
    return Svd(u, s.to(torch.float32), vh)


def _values(eigenvalues: torch.Tensor, q: int, long: int) -> tuple[torch.Tensor, int]:
    """The `q` largest singular values, descending and in float64, from ascending eigenvalues; zeros below the noise, and how many are above it."""
    import torch

    values = eigenvalues.flip(0)[:q]
    kept = values > (long * _EPS32) ** 2 * values[:1].clamp_min(0)
    return torch.where(kept, values, 0.0).sqrt(), int(kept.sum())


def _leading_rows(vectors: torch.Tensor, rank: int) -> torch.Tensor:
    """The eigenvectors of the `rank` largest of ascending eigenvalues as contiguous rows, the largest first; a copy, so that the others can go."""
    return vectors[:, vectors.shape[1] - rank :].T.flip(0).contiguous()


def joint_basis(parts: Iterable[torch.Tensor], side: Literal["left", "right"] = "left", rank: int | None = None, device: torch.device | str = "cpu") -> Basis:
    """Singular vectors that several matrices share: the left ones of `[D_1 | ... | D_K]`, or the right ones of the D_k stacked.

    They are the eigenvectors of Σ D_k D_kᵀ (or Σ D_kᵀ D_k), added up in float64, so no two of the matrices are held at once.
    The representation of D_k in the basis is Uᵀ D_k (KnOTS, Stoica et al. 2024, section 4; DRM). Errors are those of `svd`.

    Args:
        parts: the matrices, float, one after the other: `[m, n_k]` for `left`, `[m_k, n]` for `right`.
        side: which vectors.
        rank: how many; None: as many as the side has.
        device: where to compute; the basis lies there.

    Raises:
        KernelError: a matrix holds NaN or infinity, or the decomposition did not converge.
        ValueError: there is no matrix, or two do not fit together.
    """
    import torch

    gram: torch.Tensor | None = None
    buffer: torch.Tensor | None = None
    long = 0
    for part in parts:
        source = part if side == "left" else part.T
        if gram is None:
            gram, buffer = new_gram(source.shape[0], device), block_buffer(source.shape[0], _WIDEST, device)
        if source.dim() != 2 or source.shape[0] != gram.shape[0]:
            raise ValueError(f"a matrix of shape {tuple(part.shape)} has no {side} side of {gram.shape[0]} as the others have")
        add_columns(gram, source, buffer)
        long += source.shape[1]
    if gram is None:
        raise ValueError("a joint basis wants one matrix or more")
    side_length = gram.shape[0]
    q = require_rank(rank, side_length)
    shape = (side_length, long) if side == "left" else (long, side_length)
    require_finite(gram, shape, "singular values")
    del buffer
    values, found = eigh(gram, shape)
    del gram
    s, kept = _values(values, q, max(shape))
    vectors = torch.zeros((side_length, q), device=device)
    vectors[:, :kept] = found[:, side_length - kept :].flip(1)
    return Basis(vectors, s.to(torch.float32), kept)


def _gram_bytes(short: int, long: int, q: int) -> int:
    # G, its eigenvectors, and LAPACK's dsyevd, which wants two more; later the eigenvectors kept, twice, beside a block and its product
    block = 8 * block_columns(short, long)
    return max(32 * short * short, 8 * short * short + short * block, 16 * short * q + (short + q) * block)


def svd_workspace_bytes(
    rows: int, columns: int, rank: int | None = None, accuracy: Accuracy = "exact", threads: int = 2, rank_policy: RankPolicy = "numerical"
) -> int:
    """Upper bound of the memory that `svd` takes on the CPU beyond its input and its outputs, for one matrix.

    Args:
        rows, columns: shape.
        rank, accuracy, rank_policy: as for `svd`.
        threads: torch's threads; each has buffers of its own.
    """
    short, long = sorted((rows, columns))
    q = require_rank(rank, short)
    route = svd_route(rows, columns, rank, accuracy, rank_policy)
    if route == "randomized":
        return randomized_workspace_bytes(rows, columns, q, threads)
    if route == "direct":
        return svd64_bytes(short, long) + library_bytes(short, threads)
    return _gram_bytes(short, long, q) + library_bytes(short, threads)


def svd_flops(rows: int, columns: int, rank: int | None = None, accuracy: Accuracy = "exact", rank_policy: RankPolicy = "numerical") -> float:
    """Time of `svd` as float64 operations at the speed of a product of large matrices; float32 ones count half, slower code by what was measured."""
    short, long = sorted((rows, columns))
    q = require_rank(rank, short)
    route = svd_route(rows, columns, rank, accuracy, rank_policy)
    if route == "randomized":
        return randomized_flops(rows, columns, q)
    if route == "direct":
        return _DIRECT_FLOPS * short * short * long
    return _gram_flops(short, long, q)


def _gram_flops(short: int, long: int, q: int) -> float:
    return 1.2 * short * short * long + _EIGH_FLOPS * short**3 + 2.0 * q * short * long


def joint_basis_workspace_bytes(side: int, threads: int = 2) -> int:
    """Upper bound of the memory of `joint_basis` on the CPU beyond the matrix at hand and the result.

    Args:
        side: length of the shared side.
        threads: torch's threads.
    """
    return _gram_bytes(side, _WIDEST, 0) + library_bytes(side, threads)


def joint_basis_flops(side: int, columns: int) -> float:
    """Time of `joint_basis` as `svd_flops` counts it; `columns` are those of all matrices together."""
    return 1.2 * side * side * columns + _EIGH_FLOPS * side**3
