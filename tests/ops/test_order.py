"""Masks by rank, quantiles, and statistics along rows and columns, against sorts and sums of NumPy: exact, on both backends, in many blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import plait.planner.blocks
from plait.ops import algebra as al
from plait.ops import columns, order
from plait.ops.kernels.select import rank_from_top
from plait.ops.tensor import LazyTensor
from support.evaluate import evaluate

Array = npt.NDArray[Any]
BACKENDS = ("torch", "numba")


@pytest.fixture(autouse=True, scope="module")
def tiny_blocks() -> Iterator[None]:
    """Many blocks in small tensors, none of which is settled by a sample."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plait.planner.blocks, "BLOCK", 16)
        patch.setattr(plait.planner.blocks, "SEEN_WHOLE", 32)
        yield


def examples(count: int) -> Any:
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


#: Few distinct magnitudes, as deltas of 16-bit weights have, of both signs, and arbitrary ones.
few = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 1e-40, -3.0e38])
several = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def tensors(draw: st.DrawFn, rows: int = 24, columns: int = 20) -> Array:
    """A float32 matrix with heavy ties, some values of which are arbitrary."""
    shape = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    choices = np.array([draw(few) for _ in range(draw(st.integers(1, 4)))] + [draw(several) for _ in range(draw(st.integers(0, 4)))], np.float32)
    return rng.choice(choices, shape)


fractions = st.sampled_from([0.01, 0.1, 0.25, 0.29, 0.5, 0.75, 0.9, 1.0])


def canonical(x: Array) -> Array:
    """Flat places of elements, larger magnitudes first, of equal ones the first."""
    return np.argsort(-np.abs(x.reshape(-1).astype(np.float64)), kind="stable")


def masked(x: Array, build: Callable[[LazyTensor], LazyTensor], backend: str, **options: Any) -> Array:
    """Where a mask holds."""
    found = evaluate({"w": {"x": x}}, lambda x: al.where(build(x), 1.0, 0.0), backend=backend, **options)["w"]
    return found.astype(bool)


# -- ranks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "place"),
    [
        ("top {q}", lambda q, n: n - max(1, floor(q * n))),
        ("released {q}", lambda q, n: max(n - floor(q * n), 1) - 1),
        ("quantile {q}", lambda q, n: floor(q * (n - 1))),
        ("low {q}", lambda q, n: min(floor(q * n), n - 1)),
        ("high {q}", lambda q, n: max(floor((1 - q) * n - 1), 0)),
        ("mirrored low {q}", lambda q, n: n - 1 - min(floor(q * n), n - 1)),
    ],
)
def test_ranks_of_each_convention(rank: str, place: Callable[[Fraction, int], int]):
    """A rank from the top is the ascending place that each paper's code writes, in exact arithmetic."""
    for text in ("0.29", "0.5", "0.01", "0.99", "1/3"):
        for n in (1, 2, 3, 7, 100, 1000, 12345):
            assert rank_from_top(rank.format(q=text), n) == n - place(Fraction(text), n), (text, n)


def test_ranks_of_intervals_and_of_nothing():
    """Both ends of an interval floor; the lower keeps at least one; of no elements every rank is 0; unknown rules are named."""
    assert rank_from_top("above 0.29", 100) == 29
    assert rank_from_top("above 0.29", 3) == 0
    assert rank_from_top("top 0.29 0.57", 100) == 86
    assert rank_from_top("top 0.01 0.01", 3) == 1
    assert rank_from_top("top 0.6 0.6", 10) == 10
    assert [rank_from_top(r, 0) for r in ("top 0.5", "quantile 0.5", "mirrored low 0.5")] == [0, 0, 0]
    with pytest.raises(ValueError, match=r"'middle 0\.5' names no rank: the rules are top, above"):
        rank_from_top("middle 0.5", 9)
    with pytest.raises(ValueError, match=r"1\.5 must be from 0 to 1"):
        rank_from_top("low 1.5", 9)


# -- masks and quantiles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@given(x=tensors(), above=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]), density=fractions, workers=st.integers(1, 3))
@examples(25)
def test_an_interval_is_that_of_a_sort(backend: str, x: Array, above: float, density: float, workers: int):
    """Exactly the ranks (floor(above n), floor(above n) + floor(density n)] in canonical order, however many elements are equal."""
    got = masked(x, lambda x: order.middle(x, above, density), backend, workers=workers)
    first = floor(Fraction(repr(above)) * x.size)
    count = max(1, floor(Fraction(repr(density)) * x.size))
    wanted = np.zeros(x.size, bool)
    wanted[canonical(x)[first : first + count]] = True
    assert (got.reshape(-1) == wanted).all()


