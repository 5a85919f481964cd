"""Functions over lazy tensors: the words that merge methods are written in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

from plait.ops.op import DOT, INFO, LARGEST, LATER, OPS, PACK, POLAR, RANDOM, ROW_DOT, ROW_LARGEST, ROW_MAX, ROW_RANK, ROW_SUM, SOLVE, SUM
from plait.ops.tensor import LazyTensor, Operand, Space, const, elementwise, value_of

#: Functions of small float64 arrays that run on the host between passes, by name.
SOLVERS: dict[str, Callable[..., Any]] = {}


# -- maps ---------------------------------------------------------------------------------------
def total(xs: Sequence[LazyTensor]) -> LazyTensor:
    """Sum of tensors, added in order."""
    return reduce(add, xs)


def mean(xs: Sequence[LazyTensor]) -> LazyTensor:
    """Arithmetic mean of tensors."""
    return total(xs) / len(xs)


def scaled(factor: float, x: LazyTensor) -> LazyTensor:
    """factor * x, kept where the factor is 1: one kernel then serves every lambda of a sweep."""
    return elementwise("mul", factor, x)


def weighted_sum(xs: Sequence[LazyTensor], weights: Sequence[Operand]) -> LazyTensor | None:
    """Sum of `weight * x` in order; a tensor of weight 0 is left out and so never read. None when every weight is 0."""
    terms = [x * w for x, w in zip(xs, weights, strict=True) if value_of(w) != 0.0]
    return total(terms) if terms else None


def where(condition: LazyTensor, a: Operand, b: Operand) -> LazyTensor:
    """`a` where the condition holds, else `b`."""
    return elementwise("where", condition, a, b)


def equal(a: Operand, b: Operand) -> LazyTensor:
    """Elementwise a == b."""
    return elementwise("eq", a, b)


def differs(a: Operand, b: Operand) -> LazyTensor:
    """Elementwise a != b."""
    return elementwise("ne", a, b)


def sign(x: LazyTensor) -> LazyTensor:
    """-1, 0 or 1."""
    return elementwise("sign", x)


def maximum(a: Operand, b: Operand) -> LazyTensor:
    """The larger; NaN where either is."""
    return elementwise("maximum", a, b)


def minimum(a: Operand, b: Operand) -> LazyTensor:
    """The smaller; NaN where either is."""
    return elementwise("minimum", a, b)


def sqrt(x: LazyTensor) -> LazyTensor:
    """Square root."""
    return elementwise("sqrt", x)


def exp(x: LazyTensor) -> LazyTensor:
    """e to the x in float32, the same bits on every backend (`plait.ops.kernels.elementary`)."""
    return _of_space("exp", x, "tensor")


def tanh(x: LazyTensor) -> LazyTensor:
    """Hyperbolic tangent in float32, the same bits on every backend."""
    return _of_space("tanh", x, "tensor")


def log(x: LazyTensor) -> LazyTensor:
    """Natural logarithm of a row's or a small value, in float64."""
    return _of_space("log", x, "row", "small")


def _of_space(name: str, x: LazyTensor, *spaces: str) -> LazyTensor:
    if x.space not in spaces:
        raise ValueError(f"{name} is there for {' and '.join(spaces)} values, not for {x.space} values")
    return elementwise(name, x)


def cast(x: LazyTensor, storage: str) -> LazyTensor:
    """Round to a storage float (`BF16`, `F16`, `F32`), to nearest even."""
    if x.op.name == "load" and x.param("storage") == storage:
        return x
    if storage == "F32" or (x.op.name == "cast" and x.param("storage") == storage):
        return x
    return LazyTensor(OPS["cast"], (x,), (("storage", storage),), shape=x.shape, dtype="float32", space="tensor")


# -- folds --------------------------------------------------------------------------------------
def sum_all(x: LazyTensor, scope: str = "") -> LazyTensor:
    """Sum of all elements in float64; of a mask, how many hold.

    Args:
        x: a tensor.
        scope: empty for this tensor alone; otherwise the name of a model-wide statistic, to which every tensor of the merge that names it adds.
    """
    return LazyTensor(SUM, (x,), (("scope", scope),), shape=(), dtype="float64", space="small")


def dot(x: LazyTensor, y: LazyTensor, scope: str = "") -> LazyTensor:
    """Inner product over all elements, multiplied and added in float64."""
    return LazyTensor(DOT, (x, y), (("scope", scope),), shape=(), dtype="float64", space="small")


def gram(xs: Sequence[LazyTensor]) -> LazyTensor:
    """The K x K matrix of inner products, small, float64."""
    count = len(xs)
    upper = {(i, j): dot(xs[i], xs[j]) for i in range(count) for j in range(i, count)}
    entries = tuple(upper[min(i, j), max(i, j)] for i in range(count) for j in range(count))
    return LazyTensor(PACK, entries, shape=(count, count), dtype="float64", space="small")


def largest(x: LazyTensor, scope: str = "") -> LazyTensor:
    """The largest element; NaN where there is one. `scope` as for `sum_all`."""
    return LazyTensor(LARGEST, (x,), (("scope", scope),), shape=(), dtype="float64", space="small")


def max_abs(x: LazyTensor) -> LazyTensor:
    """The largest magnitude of all elements, small."""
    return largest(abs(x))


