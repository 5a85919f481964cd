"""A plan as a graph: every tensor once, nothing lost where layers are folded, and text that no name can break."""

from __future__ import annotations

import re
from pathlib import Path

import networkx as nx
import pytest

import plait
from plait.planner.plan import Plan
from plait.planner.plan_graph import to_dot, to_mermaid, to_networkx
from plait.planner.sizes import parse_size
from support import tiny

NAMES = list(tiny.recipes([Path("b"), Path("x"), Path("y")]))


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    folder = tmp_path_factory.mktemp("set")
    found = {}
    for name, text in tiny.recipes(tiny.write_set(folder)).items():
        (folder / "r.yml").write_text(text)
        found[name] = plait.plan(folder / "r.yml", plait.Options(memory="96MiB", workers=2, device="cpu"))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_holds_every_task(name: str, plans: dict[str, Plan]):
    """Outputs in running order, with what they read; acyclic; bytes add up to those of the plan."""
    plan, graph = plans[name], to_networkx(plans[name])
    assert nx.is_directed_acyclic_graph(graph)
    outputs = sorted((d for _, d in graph.nodes(data=True) if d["kind"] == "output"), key=lambda d: d["position"])
    assert [d["name"] for d in outputs] == [c.name for c in plan.components]
    assert sum(d["nbytes"] for d in outputs) == plan.prediction.bytes_written
    for component in plan.components:
        found = {graph.nodes[n]["file"] for n in graph.predecessors(f"out:{component.name}")}
        assert found == {ref.file for ref in component.inputs}
    assert sum(d["sets_peak"] for d in outputs) == bool(plan.prediction.peak_task)


def parsed_dot(text: str) -> nx.DiGraph:
    """What the text says, read strictly: every line is one of the few forms that are written."""
    graph = nx.DiGraph()
    quoted = r'"(?:[^"\\\n]|\\.)*"'
    for line in text.splitlines()[3:-1]:
        line = line.strip()
        if edge := re.fullmatch(rf"(\w+) -> (\w+) \[label=({quoted})\];", line):
            assert {edge[1], edge[2]} <= graph.nodes.keys()
            graph.add_edge(edge[1], edge[2], label=edge[3])
        elif node := re.fullmatch(rf"(\w+) \[(?:shape=\w+, )?(?:style=rounded, )?label=({quoted})(?:, penwidth=2)?\];", line):
            graph.add_node(node[1], label=node[2])
        else:
            assert re.fullmatch(rf"subgraph cluster_\d+ \{{ label={quoted};|\}}", line), line
    inner = [line.strip() for line in text.splitlines()[1:-1]]
    assert inner.count("}") == sum(line.startswith("subgraph") for line in inner)
    return graph


@pytest.mark.parametrize("name", NAMES)
def test_dot_is_well_formed_and_complete(name: str, plans: dict[str, Plan]):
    """Every group of outputs is drawn once and reached from its way; every model that is read leads to one; written bytes add up."""
    plan = plans[name]
    graph = parsed_dot(to_dot(plan))
    groups = [n for n in graph if n.startswith("g")]
    assert all(graph.in_degree(n) == 1 for n in groups)
    assert all(graph.out_degree(n) > 0 for n in graph if n.startswith("m"))
    counts = [re.match(r'"(?:(\d+) x )?', graph.nodes[n]["label"]) for n in groups]
    assert sum(int(c[1] or 1) for c in counts if c) == len(plan.components)


def test_bytes_along_the_edges_are_those_of_the_plan(tmp_path: Path):
    """What models give, all passes, is what the plan reads, but for samples."""
    shapes = {"model.embed_tokens.weight": (2000, 1024), "model.norm.weight": (1024,)}
    models = tiny.write_set(tmp_path, shapes=shapes)
    (tmp_path / "r.yml").write_text(tiny.recipes(models)["slerp"])
    plan = plait.plan(tmp_path / "r.yml", plait.Options(memory="96MiB", workers=1, residency="reread"))
    read = sum(parse_size(d["label"].strip('"')) for a, _, d in parsed_dot(to_dot(plan)).edges(data=True) if a.startswith("m"))
    assert read == pytest.approx(plan.prediction.bytes_read, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_mermaid_is_well_formed(name: str, plans: dict[str, Plan]):
    """Every line is one of the forms of a flow chart, and edges join nodes that are there."""
    known: set[str] = set()
    safe = r'"[^"`<>\[\]{}|]*(?:<br/>[^"`<>\[\]{}|]*)*"'
    lines = to_mermaid(plans[name]).splitlines()
    assert lines[0] == lines[2] == "---"
    assert lines[3] == "flowchart LR"
    for line in map(str.strip, lines[4:]):
        if edge := re.fullmatch(rf"(\w+) -->\|{safe}\| (\w+)", line):
            assert set(edge.groups()) <= known
        elif node := re.fullmatch(rf"(\w+)(?:\[\({safe}\)\]|\({safe}\)|\[{safe}\])", line):
            known.add(node[1])
        else:
            assert re.fullmatch(rf"subgraph r\d+\[{safe}\]|end|style \w+ stroke-width:3px", line), line


def test_names_cannot_break_out(tmp_path: Path):
    """Quotes, brackets, backslashes and mark-up in names stay text."""
    odd = 'a"]; evil [label="x\\", b<script>|c`{}.weight'
    models = tiny.write_set(tmp_path / 'se"t', shapes={odd: (4, 4), "model.norm.weight": (4,)})
    (tmp_path / "r.yml").write_text(tiny.recipes(models)["linear"])
    plan = plait.plan(tmp_path / "r.yml", plait.Options(memory="96MiB"))
    assert "evil" not in parsed_dot(to_dot(plan)).nodes
    body = to_mermaid(plan).split("flowchart LR")[1]
    assert "<script>" not in body
    assert not re.search(r'"[^"\n]*`', body)


def test_layers_are_folded(tmp_path: Path):
    """A picture of 40 layers is no larger than one of two."""
    sizes = []
    for layers in (2, 40):
        shapes = {f"model.layers.{i}.mlp.up_proj.weight": (8, 8) for i in range(layers)}
        models = tiny.write_set(tmp_path / str(layers), shapes=shapes)
        (tmp_path / "r.yml").write_text(tiny.recipes(models)["ties"])
        sizes.append(len(to_dot(plait.plan(tmp_path / "r.yml", plait.Options(memory="96MiB"))).splitlines()))
    assert sizes[0] == sizes[1]
