"""Times the generated kernels alone: nanoseconds for one element of the output, one thread, data in memory.

    python benchmarks/kernels.py ties linear

Base and three experts in bf16, blocks of 2^20 elements, best of seven; small values that a merge would compute are set by hand.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from plait.engine.blockrun import RAW, BlockData, make_runner
from plait.engine.codegen import generate
from plait.engine.foresight import Sampled
from plait.ops.inputs import MergeInputs
from plait.ops.method import methods
from plait.ops.tensor import load
from plait.planner.program import Node, Program, Stage, lower

SHAPE, N = (1024, 1024), 1 << 20
KEY = 0x3AA00000  # bits of a magnitude near the experts' changes
WEIGHTS, DENSITY = {"weight": (0.4, 0.4, 0.4)}, {"density": (0.2, 0.2, 0.2)}
PARAMS: dict[str, dict[str, Any]] = {
    "linear": WEIGHTS,
    "task_arithmetic": WEIGHTS,
    "ties": {**WEIGHTS, **DENSITY},
    "dare_linear": {**WEIGHTS, **DENSITY},
    "dare_ties": {**WEIGHTS, **DENSITY},
    "della": {**WEIGHTS, **DENSITY, "epsilon": (0.1, 0.1, 0.1)},
    "model_stock": {},
    "breadcrumbs": {**WEIGHTS, **DENSITY, "gamma": (0.01, 0.01, 0.01)},
    "sce": {"select_topk": 0.1},
    "arcee_fusion": {},
    "pcb": {"weight": (1.0, 1.0, 1.0)},
    "widen": {},
}


def inputs() -> list[np.ndarray]:
    """A base and three experts of noise, as bf16 bits."""
    random = np.random.default_rng(0)
    base = random.standard_normal(N) * 0.02
    models = [base, *(base + random.standard_normal(N) * 0.001 for _ in range(3))]
    return [(m.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) for m in models]


def as_float(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bf16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def small(node: Node) -> Any:
    """A plausible value of a small node."""
    if node.op == "const":
        return node.param("value")
    if node.shape:
        return np.linspace(0.0, 1.0, node.shape[0])
    return KEY if node.op == "item" and node.param("index") == 0 else 3e5


def nanoseconds(program: Program, stage: Stage, models: list[np.ndarray]) -> float:
    """Processor time of one stage, for one element."""
    kernel = generate(program, stage)
    window = Sampled(as_float(models[1]) - as_float(models[0])).guess("top 0.2").window
    smalls = {i: small(n) for i, n in enumerate(program.nodes) if n.space == "small"}
    loads = [models[int(program.nodes[i].param("slot"))] for i in stage.loads]
    out = np.empty(N, RAW[program.dtype]) if stage.store else None
    keeps = [np.empty(N, np.float32) for _ in stage.keeps]
    data = BlockData(N, 0, loads, [], out, keeps, smalls, [(1, 2, 3, i) for i in kernel.streams], [])
    data.windows = [window for _ in kernel.selects]
    runner = make_runner(program, stage, "numba", kernel)
    runner.run(data)
    times = []
    for _ in range(7):
        begun = time.thread_time()
        runner.run(data)
        times.append(time.thread_time() - begun)
    return min(times) / N * 1e9


def main() -> None:
    """Time the named methods, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help=f"of {', '.join(PARAMS)}; default all")
    names = parser.parse_args().methods or list(PARAMS)
    unknown = [n for n in names if n not in PARAMS]
    if unknown:
        parser.error(f"no figures are made for {', '.join(unknown)}; choose from {', '.join(PARAMS)}")
    models = inputs()
    leaves = [load((key,), SHAPE, "BF16") for key in "bxyz"]
    merge = MergeInputs(leaves[0], tuple(leaves[1:]), ("x", "y", "z"), SHAPE, "w.weight")
    for name in names:
        chosen = merge.only([0]) if methods()[name].experts[1] == 1 else merge
        program = lower(methods()[name].build(chosen, **PARAMS[name]), "BF16", leaves)
        for number, stage in enumerate(program.stages, 1):
            print(f"{name:16s} pass {number}: {nanoseconds(program, stage, models):5.2f} ns an element")


if __name__ == "__main__":
    main()
