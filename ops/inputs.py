"""What a merge method sees of one tensor."""

from __future__ import annotations

from dataclasses import dataclass

from plait.ops.algebra import random_bits
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
    """

    base: LazyTensor | None
    experts: tuple[LazyTensor, ...]
    labels: tuple[str, ...]
    shape: tuple[int, ...]
    name: str = ""
    role: str = "other"

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

    def random_bits(self, expert: int, seed: int, purpose: str) -> LazyTensor:
        """32 random bits an element, of the stream of expert number `expert`."""
        return random_bits(self.experts[expert], seed, purpose, self.labels[expert])

    def only(self, keep: list[int]) -> MergeInputs:
        """The same merge with fewer experts."""
        return MergeInputs(self.base, tuple(self.experts[i] for i in keep), tuple(self.labels[i] for i in keep), self.shape, self.name, self.role)
