"""The reference: a stage's block computed op by op in torch, in the order and to the bits of the generated kernel.

It runs where Numba is missing, and it is what compiled kernels are tested against.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from plait.engine.blockrun import RAW, Array, BlockData, BlockResult, Counts
from plait.engine.codegen import Kernel
from plait.ops.kernels import philox
from plait.ops.kernels.rank import row_ranks
from plait.ops.kernels.reduce import lane_sum
from plait.ops.kernels.select import keys as magnitudes
from plait.ops.op import OPS
from plait.planner.blocks import COARSE
from plait.planner.program import Node, Program, Stage

_TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class Interpreter:
    """Evaluates blocks of one stage with torch on the CPU."""

    def __init__(self, program: Program, stage: Stage, kernel: Kernel) -> None:
        self.program, self.stage, self.kernel = program, stage, kernel

    def run(self, data: BlockData) -> BlockResult:
        """Compute one block."""
        row = self.stage.row_length or max(data.n, 1)
        values: dict[int, Any] = {}
        for i, raw in zip(self.stage.loads, data.inputs, strict=True):
            values[i] = _load(raw, str(self.program.nodes[i].param("storage"))).view(-1, row)
        for i, resident in zip(self.stage.residents, data.residents, strict=True):
            values[i] = torch.from_numpy(resident).view(-1, row)
        for i in self.stage.compute:
            values[i] = self._compute(i, self.program.nodes[i], values, data, row)
        for i, keep in zip(self.stage.keeps, data.keeps, strict=True):
            keep[:] = values[i].reshape(-1).numpy()
        if data.out is not None:
            data.out[:] = _store(_float(values[self.program.root]), self.program.dtype)
        return self._folds(values, data)

    def _operand(self, i: int, cast: str, values: dict[int, Any], data: BlockData, *, in_row: bool) -> Any:
        node = self.program.nodes[i]
        if node.space == "small":
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
        return _float(value) if cast == "f" else value

    def _compute(self, i: int, node: Node, values: dict[int, Any], data: BlockData, row: int) -> Any:
        if node.op == "random_bits":
            key = data.streams[self.kernel.streams.index(i)]
            return torch.from_numpy(philox.random_u32(key, data.start, data.n).astype(np.int64)).view(-1, row)
        if node.kind == "rows":
            return self._row_fold(node, values)
        in_row = node.space == "row"
        if node.op == "cast":
            x = self._operand(node.inputs[0], "f", values, data, in_row=False)
            return x.to(_TORCH[str(node.param("storage"))]).to(torch.float32)
        if node.op in ("take", "take_integer"):
            table = torch.from_numpy(np.asarray(data.smalls[node.inputs[0]], np.float64))
            return table[values[node.inputs[1]].long()].to(torch.int64 if node.op == "take_integer" else torch.float32)
        operands = [self._operand(j, c, values, data, in_row=in_row) for j, c in zip(node.inputs, OPS[node.op].casts, strict=True)]
        function = OPS[node.op].arrays
        assert function is not None
        if node.op == "keep_top":
            index = torch.arange(data.start, data.start + data.n).view(-1, row)
            return function(torch, operands[0].to(torch.int64), *operands[1:], index=index)
        result = function(torch, *operands)
        shape = (data.n // row, 1) if in_row else (data.n // row, row)
        return result.expand(shape)

    def _row_fold(self, node: Node, values: dict[int, Any]) -> Any:
        x = _float(values[node.inputs[0]])
        if node.op == "row_rank":
            return torch.from_numpy(row_ranks(x.contiguous().numpy()))
        if node.op == "row_max":
            return x.abs().amax(dim=1, keepdim=True).to(torch.float64)
        wide = x.to(torch.float64)
        if node.op == "row_dot":
            wide = wide * _float(values[node.inputs[1]]).to(torch.float64)
        return lane_sum(wide).view(-1, 1)

    def _folds(self, values: dict[int, Any], data: BlockData) -> BlockResult:
        sums = []
        for i in self.kernel.sums:
            node = self.program.nodes[i]
            wide = _float(values[node.inputs[0]]).to(torch.float64)
            if node.op == "dot":
                wide = wide * _float(values[node.inputs[1]]).to(torch.float64)
            partials = lane_sum(wide).reshape(-1)
            total = 0.0
            for partial in partials.tolist():
                total += partial
            sums.append(total)
        return BlockResult(sums, [self._counts(i, bucket, values) for i, bucket in zip(self.kernel.selects, data.buckets, strict=False)])

    def _counts(self, i: int, bucket: int, values: dict[int, Any]) -> Counts:
        if bucket < -1:
            return Counts()
        keys = magnitudes(_float(values[self.program.nodes[i].inputs[0]]).contiguous().view(-1).numpy())
        digits = keys >> 16
        if bucket == -1:
            return Counts(coarse=np.bincount(digits, minlength=COARSE))
        places, fine = np.unique(keys[digits == bucket] & 0xFFFF, return_counts=True)
        return Counts(int(np.count_nonzero(digits > bucket)), places, fine)


def _float(x: Any) -> Any:
    return x if x.dtype == torch.float32 else x.to(torch.float32)


def _load(raw: Array, storage: str) -> Any:
    if storage == "F32":
        return torch.from_numpy(raw)
    return torch.from_numpy(raw.view(np.int16)).view(_TORCH[storage]).to(torch.float32)


def _store(x: Any, storage: str) -> Array:
    flat = x.reshape(-1).contiguous()
    if storage == "F32":
        return flat.numpy()  # type: ignore[no-any-return]
    return flat.to(_TORCH[storage]).view(torch.int16).numpy().view(RAW[storage])  # type: ignore[no-any-return]
