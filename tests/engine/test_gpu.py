"""Whole-tensor ops on CUDA give what they give on the CPU; these tests need a GPU and are left out without one (`-m gpu`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import plait
from support.evaluate import raw, write_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """A base and three experts with a wide, a tall and a square matrix, and a vector."""
    random = np.random.default_rng(0)
    shapes = {"wide.weight": (64, 300), "tall.weight": (300, 64), "square.weight": (128, 128), "norm.weight": (64,)}
    base = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    experts = [{n: t + 0.01 * random.standard_normal(t.shape).astype(np.float32) for n, t in base.items()} for _ in range(3)]
    return [write_model(tmp_path / f"m{i}", m) for i, m in enumerate([base, *experts])]


def iso_c(models: list[Path], out: Path, **options: object) -> dict[str, np.ndarray]:
    base, *experts = map(plait.open, models)
    plait.write(plait.methods.iso_c(base=base, experts=experts), out, plait.Options(memory="2GiB", **options))
    return {n: np.frombuffer(t[2], "<f4") for n, t in raw(out).items()}


def test_iso_c_on_the_gpu_agrees_with_the_cpu(models: list[Path], tmp_path: Path):
    """The same merge on both devices, within 1e-5 of the change."""
    cpu, gpu = iso_c(models, tmp_path / "cpu", device="cpu"), iso_c(models, tmp_path / "gpu", device="cuda")
    for name, wanted in cpu.items():
        assert np.abs(gpu[name] - wanted).max() <= 1e-5 * np.abs(wanted).max(), name


def test_a_small_gpu_budget_sends_the_work_to_the_cpu(models: list[Path], tmp_path: Path):
    """What does not fit the GPU's budget runs on the CPU, the plan says so, and the result is the CPU's bit for bit."""
    base, *experts = map(plait.open, models)
    planned = plait.plan_model(plait.methods.iso_c(base=base, experts=experts), plait.Options(memory="2GiB", device="cuda", gpu_memory="64KiB"))
    assert planned.device == "cpu"
    assert any("--gpu-memory" in note for note in planned.notes)
    cpu = iso_c(models, tmp_path / "cpu", device="cpu")
    for name, got in iso_c(models, tmp_path / "small", device="cuda", gpu_memory="64KiB").items():
        assert (got == cpu[name]).all(), name
