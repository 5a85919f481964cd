"""Rates of computing: generated kernels on real block sizes and all cores at once, and the bookkeeping around them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from plait.engine.blockrun import RAW, Array, BlockData, make_runner
from plait.engine.codegen import generate
from plait.engine.foresight import Sampled
from plait.engine.kernel import Kernel
from plait.ops.algebra import below, dot, exp, random_bits, row_rank, tanh, total, where
from plait.ops.op import OPS
from plait.ops.order import top
from plait.ops.tensor import LazyTensor, load
from plait.planner.program import Node, Program, lower

_COLUMNS = 1024
_ROUNDS = 3


def kernel_rates(elements: int, threads: int) -> dict[str, float]:
    """Nanoseconds for one element of each kind of work, compiled kernels, `threads` at once.

    Args:
        elements: of a block; a multiple of 1024.
        threads: how many blocks are worked on at the same time.
    """
    programs = _programs((elements // _COLUMNS, _COLUMNS))
    kernels = {name: generate(p, p.stages[0]) for name, p in programs.items()}
    _compile(list(kernels.values()), threads)
    ns = {name: _nanoseconds(programs[name], kernels[name], elements, threads) for name in programs}
    load_ns, map_ns, store_ns = _map_rates(programs, ns)

    def beyond(name: str, count: int) -> float:
        """What a reduction takes beside the map that feeds it, each."""
        loads, flops, stores = _work(programs[name])
        return max(0.01, (ns[name] - loads * load_ns - flops * map_ns - stores * store_ns) / count)

    return {
        "load_ns": load_ns,
        "map_ns": map_ns,
        "store_ns": store_ns,
        "fold_ns": beyond("fold", 3 * OPS["dot"].flops),
        "random_ns": beyond("random", 2),
        "count_ns": beyond("count", 2),
        "rank_ns": beyond("rank", 1),
    }


def compiler_rates(elements: int) -> dict[str, float]:
    """Seconds until the compiler is ready, for compiling one kernel, and for loading one; compiles a kernel that no cache has."""
    from plait.engine.compile import cache_folder, compiled

    program = _programs((elements // _COLUMNS, _COLUMNS))["light"]
    kernel = _salted(generate(program, program.stages[0]))
    ready = _seconds(lambda: subprocess.run([sys.executable, "-c", "import numba.core.compiler"], check=True))
    try:
        both = _seconds(lambda: _compile([kernel], 1))
        loading = _seconds(lambda: compiled(kernel))
    finally:
        for path in cache_folder().glob(f"k_{kernel.key}.*"):
            path.unlink(missing_ok=True)
    return {"compiler_start_s": ready, "compile_s": max(0.05, both - ready), "kernel_load_s": max(1e-4, loading)}


def _salted(kernel: Kernel) -> Kernel:
    """The same kernel under a name of its own, which no cache can know."""
    salt = f"{time.time_ns():x}"
    return replace(kernel, source=f"{kernel.source}\n# {salt}\n", key=salt)


def _compile(kernels: Sequence[Kernel], processes: int) -> None:
    from plait.engine.compile import compile_missing

    compile_missing(kernels, processes)


# -- what is timed -----------------------------------------------------------------------------------
def _programs(shape: tuple[int, int]) -> dict[str, Program]:
    """Small merges of the kinds that methods are made of: base and three models, 16-bit."""
    leaves = [load((name,), shape, "BF16") for name in "bxyz"]
    base, *models = leaves
    deltas = [m - base for m in models]
    signs = total([where(d > 0.0, 1.0, -1.0) for d in deltas])
    elected = [where(where(signs > 0.0, d, -d) > 0.0, d * 0.4, 0.0) for d in deltas]
    changed = total([where(d > 0.0, d - 0.5, d + 0.5) for d in elected])
    found = {
        "few": models[0] * 0.4,
        "light": base + total([d * 0.4 for d in deltas]),
        "heavy": base + total(elected) / (changed + 2.0),
        "dense": base + total([exp(-1.0 * d * d) * tanh(d) for d in deltas]),
        "fold": base * dot(deltas[0], deltas[0]) + dot(deltas[0], deltas[1]) + dot(deltas[1], deltas[1]),
        "random": base + total([where(below(random_bits(m, 1, "mask", label), 1 << 30), m, 0.0) for m, label in zip(models[:2], "xy", strict=True)]),
        "count": base + total([_trimmed(d) for d in deltas[:2]]),
        "rank": base + where(row_rank(deltas[0]) > shape[1] / 2, deltas[0], 0.0),
    }
    return {name: lower(root, "BF16", leaves) for name, root in found.items()}


def _trimmed(x: LazyTensor) -> LazyTensor:
    return where(top(x, 0.2), x, 0.0)


def _work(program: Program) -> tuple[int, int, int]:
    """Loads, simple operations and stores of an element of a program's first stage."""
    stage = program.stages[0]
    return len(stage.loads), sum(OPS[program.nodes[i].op].flops for i in stage.compute if program.nodes[i].kind == "map"), int(stage.store)


