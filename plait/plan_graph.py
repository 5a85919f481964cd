"""A plan as a graph to zoom into: inputs, the passes that read them, and outputs folded by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from plait.page import Graph, GraphEdge, GraphNode
from plait.planner.cost import input_bytes, output_bytes, stage_read_bytes
from plait.planner.grouping import letter, stage_words, ways
from plait.planner.plan import Component, Plan
from plait.planner.program import Program, data_inputs
from plait.planner.sizes import size
from plait.planner.words import dimensions

#: Above these a graph shows layers without their tensors, and passes without their ops; the table has all tensors.
MOST_TENSORS, MOST_OPS = 4000, 300


@dataclass
class _Way:
    """Outputs that run alike.

    Attributes:
        ident: of its node.
        letter: its short name, as in the terminal.
        program: of the first of them.
        kept: inputs stay in memory between passes.
        folders: for each input of the program the folder that it comes from, in the first of them.
        read: bytes of each input of all of them, once.
        written: bytes that it writes into each group of outputs.
    """

    ident: str
    letter: str
    program: Program
    folders: tuple[str, ...]
    kept: bool
    read: dict[int, int] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)


@dataclass
class _Outputs:
    """Outputs that stand together at the top: the tensors of a role, or layers that are alike.

    Attributes:
        ident, label: of its node.
        layers: for each layer its tensors; one entry with None outside the layers.
    """

    ident: str
    label: str
    layers: dict[int | None, list[Component]]


def plan_graph(plan: Plan) -> Graph:
    """The graph of a plan."""
    letters = way_letters(plan)
    found = _ways(plan, letters)
    outputs = _outputs(plan, letters)
    nodes = [*_inputs(plan)]
    edges: list[GraphEdge] = []
    for way in found.values():
        nodes += _passes(plan, way, edges)
    detailed = len(plan.components) <= MOST_TENSORS
    for group in outputs:
        nodes += _output_nodes(plan, group, letters, detailed)
        for component in (c for members in group.layers.values() for c in members):
            way = found[letters[component.program]]
            way.written[group.ident] = way.written.get(group.ident, 0) + output_bytes(plan.program_of(component))
    for way in found.values():
        edges += [GraphEdge(way.ident, ident, nbytes) for ident, nbytes in way.written.items()]
    left_out = "" if detailed else f" With {len(plan.components):,} tensors only layers are drawn; the table has every tensor."
    return Graph("Inputs, passes and outputs", f"Arrows are as wide as the bytes that go along them.{left_out}", nodes, edges)


def way_letters(plan: Plan) -> dict[int, str]:
    """For each program in use the letter of its way, as the terminal shows it."""
    how = ways(plan)
    names = {way: letter(n) for n, way in enumerate(dict.fromkeys(how[c.program] for c in plan.components))}
    return {program: names[way] for program, way in how.items()}


def folder_of(path: str) -> str:
    """The folder of a file: a model."""
    return path.rsplit("/", 1)[0]


def _ways(plan: Plan, letters: dict[int, str]) -> dict[str, _Way]:
    found: dict[str, _Way] = {}
    for component in plan.components:
        program, name = plan.program_of(component), letters[component.program]
        if name not in found:
            found[name] = _Way(f"way {name}", name, program, tuple(folder_of(ref.file) for ref in component.inputs), component.keep_inputs)
        read = found[name].read
        for slot in _slots(program):
            read[slot] = read.get(slot, 0) + component.inputs[slot].nbytes
    return found


def _slots(program: Program) -> tuple[int, ...]:
    """The inputs that a program reads."""
    return (program.copy,) if program.copy is not None else tuple(s for s, node in enumerate(program.slots) if node >= 0)


def _inputs(plan: Plan) -> Iterator[GraphNode]:
    """A node for each folder, with its files folded into it."""
    for folder, members in groupby(plan.files, key=lambda f: folder_of(f.path)):
        files = list(members)
        count = f"{len(files)} files" if len(files) > 1 else "1 file"
        total = size(sum(f.size for f in files))
        label = f"{folder.rsplit('/', 1)[-1]}\n{count}, {total}"
        yield GraphNode(f"in {folder}", label, "input", "", (("folder", folder), ("files", str(len(files))), ("bytes", total)))
        for file in files if len(files) > 1 else ():
            yield GraphNode(f"file {file.path}", f"{file.path.rsplit('/', 1)[-1]}\n{size(file.size)}", "input", f"in {folder}", (("path", file.path),))


# -- passes ----------------------------------------------------------------------------------------
def _passes(plan: Plan, way: _Way, edges: list[GraphEdge]) -> Iterator[GraphNode]:
    """A way, its passes in order, and the ops of each pass."""
    program = way.program
    copied = program.copy is not None
    title = "bytes copied" if copied else f"{len(program.stages)} pass{'es' if len(program.stages) != 1 else ''}"
    again = " once, kept between passes" if way.kept else " in each pass that needs it" if len(program.stages) > 1 else ""
    facts = (("reads", size(sum(way.read.values())) + again), ("a tensor reads", size(input_bytes(program))))
    yield GraphNode(way.ident, f"{way.letter}: {title}", "pass", "", facts)
    if not program.stages:
        edges += [GraphEdge(f"in {way.folders[slot]}", way.ident, nbytes) for slot, nbytes in way.read.items()]
    for number, stage in enumerate(program.stages):
        first, _, rest = stage_words(program, stage, number).partition(": ")
        ident = f"{way.ident} {number}"
        yield GraphNode(ident, f"{first}\n{_broken(rest)}", "pass", way.ident, (("a tensor reads", size(stage_read_bytes(program, stage))),))
        if number:
            edges.append(GraphEdge(f"{way.ident} {number - 1}", ident))
        if detailed := len(program.nodes) <= MOST_OPS:
            yield from _ops(way, number, ident, edges)
        for i in stage.loads if not (number and way.kept) else ():
            slot = int(program.nodes[i].param("slot"))
            edges.append(GraphEdge(f"in {way.folders[slot]}", f"{ident} {i}" if detailed else ident, way.read.get(slot, 0)))


def _ops(way: _Way, number: int, parent: str, edges: list[GraphEdge]) -> Iterator[GraphNode]:
    """The ops of a pass with the arrows between them."""
    program, stage = way.program, way.program.stages[number]
    here = dict.fromkeys((*stage.loads, *stage.residents, *stage.compute, *stage.folds, *stage.wholes))
    for i in here:
        node = program.nodes[i]
        facts = [(key, str(value)) for key, value in node.params if isinstance(value, (int, float, str, bool)) and key != "slot"]
        label = way.folders[node.param("slot")].rsplit("/", 1)[-1] if node.op == "load" else node.op
        yield GraphNode(
            f"{parent} {i}", label, "input" if node.op == "load" else "op", parent, (("kind", node.kind), ("shape", dimensions(node.shape)), *facts)
        )
    for i in here:
        edges.extend(GraphEdge(f"{parent} {j}", f"{parent} {i}") for j in data_inputs(program.nodes[i]) if j in here)


def _broken(words: str, width: int = 30) -> str:
    """Words in lines of about so many characters."""
    lines = [""]
    for word in words.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


# -- outputs ---------------------------------------------------------------------------------------
def _outputs(plan: Plan, letters: dict[int, str]) -> list[_Outputs]:
    """What stands together, in the order of the model: layers that follow each other and are alike are one."""
    roles: dict[str, list[Component]] = {}
    layers: dict[int, list[Component]] = {}
    for component in plan.components:
        if component.layer is None:
            roles.setdefault(component.role, []).append(component)
        else:
            layers.setdefault(component.layer, []).append(component)
    found = [_Outputs(f"role {role}", role, {None: members}) for role, members in roles.items()]
    for _, run in groupby(sorted(layers), key=lambda n: _likeness(plan, layers[n], letters)):
        numbers = list(run)
        label = f"layers {numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"layer {numbers[0]}"
        found.append(_Outputs(f"layers {numbers[0]}", label, {n: layers[n] for n in numbers}))
    return found


def _likeness(plan: Plan, members: Sequence[Component], letters: dict[int, str]) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    return tuple(sorted((_inner(c), plan.program_of(c).shape, letters[c.program]) for c in members))


def _inner(component: Component) -> str:
    """The name of a tensor inside its layer."""
    before, mark, after = component.name.partition(f".{component.layer}.")
    return (after if mark else before).removesuffix(".weight")


def _output_nodes(plan: Plan, group: _Outputs, letters: dict[int, str], detailed: bool) -> Iterator[GraphNode]:
    members = [c for found in group.layers.values() for c in found]
    each = next(iter(group.layers.values()))
    many = len(group.layers) > 1
    tensors = f"{len(group.layers)} x {_tensors(len(each))}" if many else _tensors(len(each))
    facts = [("written", size(_written(plan, members))), ("run as", ", ".join(sorted({letters[c.program] for c in members})))]
    if len(members) == 1:
        facts = _facts(plan, members[0], letters)
    name = members[0].name.removesuffix(".weight") if len(members) == 1 else group.label
    yield GraphNode(group.ident, f"{name}\n{tensors}, {size(_written(plan, members))}", "output", "", facts)
    for number, found in group.layers.items():
        parent = group.ident
        if many:
            parent = f"{group.ident} {number}"
            facts = [("written", size(_written(plan, found))), ("tensors", str(len(found)))]
            yield GraphNode(parent, f"layer {number}\n{size(_written(plan, found))}", "output", group.ident, facts)
        for component in found if detailed and len(members) > 1 else ():
            shape = dimensions(plan.program_of(component).shape)
            yield GraphNode(f"out {component.name}", f"{_inner(component)}\n{shape}", "output", parent, _facts(plan, component, letters))


def _facts(plan: Plan, component: Component, letters: dict[int, str]) -> list[tuple[str, str]]:
    program = plan.program_of(component)
    shape = f"{dimensions(program.shape)} {program.dtype.lower()}"
    return [("tensor", component.name), ("shape", shape), ("written", size(output_bytes(program))), ("runs as", letters[component.program])]


def _written(plan: Plan, components: Sequence[Component]) -> int:
    return sum(output_bytes(plan.program_of(c)) for c in components)


def _tensors(count: int) -> str:
    return f"{count} tensor{'s' if count != 1 else ''}"
