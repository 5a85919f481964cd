"""Programs as graphs: what networkx sees, and that a program which breaks a rule is caught."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import pytest

from plait.ops.errors import PlanError
from plait.ops.inputs import MergeInputs
from plait.ops.method import methods, steps
from plait.ops.tensor import load
from plait.planner.graph import to_networkx, verify
from plait.planner.program import Program, lower

SHAPE = (6, 8)
PARAMS: dict[str, dict[str, object]] = {
    "ties": {"weight": (1.0, 0.5), "density": (0.5, 0.5), "zero_sign": "majority"},
    "model_stock": {},
    "iso_c": {},
    "della": {"weight": (1.0, 0.5), "density": (0.5, 0.5), "epsilon": (0.1, 0.1)},
}


def program(name: str, *, calibrated: bool = False) -> Program:
    leaves = [load((key,), SHAPE, "BF16") for key in "bxy"]
    t = MergeInputs(leaves[0], tuple(leaves[1:]), ("x", "y"), SHAPE, "w.weight")
    merged = methods()[name].build(t, **PARAMS[name])
    return lower(steps()["magic_wsc"].build(t, merged) if calibrated else merged, "BF16", leaves)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("name", PARAMS)
def test_programs_of_methods_keep_the_rules(name: str, calibrated: bool):
    """Every kind of op, alone and under a step, lowers to a program that passes."""
    verify(program(name, calibrated=calibrated))


def test_the_graph_is_the_expression():
    """One sink, the root; loads are sources; each node knows its op and stages."""
    lowered = program("ties")
    graph = to_networkx(lowered)
    assert nx.is_directed_acyclic_graph(graph)
    assert [n for n, out in graph.out_degree() if out == 0] == [lowered.root]
    assert {graph.nodes[n]["op"] for n, into in graph.in_degree() if into == 0} == {"load", "const"}
    folds = [n for n, kind in graph.nodes(data="kind") if kind == "fold"]
    assert [graph.nodes[n]["stage"] for n in folds] == [(0,), (0,), (1,)]


def test_broken_programs_are_caught():
    """A stage that misses an input, stages out of order, and a fold that ends twice are each refused."""
    good = program("ties")
    first, second, last = good.stages
    for broken in (
        replace(good, stages=(replace(first, compute=first.compute[1:]), second, last)),
        replace(good, stages=(second, first, last)),
        replace(good, stages=(first, first, second, last)),
        replace(good, stages=(first, second, replace(last, store=False))),
        replace(good, nodes=(good.nodes[-1], *good.nodes[1:])),
    ):
        with pytest.raises(PlanError, match="rules"):
            verify(broken)