@given(parts=st.lists(tensors(8, 9), min_size=2, max_size=4), above=st.sampled_from([0.0, 0.01, 0.1]), density=fractions)
@examples(15)
def test_an_interval_over_a_model(parts: list[Array], above: float, density: float):
    """Over all tensors together: ties go by name, then by place."""
    outputs = {f"t{i}": {"x": x} for i, x in enumerate(parts)}
    found = evaluate(outputs, lambda x: al.where(order.middle(x, above, density, scope="m"), 1.0, 0.0), backend="torch")
    got = np.concatenate([found[name].reshape(-1) for name in sorted(outputs)])
    flat = np.concatenate([x.reshape(-1) for x in parts])
    wanted = np.zeros(flat.size, bool)
    first = floor(Fraction(repr(above)) * flat.size)
    wanted[canonical(flat)[first : first + max(1, floor(Fraction(repr(density)) * flat.size))]] = True
    assert (got == wanted).all()


RANKS = ("quantile 1/4", "quantile 1/2", "low 0.1", "high 0.1", "top 0.3")


@pytest.mark.parametrize(("backend", "ranks"), [("torch", RANKS), ("numba", RANKS[:1])])
@given(x=tensors(), signed=st.booleans())
@examples(20)
def test_quantiles_are_elements_of_a_sort(backend: str, ranks: tuple[str, ...], x: Array, signed: bool):
    """At any rank, of magnitudes or of signed values: the very element."""
    ordered = np.sort(x if signed else np.abs(x), axis=None)
    for rank in ranks:
        got = evaluate({"w": {"x": x}}, lambda x, rank=rank: 0.0 * x + order.quantile(x, rank, signed=signed), backend=backend)["w"]
        assert (got == ordered[x.size - rank_from_top(rank, x.size)]).all()


@given(x=tensors())
@examples(15)
def test_several_quantiles_at_once(x: Array):
    """Three ranks of one tensor, counted in one pass, do not disturb one another."""

    def build(x: LazyTensor) -> LazyTensor:
        low, middle, high = (order.quantile(x, f"quantile {q}") for q in ("1/4", "1/2", "3/4"))
        return 0.0 * x + (100.0 * low + 10.0 * middle + high)

    x = np.round(np.clip(x, -8, 8))
    low, middle, high = (np.sort(np.abs(x), axis=None)[floor(q * (x.size - 1))] for q in (0.25, 0.5, 0.75))
    assert (evaluate({"w": {"x": x}}, build, backend="torch")["w"] == 100 * low + 10 * middle + high).all()


@pytest.mark.parametrize("backend", BACKENDS)
@given(x=tensors(), density=st.sampled_from([0.01, 0.3, 0.5, 0.9]))
@examples(20)
def test_a_rank_among_the_nonzero(backend: str, x: Array, density: float):
    """floor(density m) of the m elements that are not zero, at least one where there is one, counted in the same pass."""

    def build(x: LazyTensor) -> LazyTensor:
        return order.top(x, density, among=al.sum_all(al.differs(x, 0.0)))

    got = masked(x, build, backend).reshape(-1)
    count = np.count_nonzero(x)
    wanted = np.zeros(x.size, bool)
    wanted[canonical(x)[: max(floor(Fraction(repr(density)) * count), min(count, 1))]] = True
    assert (got == wanted).all()


@examples(10)
@given(x=tensors(), y=tensors(), density=fractions.filter(lambda d: d < 1), backend=st.sampled_from(BACKENDS))
def test_a_rank_among_some_of_a_whole_model(x: Array, y: Array, density: float, backend: str):
    """Of a model-wide rank each tensor counts as many elements as it says: the top part of those that are not zero, over both tensors."""

    def build(x: LazyTensor) -> LazyTensor:
        return al.where(order.top(x, density, scope="m", among=al.sum_all(al.differs(x, 0.0))), 1.0, 0.0)

    found = evaluate({"a": {"x": x}, "b": {"x": y}}, build, backend=backend)
    got = np.concatenate([found["a"].ravel(), found["b"].ravel()]).astype(bool)
    both = np.concatenate([x.ravel(), y.ravel()])
    count = np.count_nonzero(both)
    wanted = np.zeros(both.size, bool)
    wanted[canonical(both)[: max(floor(Fraction(repr(density)) * count), min(count, 1))]] = True
    assert (got == wanted).all()


