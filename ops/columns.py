"""Statistics along columns and rows as vectors, and vectors spread over the elements of a tensor again.

What a vector becomes in between (ranks, a softmax over experts) is the work of a `solver`, on the host.
"""

from __future__ import annotations

from plait.ops.algebra import row_length, take
from plait.ops.op import COLUMN, COLUMN_DOT, ROW, ROW_VALUES, Op
from plait.ops.tensor import LazyTensor


def row_values(x: LazyTensor) -> LazyTensor:
    """The values of all rows as one small vector, one a row."""
    if x.space != "row":
        raise ValueError("row_values gathers one value a row")
    return LazyTensor(ROW_VALUES, (x,), (("row_length", _length_of_rows(x)),), shape=(x.shape[0],), dtype="float64", space="small")


def _length_of_rows(x: LazyTensor) -> int:
    """Row length that a row's value was folded over."""
    found = x.param("row_length")
    return int(found) if found is not None else next(_length_of_rows(i) for i in x.inputs if i.space == "row")


def column_dot(x: LazyTensor, y: LazyTensor, rows: str = "last") -> LazyTensor:
    """Inner product of matching columns as a small vector: sum over the rows of x * y, in float64, one a column.

    Rows are as for `row_sum`, so that with `rows` "output" the columns of a convolution are its flattened inputs. A vector is one row.
    """
    length = row_length(x.shape, rows)
    return LazyTensor(COLUMN_DOT, (x, y), (("row_length", length),), shape=(length,), dtype="float64", space="small")


def by_column(vector: LazyTensor, like: LazyTensor, rows: str = "last") -> LazyTensor:
    """A small vector of one value a column, spread over a tensor of the shape of `like`."""
    return _spread(COLUMN, vector, like, rows)


def by_row(vector: LazyTensor, like: LazyTensor, rows: str = "last") -> LazyTensor:
    """A small vector of one value a row, spread over a tensor of the shape of `like`."""
    return _spread(ROW, vector, like, rows)


def _spread(place: Op, vector: LazyTensor, like: LazyTensor, rows: str) -> LazyTensor:
    index = LazyTensor(place, (), (("row_length", row_length(like.shape, rows)),), shape=like.shape, dtype="int32", space="tensor")
    return take(vector, index)
