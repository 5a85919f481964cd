"""What a merge method sees of one tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from plait.ops.algebra import random_bits
from plait.ops.statistics import LayerScore
from plait.ops.tensor import LazyTensor


@dataclass(frozen=True)
class MergeInputs:
    """The base, the experts and their deltas for one tensor.

    Attributes:
        base: the base's tensor, or None where the merge has none.
        experts: the experts' tensors, in recipe order.
        labels: the experts' stable names, same order; they key the random streams.
        shape: dimensions of every tensor here.
        name: name of the output tensor; read it only in a method declared with `uses_name`.
        role: embedding, attention, mlp, norm, head or other; likewise.
        importance: for methods that are given it, a tensor of the same shape for each expert: how important each weight is, 0 or more.
        base_importance: likewise, how important each weight of the base is to the expert's task.
        sensitivity: likewise, what is known of each expert's layer.
    """

    base: LazyTensor | None
    experts: tuple[LazyTensor, ...]
    labels: tuple[str, ...]
    shape: tuple[int, ...]
    name: str = ""
    role: str = "other"
    importance: tuple[LazyTensor, ...] = ()
    base_importance: tuple[LazyTensor, ...] = ()
    sensitivity: tuple[LayerScore, ...] = ()

    @property
    def origin(self) -> LazyTensor:
        """The base, for methods that need one.

        Raises:
            ValueError: the merge has no base.
        """
        if self.base is None:
            raise ValueError("this method needs a base model: give base_model")
        return self.base

    @property
    def deltas(self) -> tuple[LazyTensor, ...]:
        """The task vectors: expert - base."""
        return tuple(expert - self.origin for expert in self.experts)

    @property
    def vectors(self) -> tuple[LazyTensor, ...]:
        """The task vectors where there is a base, else the experts themselves."""
        return self.experts if self.base is None else self.deltas

    def add(self, merged: LazyTensor) -> LazyTensor:
        """A combination of `vectors`, put back onto the base where there is one."""
        return merged if self.base is None else self.base + merged

    def random_bits(self, expert: int, seed: int, purpose: str) -> LazyTensor:
        """32 random bits an element, of the stream of expert number `expert`."""
        return random_bits(self.experts[expert], seed, purpose, self.labels[expert])

    def only(self, keep: list[int]) -> MergeInputs:
        """The same merge with fewer experts."""
        per_expert: dict[str, Any] = {
            name: tuple(values[i] for i in keep)
            for name in ("experts", "labels", "importance", "base_importance", "sensitivity")
            if (values := getattr(self, name))
        }
        return replace(self, **per_expert)
