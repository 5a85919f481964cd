"""What a merge that is over has to say, as plain lines."""

from __future__ import annotations

from pathlib import Path

from plait.engine.events import CacheUse, Report
from plait.planner.header_text import printable
from plait.planner.sizes import size

_MOST_LINES = 20


def sentences(out: Path, report: Report) -> list[str]:
    """What was written and read, how fast, and whatever else the user should know of the run."""
    resumed = f"{size(report.bytes_resumed)} were there from an interrupted run and stayed as they were"
    rate = (report.bytes_read + report.bytes_written) / max(report.seconds, 1e-9)
    done = f"{printable(str(out))}: {size(report.bytes_written)} written, {size(report.bytes_read)} read in {report.seconds:.1f} s ({size(rate)}/s)"
    again = f"{report.gpu_retries} tasks that a GPU had no memory for were done again; a smaller --gpu-memory plans for less there"
    lines = [*([resumed] if report.bytes_resumed else []), done, *cache_lines(report.cache), *nonfinite_lines(report)]
    return [*lines, *([again] if report.gpu_retries else []), *map(printable, report.off)]


def cache_lines(use: CacheUse | None) -> list[str]:
    """What a result cache did for a run; nothing where there was none."""
    if use is None:
        return []
    told = [f"cache: {use.hits} results found, {use.stored} stored ({size(use.stored_bytes)})"]
    if use.spared_passes or use.spared_bytes:
        told[0] += f"; {use.spared_passes} passes and {size(use.spared_bytes)} of reading spared"
    if use.damaged:
        told.append(f"cache: {use.damaged} entries were damaged; they were computed again and the files removed ({use.trouble})")
    elif use.trouble:
        told.append(f"cache: {use.trouble}")
    return told


def nonfinite_lines(report: Report) -> list[str]:
    """What a merge with --allow-nonfinite found that is infinite or NaN: a line for each input and output tensor, as many as anybody reads."""
    lines = [f"not finite in {printable(file)}: {count} values of {printable(name)}" for (file, name), count in sorted(report.nonfinite_inputs.items())]
    for name, (count, beyond) in sorted(report.nonfinite_outputs.items()):
        more = f", {beyond} of them beyond the range of its dtype" if beyond else ""
        lines.append(f"not finite in the output: {count} values of {printable(name)}{more}")
    rest = len(lines) - _MOST_LINES
    return [*lines[:_MOST_LINES], f"and {rest} more tensors; plait.json lists all"] if rest > 0 else lines
