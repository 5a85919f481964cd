"""A plan as a graph: of tensor tasks for programs (networkx), folded by layer and group for drawing (DOT, Mermaid)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plait.planner.cost import component_bytes, output_bytes
from plait.planner.explain import headline, read_bytes
from plait.planner.grouping import Group, groups, letter
from plait.planner.header_text import printable
from plait.planner.plan import Component, Plan
from plait.planner.sizes import size
from plait.planner.words import dimensions

if TYPE_CHECKING:
    import networkx

MODEL, TENSOR, OUTPUT = "model", "input", "output"


def to_networkx(plan: Plan) -> networkx.DiGraph:
    """The tensor tasks of a plan: stored tensors, and outputs that are computed from them.

    Nodes are named `in:FILE:NAME` and `out:NAME`. Attributes of a stored tensor: `kind` (`input`), `name`, `file`, `dtype`, `shape`, `start`,
    `nbytes`. Of an output: `kind` (`output`), `name`, `dtype`, `shape`, `nbytes`, `role`, `layer`, `program`, `way` (its passes in words),
    `position` (in running order), `bytes_read`, `held_bytes`, `device` (of its whole-matrix ops) and `sets_peak`. An edge goes from each
    stored tensor that an output names to it; `read` says whether the result depends on it.
    """
    import networkx as nx

    from plait.planner.grouping import ways

    graph = nx.DiGraph(title=plan.title, fingerprint=plan.fingerprint, headline=headline(plan))
    how = ways(plan)
    for position, c in enumerate(plan.components):
        program = plan.program_of(c)
        graph.add_node(
            f"out:{c.name}",
            kind=OUTPUT,
            name=c.name,
            dtype=program.dtype,
            shape=program.shape,
            nbytes=output_bytes(program),
            role=c.role,
            layer=c.layer,
            program=c.program,
            way=how[c.program],
            position=position,
            bytes_read=read_bytes(program, c),
            held_bytes=component_bytes(program, workspace=c.program not in plan.lean),
            device="cuda" if c.program in plan.on_gpu else "cpu",
            sets_peak=c.name == plan.prediction.peak_task,
        )
        for slot, ref in enumerate(c.inputs):
            node = f"in:{ref.file}:{ref.name}"
            graph.add_node(node, kind=TENSOR, name=ref.name, file=ref.file, dtype=ref.dtype, shape=ref.shape, start=ref.start, nbytes=ref.nbytes)
            read = slot == program.copy if program.copy is not None else program.slots[slot] >= 0
            graph.add_edge(node, f"out:{c.name}", read=read)
    return graph


# -- folded, for drawing ---------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Box:
    """A node of the drawing: an identifier that needs no quoting, and lines of text."""

    key: str
    lines: tuple[str, ...]
    peak: bool = False


@dataclass(frozen=True, slots=True)
class _Drawing:
    """Models, ways of computing, and groups of outputs by role, with bytes read along the edges."""

    title: str
    models: tuple[_Box, ...]
    ways: tuple[_Box, ...]
    roles: tuple[tuple[str, tuple[_Box, ...]], ...]
    edges: tuple[tuple[str, str, str], ...]


def _drawing(plan: Plan) -> _Drawing:
    folders = {f.path: f.path.rsplit("/", 1)[0] for f in plan.files}
    numbers = {folder: f"m{n}" for n, folder in enumerate(dict.fromkeys(folders.values()))}
    models = tuple(_Box(key, (printable(_name(folder)),)) for folder, key in numbers.items())
    found = groups(plan)
    ways = {way: f"w{n}" for n, way in enumerate(dict.fromkeys(g.way for gs in found.values() for g in gs))}
    read: dict[tuple[str, str], int] = {}
    written: dict[tuple[str, str], int] = {}
    roles = []
    for role, members in found.items():
        boxes = []
        for group in members:
            key = f"g{len(written)}"
            boxes.append(_group_box(plan, group, key))
            written[ways[group.way], key] = sum(output_bytes(plan.program_of(c)) for c in group.components)
            for component in group.components:
                for path, nbytes in _reads(plan, component):
                    edge = numbers[folders[path]], ways[group.way]
                    read[edge] = read.get(edge, 0) + nbytes
        roles.append((role, tuple(boxes)))
    edges = tuple((a, b, size(nbytes)) for (a, b), nbytes in (*read.items(), *written.items()))
    boxes_of_ways = tuple(_Box(key, (letter(n), *_steps(way))) for n, (way, key) in enumerate(ways.items()))
    return _Drawing(headline(plan), models, boxes_of_ways, tuple(roles), edges)


def _name(folder: str) -> str:
    return folder.rsplit("/", 1)[-1] or folder


def _steps(way: str) -> Iterator[str]:
    for part in way.split(" → "):
        yield from part.split(" · ")


def _group_box(plan: Plan, group: Group, key: str) -> _Box:
    peak = any(c.name == plan.prediction.peak_task for c in group.components)
    count = f"{group.count} x " if group.count > 1 else ""
    program = plan.program_of(group.components[0])
    lines = (f"{count}{printable(group.label)}", f"{dimensions(program.shape)} {program.dtype.lower()}")
    return _Box(key, (*lines, "sets the peak") if peak else lines, peak)


def _reads(plan: Plan, component: Component) -> Iterator[tuple[str, int]]:
    """Stored bytes that a component reads of each file, in all its passes."""
    program = plan.program_of(component)
    for slot, ref in enumerate(component.inputs):
        if program.copy is not None:
            times = int(slot == program.copy)
        else:
            loads = sum(program.slots[slot] in stage.loads for stage in program.stages)
            times = min(loads, 1) if component.keep_inputs else loads
        if times:
            yield ref.file, times * ref.nbytes


def to_dot(plan: Plan) -> str:
    """The plan in Graphviz' language: models, ways of computing and groups of outputs, identical layers folded."""
    d = _drawing(plan)
    lines = [
        "digraph plan {",
        f"  label={_quoted([d.title])}; labelloc=t; rankdir=LR;",
        '  node [shape=box, fontname="sans-serif"]; edge [fontname="sans-serif"];',
    ]
    lines += [f"  {box.key} [shape=cylinder, label={_quoted(box.lines)}];" for box in d.models]
    lines += [f"  {box.key} [shape=box, style=rounded, label={_quoted(box.lines)}];" for box in d.ways]
    for number, (role, boxes) in enumerate(d.roles):
        lines.append(f"  subgraph cluster_{number} {{ label={_quoted([role])};")
        lines += [f"    {box.key} [label={_quoted(box.lines)}{', penwidth=2' if box.peak else ''}];" for box in boxes]
        lines.append("  }")
    lines += [f"  {a} -> {b} [label={_quoted([label])}];" for a, b, label in d.edges]
    return "\n".join([*lines, "}"])