def _map_rates(programs: dict[str, Program], ns: dict[str, float]) -> tuple[float, float, float]:
    """Nanoseconds of a load, an operation and a store that explain the four maps best."""
    names = ("few", "light", "heavy", "dense")  # in the last, arithmetic alone counts: without it an operation can seem to be free
    equations = np.array([_work(programs[name]) for name in names], np.float64)
    times = np.array([ns[name] for name in names])
    # each equation counts relative to its time, and no rate is far from plausible: short kernels are noisy
    weights = 1.0 / np.maximum(times, 1e-3)
    found, *_ = np.linalg.lstsq(equations * weights[:, None], times * weights, rcond=None)
    load_ns, map_ns, store_ns = np.maximum(found, [0.005, 0.002, 0.005])
    return float(load_ns), float(map_ns), float(store_ns)


def _nanoseconds(program: Program, kernel: Kernel, elements: int, threads: int) -> float:
    """Best of a few rounds in which every thread computes blocks of its own."""
    calls = [_block_call(program, kernel, elements, seed) for seed in range(threads)]
    together(calls)
    return min(together(calls) for _ in range(_ROUNDS)) / elements * 1e9


def _block_call(program: Program, kernel: Kernel, elements: int, seed: int) -> Callable[[], object]:
    """A function that computes one block, with buffers of its own."""
    stage = program.stages[0]
    models = _inputs(elements, seed)
    loads = [models[int(program.nodes[i].param("slot"))] for i in stage.loads]
    out = np.empty(elements, RAW[program.dtype]) if stage.store else None
    keeps = [np.empty(elements, np.float32) for _ in stage.keeps]
    smalls = {i: _small(n) for i, n in enumerate(program.nodes) if n.space == "small"}
    streams = [(1, 2, 3, i) for i in kernel.streams]
    data = BlockData(elements, 0, loads, [], out, keeps, smalls, streams, [])
    window = Sampled(_values(models[1]) - _values(models[0])).guess("top 0.2").window
    data.windows = [window for _ in kernel.selects]
    runner = make_runner(program, stage, "numba", kernel)
    return lambda: runner.run(data)


def _inputs(elements: int, seed: int) -> list[Array]:
    """A base and three models near it, as bf16 bits."""
    random = np.random.default_rng(seed)
    base = random.standard_normal(elements, np.float32) * 0.02
    models = [base, *(base + random.standard_normal(elements, np.float32) * np.float32(0.001) for _ in range(3))]
    return [(m.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) for m in models]


def _values(bits: Array) -> Array:
    """bf16 bits as float32."""
    values: Array = (bits.astype(np.uint32) << 16).view(np.float32)
    return values


def _small(node: Node) -> Any:
    """A plausible value of a small node."""
    return node.param("value") if node.op == "const" else 1.0


# -- timing ------------------------------------------------------------------------------------------
def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def together(calls: Sequence[Callable[[], object]]) -> float:
    """Mean seconds of functions that run at once, each in a thread of its own.

    Raises:
        Exception: what a function raised.
    """
    taken: list[float] = []
    failed: list[BaseException] = []
    gate = threading.Barrier(len(calls))

    def work(call: Callable[[], object]) -> None:
        try:
            gate.wait()
            taken.append(_seconds(call))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return sum(taken) / len(taken)
