"""`report.json`: what a plan promised and what its run took, written with every output. `docs/report-format.md` describes it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plait.engine.events import Report
from plait.engine.lanes import SHARES, STATES
from plait.engine.recording import LEVELS, OTHERS, Recording, kind_of
from plait.engine.series import MOST_ROWS
from plait.engine.surroundings import surroundings
from plait.engine.verdict import verdict
from plait.planner.cost import output_bytes, stage_read_bytes
from plait.planner.plan import Plan
from plait.planner.timeline import timeline

REPORT_NAME = "report.json"
FORMAT, VERSION = "plait-report", 1


def run_report(plan: Plan, report: Report, recording: Recording, identity: Mapping[str, Any], folder: Path, private_bytes: int) -> dict[str, Any]:
    """Everything that is known of a run when its output is about to appear.

    Args:
        plan: that ran.
        report: what the run counted.
        recording: what was seen of it.
        identity: of what was made.
        folder: where it was made.
        private_bytes: private memory now, above what the process had before.
    """
    seconds = recording.watch.now()
    whole = not report.bytes_resumed and not (report.cache and report.cache.hits)
    groups = _groups(plan, recording)
    time, memory = _time(plan, recording, seconds), _memory(plan, report, recording, private_bytes)
    total = sum(place.nbytes for place in plan.layout.places.values())
    return {
        "format": FORMAT,
        "version": VERSION,
        "plait": identity["plait"],
        "title": plan.title,
        "recipe": identity["source"],
        "fingerprint": identity["fingerprint"],
        "part": {
            "resumed": bool(report.bytes_resumed),
            "resumed_bytes": report.bytes_resumed,
            "output_bytes": total,
            "measured_share": 1.0 - report.bytes_resumed / total if total else 1.0,
        },
        "workers": plan.workers,
        "backend": plan.backend,
        "device": plan.device,
        "maps": plan.maps,
        "verdict": verdict(time, memory, groups, why_not=_why_not(report), whole=whole),
        "time": time,
        "memory": memory,
        "bytes": {
            "predicted_read": plan.prediction.bytes_read,
            "measured_read": report.bytes_read,
            "predicted_written": plan.prediction.bytes_written,
            "measured_written": report.bytes_written,
        },
        "kernels": {"count": recording.ready.kernels, "compiled": recording.ready.compiled, "compile_s": time["compile_s"]},
        "cache": None if report.cache is None else asdict(report.cache),
        "counts": {"recounts": report.recounted, "gpu_retries": report.gpu_retries, "whole_ops": dict(report.wholes)},
        "stalls": [{"at_s": round(note.at_s, 3), "words": note.words} for note in recording.stalls],
        "groups": groups,
        "slowest": _slowest(recording),
        "lanes": _lanes(recording),
        "timeline": _timeline(plan, recording),
        "predicted_timeline": _promised(plan),
        "environment": surroundings([file.path for file in plan.files], folder),
    }


def report_bytes(found: Mapping[str, Any]) -> bytes:
    """The text of a report: a line for each entry, and for each row of its tables."""
    entries = ",\n ".join([f"{json.dumps(key)}: {_text(_rounded(value))}" for key, value in found.items()])
    return f"{{\n {entries}\n}}\n".encode("utf-8", "backslashreplace")


def _rounded(value: Any) -> Any:
    """Numbers to a millionth: more digits say nothing."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _text(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
        return "[\n  " + ",\n  ".join([json.dumps(row, ensure_ascii=False) for row in value]) + "\n ]"
    if isinstance(value, dict) and "points" in value:
        return "{" + ", ".join([f"{json.dumps(key)}: {_text(inner)}" for key, inner in value.items()]) + "}"
    return json.dumps(value, ensure_ascii=False)


def _why_not(report: Report) -> str:
    """Why the time of a run is no measure of its plan."""
    if report.bytes_resumed:
        return "the time is not judged: an interrupted run had done a part"
    if report.cache is not None and report.cache.hits:
        return "the time is not judged: a cache gave results that the plan meant to compute"
    return ""


def _time(plan: Plan, recording: Recording, seconds: float) -> dict[str, Any]:
    """Seconds by what they were spent on; starting the program and compiling are neither promised nor judged."""
    ready, timing = recording.ready, plan.timing
    return {
        "predicted_s": timing.seconds,
        "predicted_parts": timing.parts(),
        "predicted_first_run_s": timing.first_run_s,
        "predicted_work_s": timing.seconds - timing.starting_s,
        "measured_work_s": seconds - ready.seconds,
        "planning_s": recording.running_s,
        "preparing_s": ready.seconds,
        "compile_s": ready.seconds if ready.compiled else 0.0,
        "running_s": recording.publishing_s - recording.running_s - ready.seconds,
        "publishing_s": seconds - recording.publishing_s,
        "total_s": seconds,
        "rates_measured": timing.measured,
    }


def _memory(plan: Plan, report: Report, recording: Recording, private_bytes: int) -> dict[str, Any]:
    peak = recording.peak
    seen = max(private_bytes, peak.private_bytes if peak is not None else 0)
    late = recording.late_imports if recording.late_imports in sys.modules else ""  # where a cache gave everything, it was never wanted
    why = f"the peak is not judged: {late} was loaded in the middle of the run" if late else ""
    if not recording.watch.baseline_bytes:
        why = "the peak is not judged: this system does not say how much memory is private"
    tasks = [kind_of(o.component).label for o in peak.open] if peak is not None else []
    return {
        "budget_bytes": plan.budget_bytes,
        "predicted_peak_bytes": plan.prediction.peak_bytes,
        "leased_peak_bytes": report.leased_peak_bytes,
        "measured_peak_bytes": seen,
        "baseline_bytes": recording.watch.baseline_bytes,
        "predicted_parts": {
            "runtime_bytes": plan.prediction.runtime_bytes,
            "workers_bytes": plan.workers * (plan.prediction.worker_bytes + plan.prediction.slab_bytes),
            "state_bytes": plan.prediction.state_bytes,
        },
        "predicted_peak_task": plan.prediction.peak_task,
        "peak_at_s": peak.at_s if peak is not None else 0.0,
        "peak_group": tasks[0] if tasks else "",
        "judged": not why,
        "not_judged": why,
        "gpu_budget_bytes": list(plan.gpu_budget_bytes),
    }


