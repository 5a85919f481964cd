"""Layers and roles are read from names as the well-known architectures write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.planner.layers import holds_vocabulary, infer_layers, reads_input, role, split


@pytest.mark.parametrize(
    ("name", "stack", "layer", "kind"),
    [
        ("model.embed_tokens.weight", None, None, "embedding"),
        ("model.layers.7.self_attn.q_proj.weight", "model.layers", 7, "attention"),
        ("model.layers.7.self_attn.q_norm.weight", "model.layers", 7, "norm"),
        ("model.layers.0.post_attention_layernorm.weight", "model.layers", 0, "norm"),
        ("model.layers.0.mlp.experts.3.w1.weight", "model.layers", 0, "mlp"),
        ("model.layers.0.block_sparse_moe.gate.weight", "model.layers", 0, "mlp"),
        ("model.norm.weight", None, None, "norm"),
        ("lm_head.weight", None, None, "head"),
        ("bert.embeddings.word_embeddings.weight", None, None, "embedding"),
        ("bert.embeddings.LayerNorm.weight", None, None, "norm"),
        ("encoder.layer.0.attention.output.dense.weight", "encoder.layer", 0, "attention"),
        ("encoder.layer.11.output.dense.weight", "encoder.layer", 11, "mlp"),
        ("encoder.layer.11.output.LayerNorm.weight", "encoder.layer", 11, "norm"),
        ("cls.predictions.decoder.weight", None, None, "head"),
        ("pooler.dense.weight", None, None, "other"),
        ("transformer.wte.weight", None, None, "embedding"),
        ("transformer.h.11.mlp.c_proj.weight", "transformer.h", 11, "mlp"),
        ("h.0.attn.c_attn.weight", "h", 0, "attention"),
        ("transformer.ln_f.weight", None, None, "norm"),
        ("shared.weight", None, None, "embedding"),
        ("encoder.block.2.layer.1.DenseReluDense.wi_0.weight", "encoder.block", 2, "mlp"),
        ("decoder.block.2.layer.1.EncDecAttention.q.weight", "decoder.block", 2, "attention"),
        ("visual.transformer.resblocks.3.attn.in_proj_weight", "visual.transformer.resblocks", 3, "attention"),
        ("text_model.embeddings.token_embedding.weight", None, None, "embedding"),
        ("gpt_neox.embed_in.weight", None, None, "embedding"),
        ("embed_out.weight", None, None, "head"),
        ("gpt_neox.layers.4.mlp.dense_h_to_4h.weight", "gpt_neox.layers", 4, "mlp"),
        ("backbone.layers.0.mixer.A_log", "backbone.layers", 0, "other"),
        ("0.auto_model.encoder.layer.3.output.dense.weight", "0.auto_model.encoder.layer", 3, "mlp"),
        ("logit_scale", None, None, "other"),
    ],
)
def test_names_of_known_architectures(name: str, stack: str | None, layer: int | None, kind: str) -> None:
    """Llama, Qwen, Mixtral, BERT, GPT-2, T5, CLIP, GPT-NeoX, Mamba and sentence-transformers names."""
    place = split(name)
    assert (place[:2] if place else (None, None)) == (stack, layer)
    assert role(name) == kind


def test_vocabulary_and_input_side() -> None:
    """Token embeddings and heads count the vocabulary, positions and labels do not; an embedding's norm reads the input, the head does not."""
    assert all(map(holds_vocabulary, ("model.embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_out.weight", "lm_head.bias")))
    assert not any(map(holds_vocabulary, ("wpe.weight", "bert.embeddings.position_embeddings.weight", "classifier.weight", "model.norm.weight")))
    assert all(map(reads_input, ("model.embed_tokens.weight", "embeddings.LayerNorm.weight", "wpe.weight")))
    assert not any(map(reads_input, ("lm_head.weight", "embed_out.weight", "model.norm.weight")))


def test_main_stack_has_most_layers_then_most_tensors() -> None:
    """Encoder and decoder are two stacks; the deeper is the main one, and of equals the one with more tensors."""
    names = [f"enc.{i}.a" for i in range(3)] + [f"dec.{i}.{part}" for i in range(3) for part in "ab"] + ["norm"]
    assert infer_layers(names).main == "dec"
    assert infer_layers([*names, "enc.3.a"]).main == "enc"
    assert infer_layers(["norm"]).main is None


@settings(deadline=None)  # other work shares the machine
@given(numbers=st.sets(st.integers(0, 500), min_size=1, max_size=30))
def test_positions_run_from_zero_to_one(numbers: set[int]) -> None:
    """t grows evenly by index in the stack; a single layer stands at 1."""
    found = infer_layers([f"s.{n}.w" for n in numbers]).positions()
    values = [found["s", n] for n in sorted(numbers)]
    count = len(numbers)
    assert values == ([1.0] if count == 1 else [i / (count - 1) for i in range(count)])


@settings(deadline=None)  # other work shares the machine
@given(name=st.text(max_size=80))
def test_any_name_has_a_role(name: str) -> None:
    """Names are made by strangers: any text has a role and at most one layer, and a split loses nothing."""
    assert role(name) in ("embedding", "attention", "mlp", "norm", "head", "other")
    place = split(name)
    if place is not None and name.isascii():
        stack, number, rest = place
        assert name.startswith(f"{stack}.")
        assert name.endswith(rest)
        assert str(number) in name
