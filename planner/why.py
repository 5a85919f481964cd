"""Why one output tensor is computed as it is: its exact expression, its inputs, and the reasons for algorithm, device, blocks and residency."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.ops.errors import PlanError
from plait.ops.wholes import is_view
from plait.planner.algebra_text import Definition, definitions
from plait.planner.algorithms import algorithm
from plait.planner.blocks import block_count, block_elements, seen_whole
from plait.planner.cost import component_bytes, input_bytes, selects, stage_read_bytes
from plait.planner.explain import read_bytes
from plait.planner.grouping import stage_words
from plait.planner.header_text import printable
from plait.planner.optimisations import FORESIGHT
from plait.planner.plan import Component, Plan
from plait.planner.program import Program
from plait.planner.residency import ASKED, CHEAPER, KEPT, NO_ROOM, slab_bytes
from plait.planner.sizes import size
from plait.planner.treeline import Line, headed
from plait.planner.wholework import device_reason
from plait.planner.words import counted, dimensions, duration

if TYPE_CHECKING:
    from rich.tree import Tree


@dataclass(frozen=True, slots=True)
class Input:
    """A stored tensor that an output names.

    Attributes:
        label: what the expression calls it.
        file: where it lies.
        name: in that file.
        dtype: its storage code.
        start, nbytes: its bytes.
        read: the output depends on it.
    """

    label: str
    file: str
    name: str
    dtype: str
    start: int
    nbytes: int
    read: bool


@dataclass(frozen=True, slots=True)
class Why:
    """Everything about one output.

    Attributes:
        name, shape, dtype, role, layer: of the output.
        expression: its parts, in order.
        inputs: stored tensors.
        passes: what happens in each.
        reasons: of what is decided about it, each with the decision and the reason: algorithm, device, blocks, residency.
        bytes_read: in all passes.
        held_bytes: beside the workers' buffers, at its peak.
        seconds: predicted for it alone, without waiting for the disk.
        sets_peak: it sets the plan's peak of memory.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    layer: int | None
    expression: tuple[Definition, ...]
    inputs: tuple[Input, ...]
    passes: tuple[str, ...]
    reasons: tuple[tuple[str, str], ...]
    bytes_read: int
    held_bytes: int
    seconds: float
    sets_peak: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def why(plan: Plan, name: str) -> Why:
    """What a plan does for one output, and why.

    Raises:
        PlanError: the output has no such tensor; names the nearest.
    """
    component = next((c for c in plan.components if c.name == name), None)
    if component is None:
        near = get_close_matches(name, [c.name for c in plan.components], n=3, cutoff=0.4)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise PlanError(f"the output has no tensor {name!r}{hint}", tensor=name, nearest=near)
    program = plan.program_of(component)
    labels = input_labels(component)
    read = [slot == program.copy if program.copy is not None else program.slots[slot] >= 0 for slot in range(len(component.inputs))]
    inputs = tuple(
        Input(label, ref.file, ref.name, ref.dtype, ref.start, ref.nbytes, used) for label, ref, used in zip(labels, component.inputs, read, strict=True)
    )
    share = next((s for s in plan.timing.programs if s.program == component.program), None)
    return Why(
        component.name,
        program.shape,
        program.dtype,
        component.role,
        component.layer,
        definitions(program, labels),
        inputs,
        ("bytes copied",) if program.copy is not None else tuple(stage_words(program, s, n) for n, s in enumerate(program.stages)),
        tuple(_reasons(plan, component, program)),
        read_bytes(program, component),
        component_bytes(program, workspace=component.program not in plan.lean) + (slab_bytes(program) if component.keep_inputs else 0),
        share.seconds / share.count if share else 0.0,
        plan.prediction.peak_task == component.name,
    )


def input_labels(component: Component) -> list[str]:
    """A short name for each input, all different: its model's folder, or its file."""
    found: list[str] = []
    for ref in component.inputs:
        path = Path(ref.file)
        stem = path.parent.name if path.name.startswith("model") or path.name.startswith("pytorch_model") else path.stem
        label = "".join(c if c.isalnum() else "_" for c in printable(stem)) or "x"
        label = label if not label[0].isdigit() else f"x{label}"
        while label in found:
            head, _, number = label.rpartition("_")
            label = f"{head}_{int(number) + 1}" if head and number.isdigit() else f"{label}_2"
        found.append(label)
    return found


# -- reasons ---------------------------------------------------------------------------------------
def _reasons(plan: Plan, component: Component, program: Program) -> list[tuple[str, str]]:
    if program.copy is not None:
        return [("algorithm", "the output is a stored tensor in its own dtype: the kernel copies its bytes")]
    found = [("algorithm", text) for text in _algorithms(plan, program)]
    if any(node.kind == "whole" and not is_view(node.op, node) and node.op != "part" for node in program.nodes):
        where = "the GPU" if component.program in plan.on_gpu else "the CPU"
        reason = device_reason(plan, component.program)
        found.append(("device", f"whole matrices on {where}" + (f": {reason}" if reason else "")))
    streams = "the CPU: it waits for disk and bus, not for arithmetic" if plan.maps == "cpu" else "CUDA, as asked (--maps cuda)"
    found.append(("device", f"streamed work on {streams}"))
    if program.stages:
        found += [("blocks", text) for text in dict.fromkeys(_blocks(program))]
        found.append(("residency", _residency(plan, component, program)))
    return found


