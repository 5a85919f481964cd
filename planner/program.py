"""Lowering: one expression becomes a program of stages that read the inputs once each.

A *stage* is one pass over the blocks of the tensor. It computes the maps it needs from what it
reads, and ends in folds (a few numbers), in tensors that a `whole` op must see entire, or in the
output. After a stage the host turns folds into coefficients, and whole ops run; then the next
stage reads again. Which stage a node belongs to follows from the graph alone:

    load, literal        ready before stage 0
    map, rows            ready in the latest stage among its inputs
    fold                 ready one stage after its input (the count that a rank is taken of may come with it)
    whole                ready one stage after its input; after a whole op or from small values of the same stage, in that stage
    small                ready with its inputs

Maps are recomputed in every stage that needs them: they cost less than keeping a tensor. An expression may also end in a few numbers:
then no stage stores, and the output is the small value itself. Where whole ops meet model-wide statistics,
stages of one sweep over the model all come before those of the next, and whole results are recomputed (`planner/rewrites.py`).
A program depends on shapes, dtypes and parameters, not on names, so all layers share one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plait.ops.dtypes import BY_NAME, RECIPE_FLOATS
from plait.ops.op import OPS
from plait.ops.tensor import LazyTensor
from plait.planner.optimisations import BYTE_COPY, COMMON_SUBEXPRESSIONS, SHARED_PASSES
from plait.planner.rewrites import own_factors, separate_sweeps, split_row_lengths, topological, unshare

#: Storage codes that blocks are computed from.
_COMPUTED = frozenset(BY_NAME[name].code for name in RECIPE_FLOATS)


@dataclass(frozen=True, slots=True)
class Node:
    """A `LazyTensor` inside a program: inputs are indices into `Program.nodes`, a load's parameters name its slot."""

    op: str
    inputs: tuple[int, ...]
    params: tuple[tuple[str, Any], ...]
    shape: tuple[int, ...]
    dtype: str
    space: str

    @property
    def kind(self) -> str:
        """Kind of its op."""
        return OPS[self.op].kind

    def param(self, name: str) -> Any:
        """The parameter `name`, or None."""
        for key, value in self.params:  # asked for every block, and there are few
            if key == name:
                return value
        return None


@dataclass(frozen=True, slots=True)
class Stage:
    """One pass over the blocks.

    Attributes:
        loads: load nodes read from files.
        residents: whole results that are read from memory.
        compute: map and rows nodes, in order of evaluation.
        folds: fold nodes that end here.
        keeps: nodes written whole into memory, for the whole ops that follow.
        store: the root is written to the output.
        row_length: elements of a row, where rows take part (rows nodes, folds by rows or columns, places in them); else 0.
        wholes: whole nodes that run after the pass, in this order.
        scopes: model-wide statistics that this stage adds to.
        waits: model-wide statistics that must be complete before it starts.
        counts_only: nothing but elements are counted in it, which is exact in blocks of any size.
        origin: the stage of a program that this is a part of; None for that itself, and for one that only looks at values.
    """

    loads: tuple[int, ...]
    residents: tuple[int, ...]
    compute: tuple[int, ...]
    folds: tuple[int, ...]
    keeps: tuple[int, ...]
    store: bool
    row_length: int
    wholes: tuple[int, ...]
    scopes: tuple[str, ...]
    waits: tuple[str, ...]
    counts_only: bool = False
    origin: Stage | None = None

    @property
    def has_pass(self) -> bool:
        """Whether anything is done block by block; else only whole ops run."""
        return bool(self.folds or self.keeps or self.store)


