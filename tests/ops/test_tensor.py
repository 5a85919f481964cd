"""The algebra: equal expressions are one object, different ones have different keys, nothing can be changed afterwards."""

from __future__ import annotations

import gc
import itertools
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.ops import algebra as al
from plait.ops import order, tensor
from plait.ops.tensor import LazyTensor, const, elementwise, load, value_of

SOURCE = ("file", "name", 0, 48)


def leaf(name: str = "x", shape: tuple[int, ...] = (4, 3), storage: str = "F32") -> LazyTensor:
    return load(("file", name, 0, 0), shape, storage)


BINARY = ("+", "-", "*", "/", ">", ">=", "<", "<=")


def expressions() -> st.SearchStrategy[str]:
    """Python texts of expressions over the tensors a and b and the numbers 2 and 0.5."""
    atoms = st.sampled_from(["a", "b", "a", "b", "2.0", "0.5"])
    return st.recursive(atoms, lambda e: st.builds("({} {} {})".format, e, st.sampled_from(BINARY[:4]), e) | e.map("abs(-a * {})".format), max_leaves=8)


@given(expressions())
def test_the_same_expression_built_twice_is_one_object(text: str):
    """Evaluating a text twice gives the same node, not an equal one."""
    names = {"a": leaf("a"), "b": leaf("b")}
    try:
        first, second = eval(text, {}, names), eval(text, {}, names)
    except ZeroDivisionError:  # of numbers alone: Python's own
        return
    assert first is second or not isinstance(first, LazyTensor)


def test_keys_differ_where_anything_differs():
    """Op, operands and their order, every parameter, shape, source and storage are all part of the key."""
    a, b = leaf("a"), leaf("b")
    nodes = [
        a,
        b,
        leaf("a", (3, 4)),
        leaf("a", (4, 3), "BF16"),
        load(("other", "a", 0, 0), (4, 3), "F32"),
        load(("file", "a", 8, 0), (4, 3), "F32"),
        a + b,
        b + a,
        a - b,
        a * b,
        a * 2.0,
        2.0 * a,
        a * 3.0,
        a / 2.0,
        a > b,
        a >= b,
        a < b,
        -a,
        abs(a),
        al.cast(a, "BF16"),
        al.cast(a, "F16"),
        al.sum_all(a),
        al.sum_all(a, "all"),
        al.dot(a, b),
        al.gram([a, b]),
        al.row_sum(a),
        al.row_max(a),
        al.row_dot(a, b),
        al.row_rank(a),
        al.polar(a),
        al.polar(a, "full"),
        order.top(a, 0.5),
        order.top(a, 0.25),
        order.top(a, 0.5, ties="all"),
        order.top(a, 0.5, scope="m"),
        *(al.random_bits(a, seed, purpose, label, draw) for seed, purpose, label, draw in itertools.product((0, 1), ("p", "q"), ("m", "n"), (0, 1))),
        const(0.0),
        const(-0.0),
        const(1.0),
    ]
    assert len({n.key for n in nodes}) == len(nodes)
    assert len(set(nodes)) == len(nodes)


def test_rows_of_a_convolution_are_two_things():
    """Rows along the last axis and rows of an output channel differ for a convolution and agree for a matrix."""
    conv, matrix = leaf("c", (4, 3, 2, 2)), leaf("m", (4, 3))
    assert al.row_sum(conv, "last").shape == (24, 1)
    assert al.row_sum(conv, "output").shape == (4, 1)
    assert al.row_sum(conv, "last") is not al.row_sum(conv, "output")
    assert al.row_sum(matrix, "last") is al.row_sum(matrix, "output")
    assert [al.row_length(s, "last") for s in ((), (5,), (4, 3), (4, 3, 2))] == [1, 5, 3, 2]
    assert [al.row_length(s, "output") for s in ((), (5,), (4, 3), (4, 3, 2))] == [1, 5, 3, 6]


@pytest.mark.parametrize("name", ["shape", "key", "inputs", "op", "extra"])
def test_a_node_cannot_be_changed(name: str):
    """Setting any attribute, known or not, raises."""
    with pytest.raises(AttributeError, match="immutable"):
        setattr(leaf(), name, ())


