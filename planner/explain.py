"""A plan as something to read: a tree for people. (`Plan.to_json` is the same for programs.)"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from plait.ops.wholes import is_view
from plait.planner.cost import component_bytes, input_bytes, output_bytes, selects, stage_read_bytes
from plait.planner.expressions import used_inputs
from plait.planner.plan import Component, Plan
from plait.planner.program import Node, Program, Stage, scope_of
from plait.planner.residency import ASKED, CHEAPER, KEPT, NO_ROOM, slab_bytes
from plait.planner.schedule import size

if TYPE_CHECKING:
    from rich.tree import Tree

#: What becomes of inputs between passes.
_STAYS = {
    KEPT: "kept in memory between passes",
    CHEAPER: "re-read: cheaper than keeping them",
    NO_ROOM: "re-read: no room to keep them",
    ASKED: "re-read, as asked",
}
_ROLES = ("embedding", "attention", "mlp", "norm", "head", "other")


@dataclass(slots=True)
class Group:
    """Outputs of one role and shape that run the same way.

    Attributes:
        label: what they are called, layer numbers folded.
        count: how many.
        shape: of each.
        components: all of them.
    """

    label: str
    shape: tuple[int, ...]
    components: list[Component] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many outputs."""
        return len(self.components)


def groups(plan: Plan) -> dict[str, list[Group]]:
    """Outputs by role; within a role, equal tensors of different layers are one group."""
    found: dict[str, dict[Any, Group]] = {role: {} for role in _ROLES}
    ways = _ways(plan)
    for component in plan.components:
        program = plan.program_of(component)
        label = _folded(component.name)
        key = (label, program.shape, ways[component.program])
        found.setdefault(component.role, {}).setdefault(key, Group(label, program.shape)).components.append(component)
    return {role: list(table.values()) for role, table in found.items() if table}


def _ways(plan: Plan) -> dict[int, str]:
    """For each program in use, how its components run."""
    first = {c.program: c for c in reversed(plan.components)}
    return {number: _how(plan, component) for number, component in first.items()}


