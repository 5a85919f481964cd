"""A plan as something to read: a tree for people. (`Plan.to_json` is the same for programs.)"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from plait.planner.cost import component_bytes, input_bytes, output_bytes, stage_read_bytes
from plait.planner.expressions import used_inputs
from plait.planner.grouping import Group as Group
from plait.planner.grouping import groups as groups
from plait.planner.grouping import letter, ways
from plait.planner.header_text import printable
from plait.planner.optimisations import OPTIMISATIONS
from plait.planner.plan import Component, Plan
from plait.planner.pools import pools
from plait.planner.program import Program
from plait.planner.residency import KEPT, NO_ROOM, slab_bytes
from plait.planner.savings import savings
from plait.planner.sizes import enough, size
from plait.planner.treeline import Line, headed
from plait.planner.whatif import WhatIf, what_if
from plait.planner.wholework import WholeWork, whole_work
from plait.planner.words import counted, dimensions, flops, times
from plait.planner.words import duration as duration

if TYPE_CHECKING:
    from rich.tree import Tree

#: Whole ops that do less than this part of the work are summed up in one line.
_MINOR = 0.01
#: Columns that the labels of what a plan needs take.
_LABEL = 13


def headline(plan: Plan) -> str:
    """What the merge needs, in a sentence that takes no knowledge of plait."""
    p = plan.prediction
    peak = f"; the peak is set by {printable(p.peak_task)}" if p.peak_task else ""
    return f"{plan.title} needs {size(p.peak_bytes)} of memory and about {duration(p.seconds)}{peak}"


def to_tree(plan: Plan, without: Sequence[str] = ()) -> Tree:
    """The plan as a rich tree.

    Args:
        plan: to show.
        without: a line for each optimisation that is switched off, to be shown with it: what that costs.
    """
    from rich.tree import Tree

    first = headline(plan)
    root = Tree(Line(first, 0, len(first)))
    files = counted(len(plan.layout.shards), "file")
    folders = counted(len({f.path.rsplit("/", 1)[0] for f in plan.files}), "folder")
    outputs = f"{counted(len(plan.components), 'tensor')}, {size(plan.prediction.bytes_written)} in {files}"
    root.add(Line(f"{outputs}, from {folders}; plan {plan.fingerprint[:12]}"))
    need = root.add(headed("needs"))
    for line in [*_memory(plan), *_moved(plan), *_times_taken(plan), *_cached(plan), *_runs(plan)]:
        need.add(Line(line, _LABEL))
    _add_budgets(root, plan)
    if plan.without:
        off = root.add(headed("switched off"))
        for line in without or [f"{name}: {OPTIMISATIONS[name].does}" for name in plan.without]:
            off.add(Line(line))
    _add_savings(root, plan)
    _add_inputs(root, plan)
    _add_passes(root, plan)
    _add_wholes(root, plan)
    _add_groups(root, plan)
    if plan.notes:
        notes = root.add(headed("notes"))
        for note in plan.notes:
            notes.add(Line(printable(note)))
    return root


# -- what it needs ---------------------------------------------------------------------------------
def _memory(plan: Plan) -> list[str]:
    p = plan.prediction
    host, *gpus = pools(plan)
    lines = [
        f"peak memory  {size(p.peak_bytes)} of {size(plan.budget_bytes)} (smallest budget that works: {enough(p.minimum_bytes)})",
        f"             {size(p.runtime_bytes)} program + {counted(plan.workers, 'worker')} x {size(p.worker_bytes + p.slab_bytes)} buffers"
        f" + {size(p.state_bytes)} held",
    ]
    if host.task:
        lines.append(f"             set by {printable(host.task)}" + (f": {host.why}" if host.why else ""))
    for pool in gpus:
        lines.append(f"{pool.name:<13}at most {size(pool.peak_bytes)} of {size(pool.budget_bytes)}" + (f": {pool.why}" if pool.why else ""))
        if pool.task:
            lines.append(f"             set by {printable(pool.task)}")
    return lines


def _moved(plan: Plan) -> list[str]:
    p = plan.prediction
    extra = f" (+ up to {size(p.bytes_read_extra)} where a sample mispredicts a threshold)" if p.bytes_read_extra else ""
    return [
        f"reads        {size(p.bytes_read)}{extra}, every input at most {times(p.passes)}",
        f"writes       {size(p.bytes_written)}" + (f", {size(p.bytes_copied)} of it copied undecoded" if p.bytes_copied else ""),
    ]


def _times_taken(plan: Plan) -> list[str]:
    """Predicted time and its parts, largest first."""
    timing = plan.timing
    parts = timing.parts()
    parts["starting"] += parts.pop("bookkeeping")
    if timing.from_disk:
        parts["reading from disk"] = parts.pop("reading")
    shown = [f"{name} {duration(s)}" for name, s in sorted(parts.items(), key=lambda item: -item[1]) if s >= 0.05]
    lines = [f"time         about {duration(timing.seconds)}" + (f" ({', '.join(shown)})" if shown else "")]
    if most := _most_work(plan):
        lines.append(f"             {most}")
    if timing.first_run_s:
        lines.append(f"             {duration(timing.first_run_s)} more where its kernels are not compiled yet")
    if not timing.measured:
        lines.append("             time estimated with default rates; run `plait bench machine`")
    return lines


def _most_work(plan: Plan) -> str:
    """The program that most of the reading and computing is for, where there are several."""
    shares = plan.timing.programs
    total = sum(share.seconds for share in shares)
    if len(shares) < 2 or total <= 0.0:
        return ""
    most = max(shares, key=lambda share: share.seconds)
    return f"{100 * most.seconds / total:.0f} % of the work is for {counted(most.count, 'tensor')} of {dimensions(plan.programs[most.program].shape)}"


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


def _runs(plan: Plan) -> list[str]:
    kernels = {"numba": "compiled Numba kernels", "torch": "the torch block interpreter"}[plan.backend]
    whole = any(s.wholes for q in plan.programs for s in q.stages)
    lines = [f"runs on      {counted(plan.workers, 'worker')}, {kernels}" + (f"; whole-tensor ops on {plan.device}" if whole else "")]
    lines.append(f"maps on      {_maps(plan)}")
    if plan.sweeps > 1:
        lines.append(f"sweeps       {plan.sweeps} over the model: {len(plan.scopes)} model-wide statistics come before what uses them")
    return lines


def _maps(plan: Plan) -> str:
    """Where streamed work runs, and why."""
    if plan.maps == "cpu":
        return "the CPU: streamed work waits for disk and bus, not for arithmetic; whole-tensor ops alone earn a GPU"
    budgets = " + ".join(size(b) for b in plan.gpu_budget_bytes)
    return f"CUDA, as asked (--maps cuda): {plan.workers} x {size(plan.gpu_worker_bytes)} of {budgets} there, copied in the stored type"


# -- other budgets ---------------------------------------------------------------------------------
def _add_budgets(root: Tree, plan: Plan) -> None:
    rows = _told(what_if(plan))
    if not rows:
        return
    plenty = next(row.budget_bytes for row in rows if row.enough or row is rows[-1])
    table = [("--memory", "peak", "workers", "reads", "passes", "kept", "time", ""), *(_budget(row, plenty) for row in rows)]
    if not any(row.kept for row in rows):
        table = [row[:5] + row[6:] for row in table]
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    branch = root.add(headed("other budgets"))
    for row in table:
        branch.add(Line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()))


def _told(rows: Sequence[WhatIf]) -> list[WhatIf]:
    """Rows that are marked, and those that differ from the one before in more than what is held."""
    told: list[WhatIf] = []
    for row in rows:
        if row.asked or row.smallest or row.enough or not told or _outcome(row) != _outcome(told[-1]):
            told.append(row)
    return told


def _outcome(row: WhatIf) -> tuple[object, ...]:
    return row.workers, row.passes, row.bytes_read, row.kept, round(row.seconds, 1)


def _budget(row: WhatIf, plenty: int) -> tuple[str, ...]:
    marks = [word for word, holds in (("yours", row.asked), ("least", row.smallest), ("enough", row.budget_bytes == plenty)) if holds]
    figures = (str(row.workers), size(row.bytes_read), str(row.passes), str(row.kept or "-"), duration(row.seconds))
    return (enough(row.budget_bytes), size(row.peak_bytes), *figures, ", ".join(marks))


# -- inputs, passes, whole ops ---------------------------------------------------------------------
def _add_inputs(root: Tree, plan: Plan) -> None:
    read: dict[str, int] = {}
    for component in plan.components:
        for ref in used_inputs(plan.program_of(component), component.inputs):
            read[ref.file] = read.get(ref.file, 0) + ref.nbytes
    branch = root.add(headed("inputs"))
    folders = groupby(plan.files, key=lambda f: f.path.rsplit("/", 1)[0])
    for folder, members in folders:
        files = list(members)
        used = sum(read.get(f.path, 0) for f in files)
        count = counted(len(files), "file")
        figures = f"{count}, {size(sum(f.size for f in files))}, {size(used)} of it used" if used else f"{count}, not read"
        branch.add(Line(f"{figures}  {printable(_shown(folder))}"))


def _shown(folder: str) -> str:
    """A folder as a person here would write it."""
    here = os.getcwd()
    return os.path.relpath(folder, here) if folder.startswith(here + os.sep) else folder


def _add_passes(root: Tree, plan: Plan) -> None:
    """The distinct ways in which tensors run, each with a letter."""
    members: dict[str, list[Component]] = {}
    how = ways(plan)
    for component in plan.components:
        members.setdefault(how[component.program], []).append(component)
    branch = root.add(headed("passes"))
    for number, (way, found) in enumerate(members.items()):
        branch.add(headed(letter(number), f"{way}{_stakes(plan, found)}  ({counted(len(found), 'tensor')}, {size(_written(plan, found))})", 3))


def _stakes(plan: Plan, members: Sequence[Component]) -> str:
    """What keeping the inputs of these components saves, or what it would need."""
    word = plan.residency[members[0].program]
    if word == KEPT:
        again = sum(sum(stage_read_bytes(p, s) for s in p.stages) - input_bytes(p) for p in map(plan.program_of, members))
        return f" (saves {size(again)} of reading)"
    if word == NO_ROOM:
        return f" (it needs {size(plan.workers * max(slab_bytes(plan.program_of(c)) for c in members))})"
    return ""


def _add_wholes(root: Tree, plan: Plan) -> None:
    """Ops on whole matrices, those of one algorithm together."""
    work = whole_work(plan)
    if not work:
        return
    total = sum(w.flops * w.count for w in work)
    branch = root.add(headed("whole matrices", f"{flops(total)}, about {duration(sum(w.seconds for w in work))}"))
    alike: dict[tuple[str, str, str, bool], list[WholeWork]] = {}
    for w in work:
        alike.setdefault((w.op, w.algorithm.name, w.device, w.side_by_side), []).append(w)
    minor = [ws for ws in alike.values() if sum(w.flops * w.count for w in ws) < _MINOR * total]
    for ws in alike.values():
        if ws not in minor:
            _add_alike(branch, ws)
    if minor:
        small = [w for ws in minor for w in ws]
        ops = ", ".join(dict.fromkeys(w.op for w in small))
        branch.add(Line(f"and {counted(sum(w.count for w in small), 'small op')} ({ops}), {flops(sum(w.flops * w.count for w in small))}"))
    for device, why in sorted({(w.device, w.device_why) for w in work if w.device_why}):
        branch.add(Line(f"on {'the GPU' if device == 'cuda' else 'the CPU'}: {why}"))


def _add_alike(branch: Tree, ws: Sequence[WholeWork]) -> None:
    count, works = sum(w.count for w in ws), max(w.workspace_bytes for w in ws)
    figures = f"{flops(sum(w.flops * w.count for w in ws))}, about {duration(sum(w.seconds for w in ws))}"
    node = branch.add(Line(f"{count} x {ws[0].op}, {ws[0].algorithm.name}: {figures}" + (f", working in up to {size(works)} each" if works else "")))
    node.add(Line("of: " + ", ".join(f"{w.count} x {dimensions(w.shape)}{_triplets(w)}" for w in ws), 4))
    if ws[0].side_by_side:
        node.add(Line("several at once, one core each: small matrices use more cores badly", 5))
    for why in dict.fromkeys(w.algorithm.why for w in ws if w.algorithm.why):
        node.add(Line(f"why: {why}", 5))
    for error in dict.fromkeys(w.algorithm.error for w in ws):
        node.add(Line(f"error: {error}", 7))


def _triplets(w: WholeWork) -> str:
    return f" ({w.rank} triplets)" if w.rank is not None and w.rank < min(w.shape) else ""


def _add_savings(root: Tree, plan: Plan) -> None:
    branch = root.add(headed("spared"))
    for saving in savings(plan):
        if saving.words:
            branch.add(Line(f"{saving.name}: {saving.words}"))


# -- outputs ---------------------------------------------------------------------------------------
def _add_groups(root: Tree, plan: Plan) -> None:
    """The tensors by role, each group naming its way."""
    how = ways(plan)
    letters = {way: letter(n) for n, way in enumerate(dict.fromkeys(how[c.program] for c in plan.components))}
    for role, found in groups(plan).items():
        written = size(_written(plan, (c for g in found for c in g.components)))
        branch = root.add(headed(role, f"{counted(sum(g.count for g in found), 'tensor')}, {written}"))
        for group in sorted(found, key=lambda g: -_written(plan, g.components)):
            first = group.components[0]
            program = plan.program_of(first)
            count = f"{group.count} x " if group.count > 1 else ""
            held = component_bytes(program, workspace=first.program not in plan.lean) + (slab_bytes(program) if first.keep_inputs else 0)
            holds = f", holds {size(held)}" if held >= 1 << 20 else ""
            what = f"{count}{printable(group.label)}  {dimensions(program.shape)} {program.dtype.lower()}"
            branch.add(Line(f"{what}  {letters[group.way]}, reads {size(read_bytes(program, first))}{holds}", len(count) or 2))


def read_bytes(program: Program, component: Component) -> int:
    """Stored bytes that one component reads in all its passes."""
    if program.copy is not None:
        return output_bytes(program)
    return input_bytes(program) if component.keep_inputs else sum(stage_read_bytes(program, s) for s in program.stages)


def _written(plan: Plan, components: Iterable[Component]) -> int:
    return sum(output_bytes(plan.program_of(c)) for c in components)


def to_text(plan: Plan, width: int = 120, without: Sequence[str] = ()) -> str:
    """The tree as plain text."""
    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, highlight=False).print(to_tree(plan, without))
    return buffer.getvalue().rstrip()