def _groups(plan: Plan, recording: Recording) -> list[dict[str, Any]]:
    """Predicted and measured figures of each kind of tensor; what a plan has and the run did not do is not among them."""
    planned = Counter(kind_of(component) for component in plan.components)
    times = {time.program: time for time in plan.timing.programs}
    found = []
    for kind, group in recording.groups.items():
        share = times.get(kind.program)
        program = plan.programs[kind.program] if kind != OTHERS else None
        count = planned[kind]
        found.append(
            {
                "role": kind.role,
                "label": kind.label,
                "shape": list(program.shape) if program is not None else [],
                "dtype": program.dtype if program is not None else "",
                "planned_tensors": count,
                "measured_tensors": group.tensors / plan.sweeps,
                "passes": group.passes,
                "predicted_s": share.seconds * count / share.count if share is not None else 0.0,
                "measured_s": sum(group.spent_ns) / 1e9 / plan.workers,
                "predicted_parts_s": _predicted_parts(share, count),
                "measured_parts_s": _shares([ns / 1e9 / plan.workers for ns in group.spent_ns]),
                "predicted_read_bytes": count * sum(stage_read_bytes(program, s) for s in program.stages) if program is not None else 0,
                "measured_read_bytes": group.read_bytes,
                "predicted_written_bytes": count * output_bytes(program) if program is not None else 0,
                "measured_written_bytes": group.written_bytes,
                "leased_peak_bytes": group.leased_peak_bytes,
                "private_peak_bytes": group.private_peak_bytes,
            }
        )
    return sorted(found, key=lambda row: -row["measured_s"])


def _predicted_parts(share: Any, count: int) -> dict[str, float]:
    parts = ("reading", "computing", "writing", "bookkeeping")
    return {name: getattr(share, f"{name}_s") * count / share.count for name in parts} if share is not None else {}


def _shares(seconds: Sequence[float]) -> dict[str, float]:
    """Seconds by state, as people ask for them."""
    return {name: sum(seconds[state] for state in states) for name, states in SHARES.items()}


def _slowest(recording: Recording) -> list[dict[str, Any]]:
    return [
        {
            "tensor": task.component.name,
            "sweep": task.sweep,
            "worker_s": seconds,
            "parts_s": _shares([ns / 1e9 for ns in task.spent_ns]),
            "begun_s": task.begun_s,
            "wall_s": task.ended_s - task.begun_s,
            "passes": task.passes,
            "read_bytes": task.read_bytes,
            "written_bytes": task.written_bytes,
            "leased_bytes": task.leased_bytes,
        }
        for seconds, _, task in sorted(recording.slowest, key=lambda entry: entry[:2], reverse=True)
    ]


def _lanes(recording: Recording) -> list[dict[str, Any]]:
    """What each thread did over the whole run."""
    levels = recording.last.lanes if recording.last is not None else ()
    return [
        {
            "name": level.lane,
            "seconds": {state: ns / 1e9 for state, ns in zip(STATES, level.spent_ns, strict=True)},
            "shares": {name: s / max(sum(level.spent_ns) / 1e9, 1e-9) for name, s in _shares([ns / 1e9 for ns in level.spent_ns]).items()},
            "read_bytes": level.read,
            "written_bytes": level.written,
        }
        for level in levels
    ]


def _promised(plan: Plan) -> dict[str, Any]:
    """The course of memory that the plan promised, the whole command's time on its axis."""
    points = [[round(p.seconds, 4), p.host_bytes, *p.gpu_bytes] for p in timeline(plan, MOST_ROWS).points]
    return {"columns": ["at_s", "private_bytes", *(f"gpu_{n}_leased_bytes" for n in range(len(plan.gpu_budget_bytes)))], "points": points}


def _timeline(plan: Plan, recording: Recording) -> dict[str, Any]:
    """The course of memory and lanes: one row for each stretch of time, with the highest levels in it and the seconds of each lane."""
    table = recording.course.rows()
    gpus = len(plan.gpu_budget_bytes)
    levels = len(LEVELS) + gpus
    names = [level.lane for level in recording.last.lanes] if recording.last is not None else []
    columns = ["at_s", *LEVELS, *(f"gpu_{n}_leased_bytes" for n in range(gpus)), "read_bytes", "written_bytes"]
    columns += [f"{name}: {share}" for name in names for share in SHARES]
    points, before = [], [0.0] * (len(names) * len(STATES))
    for row in table.tolist():
        spent = row[levels + 3 :]
        step = [max(0.0, now - then) for now, then in zip(spent, before, strict=True)]
        shares = [s for at in range(0, len(step), len(STATES)) for s in _shares(step[at : at + len(STATES)]).values()]
        points.append([round(row[levels], 4), *(int(v) for v in row[:levels]), *(int(v) for v in row[levels + 1 : levels + 3]), *(round(s, 5) for s in shares)])
        before = spent
    return {"columns": columns, "lanes": names, "points": points}
