"""NuSLERP: spherical interpolation of two models, of a whole tensor or of each of its rows or columns."""

from __future__ import annotations

from typing import Any

from plait.ops.algebra import dot, maximum, row_dot, solve, solver, sqrt, where
from plait.ops.angles import arccos, sine_and_versine
from plait.ops.columns import by_column, column_dot
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, method
from plait.ops.methods.parameters import WEIGHT
from plait.ops.tensor import LazyTensor


@method(
    "nuslerp",
    family="geometry",
    base="optional",
    experts=(2, 2),
    source="mergekit; Shoemake 1985",
    kinds=("fold", "rows", "map"),
    params=(
        WEIGHT,
        Param(
            "axis",
            str,
            "What is turned: the whole tensor (flatten), each vector along the last axis (in), or each along the first (out).",
            choices=("flatten", "in", "out"),
            gradient=False,
        ),
        Param("nuslerp_flatten", bool, "mergekit's name for `axis: flatten`; ignored where `axis` is given.", default=True),
        Param("nuslerp_row_wise", bool, "mergekit's name for `axis: out` (true) or `in` (false), where `nuslerp_flatten` is false.", default=False),
    ),
)
def nuslerp(
    t_in: MergeInputs, *, weight: tuple[float, ...], axis: str | None = None, nuslerp_flatten: bool = True, nuslerp_row_wise: bool = False
) -> LazyTensor:
    """Spherical interpolation of two models, or of their task vectors where there is a base.

    x = [sin((1-t) w) x_1 + sin(t w) x_2] / sin w with t = w_2 / (w_1 + w_2) and w the angle between x_1 and x_2; linear where they are
    parallel. With a base, x_i = theta_i - theta_0 and theta = theta_0 + x.
    """
    share = weight[0] + weight[1]
    t = 0.5 if abs(share) < 1e-6 else weight[1] / share
    if t in (0.0, 1.0):
        return t_in.experts[int(t)]
    axis = axis or ("flatten" if nuslerp_flatten else "out" if nuslerp_row_wise else "in")
    a, b = t_in.vectors
    first, second = _rows(a, b, t) if axis == "in" else _columns(a, b, t) if axis == "out" and len(t_in.shape) > 1 else _whole(a, b, t)
    return t_in.add(first * a + second * b)


def _rows(a: LazyTensor, b: LazyTensor, t: float) -> tuple[LazyTensor, LazyTensor]:
    """The two factors of every row, worked out row by row in the pass that uses them."""
    norms = [maximum(sqrt(row_dot(x, x)), 1e-7) for x in (a, b)]
    angle = arccos(row_dot(a, b) / (norms[0] * norms[1]))
    sine, _ = sine_and_versine(angle)
    flat = sine < 1e-8
    first, second = (where(flat, part, sine_and_versine(angle, part)[0] / where(flat, 1.0, sine)) for part in (1.0 - t, t))
    return first, second


@solver
def nuslerp_factor(aa: Any, ab: Any, bb: Any, *, part: float) -> Any:
    """sin(part w) / sin w of one pair of vectors or of many; `part` itself where they are parallel."""
    import numpy as np

    cosine = np.clip(ab / (np.maximum(np.sqrt(aa), 1e-7) * np.maximum(np.sqrt(bb), 1e-7)), -1.0, 1.0)
    angle = np.arccos(cosine)
    sine = np.sin(angle)
    flat = np.abs(sine) < 1e-8
    return np.where(flat, part, np.sin(part * angle) / np.where(flat, 1.0, sine))


def _whole(a: LazyTensor, b: LazyTensor, t: float) -> tuple[LazyTensor, LazyTensor]:
    products = (dot(a, a), dot(a, b), dot(b, b))
    return solve("nuslerp_factor", *products, part=1.0 - t), solve("nuslerp_factor", *products, part=t)


def _columns(a: LazyTensor, b: LazyTensor, t: float) -> tuple[LazyTensor, LazyTensor]:
    products = (column_dot(a, a, "output"), column_dot(a, b, "output"), column_dot(b, b, "output"))
    first, second = (by_column(solve("nuslerp_factor", *products, shape=products[0].shape, part=part), a, "output") for part in (1.0 - t, t))
    return first, second
