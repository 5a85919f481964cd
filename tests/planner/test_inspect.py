"""A summary of a checkpoint agrees with what was stored in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import plait
from plait.planner.checkpoint import open_checkpoint
from plait.planner.inspect import summarise
from support.steps import assert_proportional


def test_summary_of_a_stored_model(tmp_path: Path) -> None:
    """Counts, bytes, dtypes, roles, layers, shards, tying and odd tensors are those of the arrays that were saved."""
    first = {
        "model.embed_tokens.weight": np.zeros((10, 4), np.float16),
        "model.layers.0.self_attn.q_proj.weight": np.zeros((4, 4), np.float16),
        "model.layers.0.mlp.up_proj.weight": np.zeros((8, 4), np.float16),
    }
    second = {
        "model.layers.1.self_attn.q_proj.weight": np.zeros((4, 4), np.float16),
        "model.norm.weight": np.zeros(4, np.float32),
        "model.rotary.ids": np.zeros(6, np.int64),
        "model.nothing": np.zeros((0, 4), np.float32),
    }
    save_file(first, tmp_path / "model-00001-of-00002.safetensors")
    save_file(second, tmp_path / "model-00002-of-00002.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "text_config": {"tie_word_embeddings": true}}')
    summary = summarise(open_checkpoint(tmp_path, "mine"))
    json.dumps(summary)
    everything = {**first, **second}
    assert summary["label"] == "mine"
    assert summary["model_type"] == "llama"
    assert summary["tensors"] == 7
    assert summary["bytes"] == sum(a.nbytes for a in everything.values())
    assert summary["parameters"] == sum(a.size for a in everything.values() if a.dtype.kind == "f")
    assert summary["dtypes"]["float16"] == {"tensors": 4, "elements": 104, "bytes": 208}
    assert summary["roles"]["attention"] == {"tensors": 2, "elements": 32, "bytes": 64}
    assert summary["roles"]["embedding"]["elements"] == 40
    assert summary["layers"] == 2
    assert summary["tied"] is True
    assert [s["tensors"] for s in summary["shards"]] == [3, 4]
    assert summary["odd"] == {
        "integer": ["model.rotary.ids"],
        "empty": ["model.nothing"],
        "partial": ["model.layers.*.mlp.up_proj.weight: in layers 0 of 2"],
    }
    assert summary["kind"] == "model"
    assert summary["kinds"][1] == {
        "name": "model.layers.*.self_attn.q_proj.weight",
        "role": "attention",
        "shape": [4, 4],
        "dtype": "float16",
        "tensors": 2,
        "elements": 32,
        "bytes": 64,
    }


def test_summary_without_configuration(tmp_path: Path) -> None:
    """A bare file is summarised too, with nothing made up."""
    save_file({"w": np.zeros(3)}, tmp_path / "x.safetensors")
    summary = summarise(open_checkpoint(tmp_path / "x.safetensors"))
    assert (summary["model_type"], summary["tied"], summary["layers"], summary["odd"]) == (None, None, 0, {})


def layered(count: int = 9, **changed: np.ndarray) -> dict[str, np.ndarray]:
    """A model of a few layers, some of its tensors replaced by others of the same names with `__` for dots."""
    plain = {"model.embed_tokens.weight": np.zeros((10, 4), np.float16)}
    for i in range(count):
        plain[f"model.layers.{i}.self_attn.q_proj.weight"] = np.zeros((4, 4), np.float16)
        plain[f"model.layers.{i}.mlp.up_proj.weight"] = np.zeros((8, 4), np.float16)
    return plain | {name.replace("__", "."): value for name, value in changed.items()}


def stored(tmp_path: Path, tensors: dict[str, np.ndarray], config: str = "{}") -> dict[str, Any]:
    """Their summary."""
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    return summarise(open_checkpoint(tmp_path, "mine"))


def test_a_tensor_unlike_its_siblings(tmp_path: Path) -> None:
    """Another shape or another dtype than most layers have."""
    odd = stored(
        tmp_path, layered(model__layers__3__mlp__up_proj__weight=np.zeros((7, 4), np.float16), model__layers__5__self_attn__q_proj__weight=np.zeros((4, 4)))
    )["odd"]
    assert odd == {
        "unlike": [
            "model.layers.5.self_attn.q_proj.weight: 4x4 float64, its siblings 4x4 float16",
            "model.layers.3.mlp.up_proj.weight: 7x4 float16, its siblings 8x4 float16",
        ]
    }


def test_a_layer_that_lacks_a_tensor(tmp_path: Path) -> None:
    tensors = layered()
    del tensors["model.layers.4.mlp.up_proj.weight"]
    assert stored(tmp_path, tensors)["odd"] == {"missing": ["model.layers.4.mlp.up_proj.weight"]}


def test_names_that_tell_nothing(tmp_path: Path) -> None:
    """A stray tensor is named; in a model of which no name tells anything none is."""
    assert stored(tmp_path, layered(stray=np.zeros(3, np.float16)))["odd"] == {"unknown": ["stray"]}


def test_a_configuration_that_does_not_fit(tmp_path: Path) -> None:
    odd = stored(tmp_path, layered(), '{"num_hidden_layers": 12, "vocab_size": 11}')["odd"]
    assert odd == {"configuration": ["config.json says 12 layers, the files hold 9", "config.json says a vocabulary of 11, the embedding has 10 rows"]}


@pytest.mark.parametrize("value", ["null", "true", "-1", "1e9", '"12"', "[12]", "{}", "123456789012345678901"])
def test_a_configuration_of_strange_values(tmp_path: Path, value: str) -> None:
    """What is no count is not shown and not compared."""
    config = f'{{"num_hidden_layers": {value}, "vocab_size": {value}, "model_type": {value}, "quantization_config": {value}, "text_config": {value}}}'
    (tmp_path / "config.json").write_text(config)
    try:
        summary = stored(tmp_path, layered(), config)
    except plait.CheckpointError:  # a number beyond 64 bits
        return
    json.dumps(summary)
    assert "configuration" not in summary["odd"]
    assert summary["kind"] == "model"


def test_a_lora_adapter_is_recognised(tmp_path: Path) -> None:
    """Its rank, its modules and its base are said."""
    names = [f"base_model.model.model.layers.{i}.self_attn.{p}_proj.lora_{f}.weight" for i in range(2) for p in "qv" for f in "AB"]
    save_file({n: np.zeros((8, 32) if "lora_A" in n else (32, 8), np.float32) for n in names}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    summary = summarise(open_checkpoint(tmp_path))
    assert summary["kind"] == "lora"
    assert summary["about"].startswith("a LoRA adapter of rank 8 on q_proj, v_proj, for 'org/base'")


@pytest.mark.parametrize(
    ("tensors", "config", "told"),
    [
        ({"model.layers.0.mlp.up_proj.qweight": np.zeros((4, 4), np.int32)}, "{}", "1 tensors are named as in GPTQ or AWQ"),
        ({}, '{"quantization_config": {"quant_method": "fp8"}}', "config.json says 'fp8'"),
    ],
)
def test_quantised_weights_are_recognised(tmp_path: Path, tensors: dict[str, np.ndarray], config: str, told: str) -> None:
    summary = stored(tmp_path, layered(**tensors), config)
    assert summary["kind"] == "quantised"
    assert told in summary["about"]


def test_a_scan_finds_what_no_header_tells(tmp_path: Path) -> None:
    """NaN, infinity and zeros by count, the largest finite magnitude, and tensors that hold the same bytes."""
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((50, 8)).astype(np.float32)
    bad = rng.standard_normal(40).astype(np.float32)
    bad[:6] = np.nan, np.inf, -np.inf, 0.0, -0.0, 123.0
    tensors = {
        "embed.weight": embedding,
        "lm_head.weight": embedding.copy(),
        "other.weight": embedding + 1,
        "bad": bad,
        "ids": np.arange(3),
        "wide": np.ones(3),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    found = plait.inspect(tmp_path / "x.safetensors", scan=True, memory="64MiB")
    scan = found.scan
    assert scan is not None
    by_name = {t.name: t for t in scan.tensors}
    assert (by_name["bad"].nan, by_name["bad"].infinite, by_name["bad"].zeros, by_name["bad"].largest) == (1, 2, 2, 123.0)
    assert [t.name for t in scan.nonfinite] == ["bad"]
    assert scan.equal == (("embed.weight", "lm_head.weight"),)
    assert set(scan.not_scanned) == {"ids", "wide"}
    np.testing.assert_allclose(by_name["other.weight"].mean, (embedding + 1).mean(dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(by_name["other.weight"].std, (embedding + 1).std(dtype=np.float64), rtol=1e-5)
    assert json.loads(found.to_json(tensors=True))["scan"]["nonfinite"] == ["bad"]


def test_a_scan_of_integers_alone(tmp_path: Path) -> None:
    """Nothing is read, and that is said."""
    save_file({"ids": np.arange(3)}, tmp_path / "x.safetensors")
    scan = plait.inspect(tmp_path / "x.safetensors", scan=True, memory="64MiB").scan
    assert scan is not None
    assert (scan.tensors, scan.not_scanned) == ((), ("ids",))


def test_many_kinds_in_many_layers_cost_the_same_each(tmp_path: Path) -> None:
    """A file made so that every layer holds a tensor of a name of its own is summarised in proportion to its tensors."""

    def made(count: int) -> Callable[[], Any]:
        entries = {f"a.{i}.x{i}": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for i in range(count)}
        text = json.dumps(entries).encode()
        path = tmp_path / f"{count}.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        opened = open_checkpoint(path)
        return lambda: summarise(opened)

    assert len(made(1500)()["odd"]["partial"]) == 1500
    assert_proportional(made, 1000, 3000)
