"""Ops that need the whole tensor: on a GPU of the pool where the plan says so, else on the CPU, one at a time with every core.

A GPU that runs out of memory in spite of the plan loses nothing: the tensor is still here, and the op is done
again on the CPU, which the plan has kept room for wherever the memory budget has any.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.engine.blockrun import Array
from plait.engine.device import DeviceOutOfMemory
from plait.engine.pool import DevicePool
from plait.ops.errors import KernelError
from plait.planner.cost import component_bytes
from plait.planner.device_cost import device_whole_bytes
from plait.planner.program import Node
from plait.planner.schedule import size, size_up

if TYPE_CHECKING:
    from plait.engine.component import ComponentRun

_ONE_AT_A_TIME = threading.Lock()
_PIECE = 1 << 22


def run_whole(run: ComponentRun, i: int) -> None:
    """Compute whole node `i` of a component from the tensors it holds.

    Raises:
        KernelError: the op failed, or a GPU had no memory for it and the memory budget has no room to do it on the CPU.
    """
    node = run.program.nodes[i]
    source = run.tensors[node.inputs[0]]
    if node.op == "hold":
        run.tensors[i] = source
        return
    matrix = source.reshape(node.shape)
    done = _on_gpu(run, node, matrix) if run.component.program in run.host.plan.on_gpu else None
    if done is None:
        with _ONE_AT_A_TIME:
            done = _WHOLE[node.op](node, matrix, None)
    run.tensors[i], numbers = done
    for j, other in enumerate(run.program.nodes):
        if other.op == "info" and other.inputs == (i,):
            run.smalls.values[j] = np.array(numbers)


def _on_gpu(run: ComponentRun, node: Node, matrix: Array) -> tuple[Array, list[float]] | None:
    """What a GPU of the pool gives; None where it had no memory for it and the CPU is to do it."""
    try:
        return _WHOLE[node.op](node, matrix, run.host.pool)
    except DeviceOutOfMemory as error:
        if run.component.program in run.host.plan.lean:
            raise _no_way_back(run, node, error) from error
    run.host.pool.note_retry()
    return None


def _no_way_back(run: ComponentRun, node: Node, error: DeviceOutOfMemory) -> KernelError:
    plan = run.host.plan
    held = max(component_bytes(p, workspace=n not in plan.lean) for n, p in enumerate(plan.programs))
    needed = plan.prediction.minimum_bytes - held + max(map(component_bytes, plan.programs))
    return KernelError(
        f"{error.message}; {node.op} of {list(node.shape)} cannot be done on the CPU instead within a memory budget of {size(plan.budget_bytes)}: "
        f"give --memory {size_up(needed)} or more, or another --gpu-memory",
        needed=needed,
        budget=plan.budget_bytes,
    )


def _polar(node: Node, matrix: Array, pool: DevicePool | None) -> tuple[Array, list[float]]:
    import torch

    from plait.ops.kernels.polar import polar

    policy: Any = "full" if node.param("rank_policy") == "full" else "numerical"
    result = np.empty(matrix.size, np.float32)
    if pool is None:
        _, rank = polar(torch.from_numpy(matrix), rank_policy=policy, out=torch.from_numpy(result.reshape(matrix.shape)))
    else:
        with pool.place(device_whole_bytes(node)) as device, device.stream() as stream:
            # float32 goes over once; what is float64 about the factor is made there
            x = device.to_device(matrix).view(matrix.shape)
            factor, rank = polar(x, rank_policy=policy, device=x.device)
            device.to_host(factor, result)
            stream.wait()
            del x, factor
    return result, [float(rank), _inner(result, matrix.reshape(-1))]


def _inner(a: Any, b: Any) -> float:
    """<a, b> in float64, by pieces."""
    total = 0.0
    for first in range(0, a.size, _PIECE):
        total += float(np.dot(a[first : first + _PIECE].astype(np.float64), b[first : first + _PIECE].astype(np.float64)))
    return total


_WHOLE = {"polar": _polar}
