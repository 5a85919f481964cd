"""The forward pass of a BERT sentence encoder in plain torch, over a dict of its tensors by their names in the file.

It computes what the Hugging Face implementation computes for a sentence encoder (inference, absolute
positions, mean pooling over the text's tokens, unit length), split after any layer, so that the lower
layers' output can be computed once and kept:

    tokens -> embed -> layer 0 .. layer k-1  |  layer k .. layer n-1 -> mean -> unit vector
              `lower` (kept)                    `upper` (trained)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.ops.errors import CheckpointError

Weights = Mapping[str, Tensor]

MAX_TOKENS = 40
"""Texts are cut here; most of the demo's are shorter."""


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The numbers of `config.json` that the forward pass needs."""

    hidden: int
    layers: int
    heads: int
    eps: float

    @classmethod
    def read(cls, folder: Path) -> BertConfig:
        """Read `folder/config.json`.

        Raises:
            CheckpointError: it is not the configuration of a BERT that this code can run.
        """
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        wanted = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
        for key, value in wanted.items():
            if config.get(key, value) != value:
                raise CheckpointError(f"{path}: the demo's encoder needs {key} {value!r} and found {config[key]!r}", path=str(path))
        return cls(config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"], config["layer_norm_eps"])


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids and mask, both [texts, tokens]; the mask is 1 on a text's tokens and 0 on the padding."""

    ids: Tensor
    mask: Tensor


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of `folder`, one file or sharded, floats as float32.

    Raises:
        CheckpointError: there is no safetensors file in it.
    """
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no .safetensors file", path=str(folder))
    weights: dict[str, Tensor] = {}
    for file in files:
        weights.update(load_file(file))
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def tokenize(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with the special tokens, cut at `MAX_TOKENS`."""
    from tokenizers import Tokenizer  # type: ignore[import-not-found,unused-ignore]  # an extra of the demo

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def pad(rows: Sequence[Sequence[int]]) -> Batch:
    """Pad token lists with zeros to the longest."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1.0] * len(row) + [0.0] * (width - len(row)) for row in rows])
    return Batch(ids, mask)


def embed(weights: Weights, config: BertConfig, ids: Tensor) -> Tensor:
    """The sum of word, position and type embeddings, normalised: [texts, tokens, hidden]."""
    words = weights["embeddings.word_embeddings.weight"][ids]
    positions = weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    types = weights["embeddings.token_type_embeddings.weight"][0]
    return _norm(weights, "embeddings.LayerNorm", words + positions + types, config)


def run_layers(weights: Weights, config: BertConfig, hidden: Tensor, mask: Tensor, first: int, last: int) -> Tensor:
    """Layers `first` to `last - 1` on `hidden` [texts, tokens, hidden]; padding tokens are not attended to."""
    seen = mask[:, None, None, :].bool()
    for number in range(first, last):
        name = f"encoder.layer.{number}"
        hidden = _norm(weights, f"{name}.attention.output.LayerNorm", hidden + _attend(weights, f"{name}.attention", hidden, seen, config), config)
        wide = F.gelu(_linear(weights, f"{name}.intermediate.dense", hidden))
        hidden = _norm(weights, f"{name}.output.LayerNorm", hidden + _linear(weights, f"{name}.output.dense", wide), config)
    return hidden


def pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over a text's own tokens, at unit length: [texts, hidden]."""
    weight = mask.unsqueeze(-1)
    mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
    return F.normalize(mean, dim=-1)


def encode(weights: Weights, config: BertConfig, batch: Batch) -> Tensor:
    """Unit sentence vectors [texts, hidden] of a batch."""
    hidden = run_layers(weights, config, embed(weights, config, batch.ids), batch.mask, 0, config.layers)
    return pool(hidden, batch.mask)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(weights: Weights, name: str, x: Tensor, config: BertConfig) -> Tensor:
    return F.layer_norm(x, (config.hidden,), weights[f"{name}.weight"], weights[f"{name}.bias"], config.eps)


def _attend(weights: Weights, name: str, hidden: Tensor, seen: Tensor, config: BertConfig) -> Tensor:
    texts, tokens, width = hidden.shape

    def heads(part: str) -> Tensor:
        return _linear(weights, f"{name}.self.{part}", hidden).view(texts, tokens, config.heads, width // config.heads).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(heads("query"), heads("key"), heads("value"), attn_mask=seen)
    return _linear(weights, f"{name}.output.dense", mixed.transpose(1, 2).reshape(texts, tokens, width))
