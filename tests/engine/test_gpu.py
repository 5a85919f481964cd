"""Maps on CUDA give the CPU's bits, and whole-tensor ops what they give there; these tests need a GPU and are left out without one (`-m gpu`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import plait
from plait.engine.device import CudaDevice, DeviceOutOfMemory
from plait.engine.pool import DevicePool
from plait.engine.torchmath import random_words, row_ranks, row_sums
from support import tiny
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


# -- maps -------------------------------------------------------------------------------------------
def recipes(found: list[Path]) -> dict[str, str]:
    """Recipes of every streaming kind: maps, folds, order statistics, random masks, row ranks, row folds."""
    base, *experts = found
    half = {"weight": 1.0, "density": 0.5}
    step = {"method": "magic_wsc", "base_model": str(base)}
    return {
        "linear": tiny.recipe("linear", found, each={"weight": 0.3}),
        "slerp": tiny.recipe("slerp", [base, experts[0]], base=base, parameters={"t": 0.4}),
        "ties": tiny.recipe("ties", experts, base=base, each=half),
        "dare_ties": tiny.recipe("dare_ties", experts, base=base, each=half),
        "della": tiny.recipe("della", experts, base=base, each={**half, "epsilon": 0.1}),
        "model_stock": tiny.recipe("model_stock", experts, base=base),
        "model_stock_rows": tiny.recipe("model_stock", experts, base=base, parameters={"filter_wise": True}),
        "linear_wsc": tiny.recipe("linear", experts, each={"weight": 1.0}, steps=[step]),
    }


NAMES = list(recipes([Path("b"), Path("x"), Path("y")]))
#: More than one block, rows of no multiple of eight, and a vector.
SHAPES = {"w.weight": (1100, 1003), "v.weight": (70,)}


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("name", NAMES)
def test_maps_on_the_gpu_give_the_bytes_of_the_cpu(name: str, dtype: str, tmp_path: Path):
    """The file is the same to the bit, the device's budget holds, and its limit is lifted afterwards."""
    found = tiny.write_set(tmp_path / "models", dtype=dtype, shapes=SHAPES)
    recipe = tmp_path / "r.yml"
    recipe.write_text(recipes(found)[name])
    plait.merge(recipe, tmp_path / "cpu", plait.Options(memory="1GiB", workers=2, device="cpu"))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    report = plait.merge(recipe, tmp_path / "gpu", plait.Options(memory="1GiB", workers=2, device="cpu", maps="cuda", gpu_memory="1GiB"))
    assert (tmp_path / "gpu" / "model.safetensors").read_bytes() == (tmp_path / "cpu" / "model.safetensors").read_bytes()
    assert report.gpu_retries == 0
    assert torch.cuda.max_memory_allocated() - before <= 1 << 30
    torch.empty(3 << 29, dtype=torch.uint8, device="cuda")


def test_maps_and_whole_ops_share_the_gpu(models: list[Path], tmp_path: Path):
    """Both at once stay within the budget and agree with the CPU within 1e-5 of the change."""
    cpu = iso_c(models, tmp_path / "cpu", device="cpu")
    both = iso_c(models, tmp_path / "both", device="cuda", maps="cuda", gpu_memory="2GiB", workers=2)
    for name, wanted in cpu.items():
        assert np.abs(both[name] - wanted).max() <= 1e-5 * np.abs(wanted).max(), name


@pytest.mark.parametrize("shape", [(1, 1_000_003), (1, 7), (300, 1003), (5, 70_000)])
def test_sums_on_the_gpu_follow_the_fixed_tree(shape: tuple[int, int]):
    """The device's running sum along an outer axis adds one element after the other, as the CPU does."""
    x, y = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 10.0 ** torch.randint(-8, 8, shape) for seed in (1, 2))
    wanted = row_sums([(x, None), (x, y)])
    assert torch.equal(row_sums([(x.cuda(), None), (x.cuda(), y.cuda())]).cpu(), wanted)


def test_random_words_and_ranks_on_the_gpu():
    """Integer work is the same everywhere, ties in ranks included."""
    key = (0xFFFFFFFF, 0x80000000, 0xDEADBEEF, 0x7FFFFFFF)
    assert torch.equal(random_words(key, 2**33 + 1, 10_001, "cuda").cpu(), random_words(key, 2**33 + 1, 10_001, "cpu"))
    x = torch.randint(-20, 20, (50, 3001)).float()
    assert torch.equal(row_ranks(x.cuda()).cpu(), row_ranks(x))


def test_a_real_device_runs_out_as_a_simulated_one_does():
    """Beyond its budget the same error comes, the pool's lease ends, pinned memory moves bits, and the limit goes with the run."""
    gpu = CudaDevice(0)
    gpu.limit(64 << 20)
    try:
        pool = DevicePool([gpu])
        with pytest.raises(DeviceOutOfMemory, match="ran out of memory within its budget of 64 MiB"), pool.place(1 << 20) as device, device.stream():
            torch.empty(128 << 20, dtype=torch.uint8, device=gpu.torch_device)
        assert pool.room() == [64 << 20]
        there, back = gpu.pinned(1 << 20), gpu.pinned(1 << 20)
        assert torch.from_numpy(there).is_pinned()
        there[:] = np.arange(1 << 20, dtype=np.uint32).astype(np.uint8)
        with gpu.stream() as stream:
            gpu.to_host(gpu.to_device(there.view(np.uint16)), back.view(np.uint16))
            stream.wait()
        assert np.array_equal(there, back)
    finally:
        gpu.close()
