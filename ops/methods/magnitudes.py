"""Magnitudes of task vectors, by rows and as a whole, that calibration compares."""

from __future__ import annotations

from plait.ops.algebra import dot, later, max_abs, maximum, mean, row_dot, row_max, row_sum, sqrt, sum_all, total
from plait.ops.matrix import matrix, svd
from plait.ops.tensor import LazyTensor

_EPS = 1e-8


def row_norm(x: LazyTensor, norm: str) -> LazyTensor:
    """L1, L2 or Linf norm of each output channel."""
    if norm == "L1":
        return row_sum(abs(x), rows="output")
    return sqrt(row_dot(x, x, rows="output")) if norm == "L2" else row_max(x, rows="output")


def whole_norm(x: LazyTensor, norm: str) -> LazyTensor:
    """The same of all elements together."""
    if norm == "L1":
        return sum_all(abs(x))
    return sqrt(dot(x, x)) if norm == "L2" else max_abs(x)


def largest_singular(x: LazyTensor) -> LazyTensor:
    """The largest singular value of a tensor as [out, rest]."""
    return svd(matrix(x), 1).s[0]


def in_turn(deltas: tuple[LazyTensor, ...]) -> list[LazyTensor]:
    """The task vectors, each read after the one before was decomposed, so that only one is held."""
    turn: list[LazyTensor] = []
    for delta in deltas:
        turn.append(later(delta, largest_singular(turn[-1])) if turn else delta)
    return turn


def mean_cosine(deltas: tuple[LazyTensor, ...]) -> LazyTensor:
    """Mean of all K x K cosines, the diagonal included."""
    lengths = [maximum(sqrt(dot(d, d)), 1e-30) for d in deltas]
    pairs = [(dot(a, b) / (lengths[i] * lengths[j]), 1.0 if i == j else 2.0) for i, a in enumerate(deltas) for j, b in enumerate(deltas) if i <= j]
    return total([cosine * count for cosine, count in pairs]) / float(len(deltas) ** 2)


def onto_ellipsoid(experts: tuple[LazyTensor, ...], delta: LazyTensor) -> LazyTensor:
    """1 / sqrt(L_e + L_s): L_e the part of d along the experts' rows, L_s what is left, both in units of the semi-axes.

    |s|^2 = |d|^2 - 2 sum_k c_k <d, a_k> + sum_jk c_j c_k <a_j, a_k> needs inner products only, never the remainder s itself.
    """
    count = len(experts)

    def inner(x: LazyTensor, y: LazyTensor) -> LazyTensor:
        return row_dot(x, y, rows="output")

    squares = [inner(a, a) for a in experts]
    lengths = [sqrt(s) for s in squares]
    along = [inner(delta, a) for a in experts]
    c = [p / (s + _EPS) for p, s in zip(along, squares, strict=True)]
    ellipsoid = total([(k * n / (n + _EPS)) * (k * n / (n + _EPS)) for k, n in zip(c, lengths, strict=True)])
    crossed = total([c[j] * c[k] * (squares[j] if j == k else inner(experts[min(j, k)], experts[max(j, k)])) for j in range(count) for k in range(count)])
    rest = maximum(inner(delta, delta) - 2.0 * total([k * p for k, p in zip(c, along, strict=True)]) + crossed, 0.0)
    radius = mean(lengths)
    return 1.0 / sqrt(ellipsoid + rest / (radius * radius + _EPS) + _EPS)