# -- rows and columns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@given(x=tensors())
@examples(10)
def test_ranks_in_a_row_from_the_top(backend: str, x: Array):
    """0 for the largest magnitude of a row; of equal ones the first column comes first."""
    got = evaluate({"w": {"x": x}}, lambda x: 1.0 * al.row_rank_from_top(x) + 0.0 * x, backend=backend)["w"]
    wanted = np.empty(x.shape)
    for row, values in enumerate(x):
        wanted[row, canonical(values)] = np.arange(values.size)
    assert (got == wanted).all()


@pytest.mark.parametrize("backend", BACKENDS)
@given(x=tensors())
@examples(10)
def test_largest_elements(backend: str, x: Array):
    """Of each row and of all, with their signs: negative where all are."""
    found = evaluate({"w": {"x": x}}, lambda x: 0.0 * x + al.row_largest(x), backend=backend)["w"]
    assert (found == x.max(axis=1, keepdims=True)).all()
    found = evaluate({"w": {"x": x}}, lambda x: 0.0 * x + al.largest(x), backend=backend)["w"]
    assert (found == x.max()).all()


@given(parts=st.lists(tensors(5, 6), min_size=2, max_size=3))
@examples(5)
def test_largest_element_of_a_model(parts: list[Array]):
    """Over all tensors that name the statistic."""
    found = evaluate({f"t{i}": {"x": x} for i, x in enumerate(parts)}, lambda x: 0.0 * x + al.largest(x, "m"), backend="torch")
    assert {float(t.flat[0]) for t in found.values()} == {float(max(x.max() for x in parts))}


@pytest.mark.parametrize("shape", [(37, 5), (3, 130), (1, 9), (9, 1), (12,), (6, 2, 3, 1)])
def test_columns_and_rows_as_vectors(shape: tuple[int, ...]):
    """Inner products by columns and by rows, gathered and spread again: whole numbers come out exactly, over any number of blocks, workers and backends."""
    rng = np.random.default_rng(1)
    x, y = (rng.integers(-50, 50, shape).astype(np.float32) for _ in range(2))
    flat = (x * y).reshape(shape[0] if len(shape) > 1 else 1, -1)
    by_column = np.broadcast_to(flat.sum(0), flat.shape).reshape(shape)
    by_row = np.broadcast_to(flat.sum(1, keepdims=True), flat.shape).reshape(shape)
    for backend in BACKENDS:
        for workers in (1, 3):

            def spread(x: LazyTensor, y: LazyTensor) -> LazyTensor:
                return columns.by_column(columns.column_dot(x, y, "output"), x, "output")

            def rows(x: LazyTensor, y: LazyTensor) -> LazyTensor:
                return columns.by_row(columns.row_values(al.row_dot(x, y, "output")), x, "output")

            leaves = {"w": {"x": x, "y": y}}
            assert (evaluate(leaves, spread, backend=backend, workers=workers)["w"] == by_column).all()
            assert (evaluate(leaves, rows, backend=backend, workers=workers)["w"] == by_row).all()


def test_column_sums_are_the_same_bits_everywhere():
    """Rows are added one after the other and blocks in order, whatever runs them."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((200, 70)).astype(np.float32)

    def build(x: LazyTensor) -> LazyTensor:
        return columns.by_column(columns.column_dot(x, x), x)

    found = {evaluate({"w": {"x": x}}, build, backend=b, workers=w)["w"].tobytes() for b in BACKENDS for w in (1, 2, 4)}
    assert len(found) == 1
    got = np.frombuffer(next(iter(found)), np.float32).reshape(x.shape)[0]
    np.testing.assert_allclose(got, (x.astype(np.float64) ** 2).sum(0), rtol=2.0**-24)


def test_only_row_values_are_gathered():
    """A tensor is no row value."""
    from plait.ops.tensor import load

    with pytest.raises(ValueError, match="one value a row"):
        columns.row_values(load(("x",), (3, 4), "F32"))
    with pytest.raises(ValueError, match="exp is there for tensor values, not for row values"):
        al.exp(al.row_sum(load(("x",), (3, 4), "F32")))
