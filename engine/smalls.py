"""The small numbers of a component: folds as they end, and what the host computes from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from plait.engine.worker import Host
from plait.ops.algebra import SOLVERS
from plait.ops.kernels.philox import stream_key
from plait.ops.op import OPS
from plait.planner.plan import Component
from plait.planner.program import Program, Stage, data_inputs, scope_of


def added_up(fold: str, partials: Iterable[float]) -> float:
    """The value of a fold, from its partials in their order."""
    if fold == "largest":
        return float(np.max(np.fromiter(partials, np.float64), initial=-np.inf))
    total = 0.0
    for partial in partials:
        total += partial
    return total


class SmallValues:
    """Values of the small nodes of one component, computed when first asked for.

    Args:
        program, component: what they belong to.
        host: where model-wide statistics are found.
    """

    def __init__(self, program: Program, component: Component, host: Host) -> None:
        self.program, self.component, self.host = program, component, host
        self.values: dict[int, Any] = {}
        self._needed: dict[int, list[int]] = {}

    def add_fold(self, i: int, partials: list[float]) -> None:
        """The partials of a fold that is one number, one a block."""
        total = added_up(self.program.nodes[i].op, partials)
        scope = scope_of(self.program.nodes[i])
        if scope:
            self.host.add_sum(scope, self.component.name, total)
        else:
            self.values[i] = np.float64(total)

    def of_stage(self, stage: Stage) -> dict[int, Any]:
        """Value of every small node that a stage's expressions read."""
        needed = self._needed.get(id(stage))
        if needed is None:
            nodes = self.program.nodes
            needed = self._needed[id(stage)] = sorted({j for i in stage.compute for j in data_inputs(nodes[i]) if nodes[j].space == "small"})
        return {i: self.value(i) for i in needed}

    def value(self, i: int) -> Any:
        """Value of one small node."""
        if i not in self.values:
            with np.errstate(all="ignore"):
                self.values[i] = self._compute(i)
        return self.values[i]

    def write_root(self) -> None:
        """Hand out an output that is a few numbers."""
        place = self.host.plan.layout.places[self.component.name]
        numbers = np.ascontiguousarray(self.value(self.program.root), np.float64).reshape(-1)
        self.host.sink.write(place.shard, place.offset, numbers.view(np.uint8))
        self.host.progress(place.nbytes)

    def _compute(self, i: int) -> Any:
        node = self.program.nodes[i]
        if node.op == "const":
            return np.float64(node.param("value"))
        if node.kind == "fold":
            return self.host.scope_value(scope_of(node), self.component.name)
        inputs = [self.value(j) for j in node.inputs]
        if node.op == "item":
            return inputs[0][node.param("index")]
        if node.op == "pack":
            return np.array(inputs, np.float64).reshape(node.shape)
        if node.op == "solve":
            params = {k: v for k, v in node.params if k != "solver"}
            return np.asarray(SOLVERS[str(node.param("solver"))](*inputs, **params), np.float64)
        function = OPS[node.op].arrays
        assert function is not None
        return function(np, *inputs)

    def streams(self, stage: Stage) -> list[tuple[int, int, int, int]]:
        """Keys of the stage's random streams, in its order."""
        found = []
        for i in stage.compute:
            node = self.program.nodes[i]
            if node.op == "random_bits":
                found.append(self.value_of_stream(i))
        return found

    def value_of_stream(self, i: int) -> tuple[int, int, int, int]:
        """Key of one random stream: of the stored tensor it was made for, or of the output where that is computed."""
        if i not in self.values:
            node = self.program.nodes[i]
            like = self.program.nodes[node.inputs[0]]
            while like.op == "cast":
                like = self.program.nodes[like.inputs[0]]
            name = self.component.inputs[int(like.param("slot"))].name if like.op == "load" else self.component.name
            self.values[i] = stream_key(int(node.param("seed")), str(node.param("purpose")), str(node.param("label")), name, int(node.param("draw")))
        return self.values[i]  # type: ignore[no-any-return]
