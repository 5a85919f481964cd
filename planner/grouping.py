"""Outputs folded for a reader: equal tensors of different layers are one group, and groups that run alike share a way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from plait.ops.wholes import is_view
from plait.planner.cost import selects
from plait.planner.plan import Component, Plan
from plait.planner.program import Node, Program, Stage, scope_of
from plait.planner.residency import ASKED, CHEAPER, KEPT, NO_ROOM

#: What becomes of inputs between passes.
_STAYS = {
    KEPT: "kept in memory between passes",
    CHEAPER: "re-read: cheaper than keeping them",
    NO_ROOM: "re-read: no room to keep them",
    ASKED: "re-read, as asked",
}
ROLES = ("embedding", "attention", "mlp", "norm", "head", "other")


@dataclass(slots=True)
class Group:
    """Outputs of one role and shape that run the same way.

    Attributes:
        label: what they are called, layer numbers folded.
        shape: of each.
        way: how they run, in words.
        components: all of them.
    """

    label: str
    shape: tuple[int, ...]
    way: str = ""
    components: list[Component] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many outputs."""
        return len(self.components)


def groups(plan: Plan) -> dict[str, list[Group]]:
    """Outputs by role; within a role, equal tensors of different layers are one group."""
    found: dict[str, dict[Any, Group]] = {role: {} for role in ROLES}
    how = ways(plan)
    for component in plan.components:
        program, way = plan.program_of(component), how[component.program]
        label = folded(component.name)
        key = (label, program.shape, way)
        found.setdefault(component.role, {}).setdefault(key, Group(label, program.shape, way)).components.append(component)
    return {role: list(table.values()) for role, table in found.items() if table}


def ways(plan: Plan) -> dict[int, str]:
    """For each program in use, how its components run."""
    first = {c.program: c for c in reversed(plan.components)}
    return {number: _how(plan, component) for number, component in first.items()}


def folded(name: str) -> str:
    """A name with its layer numbers as stars."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def letter(number: int) -> str:
    """A short name for the n-th way."""
    return chr(ord("A") + number) if number < 26 else f"A{number - 25}"


def _how(plan: Plan, component: Component) -> str:
    """The passes of a component in words."""
    program = plan.program_of(component)
    if program.copy is not None:
        return "bytes copied"
    if not program.stages:
        return "empty"
    parts = [stage_words(program, stage, number) for number, stage in enumerate(program.stages)]
    stays = _STAYS.get(plan.residency[component.program], "")
    return " → ".join(parts) + (f" · inputs {stays}" if stays else "")


def stage_words(program: Program, stage: Stage, number: int) -> str:
    """What happens in one pass."""
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
