"""Infinity and NaN in inputs and outputs: found wherever they lie, named, counted, and kept only when asked for."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plait
from plait.api import Options
from plait.engine.finite import count, first_not_finite, peak
from plait.ops.errors import CheckpointError, KernelError
from support import tiny

METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 1.0},
    "task_arithmetic": {"weight": 0.5},
    "ties": {"weight": 1.0, "density": 0.3},
    "slerp": {},
    "dare_ties": {"weight": 1.0, "density": 0.5},
    "della": {"weight": 1.0, "density": 0.5, "epsilon": 0.1},
    "model_stock": {},
    "iso_c": {},
}
BAD = (np.nan, np.inf, -np.inf)
SHAPES = {"model.embed_tokens.weight": (20, 33), "model.layers.0.mlp.up_proj.weight": (1100, 1000), "model.norm.weight": (33,)}


def models(folder: Path, spoil: str, values: dict[int, float], dtype: str = "BF16", which: int = 1) -> list[Path]:
    """A base and two experts; of one of them some elements of one tensor are replaced."""
    found = tiny.write_set(folder, experts=2, dtype=dtype, shapes=SHAPES)
    rng = np.random.default_rng(5)
    tensors = {name: (rng.standard_normal(shape) * 0.1).astype(np.float32) for name, shape in SHAPES.items()}
    for place, value in values.items():
        tensors[spoil].reshape(-1)[place] = value
    tiny.write_model(folder / "spoilt", tensors, dtype)
    found[which] = folder / "spoilt"
    return found


def recipe(folder: Path, method: str, found: list[Path], **keys: Any) -> Path:
    base, *experts = found
    parts = [base, experts[0]] if method == "slerp" else experts
    if method == "slerp":
        keys["parameters"] = {"t": 0.4}
    path = folder / f"{method}.yml"
    path.write_text(tiny.recipe(method, parts, base=None if method == "linear" else base, each=METHODS[method], **keys))
    return path


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@given(values=st.lists(st.floats(width=16), max_size=40))
@settings(deadline=None, max_examples=60)
def test_count_and_peak_agree_with_numpy(dtype: str, values: list[float]) -> None:
    """Every infinity and every NaN is counted, and the peak tells whether there is any."""
    floats = np.array(values, np.float32)
    bits = tiny.encode(floats, dtype)
    assert count(bits, dtype) == (np.isnan(floats).sum(), np.isinf(floats).sum())
    limit = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}[dtype]
    assert (peak(bits, dtype) >= limit) == (not np.isfinite(floats).all())


@pytest.mark.parametrize(
    ("tensor", "method", "backend"),
    [
        *((tensor, method, "numba") for tensor in SHAPES for method in METHODS),
        *((tensor, method, "torch") for tensor in SHAPES for method in ("linear", "ties")),
    ],
)
def test_an_input_that_is_not_finite_stops_the_merge(tensor: str, method: str, backend: str, tmp_path: Path) -> None:
    """The error names file, tensor and the number of such values in all of it, and nothing is published."""
    last = int(np.prod(SHAPES[tensor])) - 1
    found = models(tmp_path / "models", tensor, {0: np.nan, last // 2: np.inf, last: -np.inf})
    with pytest.raises(CheckpointError) as caught:
        plait.merge(recipe(tmp_path, method, found), tmp_path / "out", Options(memory="256MiB", backend=backend))
    assert (caught.value.facts["tensor"], caught.value.facts["nan"], caught.value.facts["infinite"]) == (tensor, 1, 2)
    assert str(found[1] / "model.safetensors") in str(caught.value)
    assert "--allow-nonfinite" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["linear", "ties", "model_stock"])
def test_allowed_values_are_counted(method: str, tmp_path: Path) -> None:
    """With the option the merge runs, and report and manifest say how many there were, in inputs and output."""
    tensor = "model.layers.0.mlp.up_proj.weight"
    found = models(tmp_path / "models", tensor, {7: np.nan, 1_090_000: np.inf})
    options = Options(memory="256MiB", allow_nonfinite=True)
    report = plait.merge(recipe(tmp_path, method, found), tmp_path / "out", options)
    assert report.nonfinite_inputs == {(str(found[1] / "model.safetensors"), tensor): 2}
    bits = tiny_tensor(tmp_path / "out", tensor)
    wrong = int((~np.isfinite(tiny.decode(bits, "BF16"))).sum())
    assert wrong > 0
    assert report.nonfinite_outputs == {tensor: (wrong, 0)}
    said = json.loads((tmp_path / "out" / "plait.json").read_text())["nonfinite"]
    assert said["inputs"] == [{"file": str(found[1] / "model.safetensors"), "tensor": tensor, "values": 2}]
    assert said["outputs"] == {tensor: {"values": wrong, "overflowed": 0}}


def tiny_tensor(folder: Path, name: str) -> np.ndarray:
    """Stored bits of a 16-bit tensor."""
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8 : 8 + length])[name]["data_offsets"]
    return np.frombuffer(raw[8 + length + begin : 8 + length + end], np.uint16)


def test_copied_tensors_are_looked_through(tmp_path: Path) -> None:
    """A tensor that is copied without decoding is no exception."""
    found = models(tmp_path / "models", "model.norm.weight", {3: np.nan})
    path = tmp_path / "copy.yml"
    path.write_text(tiny.recipe("passthrough", [found[1]]))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*1 NaN among its 33 values"):
        plait.merge(path, tmp_path / "out", Options(memory="256MiB"))
    report = plait.merge(path, tmp_path / "out", Options(memory="256MiB", allow_nonfinite=True))
    assert list(report.nonfinite_inputs.values()) == [1]


def test_an_input_of_weight_zero_is_not_read(tmp_path: Path) -> None:
    """What the merge does not use cannot stop it."""
    found = models(tmp_path / "models", "model.norm.weight", {3: np.nan})
    path = tmp_path / "zero.yml"
    entries = [{"model": str(found[1]), "parameters": {"weight": 0.0}}, {"model": str(found[2]), "parameters": {"weight": 1.0}}]
    path.write_text(json.dumps({"merge_method": "linear", "models": entries}))
    assert plait.merge(path, tmp_path / "out", Options(memory="256MiB")).nonfinite_inputs == {}


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_overflow_is_told_apart(backend: str, tmp_path: Path) -> None:
    """Numbers that float16 cannot hold are counted, with tensor and advice; with the option they are written as infinity and reported."""
    found = models(tmp_path / "models", "model.norm.weight", {1: 40000.0, 2: -50000.0, 30: 1000.0}, dtype="F16", which=0)
    path = tmp_path / "overflow.yml"
    path.write_text(tiny.recipe("linear", [found[0], found[0]], each={"weight": 1.0}, parameters={"normalize": False}))
    options = {"memory": "256MiB", "backend": backend}
    with pytest.raises(KernelError, match=r"2 values beyond the range of float16 \(65504\).*out_dtype") as caught:
        plait.merge(path, tmp_path / "out", Options(**options))
    assert caught.value.facts["tensor"] == "model.norm.weight"
    report = plait.merge(path, tmp_path / "out", Options(**options, allow_nonfinite=True))
    assert report.nonfinite_outputs == {"model.norm.weight": (2, 2)}
    assert not report.nonfinite_inputs


def test_a_working_dtype_that_is_too_narrow_is_named(tmp_path: Path) -> None:
    """`dtype: float16` rounds inputs on load; the advice says so."""
    found = models(tmp_path / "models", "model.norm.weight", {1: 1e6}, which=0)
    path = tmp_path / "narrow.yml"
    path.write_text(tiny.recipe("linear", [found[0], found[2]], each={"weight": 1.0}, dtype="float16", out_dtype="float32"))
    with pytest.raises(KernelError, match=r"1 infinite value from finite inputs.*dtype: float16 holds numbers up to 65504"):
        plait.merge(path, tmp_path / "out", Options(memory="256MiB"))


def test_on_the_command_line(tmp_path: Path) -> None:
    """One line and status 2; the same command with the option finishes and lists what it found."""
    found = models(tmp_path / "models", "model.norm.weight", {3: np.nan})
    command = [sys.executable, "-m", "plait", "merge", str(recipe(tmp_path, "linear", found)), str(tmp_path / "out"), "--memory", "256MiB"]
    stopped = subprocess.run(command, capture_output=True, text=True)
    assert stopped.returncode == 2
    assert stopped.stderr.splitlines()[0].startswith("plait: ")
    assert "model.norm.weight" in stopped.stderr.splitlines()[0]
    done = subprocess.run([*command, "--allow-nonfinite"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not finite in the output: 1 values of model.norm.weight" in done.stderr


@pytest.mark.parametrize("storage", ["F64", "F32", "BF16", "F16"])
def test_looking_at_a_piece_takes_little_memory(storage: str):
    """A worker that copies 2 MiB at a time has no room for another 2 MiB; and the last value counts like the first."""
    kind = {"F64": np.uint64, "F32": np.uint32}.get(storage, np.uint16)
    bits = np.zeros((16 << 20) // np.dtype(kind).itemsize, kind)
    bits[-1], bits[0] = first_not_finite(storage), first_not_finite(storage) + 1
    tracemalloc.start()
    try:
        found, numbers = peak(bits, storage), count(bits, storage)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == first_not_finite(storage) + 1
    assert peak(bits[1:], storage) == first_not_finite(storage)
    assert numbers == (1, 1)
    assert most < 1 << 20
