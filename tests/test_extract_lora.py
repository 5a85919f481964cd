"""LoRA extraction end to end: what the adapter holds against a float64 SVD, what it leaves out, and how it is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import plait
from plait.engine import weightdiff
from plait.ops.errors import BudgetTooSmall, CheckpointError, KernelError, OutputError, PlanError, Stopped
from plait.planner.checkpoint import open_checkpoint
from plait.planner.lora_targets import find_targets, target_bytes
from support import tiny
from support.workspace import needs_rss_anon

SHAPES = {
    "model.embed_tokens.weight": (50, 24),
    "model.layers.0.self_attn.q_proj.weight": (40, 24),
    "model.layers.0.self_attn.q_proj.bias": (40,),
    "model.layers.0.input_layernorm.weight": (24,),
    "model.layers.1.self_attn.q_proj.weight": (40, 24),
    "model.layers.1.self_attn.q_proj.bias": (40,),
    "model.layers.1.mlp.down_proj.weight": (24, 60),
    "vision.patch.weight": (16, 3, 4, 4),
    "lm_head.weight": (50, 24),
}
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
Q0 = "model.layers.0.self_attn.q_proj"


def values(seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def models(tmp_path):
    """Base and tuned model in float32; in the tuned one every tensor but the second layer's bias has changed, by full-rank noise."""
    base = values()
    change = values(1, 0.1)
    change["model.layers.1.self_attn.q_proj.bias"][:] = 0
    tuned = {name: base[name] + change[name] for name in base}
    tiny.write_model(tmp_path / "base", base, "F32", config=CONFIG)
    tiny.write_model(tmp_path / "tuned", tuned, "F32", config=CONFIG)
    return tmp_path, base, {name: tuned[name] - base[name] for name in base}


def extract(folder, **options):
    return plait.extract_lora(folder / "base", folder / "tuned", folder / "out", **options)


def load(folder):
    """Tensors by name without PEFT's prefix, and the config."""
    tensors = load_file(folder / "out" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.") for name in tensors)
    return {n.removeprefix("base_model.model."): t for n, t in tensors.items()}, json.loads((folder / "out" / "adapter_config.json").read_text())


def product(tensors, module):
    """B A of a module in float64, as a matrix."""
    a, b = (tensors[f"{module}.lora_{x}.weight"].double() for x in "AB")
    return (b.flatten(1) @ a.flatten(1)).numpy()


def test_full_rank_gives_the_model_back(models):
    """Base + BA is the tuned model for matrices and convolutions, to float32 rounding; captured energy is one."""
    folder, _, delta = models
    found = extract(folder, rank=1000)
    tensors, config = load(folder)
    assert {f.module for f in found.factored} == {n.removesuffix(".weight") for n in SHAPES if "proj.weight" in n or "patch" in n}
    for factored in found.factored:
        want = delta[factored.name].reshape(factored.shape[0], -1)
        np.testing.assert_allclose(product(tensors, factored.module), want, atol=1e-6)
        assert factored.captured == pytest.approx(1, abs=1e-9)
    assert config["r"] == config["lora_alpha"] == 24


@pytest.mark.parametrize("rank", [1, 5])
def test_exact_is_eckart_and_youngs(models, rank):
    """The error of BA is the tail of the singular values, no more, and the reported energy says so."""
    folder, _, delta = models
    found = extract(folder, rank=rank)
    tensors, config = load(folder)
    assert config["rank_pattern"] == {}
    for f in found.factored:
        d = delta[f.name].reshape(f.shape[0], -1).astype(np.float64)
        tail = np.sqrt((np.linalg.svd(d, compute_uv=False)[rank:] ** 2).sum())
        error = np.linalg.norm(d - product(tensors, f.module))
        assert error == pytest.approx(tail, rel=1e-5)
        assert f.captured == pytest.approx(1 - (tail / np.linalg.norm(d)) ** 2, abs=1e-6)
        assert f.rank == rank


def test_fast_is_within_its_bound(tmp_path):
    """On a decaying spectrum the sketched factors are within one percent of the best, and what is reported is measured."""
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.standard_normal((520, 200)))
    v, _ = np.linalg.qr(rng.standard_normal((600, 200)))
    spectrum = np.arange(1, 201) ** -1.0
    base = rng.standard_normal((520, 600)).astype(np.float32)
    tiny.write_model(tmp_path / "base", {"a.weight": base}, "F32")
    tiny.write_model(tmp_path / "tuned", {"a.weight": (base + (u * spectrum) @ v.T).astype(np.float32)}, "F32")
    found = extract(tmp_path, rank=16, accuracy="fast")
    left = 1 - found.captured
    best = (spectrum[16:] ** 2).sum() / (spectrum**2).sum()
    assert best * 0.999 <= left <= best * 1.02


