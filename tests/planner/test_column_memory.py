"""What sums of columns hold is bounded by their length, however many rows there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import plait
import plait.planner.blocks
from plait.ops.inputs import MergeInputs
from plait.ops.method import methods
from plait.ops.tensor import load
from plait.planner.blocks import STRIPS, block_count, strips
from plait.planner.cost import component_bytes
from plait.planner.program import Program, lower
from support.evaluate import write_model, write_out


def program(method: str, rows: int, columns: int = 8192, **given: Any) -> Program:
    """A merge of two matrices as wide as those of a 70B model."""
    leaves = [load((name, "w.weight", 0, 0), (rows, columns), "BF16") for name in "xyz"]
    t = MergeInputs(leaves[0], tuple(leaves[1:]), ("y", "z"), (rows, columns), "w.weight")
    return lower(methods()[method].build(t, weight=(0.7, 0.3), **given), "BF16", leaves)


@pytest.mark.parametrize(
    ("method", "given"), [("nuslerp", {"axis": "in"}), ("nuslerp", {"axis": "out"}), ("multislerp", {}), ("karcher", {"task_vectors": True})]
)
def test_rows_do_not_cost_memory(method: str, given: dict[str, Any]):
    """From 4,096 rows on, what a component holds grows by the few numbers a block of its sums alone."""
    few, many = (component_bytes(program(method, rows, **given)) for rows in (4096, 128 * 1024))
    assert many - few <= 8 * 10 * (block_count(program(method, 128 * 1024, **given).stages[0], 8192 * 128 * 1024))


@pytest.mark.parametrize("rows", [1, 100, 2049, 60_000])
def test_strips_are_few_and_hold_every_block(rows: int):
    """At most 16 runs of neighbouring blocks, which hold each block once."""
    lowered = program("nuslerp", rows, axis="out")
    runs = strips(lowered, lowered.stages[0])
    assert len(runs) <= STRIPS
    assert [b for r in runs for b in r] == list(range(block_count(lowered.stages[0], rows * 8192)))
    assert all(len(r) == 1 for r in strips(lowered, lowered.stages[-1]))


def test_columns_over_many_strips_are_numpys(monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    """A matrix of 300 blocks in 16 strips, with one worker or four: the same bits, and numpy's angles."""
    monkeypatch.setattr(plait.planner.blocks, "BLOCK", 64)
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((600, 32)).astype(np.float32) for _ in range(2))
    models = [plait.open(write_model(tmp_path / name, {"w": x})) for name, x in (("a", a), ("b", b))]
    merged = plait.methods.nuslerp(experts=models, weight=[1.0, 1.0], axis="out")
    found = [write_out(merged, tmp_path / f"out{n}", workers=n, backend="torch")["w"].value for n in (1, 4)]
    assert (found[0] == found[1]).all()
    x, y = a.astype(np.float64), b.astype(np.float64)
    angle = np.arccos((x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0)))
    assert np.allclose(found[0], np.sin(angle / 2) / np.sin(angle) * (x + y), rtol=1e-6, atol=1e-6)