@dataclass(frozen=True, slots=True)
class Program:
    """An expression ready to run.

    Attributes:
        nodes: in topological order; the last is the root.
        slots: the load nodes, in the order of the instance's inputs.
        storages: storage code of each slot.
        streams: the random nodes, in the order of the instance's streams.
        stages: the passes.
        shape: dimensions of the output; where that is a few numbers, of the tensors that they are taken of.
        dtype: storage code of the output.
        copy: slot whose bytes are the output unchanged, or None.
    """

    nodes: tuple[Node, ...]
    slots: tuple[int, ...]
    storages: tuple[str, ...]
    streams: tuple[int, ...]
    stages: tuple[Stage, ...]
    shape: tuple[int, ...]
    dtype: str
    copy: int | None

    @property
    def root(self) -> int:
        """Number of the root node."""
        return len(self.nodes) - 1

    @property
    def numel(self) -> int:
        """Elements of the output, or of the tensors that its numbers are taken of."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def gives_numbers(self) -> bool:
        """Whether the output is a small value and not a tensor."""
        return self.nodes[-1].space == "small"


def lower(root: LazyTensor, dtype: str, leaves: Sequence[LazyTensor], without: Collection[str] = ()) -> Program:
    """The program that computes `root` and stores it as `dtype`.

    Args:
        root: a tensor expression, or one of a few numbers taken of tensors of one shape.
        dtype: storage code of the output.
        leaves: the load nodes that instances bind, in order; those that the expression no longer needs are not read.
        without: names of optimisations that are not made.
    """
    if COMMON_SUBEXPRESSIONS in without:
        root = unshare(root)
    root = own_factors(split_row_lengths(separate_sweeps(root)))
    order = topological(root)
    index = {node: i for i, node in enumerate(order)}
    slot_of = {leaf: s for s, leaf in enumerate(leaves)}
    nodes = tuple(_node(n, index, slot_of) for n in order)
    needed = _data_nodes(nodes)
    slots = tuple(index.get(leaf, -1) if index.get(leaf, -1) in needed else -1 for leaf in leaves)
    copy = None
    if root.op.name == "load" and root.param("storage") == dtype and not (BYTE_COPY in without and dtype in _COMPUTED):
        copy = slot_of[root]
    shape = root.shape if root.space != "small" else leaves[0].shape
    stages = () if copy is not None or 0 in shape else _stages(nodes)
    if SHARED_PASSES in without:
        stages = tuple(part for stage in stages for part in separate(nodes, stage))
    _check_ties(nodes, needed)
    streams = tuple(i for i, n in enumerate(nodes) if n.op == "random_bits")
    storages = tuple(leaf.param("storage") for leaf in leaves)
    return Program(nodes, slots, storages, streams, stages, shape, dtype, copy)


def _node(n: LazyTensor, index: dict[LazyTensor, int], slot_of: dict[LazyTensor, int]) -> Node:
    params = (("slot", slot_of[n]), ("storage", n.param("storage"))) if n.op.name == "load" else n.params
    return Node(n.op.name, tuple(index[i] for i in n.inputs), params, n.shape, n.dtype, n.space)


def _check_ties(nodes: Sequence[Node], needed: set[int]) -> None:
    """Ties of a model-wide threshold are looked for again after its sweep, when whole results are gone."""
    for i in needed:
        wide = nodes[i].op == "kth_magnitude" and scope_of(nodes[i]) != "" and nodes[i].param("ties") == "first"
        if wide and any(nodes[j].kind == "whole" for j in _closure(nodes, nodes[i].inputs)):
            raise ValueError("a model-wide threshold over results of whole-tensor ops keeps all ties: set keep: threshold, or scope: tensor")


def data_inputs(node: Node) -> tuple[int, ...]:
    """Inputs whose values the node needs: a random stream takes only the name of its input, `later` waits for all but its first."""
    return () if node.op == "random_bits" else node.inputs[:1] if node.op == "later" else node.inputs


def _data_nodes(nodes: Sequence[Node]) -> set[int]:
    needed = {len(nodes) - 1}
    for i in range(len(nodes) - 1, -1, -1):
        if i in needed:
            needed.update(data_inputs(nodes[i]))
    return needed


def _levels(nodes: Sequence[Node], needed: set[int]) -> dict[int, int]:
    """The sweep over the model, counted within this program, in which each node is computed; all 0 where no whole op takes part."""
    if not any(nodes[i].kind == "whole" for i in needed):
        return dict.fromkeys(needed, 0)
    level: dict[int, int] = {}
    for i in sorted(needed):
        level[i] = max((level[j] + bool(scope_of(nodes[j])) for j in _order_inputs(nodes[i]) if j in level), default=0)
    return level


def _order_inputs(node: Node) -> tuple[int, ...]:
    """Inputs that must be known before the node is computed."""
    return () if node.op == "random_bits" else node.inputs


def _ready(nodes: Sequence[Node], needed: set[int]) -> dict[int, int]:
    """For each node the first stage in which its value can be used."""
    level, ready, floor = _levels(nodes, needed), dict[int, int](), 0
    for current in range(max(level.values(), default=0) + 1):
        for i in sorted(j for j in needed if level[j] == current):
            node = nodes[i]
            if node.kind == "whole":
                after = max([floor, *(_known_after(nodes, j, ready) for j in node.inputs)])
                ready[i] = ready[node.inputs[0]] if node.op == "part" else after + 1
                continue
            latest = max((ready[j] for j in _order_inputs(node) if j in ready), default=0)
            if node.kind == "fold":  # its small input is asked for when the pass is over
                begins = max([floor if current else 0, *(ready[j] for j in node.inputs if nodes[j].space != "small")])
                ready[i] = max(latest, begins + 1)
            else:
                ready[i] = latest if node.space == "small" else max(latest, floor if current else 0)
        floor = max((ready[i] for i in ready if nodes[i].kind in ("fold", "whole")), default=0)
    return ready


def _known_after(nodes: Sequence[Node], i: int, ready: dict[int, int]) -> int:
    """The stage after whose pass a whole op has its input `i`: a tensor is kept in it, numbers and whole results are there at its end."""
    there = nodes[i].space == "small" or nodes[i].kind == "whole"
    return max(0, ready[i] - there)


def _closure(nodes: Sequence[Node], targets: Iterable[int]) -> set[int]:
    """Nodes that one pass evaluates for `targets`: down to loads, whole results and small values."""
    found: set[int] = set()
    stack = list(targets)
    while stack:
        i = stack.pop()
        if i not in found and nodes[i].space != "small":
            found.add(i)
            if nodes[i].kind in ("map", "rows"):
                stack.extend(data_inputs(nodes[i]))
    return found


def _stages(nodes: Sequence[Node]) -> tuple[Stage, ...]:
    needed = _data_nodes(nodes)
    ready = _ready(nodes, needed)
    root = len(nodes) - 1
    stored = nodes[root].space != "small"  # numbers are known at the end of the stage before, and nothing is left to pass over
    return tuple(_stage(nodes, needed, ready, number, last=stored and number == ready[root]) for number in range(ready[root] + stored))


def _stage(nodes: Sequence[Node], needed: set[int], ready: dict[int, int], number: int, *, last: bool) -> Stage:
    ending = [i for i in sorted(needed) if nodes[i].kind in ("fold", "whole") and ready[i] == number + 1]
    folds = [i for i in ending if nodes[i].kind == "fold"]
    wholes = [i for i in ending if nodes[i].kind == "whole" and nodes[i].op != "part"]
    keeps = sorted(j for j, first in _kept(nodes, needed, ready).items() if first == number)
    targets = [j for i in folds for j in nodes[i].inputs] + keeps + ([len(nodes) - 1] if last else [])
    closure = _closure(nodes, targets)
    compute = sorted(i for i in closure if nodes[i].kind in ("map", "rows"))
    lengths = {nodes[i].param("row_length") for i in (*compute, *folds)} - {None}
    if len(lengths) > 1:
        what = " and ".join(str(length) for length in sorted(lengths))
        raise ValueError(f"rows of {what} elements would have to be worked on in one pass over {list(nodes[-1].shape)}: write the inner merge out first")
    small = _small_below(nodes, compute + folds + wholes)
    return Stage(
        loads=tuple(sorted(i for i in closure if nodes[i].kind == "load")),
        residents=tuple(sorted(i for i in closure if nodes[i].kind == "whole")),
        compute=tuple(compute),
        folds=tuple(folds),
        keeps=tuple(keeps),
        store=last,
        row_length=lengths.pop() if lengths else 0,
        wholes=tuple(wholes),
        scopes=tuple(sorted({scope_of(nodes[i]) for i in folds} - {""})),
        waits=tuple(sorted({scope_of(nodes[i]) for i in small if nodes[i].kind == "fold"} - {""})),
        counts_only=bool(folds) and not keeps and not last and all(nodes[i].op == "kth_magnitude" for i in folds),
    )


def _kept(nodes: Sequence[Node], needed: set[int], ready: dict[int, int]) -> dict[int, int]:
    """The tensors that whole ops see entire, each with the stage of its first use."""
    kept: dict[int, int] = {}
    for i in needed:
        if nodes[i].kind == "whole":
            for j in nodes[i].inputs:
                if nodes[j].space == "tensor" and nodes[j].kind != "whole":
                    kept[j] = min(ready[i] - 1, kept.get(j, ready[i]))
    return kept


def probe_stage(program: Program, stage: Stage, nodes: tuple[int, ...]) -> Stage:
    """A stage like `stage` that only computes some tensor nodes and keeps them, block by block."""
    closure = _closure(program.nodes, nodes)
    compute = tuple(sorted(i for i in closure if program.nodes[i].kind in ("map", "rows")))
    loads = tuple(sorted(i for i in closure if program.nodes[i].kind == "load"))
    residents = tuple(sorted(i for i in closure if program.nodes[i].kind == "whole"))
    return replace(stage, loads=loads, residents=residents, compute=compute, folds=(), keeps=nodes, store=False, wholes=(), scopes=())


def part_of_stage(program: Program, stage: Stage, folds: tuple[int, ...], keeps: tuple[int, ...], wholes: tuple[int, ...]) -> Stage:
    """A stage like `stage` that ends in some of its folds, kept tensors and whole ops alone, and reads what they need; they get the same bits."""
    return replace(_part(program.nodes, stage, folds, keeps, wholes), origin=stage)


def _part(nodes: Sequence[Node], stage: Stage, folds: tuple[int, ...], keeps: tuple[int, ...], wholes: tuple[int, ...]) -> Stage:
    below = _closure(nodes, [*(j for i in folds for j in nodes[i].inputs), *keeps])
    loads, residents = (tuple(sorted(i for i in below if nodes[i].kind == kind)) for kind in ("load", "whole"))
    compute = tuple(sorted(i for i in below if nodes[i].kind in ("map", "rows")))
    scopes = tuple(sorted({scope_of(nodes[i]) for i in folds} - {""}))
    return replace(stage, loads=loads, residents=residents, compute=compute, folds=folds, keeps=keeps, wholes=wholes, scopes=scopes)


def separate(nodes: Sequence[Node], stage: Stage) -> list[Stage]:
    """A stage as several of one fold each, in blocks of the same rows; a rank comes after what it is taken among, the last does what is left."""
    *folds, last = sorted(stage.folds, key=lambda i: nodes[i].op == "kth_magnitude") or (-1,)
    if not folds:
        return [stage]
    return [*(_part(nodes, stage, (i,), (), ()) for i in folds), _part(nodes, stage, (last,), stage.keeps, stage.wholes)]


def _small_below(nodes: Sequence[Node], indices: Iterable[int]) -> set[int]:
    """Small nodes that the given nodes use, directly or through other small nodes."""
    found: set[int] = set()
    stack = [j for i in indices for j in nodes[i].inputs if nodes[j].space == "small"]  # those that `later` waits for, too
    while stack:
        i = stack.pop()
        if i not in found:
            found.add(i)
            stack.extend(j for j in nodes[i].inputs if nodes[j].space == "small")
    return found


def scope_of(node: Node) -> str:
    """Identity of the model-wide statistic that a fold adds to, or an empty string."""
    scope = node.param("scope") if node.kind == "fold" else ""
    if not scope:
        return ""
    return "|".join([node.op, *(str(v) for k, v in node.params)])
