"""Rewrites of an expression before it is lowered: rows of one length in each pass, whole results in the sweep that uses them, numbers by use."""

from __future__ import annotations

from collections.abc import Sequence

from plait.ops.algebra import later
from plait.ops.op import CONST, HOLD
from plait.ops.tensor import LazyTensor, elementwise
from plait.ops.wholes import VIEWS


def topological(root: LazyTensor) -> list[LazyTensor]:
    """Every node below `root`, inputs first, each once."""
    order: list[LazyTensor] = []
    seen: set[LazyTensor] = set()
    stack: list[tuple[LazyTensor, bool]] = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((i, False) for i in reversed(node.inputs) if i not in seen)
    return order


def _over(node: LazyTensor, inputs: Sequence[LazyTensor]) -> LazyTensor:
    """The node of other inputs; itself where they are its own."""
    new = tuple(inputs)
    return node if new == node.inputs else LazyTensor(node.op, new, node.params, shape=node.shape, dtype=node.dtype, space=node.space)


def split_row_lengths(root: LazyTensor) -> LazyTensor:
    """Hold what rows of another length computed, so that each stage works with rows of one length.

    Only convolutions under two row-wise methods need this: rows along the last axis for one, of an output channel for the other.
    """
    made: dict[LazyTensor, tuple[LazyTensor, frozenset[int]]] = {}
    for node in topological(root):
        inputs = [made[i] for i in node.inputs]
        counted = node.op.kind == "fold" and node.param("row_length") is not None  # folds by columns and rows
        apart = (node.space == "small" and not counted) or node.op.kind == "whole" or node.op.name == "random_bits"  # takes no row of its inputs
        lengths = frozenset[int]() if apart else frozenset[int]().union(*(r for _, r in inputs))
        if node.op.kind == "rows" or node.param("row_length") is not None:
            lengths |= {node.param("row_length")}
        new = [n for n, _ in inputs]
        if len(lengths) > 1:
            chosen = _kept_length(node, inputs)
            new = [_hold(n) if n.space == "tensor" and r - {chosen} else n for n, r in inputs]
            lengths = frozenset({chosen})
        made[node] = (_over(node, new), frozenset() if node.space == "small" else lengths)
    return made[root][0]


def _kept_length(node: LazyTensor, inputs: Sequence[tuple[LazyTensor, frozenset[int]]]) -> int:
    """Row length of the pass that computes `node`: its own, else that of an input which cannot be held (a mask, a row's value), else the longest."""
    if node.param("row_length") is not None:
        return int(node.param("row_length"))
    tied = {length for n, lengths in inputs if n.space == "row" or n.dtype != "float32" for length in lengths}
    return max(tied or {length for _, lengths in inputs for length in lengths})


def _hold(node: LazyTensor) -> LazyTensor:
    if node.dtype == "bool":
        return elementwise("gt", _hold(elementwise("where", node, 1.0, 0.0)), 0.0)
    if node.dtype != "float32":
        raise ValueError(f"whole numbers cannot be carried between rows of two lengths over {list(node.shape)}: write the inner merge out first")
    return LazyTensor(HOLD, (node,), shape=node.shape, dtype="float32", space="tensor")


# -- sharing ---------------------------------------------------------------------------------------------
def unshare(root: LazyTensor) -> LazyTensor:
    """Compute each fold of one tensor and each whole op anew for every node that uses it, as if nobody had seen that they are the same.

    Model-wide statistics stay one: what all tensors add to cannot be gathered twice under one name. The components of a result are of one.
    """
    made: dict[LazyTensor, LazyTensor] = {}
    uses: dict[LazyTensor, int] = {}
    for node in topological(root):
        inputs = []
        for i in node.inputs:
            if node.op.name not in COMPONENTS:
                uses[i] = uses.get(i, 0) + 1
            inputs.append(_copy_for(made[i], uses[i]) if uses.get(i, 0) > 1 and node.op.name not in COMPONENTS and _is_shared(i) else made[i])
        made[node] = _over(node, inputs)
    return made[root]


#: Ops that name a part of what another gives.
COMPONENTS = frozenset(("item", "part", "info"))


#: Whole ops that only show or lay out what is there.
_SHOWN = frozenset(("part", "stream", *VIEWS))


def is_shareable(op: str, kind: str, scoped: bool) -> bool:
    """Whether a node is worth computing once for all that use it: a fold of one tensor, or work on whole matrices."""
    return (kind == "fold" and not scoped) or (kind == "whole" and op not in _SHOWN)


def own_factors(root: LazyTensor) -> LazyTensor:
    """Numbers that multiply apart from equal numbers of another use: a lambda of 1 is not the 1 of a comparison.

    Expressions that differ in such a number alone then have one structure, and one kernel serves them all.
    """
    order = topological(root)
    factors = {i for node in order if node.op.name == "mul" for i in node.inputs if i.op is CONST}
    others = {i for node in order if node.op.name != "mul" for i in node.inputs}
    if not factors & others:
        return root
    made: dict[LazyTensor, LazyTensor] = {}
    for node in order:
        inputs = tuple(_copy_for(i, "factor") if node.op.name == "mul" and i in others and i.op is CONST else made[i] for i in node.inputs)
        made[node] = _over(node, inputs)
    return made[root]


