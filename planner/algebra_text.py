"""A program as text: the lazy algebra of one output, with common subexpressions and every statistic under a name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from plait.ops.dtypes import BY_CODE
from plait.planner.program import Node, Program, data_inputs, scope_of

#: An expression longer than this is given a name where it is used.
_LONG = 100


@dataclass(frozen=True, slots=True)
class Definition:
    """A named part of an expression.

    Attributes:
        name: by which what follows refers to it; `output` for the last.
        text: what it is.
        stage: the pass that gives it (counted from 0), or None where it is part of others.
    """

    name: str
    text: str
    stage: int | None


_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!=", "and": "&", "or": "|"}
#: How tightly infix ops bind; what binds less is put in parentheses.
_BINDS = {"or": 1, "and": 2, "gt": 3, "ge": 3, "lt": 3, "le": 3, "eq": 3, "ne": 3, "add": 4, "sub": 4, "mul": 5, "div": 5, "neg": 6, "not": 6}
_ATOM = 9
#: Ops that are their first input under another view.
_SEEN_THROUGH = frozenset(("hold", "matrix", "stream", "later", "magnitude_key"))
#: What nodes of a kind are called, when they are named.
_LETTERS = {"fold": "s", "whole": "m", "rows": "r", "small": "k", "map": "v"}


def definitions(program: Program, inputs: Sequence[str]) -> tuple[Definition, ...]:
    """The expression of a program, what is used first coming first.

    Args:
        program: whose root is told.
        inputs: a name for each slot.
    """
    return _Teller(program, inputs).tell()


class _Teller:
    def __init__(self, program: Program, inputs: Sequence[str]) -> None:
        self.nodes, self.program, self.inputs = program.nodes, program, inputs
        self.below = _needed(program)
        self.uses = Counter(self._through(j) for i in self.below for j in data_inputs(self.nodes[i]) if i not in self._passed())
        self.stage = {i: n for n, stage in enumerate(program.stages) for i in (*stage.folds, *stage.wholes)}
        self.names: dict[int, str] = {}
        self.texts: dict[int, tuple[str, int]] = {}
        self.made: list[Definition] = []
        self.counts: Counter[str] = Counter()

    def _passed(self) -> set[int]:
        """Nodes that are seen through: what they use is used by what uses them."""
        return {i for i in self.below if self.nodes[i].op in _SEEN_THROUGH}

    def _through(self, i: int) -> int:
        while self.nodes[i].op in _SEEN_THROUGH:
            i = self.nodes[i].inputs[0]
        return i

    def tell(self) -> tuple[Definition, ...]:
        root = len(self.nodes) - 1
        for i in self.below:
            if i == root or self.nodes[i].op in _SEEN_THROUGH:
                continue
            text, binds = self._text(i)
            if self._deserves_a_name(i, text):
                self._name(i, text)
            else:
                self.texts[i] = text, binds
        text = self._of(root) if self.nodes[root].op in _SEEN_THROUGH else self._text(root)[0]
        self.made.append(Definition("output", self._stored(text), len(self.program.stages) - 1 if self.program.stages else None))
        return tuple(self.made)

    def _stored(self, text: str) -> str:
        root = self.nodes[-1]
        if self.program.copy is not None:
            return f"{text}, byte for byte"
        name = BY_CODE[self.program.dtype].name
        return text if root.op == "load" and root.param("storage") == self.program.dtype else f"{name}({text})"

    def _deserves_a_name(self, i: int, text: str) -> bool:
        node = self.nodes[i]
        if node.kind == "load" or node.op in ("const", "item", "part", "info"):
            return False
        if node.kind in ("fold", "whole"):
            return True
        return (self.uses[i] > 1 and len(text) > 3) or len(text) > _LONG

    def _name(self, i: int, text: str) -> None:
        node = self.nodes[i]
        letter = "t" if node.op == "kth_magnitude" else "d" if self._is_delta(node) else _LETTERS[node.kind]
        self.counts[letter] += 1
        self.names[i] = name = f"{letter}{self.counts[letter]}"
        self.made.append(Definition(name, text, self.stage.get(i)))

    def _is_delta(self, node: Node) -> bool:
        return node.op == "sub" and all(self.nodes[j].kind == "load" or self.nodes[j].op == "cast" for j in node.inputs)

    # -- one node ----------------------------------------------------------------------------------
    def _of(self, i: int, within: int = 0, *, right: bool = False) -> str:
        """A node as an operand of something that binds as tightly as `within`."""
        i = self._through(i)
        if i in self.names:
            return self.names[i]
        text, binds = self.texts.get(i) or self._text(i)
        return f"({text})" if binds < within or (right and binds == within) else text

    def _text(self, i: int) -> tuple[str, int]:
        node = self.nodes[i]
        if node.op in _INFIX:
            binds = _BINDS[node.op]
            a, b = node.inputs
            # in floating point a + (b + c) is not (a + b) + c: what stands on the right keeps its parentheses
            return f"{self._of(a, binds, right=binds == _BINDS['gt'])} {_INFIX[node.op]} {self._of(b, binds, right=True)}", binds
        if node.op in ("neg", "not"):
            return f"{'-' if node.op == 'neg' else '~'}{self._of(node.inputs[0], _BINDS[node.op])}", _BINDS[node.op]
        special = _TOLD.get(node.op)
        return (special(self, node) if special else self._call(node)), _ATOM

    def _call(self, node: Node) -> str:
        facts = [f"{k}={_value(v)}" for k, v in node.params if k in _KNOWN_PARAMS and v not in ("", None, False)]
        name = str(node.param("function") or node.op) if node.op == "combine" else node.op
        return f"{name}({', '.join([*(self._of(j) for j in data_inputs(node)), *facts])})"

    def load(self, node: Node) -> str:
        """The name of an input."""
        return self.inputs[int(node.param("slot"))]

    def threshold(self, node: Node) -> str:
        """An order statistic."""
        wide = f", over all of {node.param('scope')}" if scope_of(node) else ""
        among = f", among {self._of(node.inputs[1])}" if len(node.inputs) > 1 else ""
        ties = ", every tie" if node.param("ties") == "all" else ""
        return f"threshold({self._of(node.inputs[0])}, {node.param('rank')}{among}{ties}{wide})"

    def kept(self, node: Node) -> str:
        """The mask of what reaches a threshold."""
        key, cut, limit = (self._through(j) for j in node.inputs)
        same = self.nodes[cut].op == "item" and self.nodes[limit].op == "item" and self.nodes[cut].inputs == self.nodes[limit].inputs
        if same:
            return f"reaches({self._of(key)}, {self._of(self.nodes[cut].inputs[0])})"
        return f"reaches({self._of(key)}, {self._of(cut)}, ties before {self._of(limit)})"


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


_KNOWN_PARAMS = frozenset(("rank", "accuracy", "rank_policy", "side", "tolerance", "floor", "transpose_a", "transpose_b", "axis", "first", "keep", "steps"))


def _solve(t: _Teller, node: Node) -> str:
    params = [f"{k}={_value(v)}" for k, v in node.params if k != "solver"]
    return f"{node.param('solver')}({', '.join([*(t._of(j) for j in node.inputs), *params])})"


def _scoped(name: str) -> Callable[[_Teller, Node], str]:
    def told(t: _Teller, node: Node) -> str:
        wide = f", over all of {node.param('scope')}" if scope_of(node) else ""
        return f"{name}({', '.join(t._of(j) for j in node.inputs)}{wide})"

    return told


def _random(t: _Teller, node: Node) -> str:
    return f"random({node.param('purpose')}, seed={node.param('seed')}, {node.param('label')})"


_TOLD: dict[str, Callable[[_Teller, Node], str]] = {
    "load": _Teller.load,
    "const": lambda t, node: _value(node.param("value")),
    "item": lambda t, node: f"{t._of(node.inputs[0], _ATOM)}[{node.param('index')}]",
    "part": lambda t, node: f"{t._of(node.inputs[0], _ATOM)}.{('left', 'right')[int(node.param('index'))]}",
    "info": lambda t, node: f"{t._of(node.inputs[0], _ATOM)}.numbers",
    "pack": lambda t, node: f"[{', '.join(t._of(j) for j in node.inputs)}]",
    "cast": lambda t, node: f"{BY_CODE[str(node.param('storage'))].name}({t._of(node.inputs[0])})",
    "kth_magnitude": _Teller.threshold,
    "keep_top": _Teller.kept,
    "solve": _solve,
    "random_bits": _random,
    "sum": _scoped("sum"),
    "dot": _scoped("dot"),
    "largest": _scoped("largest"),
}


def _needed(program: Program) -> list[int]:
    """Nodes that the root is computed from, in order of evaluation."""
    wanted = {len(program.nodes) - 1}
    for i in range(len(program.nodes) - 1, -1, -1):
        if i in wanted:
            wanted.update(data_inputs(program.nodes[i]))
    return sorted(wanted)
