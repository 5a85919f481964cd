"""A summary of a checkpoint agrees with what was stored in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from plait.planner.checkpoint import open_checkpoint
from plait.planner.inspect import summarise


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
    assert summary["odd"] == {"integer": ["model.rotary.ids"], "empty": ["model.nothing"]}


def test_summary_without_configuration(tmp_path: Path) -> None:
    """A bare file is summarised too, with nothing made up."""
    save_file({"w": np.zeros(3)}, tmp_path / "x.safetensors")
    summary = summarise(open_checkpoint(tmp_path / "x.safetensors"))
    assert (summary["model_type"], summary["tied"], summary["layers"], summary["odd"]) == (None, None, 0, {})