def _quoted(lines: list[str] | tuple[str, ...]) -> str:
    """A label of DOT, its lines below one another."""
    return '"' + "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines) + '"'


def to_mermaid(plan: Plan) -> str:
    """The same as a Mermaid flow chart, as Markdown files and notebooks show it."""
    d = _drawing(plan)
    lines = ["---", f"title: {_plain(d.title)}", "---", "flowchart LR"]
    lines += [f"  {box.key}[({_label(box)})]" for box in d.models]
    lines += [f"  {box.key}({_label(box)})" for box in d.ways]
    for number, (role, boxes) in enumerate(d.roles):
        lines.append(f"  subgraph r{number}[{_text(role)}]")
        lines += [f"    {box.key}[{_label(box)}]" for box in boxes]
        lines.append("  end")
    lines += [f"  {a} -->|{_text(label)}| {b}" for a, b, label in d.edges]
    peak = [box.key for _, boxes in d.roles for box in boxes if box.peak]
    return "\n".join([*lines, *(f"  style {key} stroke-width:3px" for key in peak)])


def _label(box: _Box) -> str:
    return '"' + "<br/>".join(_entities(line) for line in box.lines) + '"'


def _text(text: str) -> str:
    return f'"{_entities(text)}"'


def _entities(text: str) -> str:
    """Text that Mermaid takes as it is: what its grammar or HTML would read is written by number."""
    return "".join(c if c.isalnum() or c in " .,_-+:;/()→·" else f"#{ord(c)};" for c in text)


def _plain(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)
