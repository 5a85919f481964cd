"""Statistics that recipes name beside a model: a checkpoint of tensors, or a JSON file of numbers for each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.ops.errors import CheckpointError
from plait.ops.statistics import LayerScore
from plait.planner.header_text import shown
from plait.planner.json_file import read_json
from plait.planner.types import Checkpoint, Mark, TensorRef

_MAX_BYTES, _MAX_MARKS = 24_000_000, 400_000
_KEYS = ("layers", "transfer")


@dataclass(frozen=True, slots=True)
class LayerFile:
    """Numbers for the layers of one model.

    Attributes:
        label: the file as the user wrote it.
        layers: sensitivity by the name of a layer, a tensor, or anything whose name tensors begin with.
        transfer: one number for the model, or None.
        norm: root of the sum of the squares of `layers`.
    """

    label: str
    layers: dict[str, float]
    transfer: float | None
    norm: float

    def score(self, tensor: str) -> LayerScore | None:
        """What holds for a tensor: of the names that it begins with, up to a dot, the longest; None without any."""
        parts = tensor.split(".")
        for count in range(len(parts), 0, -1):
            found = self.layers.get(".".join(parts[:count]))
            if found is not None:
                return LayerScore(found / self.norm if self.norm > 0.0 else 0.0, self.transfer)
        return None


@dataclass(frozen=True, slots=True)
class Given:
    """A statistic of one expert as a recipe gives it.

    Attributes:
        name: of the statistic.
        source: what was read.
        mark: recipe line to name.
    """

    name: str
    source: Checkpoint | LayerFile
    mark: Mark | None = None


def read_layer_file(path: Path, label: str) -> LayerFile:
    """Read `{"layers": {NAME: NUMBER, ...}, "transfer": NUMBER}`; `transfer` may be left out.

    Raises:
        CheckpointError: it is missing or holds something else.
    """
    content = read_json(path, _MAX_BYTES, "the sensitivity file", _MAX_MARKS)
    unknown = next((key for key in content if key not in _KEYS), None)
    if unknown is not None:
        raise CheckpointError(f"{path} holds {shown(unknown)}; a sensitivity file holds `layers` and, if wanted, `transfer`", path=str(path))
    layers = content.get("layers")
    if not isinstance(layers, Mapping) or not layers:
        raise CheckpointError(f'{path} holds no `layers`; write {{"layers": {{"model.layers.0": 0.3, ...}}}}', path=str(path))
    numbers = {name: _number(value, f"layer {shown(name)}", path) for name, value in layers.items()}
    transfer = _number(content["transfer"], "transfer", path) if "transfer" in content else None
    return LayerFile(label, numbers, transfer, math.sqrt(sum(x * x for x in numbers.values())))


def _number(value: Any, what: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1e150:
        raise CheckpointError(f"{path} gives {what} the value {shown(str(value), 40)}; it must be a number, 0 or more", path=str(path))
    return float(value)


def tensor_of(given: Given, names: tuple[str, ...], shape: tuple[int, ...], owner: str) -> TensorRef | str:
    """The tensor that a statistic has for one of its model's, or why there is none that can be used.

    Args:
        given: a statistic of kind `tensors`.
        names: what the model calls the tensor; the first that is there counts.
        shape: of the model's tensor.
        owner: the model, for messages.
    """
    assert isinstance(given.source, Checkpoint)
    stored = given.source
    ref = next((stored.tensors[name] for name in names if name in stored.tensors), None)
    if ref is None:
        return f"tensor {names[0]!r} of {owner} is not in {stored.label}, its {given.name}; a statistic has every tensor that is merged"
    if ref.shape != shape:
        return f"tensor {names[0]!r} has shape {list(ref.shape)} in {stored.label} but {list(shape)} in {owner}; a statistic has the shapes of its model"
    if ref.dtype not in ("F32", "F16", "BF16"):
        return f"tensor {names[0]!r} of {stored.label} is stored as {ref.dtype}; a statistic is float32, float16 or bfloat16"
    return ref
