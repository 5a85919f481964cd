"""What a checkpoint holds, from its headers and configuration alone."""

from __future__ import annotations

import math
import os
from collections import Counter
from typing import Any

from plait.ops.dtypes import BY_CODE
from plait.planner.layers import infer_layers, role
from plait.planner.types import Checkpoint

_NESTED = ("text_config", "llm_config", "language_config")


def summarise(checkpoint: Checkpoint) -> dict[str, Any]:
    """The facts of a checkpoint as plain data for JSON.

    Returns:
        `label`, `path`, `model_type`, `architectures`, `parameters` (elements of float tensors), `tensors`, `bytes`,
        `dtypes` and `roles` (each name -> tensors, elements, bytes), `layers` (of the largest stack of layers),
        `stacks` (name -> layers), `tied` (what the configuration says of input and output embeddings, or None),
        `shards` (name, bytes, tensors) and `odd` (integer, quantised and empty tensors, by name).
    """
    config = checkpoint.config
    layers = infer_layers(checkpoint.tensors)
    dtypes: dict[str, dict[str, int]] = {}
    roles: dict[str, dict[str, int]] = {}
    odd: dict[str, list[str]] = {"integer": [], "quantised": [], "empty": []}
    parameters = 0
    for name, tensor in checkpoint.tensors.items():
        elements = math.prod(tensor.shape)
        kind = BY_CODE[tensor.dtype].kind
        parameters += elements if kind == "f" else 0
        _add(dtypes, BY_CODE[tensor.dtype].name, elements, tensor.nbytes)
        _add(roles, role(name), elements, tensor.nbytes)
        if kind != "f":
            odd["integer" if kind == "i" else "quantised"].append(name)
        if not elements:
            odd["empty"].append(name)
    per_file = Counter(tensor.file for tensor in checkpoint.tensors.values())
    return {
        "label": checkpoint.label,
        "path": checkpoint.path,
        "model_type": config.get("model_type"),
        "architectures": config.get("architectures"),
        "parameters": parameters,
        "tensors": len(checkpoint.tensors),
        "bytes": sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
        "dtypes": dtypes,
        "roles": roles,
        "layers": layers.count(),
        "stacks": {stack: len(numbers) for stack, numbers in layers.stacks.items()},
        "tied": _tied(config),
        "shards": [{"name": os.path.basename(f.path), "bytes": f.size, "tensors": per_file[f.path]} for f in checkpoint.files],
        "odd": {kind: names for kind, names in odd.items() if names},
    }


def _add(table: dict[str, dict[str, int]], key: str, elements: int, nbytes: int) -> None:
    row = table.setdefault(key, {"tensors": 0, "elements": 0, "bytes": 0})
    row["tensors"] += 1
    row["elements"] += elements
    row["bytes"] += nbytes


def _tied(config: dict[str, Any]) -> bool | None:
    for level in (config, *(config.get(key) for key in _NESTED)):
        if isinstance(level, dict) and isinstance(level.get("tie_word_embeddings"), bool):
            return bool(level["tie_word_embeddings"])
    return None