def test_energy_takes_the_smallest_rank_that_holds_it(models):
    """Ranks differ between tensors, are the smallest, and are in the config's patterns; the largest is `r`."""
    folder, _, delta = models
    found = extract(folder, rank=1000, energy=0.8)
    _, config = load(folder)
    for f in found.factored:
        squares = np.linalg.svd(delta[f.name].reshape(f.shape[0], -1).astype(np.float64), compute_uv=False) ** 2
        shares = squares.cumsum() / squares.sum()
        assert shares[f.rank - 1] >= 0.8 - 1e-6
        assert f.rank == 1 or shares[f.rank - 2] < 0.8
    ranks = {f.module: f.rank for f in found.factored}
    assert config["r"] == max(ranks.values())
    assert config["rank_pattern"] == config["alpha_pattern"] == {m: r for m, r in ranks.items() if r != config["r"]}
    assert len(set(ranks.values())) > 1


def test_energy_never_goes_above_the_rank(models):
    """What --rank allows is the most."""
    folder, _, _ = models
    assert {f.rank for f in extract(folder, rank=2, energy=1.0).factored} == {2}


@pytest.mark.parametrize("distribute", [True, False])
def test_where_the_singular_values_go(models, distribute):
    """Shared, A Aᵀ and Bᵀ B are both diag(S); else B is orthonormal and A carries them all. Signs are fixed."""
    folder, _, delta = models
    extract(folder, rank=4, distribute_scale=distribute)
    tensors, _ = load(folder)
    a, b = (tensors[f"{Q0}.lora_{x}.weight"].double().numpy() for x in "AB")
    s = np.linalg.svd(delta[f"{Q0}.weight"].astype(np.float64), compute_uv=False)[:4]
    np.testing.assert_allclose(a @ a.T, np.diag(s if distribute else s**2), atol=1e-6)
    np.testing.assert_allclose(b.T @ b, np.diag(s) if distribute else np.eye(4), atol=1e-6)
    assert (b[np.abs(b).argmax(0), np.arange(4)] > 0).all()


def test_convolutions_have_the_shapes_of_peft(models):
    """A keeps the kernel, B is a 1 x 1 convolution."""
    folder, _, _ = models
    extract(folder, rank=3)
    tensors, _ = load(folder)
    assert tensors["vision.patch.lora_A.weight"].shape == (3, 3, 4, 4)
    assert tensors["vision.patch.lora_B.weight"].shape == (16, 3, 1, 1)


def test_what_cannot_be_decomposed_is_said(models):
    """Embedding, head, norm and bias are reported with why; what did not change is not."""
    folder, _, _ = models
    found = extract(folder)
    tensors, config = load(folder)
    assert found.left_out == {
        "model.embed_tokens.weight": "embedding",
        f"{Q0}.bias": "bias",
        "model.layers.0.input_layernorm.weight": "no matrix",
        "lm_head.weight": "head",
    }
    assert found.unchanged == ["model.layers.1.self_attn.q_proj.bias"]
    assert all(".lora_" in name for name in tensors)
    assert config["modules_to_save"] is None


def test_save_whole_saves_it(models):
    """In full under the names that PEFT looks for; a bias not, as PEFT wants one in every decomposed module."""
    folder, base, delta = models
    found = extract(folder, save_whole=True)
    tensors, config = load(folder)
    assert list(found.left_out) == [f"{Q0}.bias"]
    assert "other decomposed modules have none" in found.left_out[f"{Q0}.bias"]
    assert config["modules_to_save"] == ["lm_head", "model.embed_tokens", "model.layers.0.input_layernorm"]
    assert config["lora_bias"] is False
    for module in config["modules_to_save"]:
        np.testing.assert_array_equal(tensors[f"{module}.weight"], base[f"{module}.weight"] + delta[f"{module}.weight"])


def test_biases_go_along_where_every_module_has_one(models):
    """The change of a bias is the bias of lora_B, and the config says so; the one that did not change is left out."""
    folder, _, delta = models
    found = extract(folder, include=["q_proj"], save_whole=True)
    tensors, config = load(folder)
    assert found.left_out == {}
    assert config["lora_bias"] is True
    assert config["modules_to_save"] is None
    assert [n for n in tensors if n.endswith("bias")] == [f"{Q0}.lora_B.bias"]
    np.testing.assert_allclose(tensors[f"{Q0}.lora_B.bias"], delta[f"{Q0}.bias"], atol=1e-7)


def test_config_is_what_peft_reads(models):
    """Type, scaling of one, the base's name, and short module names where they mean exactly the decomposed modules."""
    folder, _, _ = models
    extract(folder, rank=4)
    _, config = load(folder)
    assert config["peft_type"] == "LORA"
    assert config["task_type"] == "CAUSAL_LM"
    assert config["r"] == config["lora_alpha"] == 4
    assert config["base_model_name_or_path"] == str(folder / "base")
    assert config["target_modules"] == ["down_proj", "patch", "q_proj"]


