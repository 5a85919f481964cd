"""The matrix algebra: shapes, refusals, and values through files, plan and engine against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.ops import algebra as al
from plait.ops import matrix as mx
from plait.ops.order import top
from plait.ops.tensor import LazyTensor, load
from support.evaluate import evaluate

Array = npt.NDArray[Any]


def leaf(number: int, shape: tuple[int, ...] = (4, 6)) -> LazyTensor:
    return load((str(number),), shape, "F32")


def arrays(*shapes: tuple[int, ...], seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def computed(build: Callable[..., LazyTensor], *given: Array) -> Array:
    """The value of an expression over leaves a, b, c."""
    leaves = dict(zip("abc", given, strict=False))
    result: Array = evaluate({"out": leaves}, build, backend="torch")["out"]
    return result


# -- shapes and refusals --------------------------------------------------------------------------------


def test_matrices_know_their_shapes():
    """Products, joins, cuts and decompositions have the shapes that their operands give."""
    a, b = mx.matrix(leaf(0)), mx.matrix(leaf(1))
    assert mx.matmul(a, b, transpose_b=True).shape == (4, 4)
    assert mx.matmul(a, b, transpose_a=True).shape == (6, 6)
    assert mx.concat([a, b]).shape == (4, 12)
    assert mx.concat([a, b], rows=True).shape == (8, 6)
    assert mx.rows(a, 1, 3).shape == (2, 6)
    assert mx.columns(a, 0, 6) is a
    u, s, vh = mx.svd(a, 3)
    assert (u.shape, s.shape, vh.shape) == ((4, 3), (3,), (3, 6))
    assert mx.svd(a, 9).s.shape == (4,)
    basis, singular = mx.joint_svd([a, b], side="right")
    assert (basis.shape, singular.shape) == ((6, 6), (6,))
    assert mx.joint_svd([mx.matrix(leaf(0, (40, 6)))])[0].shape == (40, 6)
    assert mx.matrix(leaf(0, (4, 3, 2, 2))).shape == (4, 12)
    assert mx.matrix(leaf(0, (5,))).shape == (1, 5)


def test_equal_matrices_are_one_node_and_views_undo_each_other():
    """The three values of a decomposition share it; a tensor made of a matrix is that matrix."""
    a = mx.matrix(leaf(0))
    assert mx.svd(a, 2).u is mx.svd(a, 2).u
    assert mx.svd(a, 2).u.inputs == mx.svd(a, 2).vh.inputs
    assert mx.matrix(mx.stream(a, (4, 6))) is a
    assert mx.matrix(a) is a


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: mx.matmul(mx.matrix(leaf(0)), mx.matrix(leaf(1))), r"\[4, 6\] and \[4, 6\] cannot be multiplied"),
        (lambda: mx.stream(mx.matrix(leaf(0)), (3, 6)), "does not fit"),
        (lambda: mx.matrix(leaf(0)) + leaf(1), "whole matrices take"),
        (lambda: mx.matrix(leaf(0)) + mx.matrix(leaf(1, (6, 4))), "matrices of one shape"),
        (lambda: al.sqrt(mx.matrix(leaf(0))), "whole matrices take"),
    ],
)
def test_what_does_not_fit_is_refused(build: Callable[[], LazyTensor], words: str):
    """One sentence with both shapes."""
    with pytest.raises(ValueError, match=words):
        build()


# -- values ----------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.sampled_from([(5, 7), (7, 5), (6, 6), (1, 4), (4, 1), (33, 2)]))
@settings(max_examples=12, deadline=None)
def test_an_svd_gives_its_matrix_back(seed: int, shape: tuple[int, int]):
    """U diag(S) Vh is the matrix, within float32 rounding."""
    (a,) = arrays(shape, seed=seed)

    def build(a: LazyTensor) -> LazyTensor:
        d = mx.svd(mx.matrix(a))
        return mx.stream(mx.matmul(mx.scale_columns(d.u, d.s), d.vh), shape)

    assert np.abs(computed(build, a) - a).max() <= 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shape", [(5, 7), (30, 4), (4, 30)])
def test_a_joint_basis_spans_all_matrices(side: str, shape: tuple[int, int]):
    """Projecting on it changes nothing, whichever Gram matrix it was made of."""
    a, b = arrays(shape, shape)

    def build(a: LazyTensor, b: LazyTensor) -> LazyTensor:
        x, y = mx.matrix(a), mx.matrix(b)
        basis, _ = mx.joint_svd([x, y], side=side)
        if side == "left":
            return mx.stream(mx.matmul(basis, mx.matmul(basis, x, transpose_a=True)), shape)
        return mx.stream(mx.matmul(mx.matmul(x, basis), basis, transpose_b=True), shape)

    assert np.abs(computed(build, a, b) - a).max() <= 1e-5


def test_arithmetic_joins_cuts_and_scales():
    """Every plain op beside NumPy's."""
    a, b = arrays((6, 4), (6, 4))

    def build(a: LazyTensor, b: LazyTensor) -> LazyTensor:
        x, y = mx.matrix(a), mx.matrix(b)
        wide = mx.columns(mx.concat([2.0 * x - y, abs(y)]), 2, 6)
        tall = mx.rows(mx.concat([wide, -x], rows=True), 3, 9)
        return mx.stream(mx.scale_rows(tall / 4.0, mx.row_dots(x, y)), (6, 4))

    tall = np.concatenate([np.concatenate([2 * a - b, np.abs(b)], axis=1)[:, 2:6], -a])[3:9]
    wanted = tall / 4 * (a * b).sum(axis=1, keepdims=True)
    assert np.abs(computed(build, a, b) - wanted).max() <= 1e-5


def test_a_smaller_matrix_is_filled_with_zeros():
    """What a tensor has more of is zero."""
    (a,) = arrays((6, 4))
    got = computed(lambda a: mx.stream(mx.rows(mx.matrix(a), 0, 2), (6, 4)), a)
    assert np.array_equal(got[:2], a[:2])
    assert not got[2:].any()


def test_an_order_statistic_does_not_count_padding():
    """Half of what is there is kept (and one more, as the TIES code counts), however many zeros stand behind it."""
    (a,) = arrays((60, 40))

    def build(a: LazyTensor) -> LazyTensor:
        x = mx.stream(mx.rows(mx.matrix(a), 0, 10), (60, 40))
        return al.where(top(x, 0.5, ties="all", among=al.number(10.0 * 40.0)), x, 0.0)

    assert np.count_nonzero(computed(build, a)) == 201


def test_later_changes_no_value():
    """It says when, not what."""
    a, b = arrays((6, 4), (6, 4))
    got = computed(lambda a, b: al.later(a, mx.svd(mx.matrix(b)).u) + mx.stream(mx.matrix(b), (6, 4)), a, b)
    assert np.array_equal(got, a + b)