def _algorithms(plan: Plan, program: Program) -> list[str]:
    found: dict[str, int] = {}
    for stage in program.stages:
        if thresholds := selects(program, stage):
            text = _threshold(plan, program, small=seen_whole(program, stage))
            found[text] = found.get(text, 0) + len(thresholds)
        for w in stage.wholes:
            node = program.nodes[w]
            if not is_view(node.op, node) and node.op != "part":
                told = algorithm(node)
                why_so = "; ".join(part for part in (told.why, told.figures) if part)
                text = f"{node.op} of {dimensions(node.shape)}: {told.name}" + (f", since {why_so}" if why_so else "") + f"; error {told.error}"
                found[text] = found.get(text, 0) + 1
    maps = "compiled loops over blocks, computed in float32 and rounded once" if plan.backend == "numba" else "the torch interpreter, block by block"
    return [*(f"{count} x {text}" if count > 1 else text for text, count in found.items()), f"maps: {maps}"]


def _threshold(plan: Plan, program: Program, *, small: bool) -> str:
    if small:
        return f"exact threshold, taken straight from all {program.numel:,} values: they are no more than a sample"
    foreseen = "its first digit counted in a pass of its own" if FORESIGHT in plan.without else "its place foreseen by a sample"
    return f"exact threshold by counting float bits in histograms, never sorted; {foreseen}"


def _blocks(program: Program) -> list[str]:
    found = []
    for stage in program.stages:
        if not stage.has_pass or not program.numel:
            continue
        elements, count = block_elements(stage, program.numel), block_count(stage, program.numel)
        rows = f" ({counted(elements // stage.row_length, 'whole row')} of {stage.row_length:,})" if stage.row_length else ""
        found.append(f"{counted(count, 'block')} of up to {elements:,} elements{rows}: by the shape alone, so that no budget or worker count changes a bit")
    return found


def _residency(plan: Plan, component: Component, program: Program) -> str:
    word = plan.residency[component.program]
    reads = sum(1 for stage in program.stages if stage.loads)
    if word == KEPT:
        saved = sum(stage_read_bytes(program, s) for s in program.stages) - input_bytes(program)
        return f"inputs are read once and stay in memory for all passes: {size(slab_bytes(program))} for each worker spare {size(saved)} of reading"
    if word == NO_ROOM:
        return f"inputs are read again in each pass: keeping them would be faster, but needs {size(slab_bytes(program))} for each of {plan.workers} workers"
    if word == ASKED:
        return "inputs are read again in each pass, as asked"
    if word == CHEAPER:
        return "inputs are read again in each pass: predicted to be faster than keeping them in memory"
    if any(stage.scopes for stage in program.stages):
        return "inputs are read again in each sweep over the model: nothing large is held from one to the next"
    return "inputs are read once, in one pass" if reads == 1 else f"inputs are read in {counted(reads, 'pass', 'passes')}"


# -- as a tree -------------------------------------------------------------------------------------
def why_tree(found: Why) -> Tree:
    """The answer as a rich tree."""
    from rich.tree import Tree

    layer = f", layer {found.layer}" if found.layer is not None else ""
    title = f"{printable(found.name)}  {dimensions(found.shape)} {found.dtype.lower()}"
    root = Tree(Line(f"{title}  {found.role}{layer}", 2, len(title)))
    _add(root, "expression", [_defined(d, found) for d in found.expression], 8)
    _add(root, "inputs", [_given(i) for i in found.inputs], 4)
    _add(root, "passes", list(found.passes), 8)
    branch = root.add(headed("why"))
    for about, text in found.reasons:
        branch.add(Line(f"{about:<10} {printable(text)}", 11))
    takes = [f"reads {size(found.bytes_read)}", f"about {duration(found.seconds)} of work" if found.seconds >= 0.05 else "less than 0.1 s of work"]
    if found.held_bytes >= 1 << 12:
        takes.append(f"holds {size(found.held_bytes)} beside the workers' buffers")
    if found.sets_peak:
        takes.append("sets the peak of memory")
    _add(root, "takes", takes, 2)
    return root


def _add(root: Tree, head: str, lines: Sequence[str], hang: int) -> None:
    branch = root.add(headed(head))
    for line in lines:
        branch.add(Line(line, hang))


def _defined(d: Definition, found: Why) -> str:
    several = d.stage is not None and len(found.passes) > 1
    return f"{d.name} = {printable(d.text)}" + (f"    [pass {(d.stage or 0) + 1}]" if several else "")


def _given(i: Input) -> str:
    unread = "" if i.read else ", not read: the result does not depend on it"
    return f"{i.label}  {i.dtype.lower()}, {size(i.nbytes)}, bytes {i.start:,} to {i.start + i.nbytes:,} of {printable(i.file)}: {printable(i.name)}{unread}"


def why_text(found: Why, width: int = 120) -> str:
    """The answer as plain text."""
    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, highlight=False).print(why_tree(found))
    return buffer.getvalue().rstrip()
