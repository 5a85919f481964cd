"""Tiny real checkpoints for tests: a base and experts that differ from it by noise, and recipes over them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
#: A Llama-like model of two layers; 70 columns, so that rows are no multiple of eight.
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (50, 70),
    **{f"model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in {"mlp.up_proj": (90, 70), "input_layernorm": (70,)}.items()},
    "model.norm.weight": (70,),
    "lm_head.weight": (50, 70),
}


def encode(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Stored bits of finite float32 values, rounded to nearest even."""
    if dtype == "F32":
        return values.astype(np.float32)
    if dtype == "F16":
        return values.astype(np.float16).view(np.uint16)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def decode(bits: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Values of stored bits, exact in float32."""
    if dtype == "F32":
        return bits.view(np.float32)
    if dtype == "F16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def write_file(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """One safetensors file from `name -> (dtype code, shape, bytes)`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))


def write_model(folder: Path, values: Mapping[str, NDArray[np.float32]], dtype: str = "BF16", shards: int = 1, config: Mapping[str, Any] | None = None) -> Path:
    """A checkpoint folder with config and tokenizer; with `shards` > 1, that many files and an index."""
    folder.mkdir(parents=True)
    stored = {name: (dtype, tuple(x.shape), encode(x, dtype).tobytes()) for name, x in values.items()}
    names = list(stored)
    if shards == 1:
        write_file(folder / "model.safetensors", stored)
    else:
        where = {}
        for number in range(shards):
            file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
            part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
            write_file(folder / file, {name: stored[name] for name in part})
            where.update(dict.fromkeys(part, file))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    default = {"model_type": "llama", "num_hidden_layers": 2, "torch_dtype": NAMES[dtype], "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps({**default, **(config or {})}))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "generation_config.json").write_text('{"max_length": 7}')
    return folder


def write_set(
    folder: Path, experts: int = 2, dtype: str = "BF16", shapes: Mapping[str, tuple[int, ...]] | None = None, shards: int = 1, seed: int = 0
) -> list[Path]:
    """A base and its experts under `folder`, base first; each expert is the base plus noise of its own."""
    rng = np.random.default_rng(seed)
    shapes = SHAPES if shapes is None else shapes
    base = {name: (rng.standard_normal(shape) * 0.1).astype(np.float32) for name, shape in shapes.items()}
    out = [write_model(folder / "base", base, dtype, shards)]
    for number in range(1, experts + 1):
        values = {name: x + (rng.standard_normal(x.shape) * 0.02).astype(np.float32) for name, x in base.items()}
        out.append(write_model(folder / f"expert{number}", values, dtype, shards))
    return out


def recipe(
    method: str, models: Sequence[Path], *, base: Path | None = None, each: Mapping[str, Any] | None = None, steps: Sequence[Any] = (), **keys: Any
) -> str:
    """A recipe as YAML (JSON is YAML); `each` are the parameters of every model, `keys` of the recipe's top level."""
    entries = [{"model": str(m), "parameters": dict(each or {})} for m in models]
    text: dict[str, Any] = {"merge_method": method, "models": entries, **keys}
    if base is not None:
        text["base_model"] = str(base)
    if steps:
        text["steps"] = list(steps)
    return json.dumps(text, indent=1)


def recipes(models: Sequence[Path]) -> dict[str, str]:
    """Recipes by name over a base and its experts; between them they use every kind of op."""
    base, *experts = models
    half = {"weight": 1.0, "density": 0.5}
    wsc = {"method": "magic_wsc", "parameters": {"rule": "ellipsoid"}}
    return {
        "linear": recipe("linear", models, each={"weight": 1.0}),
        "slerp": recipe("slerp", [base, experts[0]], base=base, parameters={"t": 0.4}),
        "ties": recipe("ties", experts, base=base, each=half),
        "ties_global": recipe("ties", experts, base=base, each=half, parameters={"scope": "global"}),
        "della": recipe("della", experts, base=base, each={**half, "epsilon": 0.1}),
        "model_stock": recipe("model_stock", experts, base=base),
        "iso_c": recipe("iso_c", experts, base=base),
        "linear_wsc": recipe("linear", experts, each={"weight": 1.0}, steps=[{**wsc, "base_model": str(base)}]),
        "passthrough": recipe("passthrough", [base]),
    }


def bounded(function: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `function` returns; fails instead of hanging the whole suite when it does not end.

    Raises:
        AssertionError: it still runs after `seconds`.
    """
    ended: list[Any] = []

    def call() -> None:
        try:
            ended.append((True, function()))
        except BaseException as error:
            ended.append((False, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert ended, f"still running after {seconds:g} s: a deadlock"
    good, value = ended[0]
    if not good:
        raise value
    return value


def leftovers(out: Path) -> list[str]:
    """Names of what a failed run left at its destination or beside it."""
    return sorted(p.name for p in out.parent.iterdir() if p.name == out.name or p.name.startswith(f".{out.name}."))


def elements(shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> int:
    """Elements of all tensors."""
    return sum(prod(shape) for shape in shapes.values())