def test_include_and_exclude_choose(models):
    """Only what is chosen is looked at, and the modules' full names are given where short ones would mean more."""
    folder, _, _ = models
    found = extract(folder, include=["q_proj"], exclude=["layers\\.1"], save_whole=True)
    tensors, config = load(folder)
    assert set(tensors) == {f"{Q0}.lora_A.weight", f"{Q0}.lora_B.weight", f"{Q0}.lora_B.bias"}
    assert config["target_modules"] == [Q0]
    assert "lm_head.weight" in found.excluded


def test_tensors_without_a_counterpart(models):
    """New ones and those of another shape can only be saved whole; those that are gone are named."""
    folder, base, _ = models
    tuned = {n: x * 1.01 for n, x in base.items() if n != "lm_head.weight"}
    tuned["model.layers.1.mlp.down_proj.weight"] = np.ones((24, 61), np.float32)
    tuned["score.weight"] = np.ones((2, 24), np.float32)
    tiny.write_model(folder / "other", tuned, "F32")
    found = plait.extract_lora(folder / "base", folder / "other", folder / "out", exclude=["embed", "norm", "bias"])
    assert found.left_out == {"model.layers.1.mlp.down_proj.weight": "[24, 60] in the base", "score.weight": "not in the base"}
    assert found.missing == ("lm_head.weight",)


def test_conv1d_models_are_transposed(tmp_path):
    """GPT-2 stores [in, out]: A is [r, in], B is [out, r], and the config says so."""
    rng = np.random.default_rng(0)
    base, change = rng.standard_normal((2, 12, 20)).astype(np.float32)
    name = "transformer.h.0.attn.c_attn.weight"
    for label, x in (("base", base), ("tuned", base + change)):
        tiny.write_model(tmp_path / label, {name: x}, "F32", config={"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
    extract(tmp_path, rank=12)
    tensors, config = load(tmp_path)
    assert config["fan_in_fan_out"] is True
    assert tensors["transformer.h.0.attn.c_attn.lora_A.weight"].shape == (12, 12)
    np.testing.assert_allclose(product(tensors, "transformer.h.0.attn.c_attn").T, change, atol=2e-6)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_dtypes(tmp_path, dtype):
    """Models of any float dtype, over several pieces; factors in the model's unless asked otherwise, rounded once."""
    base, change = values(), values(1, 0.1)
    for label, data in (("base", base), ("tuned", {n: base[n] + change[n] for n in base})):
        tiny.write_model(tmp_path / label, data, dtype, shards=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weightdiff, "PIECE", 100)
        extract(tmp_path, rank=50, save_whole=True)
    tensors, _ = load(tmp_path)
    assert {t.dtype for t in tensors.values()} == {getattr(torch, tiny.NAMES[dtype])}
    old, new = (tiny.decode(tiny.encode(x, dtype), dtype) for x in (base[f"{Q0}.weight"], base[f"{Q0}.weight"] + change[f"{Q0}.weight"]))
    assert np.linalg.norm(product(tensors, Q0) - (new - old)) <= {"BF16": 1e-2, "F16": 1e-3, "F32": 1e-6}[dtype] * np.linalg.norm(new - old)
    with pytest.raises(PlanError, match="factors cannot be stored in 'int8'"):
        extract(tmp_path, dtype="int8")


def test_mixed_dtypes_stay_aligned(tmp_path):
    """A float32 norm beside bfloat16 factors of odd sizes: every tensor starts at a multiple of its element size."""
    stored = {}
    for label, scale in (("base", 1.0), ("tuned", 1.5)):
        (tmp_path / label).mkdir()
        stored = {"a.weight": np.full((3, 5), scale, np.float32), "norm.weight": np.full(3, scale, np.float32)}
        stored["a.weight"][0, 0] = 7
        raw = {n: (d, x.shape, tiny.encode(x, d).tobytes()) for (n, x), d in zip(stored.items(), ("BF16", "F32"), strict=True)}
        tiny.write_file(tmp_path / label / "model.safetensors", raw)
    extract(tmp_path, save_whole=True, dtype="bfloat16")
    tensors, _ = load(tmp_path)
    np.testing.assert_array_equal(tensors["norm.weight"], stored["norm.weight"])
    opened = open_checkpoint(tmp_path / "out" / "adapter_model.safetensors")
    assert all(t.start % (4 if t.dtype == "F32" else 2) == 0 for t in opened.tensors.values())


def test_the_same_bytes_every_time(models):
    """Two runs write the same adapter; --overwrite replaces the first."""
    folder, _, _ = models
    extract(folder, rank=4)
    first = (folder / "out" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="not empty"):
        extract(folder, rank=4)
    extract(folder, rank=4, overwrite=True)
    assert (folder / "out" / "adapter_model.safetensors").read_bytes() == first
    assert sorted(p.name for p in folder.iterdir()) == ["base", "out", "tuned"]


def test_a_budget_too_small_is_refused_before_reading(models):
    """With the tensor, what it needs, and what would do; nothing is made."""
    folder, _, _ = models
    told = []
    with pytest.raises(BudgetTooSmall, match=r"\.weight of \[.*\] needs .* give --memory \d+MiB") as caught:
        extract(folder, memory="1KiB", started=told.append)
    assert caught.value.facts["needed"] > 1024
    assert told == []
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank 0 holds nothing"),
        ({"energy": 0.0}, "energy 0.0 is no share"),
        ({"energy": 1.5}, "energy 1.5 is no share"),
        ({"accuracy": "quick"}, "'quick' is not one of exact, fast"),
        ({"include": ["("]}, "is not a regular expression"),
        ({"include": ["norm"]}, "no tensor is a matrix or convolution"),
    ],
)
def test_options_that_make_no_sense(models, options, message):
    """Each is refused with what is wrong."""
    folder, _, _ = models
    with pytest.raises(PlanError, match=message):
        extract(folder, **options)
    assert not (folder / "out").exists()


