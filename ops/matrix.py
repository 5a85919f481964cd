"""Matrix algebra: lazy values that are held whole in memory, for methods that work on singular vectors.

A *matrix* is a `LazyTensor` of space `matrix`: float32, of any one- or two-dimensional shape, made and used by whole
ops alone, never streamed. `matrix(x)` takes a tensor in, `stream(m, shape)` gives one back; singular values and other
short vectors are *small* float64 values, so solvers on the host decide what is kept. Where a size depends on the data
(a numerical rank) the result has its largest possible shape with zeros behind, and the singular values tell the rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from plait.ops.algebra import info, solve, solver
from plait.ops.op import OPS
from plait.ops.tensor import LazyTensor

ACCURACIES = ("exact", "fast")


class Svd(NamedTuple):
    """A thin or truncated decomposition of an `[m, n]` matrix: one computation, three values.

    Attributes:
        u: `[m, k]`, matrix.
        s: `(k,)`, small, descending.
        vh: `[k, n]`, matrix.
    """

    u: LazyTensor
    s: LazyTensor
    vh: LazyTensor


def _node(op: str, inputs: tuple[LazyTensor, ...], shape: tuple[int, ...], **params: Any) -> LazyTensor:
    sizes = tuple(x.shape for x in inputs if x.space != "small")
    facts = tuple(sorted({**params, "sizes": sizes}.items()))
    return LazyTensor(OPS[op], inputs, facts, shape=shape, dtype="float32", space="matrix")


def matrix(x: LazyTensor) -> LazyTensor:
    """A tensor as a matrix: `[out, rest]` where it has more than two dimensions. It takes no memory beside the kept tensor."""
    if x.space == "matrix":
        return x
    if x.op.name == "stream" and x.inputs[0].shape == x.shape:
        return x.inputs[0]
    rows = x.shape[0] if len(x.shape) > 1 else 1
    return _node("matrix", (x,), (rows, x.numel // max(rows, 1)))


def stream(m: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    """A matrix as a tensor of `shape`, which maps and folds can use; missing rows and columns are filled with zeros.

    Raises:
        ValueError: the matrix does not fit.
    """
    rows, columns = shape[0] if len(shape) > 1 else 1, math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
    if m.shape[0] > rows or m.shape[1] > columns:
        raise ValueError(f"a matrix of {list(m.shape)} does not fit into a tensor of {list(shape)}")
    node = _node("stream", (m,), shape, padded=m.shape != (rows, columns))
    return LazyTensor(node.op, node.inputs, node.params, shape=shape, dtype="float32", space="tensor")


def matmul(a: LazyTensor, b: LazyTensor, *, transpose_a: bool = False, transpose_b: bool = False) -> LazyTensor:
    """The product of two matrices, either transposed.

    Raises:
        ValueError: their shapes do not fit together.
    """
    m, inner = a.shape[::-1] if transpose_a else a.shape
    other, n = b.shape[::-1] if transpose_b else b.shape
    if inner != other:
        raise ValueError(f"matrices of {[m, inner]} and {[other, n]} cannot be multiplied")
    return _node("matmul", (a, b), (m, n), inner=inner, transpose_a=transpose_a, transpose_b=transpose_b)


def concat(parts: Sequence[LazyTensor], *, rows: bool = False) -> LazyTensor:
    """Matrices side by side, or one below the other."""
    if len(parts) == 1:
        return parts[0]
    axis = 0 if rows else 1
    length = sum(p.shape[axis] for p in parts)
    other = parts[0].shape[1 - axis]
    return _node("concat", tuple(parts), (length, other) if rows else (other, length), axis=axis)


def scale_columns(x: LazyTensor, by: LazyTensor) -> LazyTensor:
    """Each column times its entry of a small vector."""
    return _node("scale", (x, by), x.shape, axis=1)


def scale_rows(x: LazyTensor, by: LazyTensor) -> LazyTensor:
    """Each row times its entry of a small vector."""
    return _node("scale", (x, by), x.shape, axis=0)


def columns(x: LazyTensor, first: int, end: int) -> LazyTensor:
    """Columns `first` to `end`, not included."""
    return x if (first, end) == (0, x.shape[1]) else _node("cut", (x,), (x.shape[0], end - first), axis=1, first=first)


def rows(x: LazyTensor, first: int, end: int) -> LazyTensor:
    """Rows `first` to `end`, not included."""
    return x if (first, end) == (0, x.shape[0]) else _node("cut", (x,), (end - first, x.shape[1]), axis=0, first=first)


def svd(x: LazyTensor, rank: int | None = None, *, accuracy: str = "exact") -> Svd:
    """The singular value decomposition of a matrix, thin or truncated; triplets below max(m, n) eps32 of the largest are all zero.

    Args:
        x: `[m, n]`.
        rank: largest number of triplets; None for min(m, n).
        accuracy: `exact`, or `fast` for a randomised range finder.
    """
    m, n = x.shape
    k = min(m, n) if rank is None else min(rank, m, n)
    both = _node("svd", (x,), (m, n), rank=k, accuracy=accuracy)
    return Svd(_part(both, 0, (m, k)), info(both, (k,)), _part(both, 1, (k, n)))


def joint_svd(xs: Sequence[LazyTensor], *, side: str = "left", tolerance: float = 1e-6, floor: float = 0.0) -> tuple[LazyTensor, LazyTensor]:
    """Left vectors and singular values of `[X_1 | ... | X_K]`, or right ones of the matrices stacked, without forming either.

    Args:
        xs: matrices of one shape `[m, n]`.
        side: `left` or `right`.
        tolerance: directions with singular values up to this times the largest are zero.
        floor: the same as an absolute value.

    Returns:
        The basis, `[m, p]` with p = min(m, K n), or `[n, p]` with p = min(n, K m), and the singular values `(p,)`; those left out are zero.
    """
    m, n = xs[0].shape if side == "left" else xs[0].shape[::-1]
    p = min(m, len(xs) * n)
    both = _node("joint_svd", tuple(xs), (m, p), side=side, tolerance=tolerance, floor=floor)
    return _part(both, 0, (m, p)), info(both, (p,))


def _part(both: LazyTensor, index: int, shape: tuple[int, ...]) -> LazyTensor:
    return LazyTensor(OPS["part"], (both,), (("index", index),), shape=shape, dtype="float32", space="matrix")


def row_dots(a: LazyTensor, b: LazyTensor) -> LazyTensor:
    """Inner products of matching rows, a small vector."""
    return info(_node("row_dots", (a, b), a.shape), (a.shape[0],))


def rank_of(s: LazyTensor) -> LazyTensor:
    """How many singular values are not zero, small."""
    return solve("count_positive", s)


@solver
def count_positive(s: Any) -> Any:
    """Number of entries above zero."""
    return float((s > 0.0).sum())


@solver
def sum_of(s: Any) -> Any:
    """Sum of a small vector's entries, in order."""
    return float(s.sum())


# -- of single methods ------------------------------------------------------------------------------------
def prune_threshold(xs: Sequence[LazyTensor], counted: LazyTensor, keep: float) -> LazyTensor:
    """Magnitude of the unit rows of all matrices together that round(keep n) + 1 of the n `counted` elements reach (DRM), small `(1,)`."""
    return info(_node("prune_threshold", (*xs, counted), xs[0].shape, keep=keep), (1,))


def prune(x: LazyTensor, threshold: LazyTensor) -> LazyTensor:
    """A matrix without the entries whose share of their row's norm is below a threshold."""
    return _node("prune", (x, threshold[0]), x.shape)


def opcm_block(x: LazyTensor, size: LazyTensor) -> LazyTensor:
    """The leading block of `size` rows and columns, and the diagonal, of a square matrix; zeros elsewhere."""
    return _node("opcm_block", (x, size), x.shape)


def doge_correction(taus: Sequence[LazyTensor], basis: LazyTensor, coefficients: LazyTensor, *, steps: int, rate: float) -> LazyTensor:
    """The update that DOGE adds to every task vector; see `plait.ops.kernels.doge`."""
    return _node("doge_correction", (*taus, basis, coefficients), taus[0].shape, steps=steps, rate=rate, inner=basis.shape[1])
