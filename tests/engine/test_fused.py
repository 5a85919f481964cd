"""Maps as one Triton kernel, run by Triton's interpreter: the bits of the compiled kernel and of the op-by-op interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import plait
from plait.engine.fused import fusible, triton_source, triton_usable
from plait.ops.algebra import dot, sign, sqrt, sum_all, where
from plait.ops.inputs import MergeInputs
from plait.ops.method import methods
from plait.ops.tensor import load
from plait.planner.program import lower
from support import tiny

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

#: Merges each recipe of a folder with maps on a simulated GPU, in a process in which Triton interprets from the start.
MERGES = """
import sys
from pathlib import Path
import plait
from plait.engine import fused
made = []
first = fused.FusedRunner.__init__
def init(self, *args):
    made.append(self)
    first(self, *args)
fused.FusedRunner.__init__ = init
for recipe in sorted(Path(sys.argv[1]).glob("*.yml")):
    before = len(made)
    plait.merge(recipe, Path(sys.argv[1]) / f"gpu-{recipe.stem}", plait.Options(memory="1GiB", workers=1, maps="cuda", device="cpu"))
    print(recipe.stem, len(made) - before)
"""


def recipes(models: list[Path]) -> dict[str, str]:
    base, *experts = models
    half = {"weight": 0.7, "density": 0.4}
    return {
        "linear": tiny.recipe("linear", models, each={"weight": 0.3}),
        "task_arithmetic": tiny.recipe("task_arithmetic", experts, base=base, each={"weight": 0.6}, dtype="float16"),
        "slerp": tiny.recipe("slerp", [base, experts[0]], base=base, parameters={"t": 0.4}),
        "ties": tiny.recipe("ties", experts, base=base, each=half),
        "ties_majority": tiny.recipe("ties", experts, base=base, each=half, parameters={"zero_sign": "majority", "elect": "normmass"}),
        "dare_ties": tiny.recipe("dare_ties", experts, base=base, each=half),
        "model_stock": tiny.recipe("model_stock", experts, base=base),
    }


@needs_triton
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_the_bits_of_the_processor(dtype: str, tmp_path: Path) -> None:
    """Whole merges whose maps are Triton kernels give the files that compiled kernels give, in every storage dtype."""
    models = tiny.write_set(tmp_path / "models", dtype=dtype, shapes={"model.layers.0.mlp.up_proj.weight": (33, 40), "model.norm.weight": (40,)})
    chosen = {name: text for name, text in recipes(models).items() if dtype == "BF16" or name in ("linear", "ties")}
    for name, text in chosen.items():
        (tmp_path / f"{name}.yml").write_text(text)
        plait.merge(tmp_path / f"{name}.yml", tmp_path / f"cpu-{name}", plait.Options(memory="1GiB", backend="numba"))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PLAIT_SIMULATED_GPUS": "8GiB"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", MERGES, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used = dict(line.split() for line in done.stdout.splitlines())
    assert all(int(used[name]) > 0 for name in chosen), used
    for name in chosen:
        cpu, gpu = ((tmp_path / f"{where}-{name}" / "model.safetensors").read_bytes() for where in ("cpu", "gpu"))
        assert cpu == gpu, name


def _program(build: object) -> object:
    leaves = [load((key,), (40, 30), "BF16") for key in "bxy"]
    return lower(build(leaves), "BF16", leaves)  # type: ignore[operator]


def test_expressions_are_those_of_the_ops() -> None:
    """Conditions become selections, divisions and roots the correctly rounded ones, minus keeps the sign of zero."""
    program = _program(lambda b: where(sign(b[1]) > 0.0, -(b[0] / b[1]), sqrt(abs(b[2]))))
    text = triton_source(program, program.stages[0])
    assert "tl.where(" in text
    assert "tl.div_rn(" in text
    assert "tl.sqrt_rn(" in text
    assert "* -1.0" in text
    assert " if " not in text.split("def kernel")[1]


def test_what_cannot_be_fused_is_left_to_the_interpreter() -> None:
    """Stages with rows are refused, folds are not; without Triton, or without a GPU, nothing is fused."""
    leaves = [load((key,), (40, 30), "BF16") for key in "bxy"]
    merge = MergeInputs(leaves[0], tuple(leaves[1:]), ("x", "y"), (40, 30), "w")
    half = {"weight": (1.0, 1.0), "density": (0.5, 0.5)}
    della = lower(methods()["della"].build(merge, **half, epsilon=(0.1, 0.1)), "BF16", leaves)
    assert not any(fusible(della, stage) for stage in della.stages)
    folded = lower(leaves[0] * (sum_all(leaves[1] - leaves[0]) / dot(leaves[2], leaves[2])), "BF16", leaves)
    assert [fusible(folded, stage) for stage in folded.stages] == [True, True]
    assert not triton_usable("cpu") or os.environ.get("TRITON_INTERPRET") == "1"
