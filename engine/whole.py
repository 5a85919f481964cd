"""Ops that need the whole tensor: one at a time, with every core, on the GPU where the plan says so."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.ops.errors import KernelError

if TYPE_CHECKING:
    from plait.engine.component import ComponentRun

_ONE_AT_A_TIME = threading.Lock()
_PIECE = 1 << 22


def run_whole(run: ComponentRun, i: int) -> None:
    """Compute whole node `i` of a component from the tensors it holds."""
    node = run.program.nodes[i]
    source = run.tensors[node.inputs[0]]
    if node.op == "hold":
        run.tensors[i] = source
        return
    with _ONE_AT_A_TIME:
        device = "cuda" if run.component.program in run.host.plan.on_gpu else "cpu"
        result, numbers = _WHOLE[node.op](source.reshape(node.shape), dict(node.params), device)
    run.tensors[i] = result
    for j, other in enumerate(run.program.nodes):
        if other.op == "info" and other.inputs == (i,):
            run.smalls.values[j] = np.array(numbers)


def _polar(x: Any, params: dict[str, Any], device: str) -> tuple[Any, list[float]]:
    import torch

    from plait.ops.kernels.polar import polar

    source = torch.from_numpy(x)
    try:
        factor, rank = polar(source, rank_policy="full" if params["rank_policy"] == "full" else "numerical", device=device)
    except torch.OutOfMemoryError as error:
        raise KernelError(
            f"the GPU ran out of memory in a polar factor of {list(x.shape)}: {error}; run with --device cpu or a smaller model", shape=x.shape
        ) from error
    result = factor.to("cpu").contiguous().numpy().reshape(-1)
    return result, [float(rank), _inner(result, x.reshape(-1))]


def _inner(a: Any, b: Any) -> float:
    """<a, b> in float64, by pieces."""
    total = 0.0
    for first in range(0, a.size, _PIECE):
        total += float(np.dot(a[first : first + _PIECE].astype(np.float64), b[first : first + _PIECE].astype(np.float64)))
    return total


_WHOLE = {"polar": _polar}
