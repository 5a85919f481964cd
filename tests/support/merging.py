"""Methods built over made-up leaves, and run over arrays through the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.ops.inputs import MergeInputs
from plait.ops.method import Method, methods, steps
from plait.ops.statistics import LayerScore
from plait.ops.tensor import LazyTensor, load
from support.evaluate import evaluate

F64 = npt.NDArray[np.float64]
CLOSE = 2.0**-22


def leaf(name: str, shape: tuple[int, ...] = (6, 4)) -> LazyTensor:
    return load(("file", name, 0, 0), shape, "BF16")


def inputs(count: int = 2, shape: tuple[int, ...] = (6, 4), name: str = "w.weight", role: str = "mlp", base: bool = True) -> MergeInputs:
    experts = tuple(leaf(f"expert{k}", shape) for k in range(count))
    given = {
        "importance": tuple(leaf(f"importance{k}", shape) for k in range(count)),
        "base_importance": tuple(leaf(f"base_importance{k}", shape) for k in range(count)),
        "sensitivity": tuple(LayerScore(0.1 + 0.2 * k, 1.0) for k in range(count)),
    }
    return MergeInputs(leaf("base", shape) if base else None, experts, tuple(f"expert{k}" for k in range(count)), shape, name, role, **given)


def arguments(method: Method, count: int, **given: Any) -> dict[str, Any]:
    """Every parameter by keyword: the given value, else the default; per-expert ones spread."""
    values = {}
    for p in method.params:
        value = given.get(p.keyword, p.default)
        values[p.keyword] = (value if isinstance(value, tuple) else (value,) * count) if p.per_expert else value
    return values


def build(name: str, merge: MergeInputs, **given: Any) -> LazyTensor:
    method = methods()[name]
    node: LazyTensor = method.build(merge, **arguments(method, len(merge.experts), **given))
    return node


def run(
    name: str,
    base: F64,
    experts: list[F64],
    tensor: str = "w.weight",
    *,
    importance: Sequence[F64] = (),
    base_importance: Sequence[F64] = (),
    sensitivity: tuple[LayerScore, ...] = (),
    **given: Any,
) -> F64:
    """A method on arrays, through the engine; statistics as arrays too."""
    leaves = {"base": base.astype(np.float32), **{f"expert{k}": e.astype(np.float32) for k, e in enumerate(experts)}}
    labels = tuple(f"expert{k}" for k in range(len(experts)))
    told = {"importance": importance, "base_importance": base_importance}
    leaves |= {f"{kind}{k}": x.astype(np.float32) for kind, xs in told.items() for k, x in enumerate(xs)}

    def make(**nodes: LazyTensor) -> LazyTensor:
        t = MergeInputs(nodes["base"], tuple(nodes[label] for label in labels), labels, base.shape, tensor, "mlp", sensitivity=sensitivity)
        t = replace(t, **{kind: tuple(nodes[f"{kind}{k}"] for k in range(len(xs))) for kind, xs in told.items()})
        if name in methods():
            return build(name, t, **given)
        step = steps()[name]
        merged = build("task_arithmetic", t, normalize=True)
        node: LazyTensor = step.build(t, merged, **arguments(step, len(labels), **given))
        return node

    return evaluate({"out": leaves}, make, backend="torch")["out"].astype(np.float64)


def normal(seed: int, *shape: int) -> F64:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(np.float64)
