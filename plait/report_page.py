"""A run as one html page, from its `report.json`: prediction beside measurement, memory and lanes over time, and where the time went."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from plait.ops.errors import CheckpointError
from plait.page import Block, Column, Facts, LineChart, Mark, Notes, Page, Prose, Section, Series, Table, fragment
from plait.planner.sizes import size
from plait.planner.words import counted, dimensions, duration


def report_page(found: Mapping[str, Any]) -> Page:
    """The page of a report.

    Args:
        found: the report, as `docs/report-format.md` describes it.
    """
    time = found["time"]
    part = "; a part of it: the rest had been done before" if found["part"]["resumed"] else ""
    subtitle = f"{duration(time['total_s'])}, {size(found['bytes']['measured_written'])} written; plan {found['fingerprint'][:12]}{part}"
    sections = [
        Section("Was the plan right?", _verdict(found)),
        Section("Memory over time", _memory(found)),
        Section("Lanes over time", _lanes(found)),
        Section("Where the time went", [_parts(found), _groups(found)]),
        *([Section("Slowest tensors", [_slowest(found)])] if found["slowest"] else []),
        Section("Environment", [_environment(found)]),
    ]
    return Page(f"Report: {found['title']}", subtitle, sections, f"plait {found['plait']}")


def page_text(found: Mapping[str, Any], out: str | os.PathLike[str]) -> str:
    """The html of the report of an output.

    Raises:
        CheckpointError: it is damaged.
    """
    with _whole(out):
        return report_page(found).render()


def notebook(found: Mapping[str, Any]) -> str:
    """A part of the page for notebooks.

    Raises:
        CheckpointError: it is damaged.
    """
    with _whole("the report"):
        return fragment(f"Report: {found['title']}", [*_verdict(found), _groups(found), *([_slowest(found)] if found["slowest"] else [])])


@contextmanager
def _whole(out: str | os.PathLike[str]) -> Iterator[None]:
    """Says in a sentence that what is read lacks a part."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{os.fspath(out)}: report.json is damaged, or of an older version ({why}); merge again", path=os.fspath(out)) from error


def _verdict(found: Mapping[str, Any]) -> list[Block]:
    verdict, time, memory, moved = found["verdict"], found["time"], found["memory"], found["bytes"]
    peak = f"{size(memory['measured_peak_bytes'])} of memory where {size(memory['predicted_peak_bytes'])} were promised"
    work = f"{duration(time['measured_work_s'])} of work where {duration(time['predicted_work_s'])} were expected"
    begin = "The plan was right" if verdict["right"] else "The plan was off"
    compiled = f", {duration(time['compile_s'])} to compile its kernels" if time["compile_s"] else ""
    items = [
        ("Peak memory", size(memory["measured_peak_bytes"]), f"predicted {size(memory['predicted_peak_bytes'])}, budget {size(memory['budget_bytes'])}"),
        ("Leased at most", size(memory["leased_peak_bytes"]), "of the budget, by the run's own account"),
        ("Work", duration(time["measured_work_s"]), f"predicted {duration(time['predicted_work_s'])}"),
        ("All told", duration(time["total_s"]), f"{duration(time['preparing_s'])} getting ready{compiled}"),
        ("Read", size(moved["measured_read"]), f"predicted {size(moved['predicted_read'])}"),
        ("Written", size(moved["measured_written"]), f"predicted {size(moved['predicted_written'])}"),
    ]
    kernels, counts, cache = found["kernels"], found["counts"], found["cache"]
    notes = [*verdict["sentences"], *verdict["not_judged"]]
    notes += [f"{counted(kernels['count'], 'kernel')}, {kernels['compiled']} of them compiled in this run"] if kernels["count"] else []
    notes += [f"{counted(counts['recounts'], 'threshold')} lay where no sample had foreseen it, and took a pass more"] if counts["recounts"] else []
    notes += [f"{counted(counts['gpu_retries'], 'op')} did not fit the GPU and ran on the CPU"] if counts["gpu_retries"] else []
    notes += [f"cache: {', '.join(f'{key} {value}' for key, value in cache.items())}"] if cache else []
    notes += [f"at {duration(stall['at_s'])} {stall['words']}" for stall in found["stalls"]]
    return [Prose(f"{begin}: {peak}, and {work}.", lead=True), Facts(items), *([Notes(notes)] if notes else [])]


def _column(table: Mapping[str, Any], name: str) -> list[Any]:
    """A column of a table of rows."""
    at = table["columns"].index(name)
    return [point[at] for point in table["points"]]


def _memory(found: Mapping[str, Any]) -> list[Block]:
    """Levels that were measured, leased and promised, below the budget."""
    memory, seen, promised = found["memory"], found["timeline"], _moved(found)
    if not seen["points"]:
        return [Prose("The run was too short to be watched.")]
    x = sorted({*_column(seen, "at_s"), *_column(promised, "at_s")})
    series = [
        Series("private memory, measured", _at(x, seen, "private_bytes"), step=True, fill=True),
        Series("leased", _at(x, seen, "leased_bytes"), step=True),
        Series("promised", _at(x, promised, "private_bytes"), step=True),
    ]
    marks = [
        Mark(f"budget {size(memory['budget_bytes'])}", memory["budget_bytes"]),
    ]
    highest = f"At most {size(memory['measured_peak_bytes'])}, after {duration(memory['peak_at_s'])}"
    summary = highest + (f" with {memory['peak_group']}." if memory["peak_group"] else ".") + " The promise begins where the work did."
    blocks: list[Block] = [LineChart("Memory beside what importing takes", summary, x, series, marks=marks)]
    for number, budget in enumerate(memory["gpu_budget_bytes"]):
        name = f"gpu_{number}_leased_bytes"
        levels = [Series("leased", _at(x, seen, name), step=True, fill=True), Series("promised", _at(x, promised, name), step=True)]
        words = f"At most {size(max(_column(seen, name)))} of {size(budget)}."
        blocks.append(LineChart(f"Memory of GPU {number}", words, x, levels, marks=[Mark(f"budget {size(budget)}", budget)]))
    return blocks


