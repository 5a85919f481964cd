"""Ops that need whole matrices: on a GPU of the pool where the plan says so, else on the CPU, one at a time with every core, or small ones side by side.

A GPU that runs out of memory in spite of the plan loses nothing: the matrices are still here, and the op is done
again on the CPU, which the plan has kept room for wherever the memory budget has any.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.engine.blockrun import Array
from plait.engine.device import DeviceOutOfMemory
from plait.engine.pool import DevicePool
from plait.ops.errors import KernelError
from plait.ops.kernels.heap import free_buffers, give_back
from plait.ops.wholes import WHOLES, is_view, on_one_core
from plait.planner.cost import component_bytes
from plait.planner.device_cost import device_whole_bytes
from plait.planner.liveness import made_by, owner
from plait.planner.program import Node
from plait.planner.sizes import size, size_up

if TYPE_CHECKING:
    from plait.engine.component import ComponentRun

_ONE_AT_A_TIME = threading.Lock()
_counting = threading.Lock()
_using, _all_threads = 0, 1  # ops that compute with torch now, and its threads when the first of them began


def turn(run: ComponentRun, i: int) -> AbstractContextManager[object]:
    """A component's turn at whole node `i`: on the CPU large ones run one at a time, so that all open components lease one workspace."""
    node = run.program.nodes[i]
    free = is_view(node.op, node) or on_one_core(node.op, node) or run.component.program in run.host.plan.on_gpu
    return nullcontext() if free else _ONE_AT_A_TIME


@contextmanager
def torch_threads(*, one: bool) -> Iterator[None]:
    """This thread computes on one core with torch, or on as many as torch has; afterwards it has as many again.

    Torch's number is each thread's own, but a new thread begins with the last that any has set. So it is looked up while no op computes. What
    the matrix library keeps is freed after an op on all cores; small ops would only ask for it again.
    """
    import torch

    global _using, _all_threads
    with _counting:
        if not _using:
            _all_threads = torch.get_num_threads()
        _using += 1
        torch.set_num_threads(1 if one else _all_threads)
    try:
        yield
    finally:
        with _counting:
            torch.set_num_threads(_all_threads)
            _using -= 1
            if not one:
                free_buffers(all_threads=not _using)  # no op begins meanwhile


def run_whole(run: ComponentRun, i: int) -> None:
    """Compute whole node `i` of a component, in its turn, from the matrices it holds and its small values, and tell the cache of results.

    Raises:
        KernelError: the op failed, or a GPU had no memory for it and the memory budget has no room to do it on the CPU.
    """
    nodes = run.program.nodes
    node = nodes[i]
    if is_view(node.op, node):
        return
    inputs = [run.smalls.value(j) if nodes[j].space == "small" else whole_value(run, j) for j in node.inputs]
    planned_on_gpu = run.component.program in run.host.plan.on_gpu
    done = _on_gpu(run, node, inputs) if planned_on_gpu else None
    as_planned = planned_on_gpu == (done is not None)
    if done is None:
        with _ONE_AT_A_TIME if planned_on_gpu else nullcontext():  # else it is this component's turn already
            done = _compute(node, inputs)
            give_back()
    results, numbers = done
    run.host.count_whole(node.op)
    for j in made_by(run.program, i):
        run.tensors[j] = results[int(nodes[j].param("index")) if nodes[j].op == "part" else 0].reshape(-1)
    give_numbers(run, i, numbers)
    if as_planned and run.host.reuse is not None:
        run.host.reuse.tell(run.component, i, [] if numbers is None else numbers, run.tensors)


def give_numbers(run: ComponentRun, i: int, numbers: Any) -> None:
    """The numbers that whole node `i` reports go to whoever asks for them."""
    for j, other in enumerate(run.program.nodes):
        if other.op == "info" and other.inputs == (i,):
            run.smalls.values[j] = np.asarray(numbers, np.float64)


def whole_value(run: ComponentRun, i: int) -> Array:
    """A value that is held whole, in its own shape."""
    return run.tensors[owner(run.program.nodes, i)].reshape(run.program.nodes[i].shape)


def _on_gpu(run: ComponentRun, node: Node, inputs: Sequence[Array]) -> tuple[list[Array], Any] | None:
    """What a GPU of the pool gives; None where it had no memory for it and the CPU is to do it."""
    try:
        return _compute_on(run.host.pool, node, inputs)
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


@cache
def _numerics(op: str) -> Callable[..., Any]:
    module, name = WHOLES[op].run.split(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def _is_matrix(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype == np.float32


def _compute(node: Node, inputs: Sequence[Any]) -> tuple[list[Array], Any]:
    import torch

    from plait.ops.kernels.results import Results

    held = [torch.from_numpy(x) if _is_matrix(x) else x for x in inputs]
    out = Results(WHOLES[node.op].results(node))
    with torch_threads(one=on_one_core(node.op, node)):
        numbers = _numerics(node.op)(node, held, out)
    return [x.numpy() for x in out.all()], numbers


def _compute_on(pool: DevicePool, node: Node, inputs: Sequence[Any]) -> tuple[list[Array], Any]:
    from plait.ops.kernels.results import Results

    alone = on_one_core(node.op, node)  # of no matter to a GPU; a simulated one gives the CPU's bits
    with pool.place(device_whole_bytes(node)) as device, device.stream() as stream, torch_threads(one=alone):
        # float32 goes over once; what is float64 about a result is made there
        held = [device.to_device(x).view(x.shape) if _is_matrix(x) else x for x in inputs]
        out = Results(WHOLES[node.op].results(node), device.torch_device)
        numbers = _numerics(node.op)(node, held, out)
        results: list[Array] = []
        for x in out.all():
            results.append(np.empty(tuple(x.shape), np.float32))
            device.to_host(x, results[-1])
        stream.wait()
        del held, out
    return results, numbers
