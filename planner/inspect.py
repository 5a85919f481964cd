"""What a checkpoint holds, from its headers and configuration alone."""

from __future__ import annotations

import math
import os
from collections import Counter
from typing import Any

from plait.ops.dtypes import BY_CODE
from plait.planner.layers import infer_layers, role, split
from plait.planner.oddities import oddities
from plait.planner.recognise import architecture, recognise
from plait.planner.types import Checkpoint

_NESTED = ("text_config", "llm_config", "language_config")
ROLES = ("embedding", "attention", "mlp", "norm", "head", "other")
#: Version of the JSON form.
VERSION = 1


def summarise(checkpoint: Checkpoint) -> dict[str, Any]:
    """The facts of a checkpoint as plain data for JSON; `docs/inspect.md` describes every key.

    Returns:
        `label`, `path`, `kind` and `about` (what was recognised), `model_type`, `architectures`, `architecture` (numbers of the configuration),
        `parameters` (elements of float tensors), `tensors`, `bytes`, `dtypes` and `roles` (each name -> tensors, elements, bytes), `kinds`
        (tensors of one name, shape and dtype with layer numbers folded), `layers` (of the largest stack of layers), `stacks` (name ->
        layers), `tied` (what the configuration says of input and output embeddings, or None), `shards` (name, bytes, tensors) and `odd`
        (`planner/oddities.py`).
    """
    config = checkpoint.config
    layers = infer_layers(checkpoint.tensors)
    dtypes: dict[str, dict[str, int]] = {}
    roles: dict[str, dict[str, int]] = {}
    kinds: dict[tuple[str, str, tuple[int, ...], str], dict[str, Any]] = {}
    parameters = 0
    for name, tensor in checkpoint.tensors.items():
        elements = math.prod(tensor.shape)
        dtype, its = BY_CODE[tensor.dtype], role(name)
        parameters += elements if dtype.kind == "f" else 0
        _add(dtypes, dtype.name, elements, tensor.nbytes)
        _add(roles, its, elements, tensor.nbytes)
        kind = folded(name)
        row = kinds.setdefault(
            (its, kind, tensor.shape, dtype.name),
            {"name": kind, "role": its, "shape": list(tensor.shape), "dtype": dtype.name, "tensors": 0, "elements": 0, "bytes": 0},
        )
        row["tensors"] += 1
        row["elements"] += elements
        row["bytes"] += tensor.nbytes
    per_file = Counter(tensor.file for tensor in checkpoint.tensors.values())
    return {
        "version": VERSION,
        "label": checkpoint.label,
        "path": checkpoint.path,
        **recognise(checkpoint),
        "model_type": config.get("model_type"),
        "architectures": config.get("architectures"),
        "architecture": architecture(config),
        "parameters": parameters,
        "tensors": len(checkpoint.tensors),
        "bytes": sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
        "dtypes": dtypes,
        "roles": {name: roles[name] for name in ROLES if name in roles},
        "kinds": sorted(kinds.values(), key=lambda row: ROLES.index(row["role"])),
        "layers": layers.count(),
        "stacks": {stack: len(numbers) for stack, numbers in layers.stacks.items()},
        "tied": _tied(config),
        "shards": [{"name": os.path.basename(f.path), "bytes": f.size, "tensors": per_file[f.path]} for f in checkpoint.files],
        "odd": oddities(checkpoint),
    }


def folded(name: str) -> str:
    """A tensor's name with the number of its layer, and of experts inside, as `*`."""
    place = split(name)
    if place is None:
        return name
    stack, _, rest = place
    return f"{stack}.*." + ".".join("*" if part.isdigit() else part for part in rest.split("."))


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