def _is_shared(node: LazyTensor) -> bool:
    return is_shareable(node.op.name, node.op.kind, is_scoped(node))


def _copy_for(node: LazyTensor, use: int | str) -> LazyTensor:
    return LazyTensor(node.op, node.inputs, (*node.params, ("use", use)), shape=node.shape, dtype=node.dtype, space=node.space)


# -- sweeps -----------------------------------------------------------------------------------------------
def is_scoped(node: LazyTensor) -> bool:
    """Whether a node is a fold that adds to a model-wide statistic."""
    return node.op.kind == "fold" and bool(node.param("scope"))


def separate_sweeps(root: LazyTensor) -> LazyTensor:
    """Compute whole results again in each sweep over the model that uses them: nothing large is held from one to the next.

    A model-wide statistic is known when all tensors have added to it, one sweep after it was gathered. Sums that a sweep has taken stay
    known; a whole op, and the maps before it, are made a second time (with the parameter `again`) for uses in a later sweep.
    """
    order = topological(root)
    if not any(n.op.kind == "whole" for n in order) or not any(map(is_scoped, order)):
        return root
    return _Sweeps(order).of(root, -1)


class _Sweeps:
    """The nodes of an expression, made anew for the sweep in which each is used."""

    def __init__(self, order: Sequence[LazyTensor]) -> None:
        self.known: dict[LazyTensor, int] = {}
        for node in order:
            self.known[node] = self.gathered(node) + is_scoped(node)
        self.scoped = [n for n in order if is_scoped(n)]
        self.heavy = set[LazyTensor]()  # nodes that a whole op computes, directly or not
        for node in order:
            if node.space != "small" and (node.op.kind == "whole" or self.heavy.intersection(_needs(node))):
                self.heavy.add(node)
        self.first: dict[LazyTensor, int] = {}
        self._find_first(order[-1])
        self.made: dict[tuple[LazyTensor, int], LazyTensor] = {}

    def gathered(self, node: LazyTensor) -> int:
        """Sweep in which a node can first be computed."""
        return max((self.known[i] for i in _needs(node)), default=0)

    def _uses(self, node: LazyTensor, sweep: int) -> list[tuple[LazyTensor, int]]:
        """Inputs, each with the sweep in which this node wants it."""
        own = self.gathered(node) if node.space == "small" else sweep
        return [(i, own) for i in node.inputs]

    def _find_first(self, root: LazyTensor) -> None:
        """The first sweep in which each heavy node is used."""
        seen, stack = set[tuple[LazyTensor, int]](), [(root, self.known[root])]
        while stack:
            node, sweep = stack.pop()
            if (node, sweep) in seen:
                continue
            seen.add((node, sweep))
            self.first[node] = min(sweep, self.first.get(node, sweep))
            stack += self._uses(node, sweep)

    def of(self, node: LazyTensor, sweep: int) -> LazyTensor:
        """`node` as it is used in a sweep; -1 for the first in which it can be."""
        stack = [(node, sweep)]
        while stack:
            place = self._place(*stack[-1])
            missing = [] if place in self.made else [p for p in (*self._uses(*place), *self._barrier(*place)) if self._place(*p) not in self.made]
            if missing:
                stack += missing
                continue
            if place not in self.made:
                self.made[place] = self._make(*place)
            stack.pop()
        return self.made[self._place(node, sweep)]

    def _place(self, node: LazyTensor, sweep: int) -> tuple[LazyTensor, int]:
        """A node with the sweep in which it is made; only what whole ops take part in is made more than once."""
        return node, (self.known[node] if sweep < 0 else sweep) if node in self.heavy else 0

    def _barrier(self, node: LazyTensor, sweep: int) -> list[tuple[LazyTensor, int]]:
        """The statistics that a whole op of a later sweep waits for."""
        return [(f, -1) for f in self.scoped if self.known[f] <= sweep] if node.op.kind == "whole" and sweep > 0 else []

    def _make(self, node: LazyTensor, sweep: int) -> LazyTensor:
        inputs = [self.made[self._place(*use)] for use in self._uses(node, sweep)]
        params = node.params
        barrier = [self.made[self._place(*f)] for f in self._barrier(node, sweep)]
        if barrier:
            inputs = [later(x, *barrier) if x.space == "tensor" and x.op.kind != "whole" else x for x in inputs]
            if sweep > self.first[node]:
                params = (*params, ("again", sweep))
        if tuple(inputs) == node.inputs and params == node.params:
            return node
        return LazyTensor(node.op, tuple(inputs), params, shape=node.shape, dtype=node.dtype, space=node.space)


def _needs(node: LazyTensor) -> tuple[LazyTensor, ...]:
    return () if node.op.name == "random_bits" else node.inputs
