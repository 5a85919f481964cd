"""Tensors that do not fit in: unlike their siblings in other layers, missing from a layer, or of a name that tells nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from plait.ops.dtypes import BY_CODE
from plait.planner.layers import role, split
from plait.planner.types import Checkpoint, TensorRef


def oddities(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """What is odd, in words, by kind; a kind without any is not there.

    Kinds: `integer`, `quantised` and `empty` tensors by name; `unlike`, whose shape or dtype differs from most of its siblings; `missing`, which
    more than half of the other layers have; `partial`, which only some layers have; `unknown`, whose name tells no role, where others' do;
    `configuration`, where config.json says otherwise.
    """
    found: dict[str, list[str]] = {kind: [] for kind in ("integer", "quantised", "empty", "unlike", "missing", "partial", "unknown", "configuration")}
    siblings: dict[tuple[str, str], dict[int, TensorRef]] = {}
    layers: dict[str, set[int]] = {}
    unknown: list[str] = []
    for name, ref in checkpoint.tensors.items():
        kind = BY_CODE[ref.dtype].kind
        if kind != "f":
            found["integer" if kind == "i" else "quantised"].append(name)
        if 0 in ref.shape:
            found["empty"].append(name)
        if role(name) == "other" and kind == "f" and 0 not in ref.shape:
            unknown.append(name)
        place = split(name)
        if place is not None:
            siblings.setdefault((place[0], place[2]), {})[place[1]] = ref
            layers.setdefault(place[0], set()).add(place[1])
    if len(unknown) < len(checkpoint.tensors) / 2:
        found["unknown"] = unknown
    for (stack, rest), refs in siblings.items():
        _compare(found, stack, rest, refs, layers[stack])
    found["configuration"] = _against_configuration(checkpoint, layers)
    return {kind: names for kind, names in found.items() if names}


def _compare(found: dict[str, list[str]], stack: str, rest: str, refs: dict[int, TensorRef], layers: set[int]) -> None:
    """One kind of tensor over the layers of its stack."""
    usual, count = Counter((ref.shape, ref.dtype) for ref in refs.values()).most_common(1)[0]
    for _, ref in sorted(refs.items()) if 2 * count > len(refs) else ():
        if (ref.shape, ref.dtype) != usual:
            found["unlike"].append(f"{ref.name}: {_told(ref.shape, ref.dtype)}, its siblings {_told(*usual)}")
    absent = len(layers) - len(refs)  # a set of them for each of many kinds in few layers would take for ever
    if absent and 2 * len(refs) > len(layers) and absent <= max(1, len(layers) // 8):
        found["missing"] += [".".join(filter(None, (stack, str(number), rest))) for number in sorted(layers - refs.keys())]
    elif absent:
        found["partial"].append(f"{stack}.*.{rest}: in layers {ranges(refs)} of {len(layers)}")


def _told(shape: tuple[int, ...], dtype: str) -> str:
    return f"{'x'.join(map(str, shape)) or 'a number'} {BY_CODE[dtype].name}"


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers with runs folded: `0-2, 5`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _against_configuration(checkpoint: Checkpoint, layers: dict[str, set[int]]) -> list[str]:
    """Where config.json does not fit the tensors."""
    config = text_config(checkpoint.config)
    found = []
    said = config.get("num_hidden_layers")
    most = max(map(len, layers.values()), default=0)
    if _is_count(said) and most and said != most:
        found.append(f"config.json says {said} layers, the files hold {most}")
    vocabulary = config.get("vocab_size")
    rows = {ref.shape[0] for name, ref in checkpoint.tensors.items() if role(name) in ("embedding", "head") and "embed_tokens" in name and len(ref.shape) == 2}
    if _is_count(vocabulary) and rows and vocabulary not in rows:
        found.append(f"config.json says a vocabulary of {vocabulary}, the embedding has {ranges(rows)} rows")
    return found


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that describes the language model."""
    for key in ("text_config", "llm_config", "language_config"):
        inner = config.get(key)
        if isinstance(inner, dict) and "num_hidden_layers" not in config:
            return inner
    return config


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40