def test_failures_leave_nothing_behind(models):
    """Equal models, NaN, a stop and changed inputs: an error each, and no folder."""
    folder, base, _ = models
    with pytest.raises(PlanError, match="no matrix of the model differs"):
        plait.extract_lora(folder / "base", folder / "base", folder / "out")
    broken = {n: x.copy() for n, x in base.items()}
    broken[f"{Q0}.weight"][0, 0] = np.nan
    tiny.write_model(folder / "nan", broken, "F32")
    with pytest.raises(KernelError, match=f"{Q0}.weight: .*NaN"):
        plait.extract_lora(folder / "base", folder / "nan", folder / "out")
    import threading

    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        extract(folder, stop=stop)

    def touch(nbytes):
        os.utime(folder / "tuned" / "model.safetensors", ns=(1, 1))

    with pytest.raises(CheckpointError, match="changed since"):
        extract(folder, progress=touch)
    assert sorted(p.name for p in folder.iterdir()) == ["base", "nan", "tuned"]


def run(*args: str | Path, cwd: Path, status: int = 0):
    done = subprocess.run([sys.executable, "-m", "plait", "extract-lora", *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def test_the_command(models):
    """A real process: table and total, data on request, errors in one line with status 2, examples in the help."""
    folder, _, _ = models
    out, _ = run("base", "tuned", "out", "--rank", "4", cwd=folder)
    assert "q_proj.weight" in out
    assert "out: 4 tensors as factors" in out
    assert "lm_head.weight (head)" in out
    assert set(os.listdir(folder / "out")) == {"adapter_config.json", "adapter_model.safetensors"}
    found = json.loads(run("base", "tuned", "out", "--overwrite", "--format", "json", "--accuracy", "fast", "--save-whole", "-q", cwd=folder)[0])
    assert found["captured"] == pytest.approx(1, abs=1e-6)
    assert run("base", "nowhere", "x", cwd=folder, status=2)[1].startswith("plait: no model 'nowhere'")
    assert run("base", "tuned", "x", "--memory", "1KiB", cwd=folder, status=2)[1].count("\n") == 1
    assert "Examples:" in run("--help", cwd=folder)[0]


MEASURE = """
import json, sys, threading, time
import torch
import plait
torch.set_num_threads(1)
def anonymous():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("RssAnon"))
plait.extract_lora("small-base", "small-tuned", "small")
base = peak = anonymous()
done = threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.0005)
watcher = threading.Thread(target=watch)
watcher.start()
plait.extract_lora("base", "tuned", "out", rank=64)
done.set()
watcher.join()
print(json.dumps(peak - base))
"""


@needs_rss_anon
def test_measured_memory_is_within_what_is_declared(tmp_path):
    """A fresh process takes no more than the largest tensor is said to need, and that is no more than 1.25 of it."""
    rng = np.random.default_rng(0)
    for size, prefix in ((1024, ""), (40, "small-")):
        base = rng.standard_normal((size, 2 * size)).astype(np.float32)
        tiny.write_model(tmp_path / f"{prefix}base", {"a.weight": base}, "BF16")
        tiny.write_model(tmp_path / f"{prefix}tuned", {"a.weight": base + 0.1 * rng.standard_normal(base.shape).astype(np.float32)}, "BF16")
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=tmp_path, capture_output=True, text=True, check=True)
    target = find_targets(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "tuned")).wanted[0]
    assert json.loads(done.stdout) <= target_bytes(target, 64, "exact", 1) <= 1.25 * json.loads(done.stdout)
