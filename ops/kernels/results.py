"""Where an op on whole matrices puts its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Results:
    """Matrices of known shapes, each made when it is first asked for, or given by the op.

    Args:
        shapes: of the results.
        device: where they are to be.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], device: Any = "cpu") -> None:
        self._shapes, self._device = tuple(shapes), device
        self._made: dict[int, torch.Tensor] = {}

    def __getitem__(self, index: int) -> torch.Tensor:
        """Result number `index`, float32 and contiguous, to be written to."""
        if index not in self._made:
            self._made[index] = torch.empty(self._shapes[index], dtype=torch.float32, device=self._device)
        return self._made[index]

    def __len__(self) -> int:
        """How many there are."""
        return len(self._shapes)

    def give(self, index: int, made: torch.Tensor) -> None:
        """Take a tensor that the op made itself, in place of a copy of it."""
        self._made[index] = made.contiguous()

    def all(self) -> list[torch.Tensor]:
        """Every result, in order."""
        return [self[i] for i in range(len(self))]
