"""Layers and roles read from the names of tensors, so that a new architecture works on the day it appears.

    model.layers.7.self_attn.q_proj.weight
    └── stack ──┘ │ └────── rest ───────┘        layer 7

A *stack* is what stands before the first number of a name; a model may hold several (encoder and decoder, vision and
text). A number that begins a name (`0.auto_model...`) counts as part of the stack's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

_LAYER = re.compile(r"^(.+?)\.(\d{1,9})(?:\.(.*))?$")

_NORM = re.compile(r"norm|(^|\.)ln(\d|_\w{1,16})?(\.|$)", re.IGNORECASE)
_HEAD = re.compile(r"^((\w+\.)*(lm_head|embed_out|score|classifier|qa_outputs)|(cls|lm_head)\..*|output)\.(weight|bias)$|(^|\.)lm_head\.")
_EMBEDDING = re.compile(r"embed|(^|\.)(wte|wpe|shared)\.(weight|bias)$|relative_attention_bias", re.IGNORECASE)
_ATTENTION = re.compile(r"att(n|ention)|(^|\.)(q|k|v|o|qkv|out)_proj\.|query_key_value", re.IGNORECASE)
_MLP = re.compile(
    r"(^|\.)(mlp|ffn|feed_forward|feedforward|\w*moe|experts?|intermediate|DenseReluDense|fc\d?|c_fc|lin[12]|linear[12]|w[123]|dense_h_to_4h|dense_4h_to_h"
    r"|(gate|up|down|gate_up)_proj)(\.|$)|^output\.dense\.",
    re.IGNORECASE,
)
_NOT_VOCABULARY = re.compile(r"pos|wpe|token_type|patch|class|score|qa_outputs|norm", re.IGNORECASE)


@lru_cache(maxsize=1 << 14)  # a layer of a mixture of experts may hold thousands of names
def rest_role(rest: str, inside: bool) -> str:
    """What a tensor is for, by what follows the layer's number in its name (`inside`), or by a name outside the layers."""
    if _NORM.search(rest):
        return "norm"
    if not inside and _HEAD.search(rest):
        return "head"
    if _EMBEDDING.search(rest) and "attention" not in rest.lower():
        return "embedding"
    if _ATTENTION.search(rest):
        return "attention"
    return "mlp" if _MLP.search(rest) else "other"


def split(name: str) -> tuple[str, int, str] | None:
    """Stack, layer number and the rest of a tensor's name, or None outside the layers."""
    found = _LAYER.match(name)
    if found is None:
        return None
    return found[1], int(found[2]), found[3] or ""


def role(name: str) -> str:
    """What a tensor is for, by the well-known parts of its name: embedding, attention, mlp, norm, head or other."""
    place = split(name)
    return rest_role(name, False) if place is None else rest_role(place[2], True)


def holds_vocabulary(name: str) -> bool:
    """Whether the first dimension of a tensor counts the vocabulary (embeddings of tokens, not of positions)."""
    return role(name) in ("embedding", "head") and not _NOT_VOCABULARY.search(name)


def reads_input(name: str) -> bool:
    """Whether a tensor outside the layers comes before them: the embeddings and what belongs to them."""
    return role(name) == "embedding" or ("embed" in name.lower() and role(name) != "head")


@dataclass(frozen=True, slots=True)
class LayerMap:
    """The layer stacks of a model.

    Attributes:
        stacks: stack -> its layer numbers, ascending.
        main: the stack with most layers (then most tensors), or None where there is none.
    """

    stacks: dict[str, tuple[int, ...]]
    main: str | None

    def count(self) -> int:
        """Layers of the main stack."""
        return len(self.stacks[self.main]) if self.main is not None else 0

    def positions(self) -> dict[tuple[str, int], float]:
        """Where each layer stands in its own stack, from 0 at the first to 1 at the last; 1 where it is the only one."""
        return {
            (stack, number): index / (len(numbers) - 1) if len(numbers) > 1 else 1.0
            for stack, numbers in self.stacks.items()
            for index, number in enumerate(numbers)
        }


def infer_layers(names: Iterable[str]) -> LayerMap:
    """The layer stacks that a model's tensor names tell of."""
    return layer_map(map(split, names))


def layer_map(places: Iterable[tuple[str, int, str] | None]) -> LayerMap:
    """The layer stacks of a model whose tensors' names `split` into these places."""
    numbers: dict[str, set[int]] = {}
    tensors: dict[str, int] = {}
    for place in places:
        if place is not None:
            numbers.setdefault(place[0], set()).add(place[1])
            tensors[place[0]] = tensors.get(place[0], 0) + 1
    main = max(numbers, key=lambda s: (len(numbers[s]), tensors[s]), default=None)
    return LayerMap({stack: tuple(sorted(found)) for stack, found in numbers.items()}, main)
