"""One loop of vectors gives the bits of the same maps and folds done one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from plait.engine.blockrun import BlockData, make_runner
from plait.engine.codegen import generate
from plait.engine.foldgen import only_folds
from plait.ops.algebra import differs, dot, equal, largest, max_abs, row_sum, sum_all, where
from plait.ops.comparison import numbers, one, three, two
from plait.ops.tensor import LazyTensor
from plait.planner.expressions import NUMBERS, OutputSpec, compile_specs
from plait.planner.program import Program
from plait.planner.types import TensorRef

SIZES = (1, 7, 8, 15, 16, 17, 1003, 4096)
Build = Callable[[Sequence[LazyTensor]], LazyTensor]


def arithmetic(x: Sequence[LazyTensor]) -> LazyTensor:
    """Every op that the loop has, literals, masks as numbers, and values below zero whose largest is wanted."""
    a, b = x
    mask = (a >= 0.5) | ~(b <= a) & differs(a, b)
    mixed = where(mask, -a * b + 1.5, abs(b) / 3.0)
    return numbers([sum_all(mixed), dot(mixed, mask), sum_all(mask), largest(-abs(a) - 1.0), max_abs(mixed), sum_all(equal(a, 0.0)), dot(a, a)])


CASES: dict[str, tuple[Build, int]] = {
    "two": (lambda x: two(*x), 2),
    "three": (lambda x: three(*x), 3),
    "one": (lambda x: one(*x), 1),
    "arithmetic": (arithmetic, 2),
}


def program_of(build: Build, count: int, storage: str, size: int) -> Program:
    refs = tuple(TensorRef("file", name, storage, (size,), 0, 0) for name in "abc"[:count])
    (program,), *_ = compile_specs([OutputSpec("x", NUMBERS, refs, "x", build)])
    return program


def ran(program: Program, inputs: list[np.ndarray], backend: str) -> tuple[list[float], list[int] | None]:
    stage = program.stages[0]
    smalls = {i: float(node.param("value")) for i, node in enumerate(program.nodes) if node.op == "const"}
    runner = make_runner(program, stage, backend, generate(program, stage))
    with np.errstate(all="ignore"):
        result = runner.run(BlockData(inputs[0].size, 0, inputs, [], None, [], smalls, [], []))
    return result.sums, result.peaks


@pytest.mark.parametrize("kind", ["random", "special"])
@pytest.mark.parametrize("storage", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("case", CASES)
def test_the_bits_of_the_interpreter(case: str, storage: str, kind: str):
    """Of any length, with numbers and with zeros of both signs, infinity and NaN; and the largest magnitudes of inputs."""
    build, count = CASES[case]
    rng = np.random.default_rng(5)
    for size in SIZES:
        program = program_of(build, count, storage, size)
        assert only_folds(program.nodes, program.stages[0])
        values = [rng.standard_normal(size).astype(np.float32) for _ in range(count)]
        if kind == "special":
            for x in values:
                x[rng.integers(size, size=2)] = rng.choice(np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32), 2)
        stored = [
            x if storage == "F32" else x.astype(np.float16).view(np.uint16) if storage == "F16" else (x.view(np.uint32) >> 16).astype(np.uint16) for x in values
        ]
        got, peaks = ran(program, stored, "numba")
        expected, _ = ran(program, stored, "torch")
        np.testing.assert_array_equal(np.array(got).view(np.uint64)[~np.isnan(got)], np.array(expected).view(np.uint64)[~np.isnan(expected)])
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
        magnitude = 0x7FFFFFFF if storage == "F32" else 0x7FFF
        bits = np.uint32 if storage == "F32" else np.uint16
        assert peaks == [int((x.view(bits) & magnitude).max()) for x in stored]


def test_nothing_beyond_the_end_is_read():
    """What lies behind the last element changes nothing."""
    program = program_of(CASES["two"][0], 2, "BF16", 21)
    rng = np.random.default_rng(1)
    long = [rng.integers(0, 1 << 14, 64, dtype=np.uint16) for _ in range(2)]
    first = ran(program, [x[:21] for x in long], "numba")
    for x in long:
        x[21:] = 0x7FC0
    assert ran(program, [x[:21] for x in long], "numba") == first


def test_stages_that_need_rows_are_left_to_the_other_loop():
    program = program_of(lambda x: numbers([sum_all(x[0] * row_sum(x[0]))]), 1, "F32", 12)
    assert not only_folds(program.nodes, program.stages[0])
