"""What kind of checkpoint lies there: a model, a LoRA adapter, or quantised weights; from names, dtypes and small files beside them."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from plait.ops.dtypes import BY_CODE
from plait.ops.errors import CheckpointError
from plait.planner.header_text import shown
from plait.planner.json_file import read_json
from plait.planner.oddities import text_config
from plait.planner.types import Checkpoint

_MAX_BYTES, _MAX_MARKS = 1_000_000, 50_000
_LORA = re.compile(r"\.lora_(A|B|embedding_A|embedding_B)(\.|$)|\.lora_(down|up)\.")
#: Endings of the tensors that a packed format keeps beside or instead of a weight.
_PACKED = {
    "qweight": "GPTQ or AWQ",
    "weight_packed": "compressed-tensors",
    "absmax": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_scale_inv": "block-scaled float8",
}
#: Numbers of a configuration that say what a model is.
_NUMBERS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_local_experts",
    "num_experts_per_tok",
    "vocab_size",
    "max_position_embeddings",
)


def architecture(config: dict[str, Any]) -> dict[str, Any]:
    """What a configuration says the model is: whole numbers and the stored dtype; anything else it may hold is left out."""
    inner = text_config(config)
    found: dict[str, Any] = {}
    for key in _NUMBERS:
        value = inner.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53:
            found[key] = value
    for key in ("dtype", "torch_dtype"):
        if isinstance(inner.get(key), str) and len(inner[key]) <= 40:
            found.setdefault("dtype", inner[key])
    return found


def recognise(checkpoint: Checkpoint) -> dict[str, Any]:
    """What kind of checkpoint it is.

    Returns:
        `kind`: `model`, `lora` or `quantised`; `about`: a sentence, empty for a plain model.
    """
    lora = [name for name in checkpoint.tensors if _LORA.search(name)]
    if 2 * len(lora) > len(checkpoint.tensors):
        return {"kind": "lora", "about": _adapter(checkpoint, lora)}
    method = checkpoint.config.get("quantization_config")
    named = method.get("quant_method") if isinstance(method, dict) else None
    endings = Counter(_PACKED[end] for name in checkpoint.tensors if (end := name.rpartition(".")[2]) in _PACKED)
    floats = Counter(BY_CODE[ref.dtype].name for ref in checkpoint.tensors.values() if BY_CODE[ref.dtype].kind == "q")
    if named is None and not endings and not floats:
        return {"kind": "model", "about": ""}
    ways = [f"config.json says {shown(named, 40)}"] if isinstance(named, str) else []
    ways += [f"{count} tensors are named as in {way}" for way, count in endings.items()]
    ways += [f"{count} tensors are {name}" for name, count in floats.items()]
    return {"kind": "quantised", "about": f"quantised weights ({'; '.join(ways)}): they can be copied, not merged; merge the unquantised model"}


def _adapter(checkpoint: Checkpoint, names: list[str]) -> str:
    """A sentence on a LoRA adapter."""
    ranks = Counter(min(checkpoint.tensors[name].shape) for name in names if len(checkpoint.tensors[name].shape) >= 2)
    modules = {re.split(r"\.lora_", name)[0].rpartition(".")[2] for name in names}
    told = f"a LoRA adapter of rank {', '.join(map(str, sorted(ranks)))}" if ranks else "a LoRA adapter"
    some = sorted(modules)
    told += f" on {', '.join(some[:8])}{', ...' if len(some) > 8 else ''}"
    folder = Path(checkpoint.path)
    path = (folder if os.path.isdir(folder) else folder.parent) / "adapter_config.json"
    if os.path.isfile(path):
        try:
            base = read_json(path, _MAX_BYTES, "the adapter's configuration", _MAX_MARKS).get("base_model_name_or_path")
        except CheckpointError as error:
            return f"{told}; {error.message}"
        if isinstance(base, str):
            told += f", for {shown(base, 80)}"
    return told + ": it holds changes and no model; merge it into its base first"
