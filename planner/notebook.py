"""A plan in a notebook: its figures and its groups of outputs as a small piece of html, without scripts and without colours of its own."""

from __future__ import annotations

import html
from collections.abc import Iterable

from plait.planner.cost import output_bytes
from plait.planner.grouping import groups
from plait.planner.header_text import printable
from plait.planner.plan import Plan
from plait.planner.sizes import enough, size
from plait.planner.words import dimensions, duration, times

#: Groups of outputs that are listed.
_MOST = 20


def plan_html(plan: Plan) -> str:
    """What a notebook shows of a plan."""
    p = plan.prediction
    figures = [
        ("peak memory", f"{size(p.peak_bytes)} of {size(plan.budget_bytes)}" + (f", set by {p.peak_task}" if p.peak_task else "")),
        ("smallest budget", enough(p.minimum_bytes)),
        ("time", f"about {duration(p.seconds)}"),
        ("reads", f"{size(p.bytes_read)}, every input at most {times(p.passes)}"),
        ("writes", size(p.bytes_written)),
    ]
    rows = []
    for role, found in groups(plan).items():
        for group in sorted(found, key=lambda g: -sum(output_bytes(plan.program_of(c)) for c in g.components)):
            written = sum(output_bytes(plan.program_of(c)) for c in group.components)
            rows.append((role, f"{group.count:,}", group.label, dimensions(group.shape), size(written)))
    more = f"<p>and {len(rows) - _MOST:,} more groups</p>" if len(rows) > _MOST else ""
    heads = _row(("role", "tensors", "name", "shape", "written"), "th")
    return (
        f"<div><h4>{_safe(plan.title)}: plan {plan.fingerprint[:12]}</h4>"
        f"<table><tbody>{''.join(_row(pair) for pair in figures)}</tbody></table>"
        f"<table><thead>{heads}</thead><tbody>{''.join(_row(row) for row in rows[:_MOST])}</tbody></table>{more}"
        f"{''.join(f'<p>{_safe(note)}</p>' for note in plan.notes)}</div>"
    )


def _row(cells: Iterable[str], tag: str = "td") -> str:
    return "<tr>" + "".join(f'<{tag} style="text-align:left">{_safe(cell)}</{tag}>' for cell in cells) + "</tr>"


def _safe(text: str) -> str:
    return html.escape(printable(text))
