"""NuSLERP, Multi-SLERP and the Karcher mean: their invariants, against plain float64 formulas, and what is degenerate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.ops.methods.nuslerp import nuslerp_factor
from plait.ops.methods.spherical import karcher_coefficients, multislerp_coefficients
from support.merging import CLOSE, F64, build, inputs, normal, run


def turned(a: F64, b: F64, t: float, axis: Any) -> F64:
    """Spherical interpolation of vectors along an axis."""
    keep = axis is not None
    norm = [np.sqrt((x * x).sum(axis, keepdims=keep)) for x in (a, b)]
    angle = np.arccos(np.clip((a * b).sum(axis, keepdims=keep) / (norm[0] * norm[1]), -1, 1))
    return np.asarray((np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle))


@pytest.mark.parametrize(("axis", "over"), [("flatten", None), ("in", -1), ("out", 0)])
@pytest.mark.parametrize("shape", [(7, 5), (1, 6), (6, 1), (3, 4, 2, 2)])
def test_nuslerp_turns_tensors_rows_or_columns(axis: str, over: Any, shape: tuple[int, ...]):
    """As numpy does it, of the task vectors too; weights count by their share."""
    a, b = normal(1, *shape), normal(2, *shape)
    if (over == -1 and shape[-1] == 1) or (over == 0 and shape[0] == 1):
        a, b = np.abs(a), np.abs(b)  # vectors of one number are parallel: interpolated linearly
        wanted = 0.7 * a + 0.3 * b
    else:
        wanted = turned(a, b, 0.3, over)
    got = run("nuslerp", np.zeros(shape), [a, b], weight=(1.4, 0.6), axis=axis)
    assert np.abs(got - wanted).max() <= 4 * CLOSE * np.abs(wanted).max()


@pytest.mark.parametrize("names", [{"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}, {}])
def test_mergekits_names_of_the_axes(names: dict[str, bool]):
    """flatten, then row_wise false for rows along the last axis and true for the first: the same expression as by axis."""
    axis = "flatten" if not names else "out" if "nuslerp_row_wise" in names else "in"
    t = inputs(2)
    assert build("nuslerp", t, weight=(1.0, 2.0), **names) is build("nuslerp", t, weight=(1.0, 2.0), axis=axis)


def test_nuslerp_at_its_ends_is_a_model():
    """A weight of 0 leaves the other model, which is copied; weights that cancel count as equal."""
    t = inputs(2)
    assert build("nuslerp", t, weight=(1.0, 0.0)) is t.experts[0]
    assert build("nuslerp", t, weight=(0.0, 0.4)) is t.experts[1]
    assert build("nuslerp", t, weight=(1.0, -1.0)) is build("nuslerp", t, weight=(1.0, 1.0))


def test_nuslerp_of_parallel_and_zero_vectors_is_linear():
    """No angle, no division: the shares themselves."""
    for products in ((1.0, 1.0, 1.0), (0.0, 0.0, 4.0), (0.0, 0.0, 0.0), (4.0, -4.0, 4.0)):
        factors = [nuslerp_factor(*map(np.float64, products), part=part) for part in (0.7, 0.3)]
        assert np.allclose(factors, [0.7, 0.3]) or products[0] == 0.0, "to a zero vector there is a right angle, as in mergekit"
        assert np.isfinite(factors).all()
    rows = np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 1.0]])
    for axis in ("in", "out", "flatten"):
        assert np.allclose(run("nuslerp", np.zeros((3, 2)), [rows, rows], weight=(1.0, 3.0), axis=axis), rows, rtol=CLOSE)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(2, 5))
def test_multislerp_has_the_mean_norm_and_the_mean_direction(seed: int, count: int):
    """|x| = sum_i w_i |x_i|, along the weighted mean of the unit vectors."""
    rng = np.random.default_rng(seed)
    xs, weight = rng.standard_normal((count, 6)), rng.uniform(0.1, 1.0, count)
    got = multislerp_coefficients(xs @ xs.T, weight=tuple(weight), eps=1e-12) @ xs
    norms = np.linalg.norm(xs, axis=1)
    towards = (weight[:, None] * xs / norms[:, None]).sum(0)
    assert np.isclose(np.linalg.norm(got), weight @ norms)
    assert np.isclose(got @ towards, np.linalg.norm(got) * np.linalg.norm(towards))


def test_multislerp_of_what_cancels_out():
    """Opposed directions have no mean: the weighted sum; zero tensors are zero; weights that sum to zero are refused with what to do."""
    opposed = np.array([[4.0, -2.0], [-2.0, 1.0]])
    assert multislerp_coefficients(opposed, weight=(0.5, 0.5), eps=1e-8).tolist() == [0.5, 0.5]
    assert multislerp_coefficients(np.zeros((3, 3)), weight=(0.5, 0.3, 0.2), eps=1e-8).tolist() == [0, 0, 0]
    three = np.outer([1.0, -2.0, -3.0], [1.0, -2.0, -3.0])
    assert multislerp_coefficients(three, weight=(0.5, 0.3, 0.2), eps=1e-8).tolist() == [0.5, 0.3, 0.2]
    with pytest.raises(ValueError, match=r"sum to zero.*normalize_weights: false"):
        build("multislerp", inputs(2), weight=(1.0, -1.0))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(2, 5), scale=st.floats(0.5, 4.0))
def test_karcher_is_the_mean_on_the_sphere(seed: int, count: int, scale: float):
    """At the mean the pulls of all models cancel; its norm is the mean norm; scaling a model scales the result alone."""
    rng = np.random.default_rng(seed)
    xs = rng.standard_normal((count, 8)) + 2.0
    weight = tuple(rng.uniform(0.2, 1.0, count))
    norms, alpha = np.linalg.norm(xs, axis=1), np.array(weight) / sum(weight)
    mean = karcher_coefficients(xs @ xs.T, weight=weight, max_iter=50, tol=1e-12) @ xs
    assert np.isclose(np.linalg.norm(mean), alpha @ norms)
    u = mean / np.linalg.norm(mean)
    units = xs / norms[:, None]
    angles = np.arccos(np.clip(units @ u, -1, 1))
    pull = (alpha * angles / np.sin(angles))[:, None] * (units - np.cos(angles)[:, None] * u)
    assert np.linalg.norm(pull.sum(0)) < 1e-8
    stretched = xs.copy()
    stretched[0] *= scale
    other = karcher_coefficients(stretched @ stretched.T, weight=weight, max_iter=50, tol=1e-12) @ stretched
    assert np.allclose(other / np.linalg.norm(other), u, atol=1e-8)


def test_karcher_of_two_is_halfway_between_them():
    """The direction of slerp at one half, and the mean of the norms."""
    xs = np.array([[3.0, 0.0], [0.0, 5.0]])
    got = karcher_coefficients(xs @ xs.T, weight=(1.0, 1.0), max_iter=10, tol=1e-9) @ xs
    assert np.allclose(got, [4 / 2**0.5] * 2)


def test_karcher_of_the_degenerate():
    """Zero tensors lower the norm but not the direction; opposed models leave one direction; nothing is nothing; no weight is refused."""
    assert karcher_coefficients(np.diag([4.0, 0.0]), weight=(1.0, 1.0), max_iter=10, tol=1e-5).tolist() == [0.5, 0.0]
    opposed = karcher_coefficients(np.array([[1.0, -1.0], [-1.0, 1.0]]), weight=(1.0, 1.0), max_iter=10, tol=1e-5)
    assert opposed.tolist() == [1.0, 0.0]
    assert karcher_coefficients(np.zeros((2, 2)), weight=(1.0, 1.0), max_iter=10, tol=1e-5).tolist() == [0, 0]
    with pytest.raises(ValueError, match="every weight is 0"):
        build("karcher", inputs(2), weight=(0.0, 0.0), task_vectors=True)


def test_a_base_of_karcher_is_a_model_unless_task_vectors_are_asked_for():
    """As in mergekit it counts as one more; weights then need task_vectors, and task_vectors need a base."""
    base, a, b = normal(1, 9), normal(2, 9), normal(3, 9)
    wanted = run("karcher", np.zeros(9), [a, b, base], task_vectors=True)
    assert np.allclose(run("karcher", base, [a, b]), wanted, rtol=8 * CLOSE, atol=CLOSE)
    with pytest.raises(ValueError, match="task_vectors: true"):
        build("karcher", inputs(2), weight=(1.0, 2.0))
    with pytest.raises(ValueError, match="give base_model"):
        build("karcher", inputs(2, base=False), task_vectors=True)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_by_the_mean_angle(filter_wise: bool):
    """Two experts have one angle: its cosine is what the mean of cosines is; three experts at 0, 60 and 60 degrees differ."""
    base, experts = np.zeros((2, 4)), [normal(1, 2, 4), normal(2, 2, 4)]
    by_cosine, by_angle = (run("model_stock", base, experts, filter_wise=filter_wise, angle_mean=m) for m in ("cos", "angle"))
    assert np.allclose(by_cosine, by_angle, rtol=8 * CLOSE, atol=CLOSE)
    x = np.array([[1.0, 0.0]])
    y = np.array([[0.5, 0.75**0.5]])
    got = run("model_stock", np.zeros((1, 2)), [x, x, y], filter_wise=filter_wise, angle_mean="angle")
    c = np.cos(np.radians(40))
    assert np.allclose(got, 3 * c / (1 + 2 * c) * (2 * x + y) / 3, rtol=8 * CLOSE)
