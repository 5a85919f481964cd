"""A program as a networkx graph: for looking at it with other tools, and for checking the rules that lowering must keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plait.ops.errors import PlanError
from plait.planner.program import Program, data_inputs

if TYPE_CHECKING:
    import networkx as nx


def to_networkx(program: Program) -> nx.DiGraph:
    """The nodes of a program with edges from inputs to users.

    Node attributes: `op`, `kind`, `space`, `dtype`, `shape`, and `stage`, the stages that compute or read it.
    """
    import networkx as nx

    graph = nx.DiGraph()
    stages: dict[int, list[int]] = {}
    for number, stage in enumerate(program.stages):
        for i in (*stage.loads, *stage.residents, *stage.compute, *stage.folds, *stage.wholes):
            stages.setdefault(i, []).append(number)
    for i, node in enumerate(program.nodes):
        graph.add_node(i, op=node.op, kind=node.kind, space=node.space, dtype=node.dtype, shape=node.shape, stage=tuple(stages.get(i, ())))
        graph.add_edges_from((j, i) for j in node.inputs)
    return graph


def verify(program: Program) -> None:
    """Check what every lowered program must keep; a failure is a fault of plait, not of the recipe.

    Rules: inputs come before users and nothing is circular; each stage has, before it computes a node, all that the node needs; a fold
    or whole op ends in one stage, before its first user; exactly the last stage stores the root, and none where
    that is a few numbers, which are known at the end.

    Raises:
        PlanError: a rule is broken; names the node.
    """
    import networkx as nx

    graph = to_networkx(program)
    if not nx.is_directed_acyclic_graph(graph) or any(j >= i for j, i in graph.edges):
        raise _fault("its nodes are not in topological order")
    if program.copy is not None or 0 in program.shape:
        return
    kept: set[int] = set()
    done: set[int] = {i for i, node in enumerate(program.nodes) if node.op in ("const", "solve")}
    for number, stage in enumerate(program.stages):
        here = {*stage.loads, *stage.residents}
        missing = {i for i in stage.residents if i not in done}
        known = _small_ready(program, done)
        for i in stage.compute:
            missing |= {j for j in data_inputs(program.nodes[i]) if j not in here and j not in known}
            here.add(i)
        ending = {j for i in stage.folds for j in program.nodes[i].inputs if program.nodes[j].space != "small"} | set(stage.keeps)
        missing |= ending - here
        if missing:
            raise _fault(f"stage {number} lacks node {min(missing)} ({program.nodes[min(missing)].op})")
        twice = done & {*stage.folds, *stage.wholes}
        if twice:
            raise _fault(f"node {min(twice)} ends a second time in stage {number}")
        done |= {*stage.folds}
        for w in stage.wholes:
            small = _small_ready(program, done)
            lost = [j for j in program.nodes[w].inputs if not (j in done or j in stage.keeps or j in kept or j in small)]
            if lost:
                raise _fault(f"the whole op {program.nodes[w].op} lacks node {lost[0]} ({program.nodes[lost[0]].op})")
            done |= {w, *(i for i, n in enumerate(program.nodes) if n.op == "part" and n.inputs == (w,))}
        kept |= set(stage.keeps)
    if program.gives_numbers:
        if program.root not in _small_ready(program, done) or any(stage.store for stage in program.stages):
            raise _fault("its numbers are not known at the end")
    elif [stage.store for stage in program.stages] != [False] * (len(program.stages) - 1) + [True]:
        raise _fault("not exactly the last stage stores the result")


def _small_ready(program: Program, done: set[int]) -> set[int]:
    """The small values that are known: all folds and whole ops below them have ended."""
    known: set[int] = set()
    for i, node in enumerate(program.nodes):
        if node.space != "small":
            continue
        if i in done or (node.kind != "fold" and all(j in known if program.nodes[j].space == "small" else j in done for j in node.inputs)):
            known.add(i)
    return known


def _fault(what: str) -> PlanError:
    return PlanError(f"a program breaks the planner's own rules: {what}; please report this with the recipe")
