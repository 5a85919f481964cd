"""A plan as one html page: what the merge needs and why, the flow of tensors, memory over time, other budgets, and every tensor."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from plait.page import Block, Column, Facts, LineChart, Mark, Notes, Page, Prose, Section, Series, Table
from plait.plan_graph import folder_of, plan_graph, way_letters
from plait.planner.cost import component_bytes, output_bytes
from plait.planner.explain import read_bytes
from plait.planner.expressions import used_inputs
from plait.planner.grouping import ways
from plait.planner.plan import Component, Plan
from plait.planner.pools import peak_reason, pools
from plait.planner.program import Program
from plait.planner.residency import slab_bytes
from plait.planner.savings import savings
from plait.planner.sizes import enough, size
from plait.planner.timeline import timeline
from plait.planner.whatif import WhatIf, what_if
from plait.planner.wholework import WholeWork, whole_work
from plait.planner.words import counted, dimensions, duration, times


def plan_page(plan: Plan) -> Page:
    """The page of a plan."""
    from plait import __version__

    outputs = f"{counted(len(plan.components), 'tensor')}, {size(plan.prediction.bytes_written)} in {counted(len(plan.layout.shards), 'file')}"
    subtitle = f"{outputs}; plan {plan.fingerprint[:12]}, before anything is run"
    budgets, work = _budgets(plan), whole_work(plan)
    spared = [f"{saving.name}: {saving.words}" for saving in savings(plan) if saving.words]
    sections = [
        Section("What it needs", [Prose(_headline(plan), lead=True), _facts(plan), *([Notes(plan.notes)] if plan.notes else [])]),
        Section("Flow", [plan_graph(plan), _passes(plan), *([Notes(spared)] if spared else [])]),
        *([Section("Whole matrices", [_wholes(work)])] if work else []),
        Section("Memory over time", _memory(plan)),
        *([Section("Other budgets", budgets)] if budgets else []),
        Section("Time", [_time(plan)]),
        Section("Inputs", [_inputs(plan)]),
        Section("Tensors", [_tensors(plan)]),
    ]
    return Page(f"Plan: {plan.title}", subtitle, sections, f"plait {__version__}. Every figure is computed from file headers and from rates of this machine.")


def _headline(plan: Plan) -> str:
    p = plan.prediction
    needs = f"It needs {size(p.peak_bytes)} of memory and about {duration(p.seconds)}"
    why = peak_reason(plan)
    return f"{needs}, because of {p.peak_task}{f': {why}' if why else ''}." if p.peak_task else f"{needs}."


def _facts(plan: Plan) -> Facts:
    p, timing = plan.prediction, plan.timing
    parts = f"{size(p.runtime_bytes)} program, {counted(plan.workers, 'worker')} x {size(p.worker_bytes + p.slab_bytes)}, {size(p.state_bytes)} held"
    longest = max(timing.parts().items(), key=lambda item: item[1])
    first = f"; {duration(timing.first_run_s)} more to compile its kernels, once" if timing.first_run_s else ""
    extra = f"{size(p.bytes_read_extra)} more at most; " if p.bytes_read_extra else ""
    items = [
        ("Peak memory", size(p.peak_bytes), f"{parts}; budget {size(plan.budget_bytes)}"),
        ("Smallest budget", enough(p.minimum_bytes), "that works; the output is the same"),
        ("Time", duration(p.seconds), f"most of it {longest[0]}, {duration(longest[1])}{first}"),
        ("Read", size(p.bytes_read), f"{extra}every input at most {times(p.passes)}"),
        ("Written", size(p.bytes_written), f"{size(p.bytes_copied)} of it copied undecoded" if p.bytes_copied else "computed and rounded once"),
        ("Runs on", counted(plan.workers, "worker"), _runs(plan)),
    ]
    items += [(pool.name, size(pool.peak_bytes), f"of {size(pool.budget_bytes)}" + (f": {pool.why}" if pool.why else "")) for pool in pools(plan)[1:]]
    return Facts(items)


def _runs(plan: Plan) -> str:
    kernels = {"numba": "compiled kernels", "torch": "the block interpreter"}[plan.backend]
    whole = any(stage.wholes for program in plan.programs for stage in program.stages)
    return f"{kernels}, maps on {plan.maps}" + (f", whole matrices on {plan.device}" if whole else "")


def _passes(plan: Plan) -> Table:
    """The distinct ways in which tensors run."""
    letters, how = way_letters(plan), ways(plan)
    members: dict[str, list[Component]] = {}
    for component in plan.components:
        members.setdefault(letters[component.program], []).append(component)
    columns = [Column("way"), Column("passes"), Column("tensors", "count"), Column("reads", "bytes"), Column("writes", "bytes")]
    rows = [
        [name, how[found[0].program], len(found), sum(read_bytes(plan.program_of(c), c) for c in found), sum(output_bytes(plan.program_of(c)) for c in found)]
        for name, found in members.items()
    ]
    return Table("How tensors are merged", columns, rows)


def _wholes(work: Sequence[WholeWork]) -> Table:
    """Ops on whole matrices: by which algorithm, why, and how exact."""
    columns = [
        Column("op"), Column("shape"), Column("count", "count"), Column("algorithm"), Column("why"), Column("error"), Column("device"),
        Column("works in", "bytes"), Column("time", "seconds"),
    ]  # fmt: skip
    rows = [
        [
            w.op,
            dimensions(w.shape),
            w.count,
            w.algorithm.name,
            w.algorithm.why,
            w.algorithm.error,
            "cpu, one core" if w.side_by_side else w.device,
            w.workspace_bytes,
            w.seconds,
        ]
        for w in work
    ]
    return Table("Ops on whole matrices, the most work first", columns, rows)


# -- memory and budgets ----------------------------------------------------------------------------
def _memory(plan: Plan) -> list[Block]:
    """The predicted level of each pool over the predicted time."""
    line = timeline(plan)
    points = [*line.points, line.points[-1]._replace(seconds=line.seconds)]
    x, tasks = [p.seconds for p in points], [p.task for p in points]
    peak = line.peak
    summary = f"At most {size(peak.host_bytes)}, first after {duration(peak.seconds)}. Private memory beside what importing takes."
    levels = [
        Series("open tensors", [p.host_bytes for p in points], step=True, fill=True),
        Series("workers' buffers", [p.program_bytes + p.buffer_bytes for p in points], step=True, fill=True),
        Series("program", [p.program_bytes for p in points], step=True, fill=True),
    ]
    budget = Mark(f"budget {size(plan.budget_bytes)}", plan.budget_bytes)
    blocks: list[Block] = [LineChart("Predicted memory, one on the other", summary, x, levels, labels=tasks, label_name="at", marks=[budget], stacked=True)]
    for number, nbytes in enumerate(plan.gpu_budget_bytes):
        values = [p.gpu_bytes[number] for p in points]
        words = f"At most {size(max(values))} of {size(nbytes)}."
        mark = Mark(f"budget {size(nbytes)}", nbytes)
        series = [Series(f"GPU {number}", values, step=True, fill=True)]
        blocks.append(LineChart(f"Predicted memory of GPU {number}", words, x, series, labels=tasks, label_name="at", marks=[mark]))
    return blocks


def _budgets(plan: Plan) -> list[Block]:
    """What other budgets would take."""
    rows = [w for w in what_if(plan) if not w.refused]
    if not rows:
        return []
    words = [_said(w) for w in rows]
    columns = [
        Column("budget", "bytes"), Column("peak", "bytes"), Column("workers", "count"), Column("passes", "count"), Column("read", "bytes"),
        Column("tensors whose inputs are kept", "count"), Column("time", "seconds"), Column("note"),
    ]  # fmt: skip
    table = Table(
        "The same merge under other budgets",
        columns,
        [[w.budget_bytes, w.peak_bytes, w.workers, w.passes, w.bytes_read, w.kept, w.seconds, word] for w, word in zip(rows, words, strict=True)],
    )
    series = [Series("time", [w.seconds for w in rows], "seconds", points=True), Series("read", [w.bytes_read for w in rows], "bytes", points=True)]
    least, most = rows[0], rows[-1]
    summary = f"{duration(least.seconds)} in {enough(least.budget_bytes)}, {duration(most.seconds)} in {size(most.budget_bytes)}; the output is the same."
    labels = [word or counted(w.workers, "worker") for w, word in zip(rows, words, strict=True)]
    x = [w.budget_bytes for w in rows]
    chart = LineChart("Time and reading by budget", summary, x, series, "budget", "bytes", labels=labels, label_name="", log_x=True, height=220)
    return [chart, table] if len(rows) > 1 else [table]


def _said(row: WhatIf) -> str:
    """What is special about a budget."""
    said = (("this plan", row.asked), ("the smallest that works", row.smallest), ("more changes nothing", row.enough))
    return ", ".join(word for word, holds in said if holds)


# -- tables ----------------------------------------------------------------------------------------
def _time(plan: Plan) -> Table:
    timing = plan.timing
    rows = [[name, seconds, seconds / timing.seconds] for name, seconds in timing.parts().items() if seconds] if timing.seconds else []
    known = "rates measured on this machine" if timing.measured else "default rates; `plait bench machine` measures yours"
    disk = ", inputs read from the disk" if timing.from_disk else ", inputs found in the page cache"
    caption = f"Where the predicted {duration(timing.seconds)} go ({known}{disk})"
    return Table(caption, [Column("part"), Column("time", "seconds"), Column("share", "percent")], rows)


def _inputs(plan: Plan) -> Table:
    used: dict[str, int] = {}
    for component in plan.components:
        for ref in used_inputs(plan.program_of(component), component.inputs):
            used[ref.file] = used.get(ref.file, 0) + ref.nbytes
    rows = []
    for folder, members in groupby(plan.files, key=lambda f: folder_of(f.path)):
        files = list(members)
        rows.append([folder, len(files), sum(f.size for f in files), sum(used.get(f.path, 0) for f in files)])
    columns = [Column("folder", code=True), Column("files", "count"), Column("size", "bytes"), Column("used", "bytes")]
    return Table("Models, and how much of each is used", columns, rows)


def _tensors(plan: Plan) -> Table:
    """Every output tensor."""
    letters = way_letters(plan)
    seconds = {t.program: t.seconds / t.count for t in plan.timing.programs}
    columns = [
        Column("tensor", code=True), Column("role"), Column("layer", "count"), Column("shape"), Column("dtype"), Column("way"), Column("reads", "bytes"),
        Column("writes", "bytes"), Column("holds", "bytes"), Column("time", "seconds"),
    ]  # fmt: skip
    same: dict[int, list[object]] = {}
    rows: list[Sequence[object]] = []
    for c in plan.components:
        if c.program not in same:
            q = plan.program_of(c)
            figures = [read_bytes(plan.program_of(c), c), output_bytes(q), _held(plan, c, q), seconds.get(c.program)]
            same[c.program] = [dimensions(q.shape), q.dtype.lower(), letters[c.program], *figures]
        rows.append([c.name, c.role, c.layer, *same[c.program]])
    return Table("Output tensors in the order in which they are merged", columns, rows)


def _held(plan: Plan, component: Component, program: Program) -> int:
    return component_bytes(program, workspace=component.program not in plan.lean) + (slab_bytes(program) if component.keep_inputs else 0)
