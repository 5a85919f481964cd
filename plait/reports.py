"""The report of a finished merge, as data and as lines to read: what was promised, what was measured, where time and memory went."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.engine.runreport import FORMAT, REPORT_NAME, VERSION
from plait.ops.errors import CheckpointError
from plait.planner.header_text import printable
from plait.planner.json_file import read_json
from plait.planner.sizes import size

_MOST_BYTES, _MOST_MARKS = 64 << 20, 4_000_000
_LEVELS = " ▁▂▃▄▅▆▇█"
_PLAIN_LEVELS = " .:-=+*#@"
_GROUPS, _SLOWEST, _COLUMNS = 12, 5, 60


class RunReport(dict[str, Any]):
    """A report as `docs/report-format.md` describes it; a notebook shows it as figures and tables."""

    def to_json(self) -> str:
        """The report as text."""
        return json.dumps(self, indent=1)

    def to_text(self, width: int = 80) -> str:
        """The report as lines of at most `width` columns.

        Raises:
            CheckpointError: it is damaged.
        """
        return to_text(self, width=width)

    def to_html(self) -> str:
        """One page that needs nothing else.

        Raises:
            CheckpointError: it is damaged.
        """
        from plait.report_page import page_text

        return page_text(self, "the report")

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from plait.report_page import notebook

        return notebook(self)


def report(out: str | Path) -> RunReport:
    """The report of an output folder: a dictionary in the form of `docs/report-format.md`.

    Args:
        out: folder that `plait merge` wrote.

    Raises:
        CheckpointError: there is no report, it is damaged, or another version of plait wrote it.
    """
    path = Path(out).expanduser() / REPORT_NAME
    if not path.is_file():
        why = "it is no output of plait, or one of a version that wrote no reports; merge again to have one"
        raise CheckpointError(f"{out} has no {REPORT_NAME}: {why}", path=str(path))
    found = read_json(path, _MOST_BYTES, "the report", _MOST_MARKS)
    if found.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a report of plait; give the folder of an output", path=str(path))
    if found.get("version") != VERSION:
        raise CheckpointError(f"{path} is of version {found.get('version')!r} and this plait reads {VERSION}; use the plait that wrote it", path=str(path))
    return RunReport(found)


def to_text(found: Mapping[str, Any], out: str | os.PathLike[str] = "", *, width: int = 80, unicode: bool = True) -> str:
    """A report as lines of at most `width` columns.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        lines = [printable(line) for line in _lines(found, os.fspath(out), width, _LEVELS if unicode else _PLAIN_LEVELS)]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{os.fspath(out) or 'the report'}: {REPORT_NAME} is damaged ({why}); merge again", path=os.fspath(out)) from error
    return "\n".join(_fitted(line, width) for line in lines)


def _fitted(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 3] + "..."


def _lines(found: Mapping[str, Any], out: str, width: int, levels: str) -> Iterator[str]:
    time, memory, moved = found["time"], found["memory"], found["bytes"]
    yield f"{out or found['title']}  {found['title']}, plan {found['fingerprint'][:12]}, plait {found['plait']}"
    part = found["part"]
    if part["resumed"]:
        yield f"continued an interrupted run: {part['measured_share']:.0%} of the output was made and measured here"
    yield ""
    yield from _verdict(found["verdict"])
    yield f"{'':14}{'promised':>12}{'measured':>12}"
    yield f"{'peak memory':14}{size(memory['predicted_peak_bytes']):>12}{size(memory['measured_peak_bytes']):>12}  of {size(memory['budget_bytes'])}"
    yield f"{'work':14}{time['predicted_work_s']:>10.1f} s{time['measured_work_s']:>10.1f} s"
    yield f"{'read':14}{size(moved['predicted_read']):>12}{size(moved['measured_read']):>12}"
    yield f"{'written':14}{size(moved['predicted_written']):>12}{size(moved['measured_written']):>12}"
    yield ""
    yield "time           " + ", ".join(f"{name[:-2]} {time[name]:.1f} s" for name in ("planning_s", "preparing_s", "running_s", "publishing_s"))
    kernels = found["kernels"]
    yield f"kernels        {kernels['count']}, {kernels['compiled']} of them compiled" + (f" in {kernels['compile_s']:.1f} s" if kernels["compiled"] else "")
    for lane in found["lanes"]:
        yield f"{lane['name']:15}" + ", ".join(f"{name} {share:.0%}" for name, share in lane["shares"].items())
    yield from _course(found, width, levels)
    yield from _rest(found)
    yield ""
    yield from _groups(found["groups"], width)
    yield ""
    yield from _slowest(found["slowest"], width)
    yield ""
    yield from _environment(found["environment"])


