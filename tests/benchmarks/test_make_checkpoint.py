"""The benchmarks' checkpoints are ordinary ones: another reader opens them, and experts differ from the base by the noise asked for."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from support.stored import read_folder

_PATH = Path(__file__).parents[2] / "benchmarks" / "make_checkpoint.py"
_SPEC = importlib.util.spec_from_file_location("make_checkpoint", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
make_checkpoint = importlib.util.module_from_spec(_SPEC)
sys.modules["make_checkpoint"] = make_checkpoint
_SPEC.loader.exec_module(make_checkpoint)
TINY = make_checkpoint.PRESETS["tiny"]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_another_reader_opens_every_shard(dtype: str, tmp_path: Path):
    """safetensors itself reads the shards, which hold every tensor of the preset once, and the index agrees."""
    make_checkpoint.make_set(tmp_path, TINY, 0, dtype, shard_bytes=100_000)
    where = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())["weight_map"]
    found = {}
    for file in sorted((tmp_path / "base").glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a dict
                found[name] = tuple(tensors.get_slice(name).get_shape())
                assert where[name] == file.name
    assert found == TINY.tensors()


def test_experts_are_the_base_plus_noise(tmp_path: Path):
    """Noise of the size asked for, different for each expert, and the same again from the same seed."""
    base, one, two = (read_folder(f) for f in make_checkpoint.make_set(tmp_path / "a", TINY, 2, "F32", seed=3))
    again = read_folder(make_checkpoint.make_set(tmp_path / "b", TINY, 2, "F32", seed=3)[1])
    name = "model.embed_tokens.weight"
    noise = one[name].value - base[name].value
    assert noise.std() == pytest.approx(0.002, rel=0.05)
    assert abs(np.corrcoef(noise.ravel(), (two[name].value - base[name].value).ravel())[0, 1]) < 0.05
    assert np.array_equal(again[name].value, one[name].value)


def test_a_mixture_has_unfused_experts_and_a_router():
    """`moe-100k` has 100,298 tensors: in each of 65 layers 3 matrices for each of 512 experts, a router, 4 matrices of attention and 2 norms."""
    preset = make_checkpoint.PRESETS["moe-100k"]
    tensors = preset.tensors()
    assert len(tensors) == 65 * (3 * 512 + 7) + 3 == 100_298
    assert tensors["model.layers.64.mlp.experts.511.down_proj.weight"] == (2048, 512)
    assert tensors["model.layers.0.mlp.gate.weight"] == (512, 2048)
    assert "model.layers.0.mlp.up_proj.weight" not in tensors
    assert preset.config("BF16")["num_experts"] == 512


def test_sparse_files_have_the_size_but_not_the_data(tmp_path: Path):
    """The whole 70B model in 5 GB shards takes next to no disk."""
    folder = make_checkpoint.make_set(tmp_path, make_checkpoint.PRESETS["70b"], 0, sparse=True)[0]
    sizes = [f.stat().st_size for f in folder.glob("*.safetensors")]
    assert sum(sizes) == pytest.approx(141.1e9, rel=0.001)
    assert max(sizes) <= 5_000_100_000
    assert sum(f.stat().st_blocks * 512 for f in folder.iterdir()) < 2_000_000
