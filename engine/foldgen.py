"""Stages that only fold, as one loop of vectors (`plait.ops.kernels.jit_folds`): which they are, and what their kernel's body is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from plait.ops.op import NUMBER_FOLDS
from plait.planner.program import Node, Stage, data_inputs

#: Vectors of eight float64 that are in use at once: a processor with AVX-512 has 32.
REGISTERS = 30
#: Ops of maps that `jit_folds` has; named here, for that module imports Numba.
MAPS = frozenset({"add", "sub", "mul", "div", "neg", "abs", "where", "gt", "ge", "lt", "le", "eq", "ne", "and", "or", "not"})


def only_folds(nodes: Sequence[Node], stage: Stage) -> bool:
    """Whether a stage's maps and folds are all of those that one loop of vectors takes: no rows, nothing kept or stored, few numbers for results."""
    if stage.row_length or stage.keeps or stage.store or stage.residents or not stage.folds:
        return False
    if any(nodes[i].op not in NUMBER_FOLDS or any(nodes[j].space != "tensor" for j in nodes[i].inputs) for i in stage.folds):
        return False
    added = [i for i in stage.folds if nodes[i].op != "largest"]
    return len(added) + 2 * len({j for i in added for j in nodes[i].inputs}) <= REGISTERS and all(_vector(nodes, i) for i in stage.compute)


def _vector(nodes: Sequence[Node], i: int) -> bool:
    """Whether a map is computed alike on vectors: floats and masks, with numbers only where a float is wanted."""
    node = nodes[i]
    masks = {"and": (0, 1), "or": (0, 1), "not": (0,), "where": (0,)}.get(node.op, ())
    if node.op not in MAPS or any(nodes[j].dtype not in ("float32", "bool", "float64") or nodes[j].space == "row" for j in node.inputs):
        return False
    return all(nodes[node.inputs[k]].dtype == "bool" and nodes[node.inputs[k]].space == "tensor" for k in masks)


def fold_lines(
    nodes: Sequence[Node],
    stage: Stage,
    sums: Sequence[int],
    counts: Sequence[int],
    reductions: Sequence[int],
    checked: Sequence[int],
    name: Callable[[int], str],
    slot: Callable[[int], int],
) -> tuple[str, list[str], list[str]]:
    """The description of the loop, as source, the lines that clear what it adds to, and those that call it for a piece and read the result.

    Args:
        nodes, stage: what is computed.
        sums: folds in the order of `facc`.
        counts: those of them that are counts of masks.
        reductions: folds in the order of the rows of `acc`.
        checked: loads whose largest magnitude is wanted.
        name: of the array of a load.
        slot: place of a small value among the scalars.
    """
    numbers = {load: place for place, load in enumerate(stage.loads)}
    maps = []
    for i in stage.compute:
        operands = [-1 - slot(j) if nodes[j].space == "small" else numbers[j] for j in data_inputs(nodes[i])]
        maps.append((nodes[i].op, *operands))
        numbers[i] = len(numbers)
    tops = [i for i in sums if nodes[i].op == "largest"]
    added = [i for i in reductions if nodes[i].op in ("sum", "dot")]
    folds = (
        tuple(str(nodes[i].param("storage")) for i in stage.loads),
        tuple(maps),
        tuple((reductions.index(i), *(numbers[j] for j in nodes[i].inputs)) for i in added),
        tuple(numbers[nodes[i].inputs[0]] for i in counts),
        tuple(numbers[nodes[i].inputs[0]] for i in tops),
        tuple(stage.loads.index(i) for i in checked),
    )
    begin = [f"acc[{reductions.index(i)}, :] = 0.0" for i in added]
    empty = ["0"] * len(counts) + ["least_key"] * len(tops) + ["0"] * len(checked)
    begin += [f"U[0, {place}] = {value}" for place, value in enumerate(empty)]
    lines = [f"folds(acc, U[0], s, ({', '.join(name(i) for i in stage.loads)},), filled - at)"]
    lines += [f"facc[{sums.index(i)}] = float64(U[0, {place}])" for place, i in enumerate(counts)]
    lines += [f"facc[{sums.index(i)}] = float64(largest_of_key(U[0, {len(counts) + place}]))" for place, i in enumerate(tops)]
    lines += [f"peak[{place}] = U[0, {len(counts) + len(tops) + place}]" for place in range(len(checked))]
    lines += [f"facc[{sums.index(i)}] = combine(acc[{reductions.index(i)}])" for i in added]
    return f"folds = fold_sweep(Folds(*{folds!r}))", begin, lines
