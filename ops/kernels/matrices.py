"""Numerics of the ops on whole matrices, once, against torch on any device; see `plait.ops.wholes` for the convention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from plait.ops.kernels.decompose import joint_basis
from plait.ops.kernels.polar import polar
from plait.ops.kernels.results import Results
from plait.ops.kernels.thin_svd import svd as thin_svd
from plait.ops.wholes import PIECE, Facts

Inputs = Sequence[Any]
Out = Results


def polar_factor(node: Facts, inputs: Inputs, out: Out) -> Any:
    """The polar factor; numbers: the rank kept, and the sum of the singular values."""
    policy: Any = "full" if node.param("rank_policy") == "full" else "numerical"
    _, rank = polar(inputs[0], rank_policy=policy, device=inputs[0].device, out=out[0])
    return np.array([float(rank), _inner(out[0], inputs[0])])


def _inner(a: torch.Tensor, b: torch.Tensor) -> float:
    """<a, b> in float64, by pieces."""
    total, x, y = 0.0, a.reshape(-1), b.reshape(-1)
    for first in range(0, x.numel(), PIECE):
        total += float(torch.dot(x[first : first + PIECE].double(), y[first : first + PIECE].double()))
    return total


def pad(node: Facts, inputs: Inputs, out: Out) -> None:
    """A matrix in the corner of a larger one of zeros."""
    target = out[0].view(out[0].shape[0] if out[0].dim() > 1 else 1, -1)
    rows, columns = inputs[0].shape
    target[:rows, :columns] = inputs[0]
    target[rows:] = 0.0
    target[:rows, columns:] = 0.0


def product(node: Facts, inputs: Inputs, out: Out) -> None:
    """A product of two matrices, either transposed, in float32."""
    a, b = inputs
    torch.mm(a.T if node.param("transpose_a") else a, b.T if node.param("transpose_b") else b, out=out[0])


def concat(node: Facts, inputs: Inputs, out: Out) -> None:
    """Matrices beside or below each other."""
    axis, first = node.param("axis"), 0
    for x in inputs:
        out[0].narrow(axis, first, x.shape[axis]).copy_(x)
        first += x.shape[axis]


def cut(node: Facts, inputs: Inputs, out: Out) -> None:
    """Some rows or columns."""
    axis = node.param("axis")
    out[0].copy_(inputs[0].narrow(axis, node.param("first"), node.shape[axis]))


def scale(node: Facts, inputs: Inputs, out: Out) -> None:
    """Rows or columns times the entries of a vector."""
    x, by = inputs
    factors = torch.from_numpy(np.asarray(by, np.float32)).to(x.device)
    torch.mul(x, factors[:, None] if node.param("axis") == 0 else factors[None, :], out=out[0])


_FUNCTIONS = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": torch.sign,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}


def combine(node: Facts, inputs: Inputs, out: Out) -> None:
    """Elementwise arithmetic of matrices and numbers."""
    device = out[0].device
    operands = [x if isinstance(x, torch.Tensor) else torch.tensor(float(x), dtype=torch.float32, device=device) for x in inputs]
    function: Any = _FUNCTIONS[node.param("function")]
    function(*operands, out=out[0])


def svd(node: Facts, inputs: Inputs, out: Out) -> Any:
    """Thin or truncated singular triplets; numbers: the singular values. Directions below rounding noise are zero."""
    if not node.param("rank"):
        return np.zeros(0)
    found = thin_svd(inputs[0], node.param("rank"), node.param("accuracy"))
    out.give(0, found.u)
    out.give(1, found.vh)
    return found.s.cpu().numpy()


def joint_svd(node: Facts, inputs: Inputs, out: Out) -> Any:
    """Joint left or right vectors of several matrices; numbers: the singular values."""
    xs = inputs if node.param("side") == "left" else [x.T for x in inputs]
    basis, s = joint_basis(xs, node.shape[1], node.param("tolerance"), node.param("floor"))
    out.give(0, basis)
    return s.numpy()


def row_dots(node: Facts, inputs: Inputs, out: Out) -> Any:
    """Inner products of matching rows, in float64."""
    a, b = inputs
    found = torch.empty(a.shape[0], dtype=torch.float64, device=a.device)
    for part, wide in _wide_rows(a):
        torch.sum(wide.mul_(b[part]), dim=1, out=found[part])
    return found.cpu().numpy()


def _wide_rows(x: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Pieces of whole rows in float64, each in the same memory: fresh ones would fragment the heap."""
    rows, columns = x.shape
    step = max(1, PIECE // max(columns, 1))
    buffer = torch.empty((min(rows, step), columns), dtype=torch.float64, device=x.device)
    for first in range(0, rows, step):
        part = slice(first, min(rows, first + step))
        yield part, buffer[: part.stop - first].copy_(x[part])


def _unit_rows(x: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Pieces of whole rows divided by their norms, rounded to float32; a zero row stays zero."""
    for part, wide in _wide_rows(x):
        norms = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        yield part, wide.div_(torch.where(norms > 0.0, norms, 1.0)).to(torch.float32)


def prune_threshold(node: Facts, inputs: Inputs, out: Out) -> Any:
    """The threshold of DRM's pruning: the magnitude of the unit rows of all matrices together that round(N keep) + 1 of N elements reach.

    The last input is N, the elements that count: zeros beyond the numerical rank do not.
    """
    *xs, counted = inputs
    n = int(counted)
    k = round(n * float(node.param("keep"))) + 1
    if k > n:  # nothing is pruned
        return np.zeros(1)
    high = torch.zeros(1 << 15, dtype=torch.int64)
    for keys in _keys(xs):
        high += torch.bincount(keys >> 16, minlength=1 << 15).cpu()
    digit, above = _reached(high, k)
    low = torch.zeros(1 << 16, dtype=torch.int64)
    for keys in _keys(xs):
        low += torch.bincount(keys[keys >> 16 == digit] & 0xFFFF, minlength=1 << 16).cpu()
    fine, _ = _reached(low, k - above)
    return np.array([digit << 16 | fine], np.int32).view(np.float32).astype(np.float64)


def _keys(xs: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Bits of the unit rows' magnitudes, which order as the magnitudes do."""
    for x in xs:
        for _, unit in _unit_rows(x):
            yield unit.abs_().reshape(-1).view(torch.int32)


def _reached(histogram: torch.Tensor, k: int) -> tuple[int, int]:
    """The digit in which the k-th largest lies, and how many are above it."""
    from_top = histogram.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, k))
    digit = histogram.numel() - 1 - place
    return digit, int(from_top[place] - histogram[digit])


def prune(node: Facts, inputs: Inputs, out: Out) -> None:
    """A matrix without the entries whose unit-row magnitude is below the threshold."""
    x, threshold = inputs
    limit = torch.tensor(float(threshold), dtype=torch.float32, device=x.device)
    for part, unit in _unit_rows(x):
        torch.where(unit.abs_() >= limit, x[part], torch.zeros((), dtype=torch.float32, device=x.device), out=out[0][part])


def opcm_block(node: Facts, inputs: Inputs, out: Out) -> None:
    """The entries that OPCM removes of a projected task vector: the leading q x q block, and the diagonal."""
    x, q = inputs
    size = int(q)
    out[0].zero_()
    out[0][:size, :size] = x[:size, :size]
    out[0].diagonal().copy_(x.diagonal())