def _folded(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _how(plan: Plan, component: Component) -> str:
    """The passes of a component in words."""
    program = plan.program_of(component)
    if program.copy is not None:
        return "bytes copied"
    if not program.stages:
        return "empty"
    parts = [_stage(program, stage, number) for number, stage in enumerate(program.stages)]
    stays = _STAYS.get(plan.residency[component.program], "")
    return " → ".join(parts) + (f" · inputs {stays}" if stays else "")


def _stage(program: Program, stage: Stage, number: int) -> str:
    nodes = program.nodes
    words: list[str] = []
    thresholds = selects(program, stage)
    if thresholds:
        wide = " model-wide" if any(scope_of(nodes[i]) for i in thresholds) else ""
        words.append(f"{len(thresholds)}{wide} exact threshold{'s' if len(thresholds) > 1 else ''}")
    folds = len(stage.folds) - len(thresholds)
    if folds:
        words.append(f"{folds} fold{'s' if folds > 1 else ''}")
    rows = [nodes[i].op for i in stage.compute if nodes[i].kind == "rows"]
    if rows:
        words.append("row ranks" if set(rows) == {"row_rank"} else "row folds" if "row_rank" not in rows else "row ranks and folds")
    maps = sum(1 for i in stage.compute if nodes[i].kind == "map")
    if stage.store:
        words.append(f"map of {maps} ops" if maps else "cast")
    elif stage.keeps and all(is_view(nodes[w].op, nodes[w]) and nodes[w].op != "hold" for w in stage.wholes):
        words.append("kept whole")
    words += _whole_words(nodes, stage)
    return f"pass {number + 1}: {', '.join(words)}"


def _whole_words(nodes: Sequence[Node], stage: Stage) -> list[str]:
    """The whole ops of a stage, equal ones counted; views of memory are left out."""
    found: dict[str, int] = {}
    for w in stage.wholes:
        node = nodes[w]
        if node.op == "hold":
            found["held"] = found.get("held", 0) + 1
        elif not is_view(node.op, node):
            name = f"{node.op} (fast)" if node.param("accuracy") == "fast" else node.op
            name = f"whole: {name}{' again' if node.param('again') else ''}"
            found[name] = found.get(name, 0) + 1
    return [f"{count} x {name}" if count > 1 else name for name, count in found.items()]


def to_tree(plan: Plan) -> Tree:
    """The plan as a rich tree."""
    from rich.markup import escape
    from rich.tree import Tree

    p = plan.prediction
    files = f"{len(plan.layout.shards)} file{'s' if len(plan.layout.shards) != 1 else ''}"
    root = Tree(f"[bold]{escape(plan.title)}[/]  {len(plan.components)} tensors, {files}, plan {plan.fingerprint[:12]}")
    need = root.add("[bold]needs[/]")
    need.add(f"peak memory  {size(p.peak_bytes)} of {size(plan.budget_bytes)} (smallest budget that works: {size(p.minimum_bytes)})")
    need.add(
        f"             {size(p.runtime_bytes)} program + {plan.workers} workers x {size(p.worker_bytes + p.slab_bytes)} buffers + {size(p.state_bytes)} held"
    )
    if p.peak_task:
        need.add(f"             set by {escape(p.peak_task)}")
    extra = f" (+ up to {size(p.bytes_read_extra)} where a sample mispredicts a threshold)" if p.bytes_read_extra else ""
    need.add(f"reads        {size(p.bytes_read)}{extra}, every input at most {_times(p.passes)}")
    need.add(f"writes       {size(p.bytes_written)}" + (f", {size(p.bytes_copied)} of it copied undecoded" if p.bytes_copied else ""))
    for line in [*_times_taken(plan), *_cached(plan)]:
        need.add(line)
    need.add(f"runs on      {_backend(plan)}")
    need.add(f"maps on      {_maps(plan)}")
    if plan.sweeps > 1:
        need.add(f"sweeps       {plan.sweeps} over the model: {len(plan.scopes)} model-wide statistics come before what uses them")
    _add_inputs(root, plan)
    _add_groups(root, plan)
    if plan.notes:
        notes = root.add("[bold]notes[/]")
        for note in plan.notes:
            notes.add(escape(note))
    return root


def _times_taken(plan: Plan) -> list[str]:
    """Predicted time and its parts, largest first."""
    timing = plan.timing
    parts = timing.parts()
    parts["starting"] += parts.pop("bookkeeping")
    if timing.from_disk:
        parts["reading from disk"] = parts.pop("reading")
    shown = [f"{name} {duration(s)}" for name, s in sorted(parts.items(), key=lambda item: -item[1]) if s >= 0.05]
    lines = [f"time         about {duration(timing.seconds)}" + (f" ({', '.join(shown)})" if shown else "")]
    if timing.first_run_s:
        lines.append(f"             {duration(timing.first_run_s)} more where its kernels are not compiled yet")
    if not timing.measured:
        lines.append("             time estimated with default rates; run `plait bench machine`")
    return lines


def _cached(plan: Plan) -> list[str]:
    """What the result cache may save; the figures above are those of a run without it."""
    found = plan.outlook
    if found is None:
        return []
    if not found.results:
        return ["cache        nothing here is worth keeping: it is computed as fast as it is read"]
    if found.hits:
        lines = [
            f"cache        {found.hits} of {found.results} results are there: about {duration(found.spared_s)} and {size(found.spared_bytes)} of reading less"
        ]
    else:
        lines = [f"cache        none of {found.results} results are there yet"]
    if found.stored_bytes:
        lines.append(f"             this run adds up to {size(found.stored_bytes)} of at most {size(found.limit_bytes)}")
    return lines


def duration(seconds: float) -> str:
    """Seconds for people: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60} min"


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _backend(plan: Plan) -> str:
    kernels = {"numba": "compiled Numba kernels", "torch": "the torch block interpreter"}[plan.backend]
    whole = any(s.wholes for q in plan.programs for s in q.stages)
    return f"{plan.workers} worker{'s' if plan.workers > 1 else ''}, {kernels}" + (f"; whole-tensor ops on {plan.device}" if whole else "")


def _maps(plan: Plan) -> str:
    """Where streamed work runs, and why."""
    if plan.maps == "cpu":
        return "the CPU: streamed work waits for disk and bus, not for arithmetic; whole-tensor ops alone earn a GPU"
    budgets = " + ".join(size(b) for b in plan.gpu_budget_bytes)
    return f"CUDA, as asked (--maps cuda): {plan.workers} x {size(plan.gpu_worker_bytes)} of {budgets} there, copied in the stored type"


def _add_inputs(root: Tree, plan: Plan) -> None:
    from rich.markup import escape

    read: dict[str, int] = {}
    for component in plan.components:
        for ref in used_inputs(plan.program_of(component), component.inputs):
            read[ref.file] = read.get(ref.file, 0) + ref.nbytes
    branch = root.add("[bold]inputs[/]")
    folders = groupby(plan.files, key=lambda f: f.path.rsplit("/", 1)[0])
    for folder, members in folders:
        files = list(members)
        used = sum(read.get(f.path, 0) for f in files)
        count = f"{len(files)} files" if len(files) > 1 else "1 file"
        figures = f"{count}, {size(sum(f.size for f in files))}, {size(used)} of it used" if used else f"{count}, not read"
        branch.add(f"{figures}  {escape(_shown(folder))}")


def _shown(folder: str) -> str:
    """A folder as a person here would write it."""
    here = os.getcwd()
    return os.path.relpath(folder, here) if folder.startswith(here + os.sep) else folder


def _add_groups(root: Tree, plan: Plan) -> None:
    """First the distinct ways in which tensors run, then the tensors by role, each naming its way."""
    from rich.markup import escape

    ways: dict[str, list[Component]] = {}
    how = _ways(plan)
    for component in plan.components:
        ways.setdefault(how[component.program], []).append(component)
    letters = {way: _letter(n) for n, way in enumerate(ways)}
    branch = root.add("[bold]passes[/]")
    for way, members in ways.items():
        branch.add(f"[bold]{letters[way]}[/]  {way}{_stakes(plan, members)}  ({_tensors(len(members))}, {size(_written(plan, members))})")
    for role, found in groups(plan).items():
        branch = root.add(f"[bold]{role}[/]  {_tensors(sum(g.count for g in found))}, {size(_written(plan, (c for g in found for c in g.components)))}")
        for group in sorted(found, key=lambda g: -_written(plan, g.components)):
            first = group.components[0]
            program = plan.program_of(first)
            count = f"{group.count} x " if group.count > 1 else ""
            held = component_bytes(program, workspace=first.program not in plan.lean) + (slab_bytes(program) if first.keep_inputs else 0)
            holds = f", holds {size(held)}" if held >= 1 << 20 else ""
            shape = "x".join(map(str, program.shape)) or "scalar"
            line = (
                f"{count}{escape(group.label)}  {shape} {program.dtype.lower()}  {letters[how[first.program]]}, reads {size(_read_each(program, first))}{holds}"
            )
            branch.add(line)


def _stakes(plan: Plan, members: Sequence[Component]) -> str:
    """What keeping the inputs of these components saves, or what it would need."""
    word = plan.residency[members[0].program]
    if word == KEPT:
        again = sum(sum(stage_read_bytes(p, s) for s in p.stages) - input_bytes(p) for p in map(plan.program_of, members))
        return f" (saves {size(again)} of reading)"
    if word == NO_ROOM:
        return f" (it needs {size(plan.workers * max(slab_bytes(plan.program_of(c)) for c in members))})"
    return ""


def _read_each(program: Program, component: Component) -> int:
    if program.copy is not None:
        return output_bytes(program)
    return input_bytes(program) if component.keep_inputs else sum(stage_read_bytes(program, s) for s in program.stages)


def _tensors(count: int) -> str:
    return f"{count} tensor{'s' if count != 1 else ''}"


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"A{number - 25}"


def _written(plan: Plan, components: Iterable[Component]) -> int:
    return sum(output_bytes(plan.program_of(c)) for c in components)


def to_text(plan: Plan, width: int = 120) -> str:
    """The tree as plain text."""
    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, highlight=False).print(to_tree(plan))
    return buffer.getvalue().rstrip()