def test_a_node_stays_in_its_process():
    """Pickling is refused with what to do instead: its identity would be lost."""
    with pytest.raises(TypeError, match="send the plan"):
        pickle.dumps(leaf())


def test_nodes_nobody_holds_are_forgotten():
    """The table of known nodes does not keep them alive."""
    node = leaf("a-name-of-its-own") * 0.125
    key = node.key
    assert key in tensor._NODES
    del node
    gc.collect()
    assert key not in tensor._NODES


@pytest.mark.parametrize("make", [lambda a, b: a + b, lambda a, b: a > b, lambda a, b: al.where(a > 0.0, a, b), al.maximum])
def test_tensors_of_different_shapes_do_not_mix(make: Any):
    """The sentence names both shapes."""
    with pytest.raises(ValueError, match=r"\[3, 4\] and \[4, 3\]"):
        make(leaf("a", (4, 3)), leaf("b", (3, 4)))


def test_row_and_small_values_broadcast():
    """A number and a value a row join with a tensor; with each other they stay small and in float64."""
    x = leaf()
    small, row = al.sum_all(x), al.row_sum(x)
    assert ((x * small).space, (x * row).space, (row * small).space, (small * 2.0).space) == ("tensor", "tensor", "row", "small")
    assert ((x * row).dtype, (row * small).dtype, small.dtype, (x > 0.0).dtype) == ("float32", "float64", "float64", "bool")
    assert ((x * row).shape, (row * small).shape) == ((4, 3), (4, 1))


def test_what_changes_no_bit_is_left_out():
    """x * 1, 1 * x and x / 1 are x; numbers are folded; a sum of one and a mean of one are the thing itself."""
    x = leaf()
    assert x * 1.0 is x
    assert 1.0 * x is x
    assert x / 1.0 is x
    assert al.total([x]) is x
    assert al.mean([x]) is x
    assert al.weighted_sum([x], [1.0]) is x
    assert value_of(const(2.0) * 3.0 + 1.0) == 7.0
    assert x + 0.0 is not x, "-0.0 + 0.0 is +0.0: leaving it out would change a bit"


def test_weights_of_zero_leave_the_tensor_out():
    """A weighted sum does not mention a tensor whose weight is 0, and is None when nothing is left."""
    a, b = leaf("a"), leaf("b")
    assert al.weighted_sum([a, b], [0.0, 0.5]) is b * 0.5
    assert al.weighted_sum([a, b], [0.0, 0.0]) is None
    with pytest.raises(ValueError, match="zip"):
        al.weighted_sum([a, b], [1.0])


def test_casts_that_do_nothing_are_left_out():
    """A stored tensor cast to its own dtype, a cast done twice and a cast to float32 are no new node."""
    x = leaf("h", storage="BF16")
    assert al.cast(x, "BF16") is x
    assert al.cast(x, "F32") is x
    rounded = al.cast(x * 0.3, "F16")
    assert rounded is not x * 0.3
    assert al.cast(rounded, "F16") is rounded


def test_components_of_small_vectors():
    """Indexing works on small vectors within their length, and on nothing else."""
    pair = al.info(al.polar(leaf()))
    assert pair[0] is not pair[1]
    assert pair[0].shape == ()
    for bad in (lambda: pair[2], lambda: pair[-1], lambda: leaf()[0], lambda: al.sum_all(leaf())[0]):
        with pytest.raises(IndexError, match="component"):
            bad()


def test_a_gram_matrix_computes_each_product_once():
    """Both halves hold the same node."""
    entries = al.gram([leaf("a"), leaf("b"), leaf("c")]).inputs
    assert len(entries) == 9
    assert len(set(entries)) == 6
    assert all(entries[3 * i + j] is entries[3 * j + i] for i in range(3) for j in range(3))


def test_unknown_solvers_and_ops_are_refused():
    """Neither a solver nor an op can be used before it is declared."""
    with pytest.raises(ValueError, match="no solver called 'nobody'"):
        al.solve("nobody")
    with pytest.raises(KeyError):
        elementwise("nothing", leaf())


def test_a_node_tells_what_it_is():
    """repr names op, dtype, shape and parameters."""
    assert repr(al.cast(leaf() * 0.3, "F16")) == "LazyTensor(cast, float32[4, 3], storage='F16')"
