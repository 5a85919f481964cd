"""Names and expressions of a generated kernel: what each value of a program is called in its text, and how it is computed."""

from __future__ import annotations

from collections.abc import Sequence

from plait.engine.kernel import Kernel
from plait.ops.op import OPS
from plait.planner.program import Node, data_inputs

#: For each storage the type of its bits, and how a value is read from them and written to them.
LOADS = {"BF16": ("uint16", "load_bf16({})"), "F16": ("uint16", "load_f16({})"), "F32": ("float32", "{}")}
STORES = {"BF16": ("uint16", "store_bf16({})"), "F16": ("uint16", "store_f16({})"), "F32": ("float32", "{}")}


class Expressions:
    """The values of one kernel as text.

    Args:
        nodes: of the program.
        kernel: is told which small values and vectors its text uses.

    Attributes:
        prologue: lines that name small values before the loop.
    """

    def __init__(self, nodes: Sequence[Node], kernel: Kernel) -> None:
        self.nodes, self.kernel = nodes, kernel
        self.prologue: list[str] = []
        self._ids: dict[int, int] = {}
        self._names: dict[tuple[int, str], str] = {}

    def id(self, i: int) -> int:
        """Nodes are named in the order in which they are first written, so that equal stages of different expressions share a kernel."""
        return self._ids.setdefault(i, len(self._ids))

    def value(self, i: int) -> str:
        """What element `j` of a chunk has for node `i`."""
        node = self.nodes[i]
        if node.kind == "load":
            return LOADS[str(node.param("storage"))][1].format(f"a{self.id(i)}[j]")
        if node.kind == "whole" or node.op == "row_rank":
            return f"a{self.id(i)}[j]"
        if node.op == "column":
            return "c + j"
        if node.op == "row":
            return "start // row + r"
        if node.op == "random_bits":
            return f"u{self.id(i)}[j]"
        if node.op == "cast":
            storage = str(node.param("storage"))
            return LOADS[storage][1].format(STORES[storage][1].format(self.operand(node.inputs[0], "f")))
        if node.op in ("take", "take_integer"):
            table, dtype = self.table(node.inputs[0]), "uint32" if node.op == "take_integer" else "float32"
            return f"{dtype}({table}[uint32(v{self.id(node.inputs[1])}) & MAGNITUDE])"
        if node.op == "keep_top":
            return OPS[node.op].code.format(self.operand(node.inputs[0], "u"), f"cut{self.id(i)}")
        operands = [self.operand(j, cast) for j, cast in zip(data_inputs(node), OPS[node.op].casts, strict=True)]
        return OPS[node.op].code.format(*operands, zero="float32(0.0)", one="float32(1.0)")

    def operand(self, i: int, cast: str) -> str:
        """Value `i` as an operand of an elementwise expression."""
        node = self.nodes[i]
        if node.space == "small":
            return self.scalar(i, cast)
        if node.space == "row":
            return f"float32(r{self.id(i)})"
        if cast == "f" and node.dtype == "bool":
            return f"(float32(1.0) if v{self.id(i)} else float32(0.0))"
        return f"float32(v{self.id(i)})" if cast == "f" and node.dtype != "float32" else f"v{self.id(i)}"

    # -- small values --------------------------------------------------------------------------------
    def slot(self, i: int) -> int:
        """Where a small value stands in the argument `s`."""
        if (i, -1) not in self.kernel.scalars:
            self.kernel.scalars.append((i, -1))
        return self.kernel.scalars.index((i, -1))

    def scalar(self, i: int, cast: str) -> str:
        """Name of a small value, converted once before the loop."""
        name = self._names.get((i, cast))
        if name is None:
            name = self._names[i, cast] = f"s{self.id(i)}{cast}"
            convert = {"f": "float32({})", "u": "uint32(int64({}))", "i": "int64({})", "b": "({} != 0.0)", "d": "{}"}[cast]
            self.prologue.append(f"{name} = {convert.format(f's[{self.slot(i)}]')}")
        return name

    def limit(self, i: int) -> str:
        """A global element index as an index into the block."""
        name = self._names.get((i, "limit"))
        if name is None:
            name = self._names[i, "limit"] = f"s{self.id(i)}limit"
            self.prologue.append(f"{name} = int64(min(max(s[{self.slot(i)}] - float64(start), 0.0), float64(n)))")
        return name

    def table(self, i: int) -> str:
        """Name of a small vector that elements are looked up in."""
        if i not in self.kernel.tables:
            uses = {node.op for node in self.nodes if i in node.inputs}
            self.kernel.tables[i] = "uint32" if uses == {"take_integer"} else "float64"
        return f"t{self.id(i)}"

    def row_map(self, node: Node) -> str:
        """Arithmetic on values of a row, in float64."""
        operands = []
        for j, cast in zip(node.inputs, OPS[node.op].casts, strict=True):
            operands.append(self.scalar(j, "b" if cast == "b" else "d") if self.nodes[j].space == "small" else f"r{self.id(j)}")
        return OPS[node.op].code.format(*operands, zero="0.0", one="1.0")
