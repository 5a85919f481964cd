"""Statistics of models that a method is given beside the weights: how important each weight is, or each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

#: Every statistic's name.
STATISTICS = ("importance", "base_importance", "sensitivity")


@dataclass(frozen=True, slots=True)
class Statistic:
    """One statistic that a method needs of every expert.

    Attributes:
        name: its key beside `model:` in a recipe, and its keyword in Python.
        kind: `tensors`, a checkpoint with a tensor of the same name and shape for each of the expert's, or `layers`, a JSON file
            of numbers for each layer.
        doc: one sentence on what it holds.
    """

    name: Literal["importance", "base_importance", "sensitivity"]
    kind: Literal["tensors", "layers"]
    doc: str


class LayerScore(NamedTuple):
    """What a `layers` statistic says of one tensor of an expert.

    Attributes:
        share: the sensitivity of the tensor's layer over the root of the summed squares of all layers'.
        transfer: the expert's number for all layers, or None where its file gives none.
    """

    share: float
    transfer: float | None