def _verdict(verdict: Mapping[str, Any]) -> Iterator[str]:
    if verdict["right"]:
        limits = verdict["tolerances"]
        peak = f"peak within {limits['peak_factor'] - 1:.0%} or {size(int(limits['peak_slack_bytes']))}"
        yield f"as promised: {peak}, time within a factor of {limits['time_factor']:g} or {limits['time_slack_s']:g} s"
    yield from verdict["sentences"]
    yield from verdict["not_judged"]
    yield ""


def _course(found: Mapping[str, Any], width: int, levels: str) -> Iterator[str]:
    """Private memory over time as a line of blocks: the highest of each stretch."""
    timeline, memory = found["timeline"], found["memory"]
    points = timeline["points"]
    if not points or not memory["measured_peak_bytes"]:
        return
    at, private = (timeline["columns"].index(name) for name in ("at_s", "private_bytes"))
    begun, ended = points[0][at], points[-1][at]
    columns = max(1, min(_COLUMNS, width - 16, len(points)))
    heights = [0.0] * columns
    for point in points:
        place = min(columns - 1, int((point[at] - begun) / max(ended - begun, 1e-9) * columns))
        heights[place] = max(heights[place], point[private] / memory["predicted_peak_bytes"])
    for place in range(1, columns):
        heights[place] = heights[place] or heights[place - 1]
    yield "memory         " + "".join(levels[min(len(levels) - 1, max(1, round(h * (len(levels) - 1))))] for h in heights)
    yield f"               from {begun:.1f} s to {ended:.1f} s; full height is the promised {size(memory['predicted_peak_bytes'])}"


def _rest(found: Mapping[str, Any]) -> Iterator[str]:
    use, counts = found["cache"], found["counts"]
    if use is not None:
        spared = f"{use['spared_passes']} passes and {size(use['spared_bytes'])} of reading spared"
        yield f"cache          {use['hits']} hits, {use['misses']} misses, {use['stored']} stored; {spared}"
    if counts["recounts"] or counts["gpu_retries"]:
        yield f"done again     {counts['recounts']} thresholds, {counts['gpu_retries']} tasks without room on a GPU"
    if counts["whole_ops"]:
        yield "whole ops      " + ", ".join(f"{count} {op}" for op, count in counts["whole_ops"].items())
    for stall in found["stalls"]:
        yield f"stalled        at {stall['at_s']:.0f} s: {stall['words']}"


def _groups(groups: Sequence[Mapping[str, Any]], width: int) -> Iterator[str]:
    room = max(20, min(64, width - 38))
    yield f"{'tensors':{room}}{'promised':>10}{'measured':>10}{'read':>9}{'peak':>9}"
    for group in groups[:_GROUPS]:
        count = f"{group['planned_tensors']} x " if group["planned_tensors"] > 1 else ""
        label, left = group["label"], room - 1 - len(count)
        name = count + (label if len(label) <= left else "..." + label[len(label) - left + 3 :])
        seconds = f"{group['predicted_s']:>8.2f} s{group['measured_s']:>8.2f} s"
        yield f"{name:{room}}{seconds}{_short(group['measured_read_bytes']):>9}{_short(group['private_peak_bytes']):>9}"
    if len(groups) > _GROUPS:
        yield f"and {len(groups) - _GROUPS} more kinds of tensor; --format json has all"


def _short(nbytes: int) -> str:
    return size(nbytes).replace("iB", "")


def _slowest(slowest: Sequence[Mapping[str, Any]], width: int) -> Iterator[str]:
    yield "slowest"
    for task in slowest[:_SLOWEST]:
        parts = sorted(task["parts_s"].items(), key=lambda item: -item[1])[:2]
        told = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts)
        yield f"  {task['wall_s']:6.2f} s  {task['tensor'][: max(10, width - 50)]}  ({told})"


def _environment(where: Mapping[str, Any]) -> Iterator[str]:
    libraries = ", ".join(f"{name} {version}" for name, version in where["libraries"].items())
    yield f"on {where['processor']}, {where['cores']} cores, {size(where['memory_bytes'])}"
    yield f"   {where['system']} {where['kernel']}, Python {where['python']}" + (f", {libraries}" if libraries else "")
    yield f"   reading from {', '.join(where['input_filesystems']) or 'nothing'}, writing to {where['output_filesystem']}"
