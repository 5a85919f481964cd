"""Truncated SVD by random sketches: a few products with thin matrices instead of a decomposition of the whole.

    Y = X Ω                       Ω: random signs, [long, l] with l = rank + oversample
    repeat p times:  Z = orth(Xᵀ Y),  Y = X Z        (subspace iteration), keeping every Y in the basis (block Krylov)
    Q = orth(Y);  B = Qᵀ X;  SVD of the small B

Subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4 and theorem 10.7 with corollary 10.10): in expectation
‖X - QQᵀX‖₂ ≤ [1 + 4 sqrt(2 min(m, n) / (oversample - 1))]^(1/(2p+1)) σ_{rank+1}. Block Krylov (Musco and Musco 2015)
reaches in p steps what the other needs p² for, when the spectrum hardly decays, for p + 1 times the memory.

Products are float32, so singular values below about 1e-6 σ_1 are noise. The sketch is counter-based: the same bits always.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from plait.ops.errors import KernelError
from plait.ops.kernels.gram import add_columns, eigh, new_gram, not_finite
from plait.ops.kernels.philox import random_u32, stream_key

if TYPE_CHECKING:
    import torch

OVERSAMPLE, ITERATIONS = 16, 2
_EPS32 = 2.0**-23
# packing buffers of the matrix library, measured with 1 and 2 threads
_SLACK_BYTES, _THREAD_BYTES = 1 << 20, 4 << 20
_ERROR_ROWS = 256


class Truncated(NamedTuple):
    """The leading singular triplets of a matrix, float32, and what was left out.

    Attributes:
        u: `[m, q]`, orthonormal columns.
        s: `[q]`, descending; 0, with zero vectors, for directions below max(m, n) · eps32 · σ_1.
        vh: `[q, n]`, orthonormal rows.
        error: ‖X - U S Vh‖_F as measured; NaN when it was not asked for. The best possible is the norm of the true tail.
        deviation: the largest ‖X v_i - s_i u_i‖: every s_i is this near to a singular value of X; NaN when it was not asked for.
    """

    u: torch.Tensor
    s: torch.Tensor
    vh: torch.Tensor
    error: float
    deviation: float


def randomized_svd(
    x: torch.Tensor,
    rank: int,
    *,
    oversample: int = OVERSAMPLE,
    iterations: int = ITERATIONS,
    krylov: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    estimate: bool = True,
) -> Truncated:
    """The leading `rank` singular triplets, approximately.

    Args:
        x: float32 `[m, n]`.
        rank: how many, from 1; at most min(m, n) come back.
        oversample: columns of the sketch beyond `rank`, at least 2 for the bound to hold.
        iterations: p of the bound above, from 0.
        krylov: keep the blocks of all iterations as the basis.
        seed: of the sketch.
        device: where to compute; that of `x` when None. The result lies there.
        estimate: measure `error` and `deviation`, which costs two more passes with `rank` columns.

    Raises:
        KernelError: `x` holds NaN or infinity, or the small decomposition did not converge.
        ValueError: `x` is no float32 matrix, or `rank` is below 1.
    """
    import torch

    if x.dim() != 2 or x.dtype != torch.float32:
        raise ValueError(f"a truncated SVD takes a float32 matrix, not {x.dtype} of shape {tuple(x.shape)}")
    if rank < 1 or iterations < 0 or oversample < 0:
        raise ValueError(f"rank {rank} must be 1 or more, iterations {iterations} and oversample {oversample} 0 or more")
    x = x if device is None else x.to(device)
    wide = x.shape[0] <= x.shape[1]
    source = x if wide else x.T
    q = min(rank, source.shape[0])
    basis = _basis(source, min(source.shape[0], q + oversample), iterations, krylov, seed)
    left, s, right = small_triplets(basis.T @ source, q, tuple(x.shape))
    left = basis @ left
    del basis
    u, vh = (left, right) if wide else (right.T, left.T)
    u, vh = u.contiguous(), vh.contiguous()
    error, deviation = _measure(x, u, s, vh) if estimate else (float("nan"), float("nan"))
    return Truncated(u, s, vh, error, deviation)


def sketch(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Random signs, float32 `[rows, columns]`, from the counter-based generator: the same on every machine."""
    import torch

    words = random_u32(stream_key(seed, "sketch", "", f"{rows}x{columns}"), 0, -(-rows * columns // 32))
    bits = np.unpackbits(words.view(np.uint8), count=rows * columns).reshape(rows, columns)
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1)


def _basis(source: torch.Tensor, width: int, iterations: int, krylov: bool, seed: int) -> torch.Tensor:
    """Orthonormal columns `[short, <= short]` that hold most of the leading left singular vectors."""
    import torch

    short, long = source.shape
    if width == short:
        return torch.eye(short, dtype=source.dtype, device=source.device)
    y = source @ sketch(long, width, seed).to(source.device)
    kept = [y] if krylov else []
    for _ in range(iterations):
        y = source @ _orthonormal(source.T @ _orthonormal(y, source.shape), source.shape)
        if krylov:
            kept.append(y)
    if krylov and iterations:
        # each block on its own scale, or the first would drown in the last
        y = torch.cat([_orthonormal(block, source.shape) for block in kept], dim=1)[:, :short]
    return _orthonormal(y, source.shape)


def _orthonormal(y: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    import torch

    if not bool(y.isfinite().all()):
        raise not_finite(tuple(shape), "singular values")
    basis: torch.Tensor = torch.linalg.qr(y).Q
    return basis


def small_triplets(b: torch.Tensor, q: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Leading triplets of a flat `[l, long]` matrix by its float64 Gram matrix; directions that are rounding noise come back as zeros."""
    import torch

    gram = add_columns(new_gram(b.shape[0], b.device), b)
    if not bool(gram.diagonal().isfinite().all()):
        raise not_finite(shape, "singular values")
    values, vectors = eigh(gram, shape)
    values, vectors = values[-q:].flip(0), vectors[:, -q:].flip(1)
    kept = values > (max(shape) * _EPS32) ** 2 * values[0].clamp_min(0)
    root = torch.where(kept, values.clamp_min(0).sqrt(), 0.0)
    vectors = torch.where(kept, vectors, 0.0)
    left = vectors.to(torch.float32)
    right = (vectors / torch.where(kept, root, 1.0)).T.to(torch.float32) @ b
    return left, root.to(torch.float32), right


def _measure(x: torch.Tensor, u: torch.Tensor, s: torch.Tensor, vh: torch.Tensor) -> tuple[float, float]:
    """‖X - U S Vh‖_F by rows, and the largest ‖X v_i - s_i u_i‖."""
    import torch

    scaled = u * s
    total = 0.0
    deviation = torch.zeros(len(s), dtype=torch.float64, device=x.device)
    for start in range(0, x.shape[0], _ERROR_ROWS):
        part = slice(start, start + _ERROR_ROWS)
        total += float((x[part] - scaled[part] @ vh).to(torch.float64).square().sum())
        deviation += (x[part] @ vh.T - scaled[part]).to(torch.float64).square().sum(0)
    return total**0.5, float(deviation.max().sqrt()) if len(s) else 0.0


def randomized_workspace_bytes(rows: int, columns: int, rank: int, threads: int = 2, *, iterations: int = ITERATIONS, krylov: bool = False) -> int:
    """Upper bound of the memory that `randomized_svd` takes on the CPU beyond its input and its outputs."""
    short, long = sorted((rows, columns))
    width = min(short, rank + OVERSAMPLE)
    blocks_kept = 2 * (iterations + 1) if krylov else 0
    # Z, LAPACK's copy of it and Q, beside Y; or, at the end, B with its Gram matrix in float64 blocks
    thin = 4 * width * (3 * long + (1 + blocks_kept) * short)
    small = min(short, width * (iterations + 1 if krylov else 1))
    finish = 4 * small * (long + 2 * short) + 8 * small * min(long, max(1024, (4 << 20) // (8 * small))) + 40 * small * small
    return max(thin, finish) + _SLACK_BYTES + _THREAD_BYTES * threads


def randomized_flops(rows: int, columns: int, rank: int, *, iterations: int = ITERATIONS, krylov: bool = False) -> float:
    """Time of `randomized_svd` without its estimate, as float64 operations at the speed of a large product; float32 ones count half."""
    short, long = sorted((rows, columns))
    width = min(short, rank + OVERSAMPLE)
    small = min(short, width * (iterations + 1 if krylov else 1))
    products = 2.0 * short * long * (width * (1 + 2 * iterations) + small)
    # Householder work runs at about a quarter of the speed of products
    householder = 16.0 * width**2 * (long * iterations + short * (iterations + 1)) + (16.0 * small**2 * short if krylov else 0.0)
    finish = 4.0 * small**2 * long + 34.0 * small**3 + 2.0 * rank * small * (long + short)
    return (products + householder + finish) / 2


def require_rank(rank: int | None, short: int) -> int:
    """How many triplets are wanted of a matrix with that short side.

    Raises:
        ValueError: `rank` is below 1.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank {rank} must be 1 or more, or None for all")
    return short if rank is None else min(rank, short)


def refuse(shape: tuple[int, ...], error: Exception) -> KernelError:
    """The error of a decomposition that LAPACK gave up on."""
    size = " x ".join(map(str, shape))
    return KernelError(f"the decomposition of a {size} matrix did not converge: {error}", shape=shape)
