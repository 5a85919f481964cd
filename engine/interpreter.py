"""The reference: a stage's block computed op by op in torch, in the order and to the bits of the generated kernel.

It runs where Numba is missing, and it is what compiled kernels are tested against. On a device
(`plait.engine.devicerun`) the same steps run on tensors that live there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from plait.engine.blockrun import Array, BlockData, BlockResult, Counts, Window
from plait.engine.kernel import Kernel
from plait.engine.orderstat import few_or_dense
from plait.engine.tables import table
from plait.engine.torchmath import (
    TORCH,
    as_float,
    coarse_counts,
    column_dots,
    from_bits,
    magnitude_keys,
    random_words,
    row_ranks,
    row_sums,
    to_bits,
    window_counts,
)
from plait.ops.op import OPS
from plait.planner.device_cost import block_steps
from plait.planner.program import Node, Program, Stage, data_inputs


class Interpreter:
    """Evaluates blocks of one stage with torch.

    Args:
        program, stage, kernel: what to run.
        device: where tensors live, as torch calls it.
    """

    def __init__(self, program: Program, stage: Stage, kernel: Kernel, device: Any = "cpu") -> None:
        self.program, self.stage, self.kernel, self.device = program, stage, kernel, device
        self.steps = block_steps(program, stage)

    def run(self, data: BlockData) -> BlockResult:
        """Compute one block."""
        values = self.evaluate(data)
        for i, keep in zip(self.stage.keeps, data.keeps, strict=True):
            self.give(as_float(values[i]).reshape(-1), keep)
        if data.out is not None:
            self.give(to_bits(as_float(values[self.program.root]), self.program.dtype), data.out)
        counts = [self._counts(i, window, values) for i, window in zip(self.kernel.selects, data.windows, strict=False)]
        inputs = {i: [as_float(values[j]) for j in self.program.nodes[i].inputs] for i in self.kernel.columns}
        columns = [column_dots(x, y).cpu().numpy() for x, y in inputs.values()]
        rows = [values[self.program.nodes[i].inputs[0]].reshape(-1).cpu().numpy() for i in self.kernel.gathered]
        return BlockResult(self._sums(values), counts, columns=columns, rows=rows)

    # -- where the block lives: a device has its own way -------------------------------------------
    def fetch(self, array: Array) -> Any:
        """A flat tensor of an array's bits; 16-bit patterns are int16."""
        return torch.from_numpy(array.view(np.int16) if array.dtype == np.uint16 else array)

    def give(self, tensor: Any, out: Array) -> None:
        """Hand the bits of a flat tensor out."""
        out[:] = tensor.contiguous().numpy().view(out.dtype)

    # -- the block ----------------------------------------------------------------------------------
    def evaluate(self, data: BlockData) -> dict[int, Any]:
        """Every value that the results are made of."""
        row = self.stage.row_length or max(data.n, 1)
        arrays = dict(zip((*self.stage.loads, *self.stage.residents), (*data.inputs, *data.residents), strict=True))
        values: dict[int, Any] = {}
        for step in self.steps:
            for i in step.fetch:
                node = self.program.nodes[i]
                storage = str(node.param("storage")) if node.kind == "load" else "F32"
                values[i] = from_bits(self.fetch(arrays[i]), storage).view(-1, row)
            if step.node >= 0:
                values[step.node] = self._compute(step.node, self.program.nodes[step.node], values, data, row)
            for i in step.drop:
                del values[i]
        return values

    def _operand(self, i: int, cast: str, values: dict[int, Any], data: BlockData, *, in_row: bool) -> Any:
        node = self.program.nodes[i]
        if node.space == "small":  # a number on the host, which torch hands to the device with the call
            value = data.smalls[i]
            if cast == "b":
                return torch.tensor(bool(value))
            if cast in ("u", "i"):
                return torch.tensor(min(int(value), 2**62), dtype=torch.int64)
            return torch.tensor(float(value), dtype=torch.float64 if in_row else torch.float32)
        value = values[i]
        if in_row:
            return value
        if node.space == "row":
            return value.to(torch.float32)
        return as_float(value) if cast == "f" else value

    def _compute(self, i: int, node: Node, values: dict[int, Any], data: BlockData, row: int) -> Any:
        if node.op == "random_bits":
            key = data.streams[self.kernel.streams.index(i)]
            return random_words(key, data.start, data.n, self.device).view(-1, row)
        if node.kind == "rows":
            return self._row_fold(node, values)
        if node.op in ("column", "row"):
            first, count = (0, row) if node.op == "column" else (data.start // row, data.n // row)
            index = torch.arange(first, first + count, dtype=torch.int32, device=self.device)
            return index.view((1, -1) if node.op == "column" else (-1, 1)).expand(data.n // row, row)
        in_row = node.space == "row"
        if node.op == "cast":
            x = self._operand(node.inputs[0], "f", values, data, in_row=False)
            return x.to(TORCH[str(node.param("storage"))]).to(torch.float32)
        if node.op in ("take", "take_integer"):
            whole = node.op == "take_integer"
            entries = self.fetch(table(data.smalls[node.inputs[0]], "uint32" if whole else "float64").astype(np.float64, copy=False))
            return torch.take(entries, values[node.inputs[1]].long()).to(torch.int64 if whole else torch.float32)
        operands = [self._operand(j, c, values, data, in_row=in_row) for j, c in zip(data_inputs(node), OPS[node.op].casts, strict=True)]
        function = OPS[node.op].arrays
        assert function is not None
        if node.op == "keep_top":
            index = torch.arange(data.start, data.start + data.n, device=self.device).view(-1, row)
            return function(torch, operands[0].to(torch.int64), *operands[1:], index=index)
        result = function(torch, *operands)
        shape = (data.n // row, 1) if in_row else (data.n // row, row)
        return (result if result.dim() else result.to(self.device)).expand(shape)

    def _row_fold(self, node: Node, values: dict[int, Any]) -> Any:
        x = as_float(values[node.inputs[0]])
        if node.op == "row_rank":
            return row_ranks(x)
        if node.op == "row_max":
            return x.abs().amax(dim=1, keepdim=True).to(torch.float64)
        if node.op == "row_largest":
            return x.amax(dim=1, keepdim=True).to(torch.float64) + 0.0
        other = as_float(values[node.inputs[1]]) if node.op == "row_dot" else None
        return row_sums([(x, other)]).view(-1, 1)

    def _sums(self, values: dict[int, Any]) -> list[float]:
        """One partial of each fold: its rows added up in order."""
        nodes = self.program.nodes
        found = {i: float(as_float(values[nodes[i].inputs[0]]).max()) + 0.0 for i in self.kernel.sums if nodes[i].op == "largest"}
        added = [i for i in self.kernel.sums if i not in found]
        found.update(zip(added, self._totals(added, values), strict=True))
        return [found[i] for i in self.kernel.sums]

    def _totals(self, folds: list[int], values: dict[int, Any]) -> list[float]:
        if not folds:
            return []
        floats = {j: as_float(values[j]) for i in folds for j in self.program.nodes[i].inputs}
        operands = []
        for i in folds:
            inputs = [floats[j] for j in self.program.nodes[i].inputs]
            operands.append((inputs[0], inputs[1] if self.program.nodes[i].op == "dot" else None))
        sums = []
        for partials in row_sums(operands).tolist():
            total = 0.0
            for partial in partials:
                total += partial
            sums.append(total)
        return sums

    def _counts(self, i: int, window: Window, values: dict[int, Any]) -> Counts:
        if window.low < -1:
            return Counts()
        keys = magnitude_keys(as_float(values[self.program.nodes[i].inputs[0]]))
        if window.low == -1:
            return Counts(coarse=coarse_counts(keys).cpu().numpy())
        above, fine = window_counts(keys, window.low, window.width)
        return few_or_dense(int(above), fine[: window.width].cpu().numpy())