# -- rows ---------------------------------------------------------------------------------------
def row_length(shape: tuple[int, ...], rows: str) -> int:
    """Elements of one row: along the last axis (`last`), or of all but the first axis (`output`). A vector or scalar is one row."""
    if len(shape) < 2:
        return shape[0] if shape else 1
    if rows == "last":
        return shape[-1]
    count = 1
    for size in shape[1:]:
        count *= size
    return count


def _row_fold(op: Any, inputs: tuple[LazyTensor, ...], rows: str) -> LazyTensor:
    x = inputs[0]
    length = row_length(x.shape, rows)
    return LazyTensor(op, inputs, (("row_length", length),), shape=(x.numel // max(length, 1), 1), dtype="float64", space="row")


def row_sum(x: LazyTensor, rows: str = "last") -> LazyTensor:
    """Sum of each row, float64."""
    return _row_fold(ROW_SUM, (x,), rows)


def row_dot(x: LazyTensor, y: LazyTensor, rows: str = "last") -> LazyTensor:
    """Inner product of matching rows, float64."""
    return _row_fold(ROW_DOT, (x, y), rows)


def row_max(x: LazyTensor, rows: str = "last") -> LazyTensor:
    """Largest magnitude of each row."""
    return _row_fold(ROW_MAX, (x,), rows)


def row_largest(x: LazyTensor, rows: str = "last") -> LazyTensor:
    """Largest element of each row."""
    return _row_fold(ROW_LARGEST, (x,), rows)


def row_rank(x: LazyTensor, rows: str = "last") -> LazyTensor:
    """Rank of each element's magnitude in its row, 0 for the smallest; ties by column."""
    return LazyTensor(ROW_RANK, (x,), (("row_length", row_length(x.shape, rows)),), shape=x.shape, dtype="int32", space="tensor")


def row_rank_from_top(x: LazyTensor, rows: str = "last") -> LazyTensor:
    """Rank of each element's magnitude in its row, 0 for the largest; ties by column."""
    return row_rank(elementwise("reversed_magnitude", x), rows)


def take(table: LazyTensor, index: LazyTensor, *, integer: bool = False) -> LazyTensor:
    """`table[index]` elementwise from a small vector; `integer` where its entries are whole numbers from 0 to 2^32 - 1, to be compared as such."""
    op = OPS["take_integer" if integer else "take"]
    return LazyTensor(op, (table, index), shape=index.shape, dtype=op.result, space="tensor")


# -- randomness ---------------------------------------------------------------------------------
def random_bits(like: LazyTensor, seed: int, purpose: str, label: str, draw: int = 0) -> LazyTensor:
    """32 random bits an element, a function of (seed, purpose, label, tensor name, element index) alone.

    The tensor's name is the one `like` (an expert's stored tensor) has in its own checkpoint.
    """
    params = (("draw", draw), ("label", label), ("purpose", purpose), ("seed", seed))
    return LazyTensor(RANDOM, (like,), params, shape=like.shape, dtype="uint32", space="tensor")


def below(bits: LazyTensor, cut: Operand) -> LazyTensor:
    """bits < cut as integers: a Bernoulli mask of probability cut / 2**32."""
    return elementwise("below", bits, cut)


# -- whole and small ----------------------------------------------------------------------------
def polar(x: LazyTensor, rank_policy: str = "numerical") -> LazyTensor:
    """The polar factor P = U Vh of a matrix x; `info` gives its numerical rank and <P, x>, the sum of the singular values."""
    space: Space = "matrix" if x.space == "matrix" else "tensor"
    return LazyTensor(POLAR, (x,), (("rank_policy", rank_policy),), shape=x.shape, dtype="float32", space=space)


def info(x: LazyTensor, shape: tuple[int, ...] = (2,)) -> LazyTensor:
    """The numbers that a whole op reports beside its matrices; for `polar` two: rank, and sum of the singular values."""
    return LazyTensor(INFO, (x,), shape=shape, dtype="float64", space="small")


def later(x: LazyTensor, *than: LazyTensor) -> LazyTensor:
    """`x` itself, computed in a pass after those in which `than` (whole results, or small values) become known.

    It lets whole ops hold one expert's tensor after the other instead of all of them at once, at the price of a pass for each.
    """
    return LazyTensor(LATER, (x, *than), shape=x.shape, dtype=x.dtype, space="tensor") if than else x


def solver(function: Callable[..., Any]) -> Callable[..., Any]:
    """Declare a function of small float64 arrays as part of the algebra.

    The function gets NumPy arrays for lazy inputs and keyword parameters as they are; it runs on the host between passes.
    """
    SOLVERS[function.__name__] = function
    return function


def solve(name: str, *inputs: LazyTensor, shape: tuple[int, ...] = (), **params: Any) -> LazyTensor:
    """Apply a declared solver; `shape` is what it returns."""
    if name not in SOLVERS:
        raise ValueError(f"no solver called {name!r} is declared")
    return LazyTensor(SOLVE, inputs, (("solver", name), *sorted(params.items())), shape=shape, dtype="float64", space="small")


def number(x: float) -> LazyTensor:
    """A literal as a small scalar."""
    return const(x)
