"""Angles from elementary operations are those of the library, to rounding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from plait.ops.angles import arccos, sine_and_versine
from plait.ops.columns import column_dot
from plait.ops.op import OPS
from plait.ops.tensor import LazyTensor, load
from plait.planner.program import topological


def vector() -> LazyTensor:
    """A small value that stands for any number of angles or cosines."""
    leaf = load(("f", "x", 0, 0), (1, 9), "F32")
    return column_dot(leaf, leaf)


def evaluate(root: LazyTensor, at: LazyTensor, values: Any) -> Any:
    """The value of a small expression, op by op in NumPy."""
    found: dict[LazyTensor, Any] = {at: values}
    for node in topological(root):
        if node.op.name == "const":
            found[node] = np.float64(node.param("value"))
        elif node not in found and node.space == "small":
            function = OPS[node.op.name].arrays
            assert function is not None
            with np.errstate(all="ignore"):
                found[node] = function(np, *(found[i] for i in node.inputs))
    return found[root]


def test_arccos():
    """Within 2e-15 over the whole range, its ends and what lies a rounding beyond them."""
    x = vector()
    near = 10.0 ** -np.arange(1, 17)
    cosines = np.concatenate([np.linspace(-1, 1, 1001), 1 - near, near - 1, [1 + 1e-15, -1 - 1e-15]])
    assert np.abs(evaluate(arccos(x), x, cosines) - np.arccos(np.clip(cosines, -1, 1))).max() < 2e-15


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.5, 1.0, -2.5, 40.0])
def test_sine_and_versine(factor: float):
    """Within 2e-15 times the largest angle; at 0 both are exactly 0."""
    x = vector()
    angles = np.linspace(0, math.pi, 301)
    sine, versine = (evaluate(node, x, angles) for node in sine_and_versine(x, factor))
    assert np.abs(sine - np.sin(factor * angles)).max() < 2e-15 * max(1.0, abs(factor))
    assert np.abs(versine - (1 - np.cos(factor * angles))).max() < 2e-15 * max(1.0, abs(factor))
    assert sine[0] == versine[0] == 0