def _moved(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The promised course, moved so that its work begins where that of the run did: starting the program is not part of what is measured."""
    time, promised = found["time"], found["predicted_timeline"]
    at, late = promised["columns"].index("at_s"), time["planning_s"] + time["preparing_s"] - time["predicted_parts"]["starting"]
    return {**promised, "points": [[max(0.0, v + late) if n == at else v for n, v in enumerate(point)] for point in promised["points"]]}


def _at(x: Sequence[float], table: Mapping[str, Any], name: str) -> list[float | None]:
    """A column at moments between its own: what was there last, and nothing before the first and after the last."""
    times, values = _column(table, "at_s"), _column(table, name)
    found: list[float | None] = []
    for moment in x:
        place = bisect_right(times, moment) - 1
        found.append(values[place] if place >= 0 and moment <= times[-1] else None)
    return found


def _lanes(found: Mapping[str, Any]) -> list[Block]:
    """For each thread what it did, as shares of each stretch of time, and all of the run as a table."""
    course = found["timeline"]
    x, names = _column(course, "at_s"), course["lanes"]
    blocks: list[Block] = []
    states = ("reading", "computing", "writing", "waiting")
    for name in names if x else ():
        spent = {state: _column(course, f"{name}: {state}") for state in states}
        whole = [sum(values) or 1.0 for values in zip(*spent.values(), strict=True)]
        below, levels = [0.0] * len(x), []
        for state in reversed(states[:3]):
            below = [b + s / w for b, s, w in zip(below, spent[state], whole, strict=True)]
            levels.append(Series(state, below, "percent", step=True, fill=True))
        lane = next((found_lane for found_lane in found["lanes"] if found_lane["name"] == name), None)
        shares = ", ".join(f"{state} {100 * share:.0f} %" for state, share in lane["shares"].items()) if lane else ""
        blocks.append(LineChart(name, f"{shares}.", x, levels[::-1], stacked=True, height=150))
    columns = [Column("lane"), *(Column(state, "seconds") for state in states), Column("read", "bytes"), Column("written", "bytes")]
    rows = [[lane["name"], *(_seconds(lane, state) for state in states), lane["read_bytes"], lane["written_bytes"]] for lane in found["lanes"]]
    return [*blocks, Table("What each thread did over the whole run", columns, rows)]


def _seconds(lane: Mapping[str, Any], state: str) -> float:
    return float(sum(lane["seconds"].values()) * lane["shares"].get(state, 0.0))


def _parts(found: Mapping[str, Any]) -> Table:
    time = found["time"]
    rows: list[Sequence[Any]] = [[name, time[f"{name}_s"], time[f"{name}_s"] / time["total_s"]] for name in ("planning", "preparing", "running", "publishing")]
    return Table(f"The {duration(time['total_s'])} of the run", [Column("part"), Column("time", "seconds"), Column("share", "percent")], rows)


def _groups(found: Mapping[str, Any]) -> Table:
    """Predicted beside measured, for each kind of tensor."""
    columns = [
        Column("tensors", code=True), Column("role"), Column("count", "count"), Column("shape"), Column("predicted", "seconds"), Column("measured", "seconds"),
        Column("measured / predicted", "number"), Column("predicted to read", "bytes"), Column("read", "bytes"), Column("written", "bytes"),
        Column("leased at most", "bytes"),
    ]  # fmt: skip
    rows: list[Sequence[Any]] = []
    for g in found["groups"]:
        ratio = g["measured_s"] / g["predicted_s"] if g["predicted_s"] else None
        figures = [g["predicted_read_bytes"], g["measured_read_bytes"], g["measured_written_bytes"], g["leased_peak_bytes"]]
        shape = f"{dimensions(tuple(g['shape']))} {g['dtype'].lower()}".strip()
        rows.append([g["label"], g["role"], g["planned_tensors"], shape, g["predicted_s"], g["measured_s"], ratio, *figures])
    return Table("Predicted and measured, for each kind of tensor", columns, rows)


def _slowest(found: Mapping[str, Any]) -> Table:
    columns = [
        Column("tensor", code=True), Column("begun at", "seconds"), Column("open for", "seconds"), Column("reading", "seconds"), Column("computing", "seconds"),
        Column("writing", "seconds"), Column("waiting", "seconds"), Column("read", "bytes"), Column("leased", "bytes"),
    ]  # fmt: skip
    states = ("reading", "computing", "writing", "waiting")
    rows = [
        [s["tensor"], s["begun_s"], s["wall_s"], *(s["parts_s"].get(state) for state in states), s["read_bytes"], s["leased_bytes"]] for s in found["slowest"]
    ]
    return Table("Tensors that took the most time of workers", columns, rows)


def _environment(found: Mapping[str, Any]) -> Table:
    rows: list[Sequence[Any]] = []
    for key, value in found["environment"].items():
        if isinstance(value, Mapping):
            text = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, (list, tuple)):
            text = ", ".join(map(str, value))
        else:
            text = size(value) if key.endswith("_bytes") else str(value)
        rows.append([key.removesuffix("_bytes").replace("_", " "), text])
    rows += [["recipe", found["recipe"]], ["workers", str(found["workers"])], ["backend", found["backend"]], ["maps on", found["maps"]]]
    return Table("Where it ran", [Column("what"), Column("is")], rows)
