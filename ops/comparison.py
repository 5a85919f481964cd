"""What differs between models, as a few numbers of each tensor: sums, counts and a largest element, all taken in one pass.

Two models A and B are compared by D = B - A. With a base C, from which both were tuned, the changes A - C and B - C are compared, which are
what a merge adds up. `docs/inspect.md` says what is made of the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.ops.algebra import differs, dot, equal, max_abs, row_dot, row_length, solve, solver, sum_all, where
from plait.ops.columns import by_column, column_dot
from plait.ops.op import PACK
from plait.ops.tensor import LazyTensor

#: Sums of squares of A, B and D; of |D|; the largest |D|; elements that are equal, that are not zero in both, and that have one sign in both.
TWO = ("aa", "bb", "dd", "sum", "largest", "same", "both", "agree")
#: Of C, of A - C and of B - C; their inner product; sums of magnitudes and the largest of each; elements that A, and B, left as they were, that
#: both changed, and that both moved the same way.
THREE = ("cc", "aa", "bb", "ab", "sum_a", "sum_b", "largest_a", "largest_b", "same_a", "same_b", "both", "agree")
#: NaN, infinite values, zeros, the largest magnitude, and the sums of elements and of their squares.
ONE = ("nan", "infinite", "zeros", "largest", "sum", "squares")

Vector = npt.NDArray[np.float64]


def numbers(values: Sequence[LazyTensor]) -> LazyTensor:
    """A few small scalars as one vector."""
    return LazyTensor(PACK, tuple(values), shape=(len(values),), dtype="float64", space="small")


def two(a: LazyTensor, b: LazyTensor, passes: int = 0) -> LazyTensor:
    """The numbers named in `TWO`, and with passes the square of D's largest singular value."""
    d = b - a
    found = [dot(a, a), dot(b, b), dot(d, d), sum_all(abs(d)), max_abs(d), sum_all(equal(a, b)), *_signs(a, b)]
    return numbers([*found, *_spectral([d], passes)])


def three(a: LazyTensor, b: LazyTensor, base: LazyTensor, passes: int = 0) -> LazyTensor:
    """The numbers named in `THREE`, and with passes the squares of the largest singular values of both changes."""
    x, y = a - base, b - base
    found = [dot(base, base), dot(x, x), dot(y, y), dot(x, y), sum_all(abs(x)), sum_all(abs(y)), max_abs(x), max_abs(y)]
    found += [sum_all(equal(a, base)), sum_all(equal(b, base)), *_signs(x, y)]
    return numbers([*found, *_spectral([x, y], passes)])


def one(x: LazyTensor) -> LazyTensor:
    """The numbers named in `ONE`; NaN and infinity count as 0 in the sums, and not in the largest magnitude."""
    there = abs(x) < float("inf")
    finite = where(there, x, 0.0)
    infinite = sum_all(equal(abs(x), float("inf")))
    return numbers([sum_all(~equal(x, x)), infinite, sum_all(equal(x, 0.0)), max_abs(finite), sum_all(finite), dot(finite, finite)])


def _signs(x: LazyTensor, y: LazyTensor) -> list[LazyTensor]:
    """Elements that are not zero in both, and those of one sign."""
    both, up, over = differs(x, 0.0) & differs(y, 0.0), x > 0.0, y > 0.0
    return [sum_all(both), sum_all(both & ((up & over) | ~(up | over)))]


# -- the largest singular value -----------------------------------------------------------------------------
def _spectral(deltas: Sequence[LazyTensor], passes: int) -> list[LazyTensor]:
    """Squares of the largest singular values of matrices, from below."""
    return [_largest_square(d, passes) for d in deltas] if passes else []


def _largest_square(x: LazyTensor, passes: int) -> LazyTensor:
    """The largest Ritz value of x'x after some steps of Lanczos' method, each a pass over x: never above the true one.

    A pass forms z = x'(x v): the inner product of each row with v, and then the columns' sums of rows times these. Vectors are made
    orthogonal to all earlier ones (Golub and Van Loan, Matrix Computations, section 10.3).
    """
    columns = row_length(x.shape, "output")
    vectors = [solve("lanczos_start", shape=(columns,), columns=columns)]
    images: list[LazyTensor] = []
    for step in range(passes):
        along = row_dot(x, by_column(vectors[-1], x, "output"), "output")
        images.append(column_dot(x, where(equal(x, x), along, 0.0), "output"))
        if step + 1 < passes:
            vectors.append(solve("lanczos_next", images[-1], *vectors, shape=(columns,)))
    return solve("lanczos_largest", *images, *vectors)


@solver
def lanczos_start(columns: int) -> Vector:
    """A unit vector of pseudo-random signs, the same on every machine."""
    state = np.arange(columns, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the mixing steps of SplitMix64
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    start: Vector = np.where(state >> np.uint64(63), 1.0, -1.0) / np.sqrt(columns)
    return start


@solver
def lanczos_next(image: Vector, *vectors: Vector) -> Vector:
    """The next vector: the part of the image that is orthogonal to all vectors so far, of length 1; zeros where nothing is left."""
    basis, found = np.stack(vectors), np.array(image, np.float64)
    size = np.linalg.norm(found)
    for _ in range(2):  # once more, for what rounding leaves
        found -= basis.T @ (basis @ found)
    left = np.linalg.norm(found)
    following: Vector = found / left if left > 1e-10 * size else np.zeros_like(found)
    return following


@solver
def lanczos_largest(*images_and_vectors: Vector) -> Any:
    """The largest Ritz value; NaN where the matrix holds any."""
    half = len(images_and_vectors) // 2
    projected = np.stack(images_and_vectors[half:]) @ np.stack(images_and_vectors[:half]).T
    if not np.isfinite(projected).all():
        return np.nan
    return max(0.0, float(np.linalg.eigvalsh((projected + projected.T) / 2)[-1]))
