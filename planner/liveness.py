"""When values held whole come and go: the order in which a component's whole ops run, and what is dropped after each.

The engine drops by `lifetimes`, and memory is predicted by a sweep over the same order, so neither can forget what the other holds.
A value lives in the memory of its *owner*: a view (a kept tensor seen as a matrix, and back) takes none of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from plait.ops.wholes import WHOLES, is_view
from plait.planner.blocks import aligned
from plait.planner.program import Node, Program, Stage


class StageLife(NamedTuple):
    """What dies in one stage.

    Attributes:
        after_pass: owners that nothing needs once the pass is over.
        after_whole: for each whole op of the stage, owners that nothing needs once it has run.
    """

    after_pass: tuple[int, ...]
    after_whole: tuple[tuple[int, ...], ...]


class Moment(NamedTuple):
    """One step of a component: a pass over the blocks, or a whole op.

    Attributes:
        stage: its number.
        node: the whole op, or -1 for the pass.
        held_bytes: of every value that lives before the step ends; for a whole op without what it gives.
        result_bytes: of what a whole op gives.
    """

    stage: int
    node: int
    held_bytes: int
    result_bytes: int = 0


def owner(nodes: Sequence[Node], i: int) -> int:
    """The node in whose memory a whole value lies."""
    while nodes[i].kind == "whole" and is_view(nodes[i].op, nodes[i]):
        i = nodes[i].inputs[0]
    return i


def matrix_inputs(nodes: Sequence[Node], i: int) -> list[int]:
    """Inputs of a whole op that are held whole."""
    return [j for j in nodes[i].inputs if nodes[j].space != "small"]


def taken_whole(program: Program, stages: Iterable[Stage | None]) -> frozenset[int]:
    """Owners of what the ops of these stages take as whole matrices; of the others only blocks are wanted."""
    nodes = program.nodes
    computed = [w for stage in stages if stage is not None for w in stage.wholes if not is_view(nodes[w].op, nodes[w])]
    return frozenset(owner(nodes, j) for w in computed for j in matrix_inputs(nodes, w))


def made_by(program: Program, w: int) -> tuple[int, ...]:
    """Owners that a whole op makes: the parts of a decomposition that anything uses, none for a view."""
    node = program.nodes[w]
    if is_view(node.op, node):
        return ()
    if node.op not in _DIVIDED:
        return (w,) if WHOLES[node.op].results(node) else ()
    return tuple(i for i, n in enumerate(program.nodes) if n.op == "part" and n.inputs == (w,))


_DIVIDED = frozenset(("svd", "joint_svd"))


def lifetimes(program: Program) -> tuple[StageLife, ...]:
    """What is dropped in each stage, and when."""
    nodes, last = program.nodes, dict[int, tuple[int, int]]()
    for number, stage in enumerate(program.stages):
        for i in (*stage.keeps, *(owner(nodes, r) for r in stage.residents)):
            last[i] = (number, -1)
        for place, w in enumerate(stage.wholes):
            for i in (*made_by(program, w), *(owner(nodes, j) for j in matrix_inputs(nodes, w))):
                last[i] = (number, place)
    dead: dict[tuple[int, int], list[int]] = {}
    for i, when in last.items():
        dead.setdefault(when, []).append(i)
    return tuple(
        StageLife(tuple(dead.get((number, -1), ())), tuple(tuple(dead.get((number, place), ())) for place in range(len(stage.wholes))))
        for number, stage in enumerate(program.stages)
    )


def moments(program: Program) -> Iterator[Moment]:
    """Every step of a component with the bytes that it holds whole."""
    held: dict[int, int] = {}
    for number, (stage, life) in enumerate(zip(program.stages, lifetimes(program), strict=True)):
        held |= {i: value_bytes(program.nodes[i]) for i in stage.keeps}
        yield Moment(number, -1, sum(held.values()))
        _drop(held, life.after_pass)
        for place, w in enumerate(stage.wholes):
            yield Moment(number, w, sum(held.values()), result_bytes(program.nodes[w]))
            held |= {i: value_bytes(program.nodes[i]) for i in made_by(program, w)}
            _drop(held, life.after_whole[place])


def _drop(held: dict[int, int], owners: Sequence[int]) -> None:
    for i in owners:
        held.pop(i, None)


def value_bytes(node: Node) -> int:
    """Bytes of a value held in float32."""
    return aligned(4 * _numel(node.shape))


def result_bytes(node: Node) -> int:
    """Bytes of everything that a whole op gives, needed or not."""
    if is_view(node.op, node):
        return 0
    return sum(aligned(4 * _numel(shape)) for shape in WHOLES[node.op].results(node))


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def recomputed(stage: Stage, nodes: Sequence[Node]) -> bool:
    """Whether a stage makes whole results a second time, for a later sweep."""
    return any(nodes[w].param("again") for w in stage.wholes)
