"""The picture of `grid.py`: predicted against measured peak and time of every merge, and their ratios cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import matplotlib  # noqa: F401  whoever calls this can do without it
from measure import MIB

from plait.plots import BUDGET, MEASURED, PREDICTED, picture


class Cell(Protocol):
    """What is drawn of a merge."""

    shape: str
    method: str
    budget: str
    kernels: str
    refused: bool
    predicted: int
    wall_s: float
    predicted_s: float

    @property
    def used(self) -> int: ...

    @property
    def time_ratio(self) -> float: ...


def draw(found: Sequence[Cell], path: Path) -> None:
    """Four panels: points of all merges against the line where both are equal, and below them the ratios of those with warm kernels."""
    ran = [c for c in found if not c.refused]
    rows = list(dict.fromkeys((c.shape, c.method) for c in found))
    with picture(path, 9.5, 4.6 + 0.24 * len(rows), 2, 2, height_ratios=(4, 0.28 * len(rows) + 0.4)) as (figure, ((memory, time), (peaks, times))):
        points(memory, ran, lambda c: c.used / MIB, lambda c: c.predicted / MIB, "peak private memory, MiB")
        below = "below the line: a peak\nabove its prediction"
        memory.annotate(below, (0.97, 0.03), xycoords="axes fraction", ha="right", va="bottom", fontsize=8, color=BUDGET)
        points(time, ran, lambda c: c.wall_s, lambda c: c.predicted_s, "seconds")
        low, high = time.get_xlim()
        time.fill_between((low, high), (low / 2, high / 2), (low * 2, high * 2), color="0.94", zorder=0, label="a factor of two")
        time.legend(loc="lower right")
        warm = {(c.shape, c.method, c.budget): c for c in found if c.refused or c.kernels == "warm"}
        budgets = list(dict.fromkeys(c.budget for c in found))
        table(peaks, rows, budgets, warm, lambda c: c.predicted / max(c.used, 1), "peak: predicted over measured", 1.0)
        table(times, rows, budgets, warm, lambda c: c.time_ratio, "time: predicted over measured", 0.8)
        times.set_yticklabels([])
        over = sum(c.used > c.predicted for c in ran)
        figure.suptitle(f"{len(ran)} merges, {over or 'none'} above the predicted peak", x=0.01, ha="left", fontsize=11)


def points(axes: Any, cells: Sequence[Cell], measured: Callable[[Cell], float], predicted: Callable[[Cell], float], what: str) -> None:
    """Predicted against measured, both logarithmic, and the line of equals."""
    for kernels, marker, color in (("warm", "o", MEASURED), ("cold", "^", PREDICTED)):
        chosen = [c for c in cells if c.kernels == kernels]
        if chosen:
            label = "kernels compiled before" if kernels == "warm" else "kernels compiled in the run"
            axes.scatter([measured(c) for c in chosen], [predicted(c) for c in chosen], s=22, marker=marker, color=color, alpha=0.75, linewidths=0, label=label)
    values = [max(f(c), 0.01) for c in cells for f in (measured, predicted)] or [1.0]
    low, high = min(values) / 1.4, max(values) * 1.4
    axes.plot((low, high), (low, high), color=BUDGET, linewidth=1)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel=f"measured {what}", ylabel=f"predicted {what}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda _value, _: "")


def table(
    axes: Any,
    rows: Sequence[tuple[str, str]],
    budgets: Sequence[str],
    cells: dict[tuple[str, str, str], Cell],
    ratio: Callable[[Cell], float],
    title: str,
    least: float,
) -> None:
    """A ratio for each method and budget: green from `least` to 1.25, blue above, red below."""
    for y, (shape, method) in enumerate(rows):
        for x, budget in enumerate(budgets):
            cell = cells.get((shape, method, budget))
            if cell is None or cell.refused:
                axes.annotate("too small" if cell else "", (x, y), ha="center", va="center", fontsize=7, color=BUDGET)
                continue
            value = ratio(cell)
            axes.barh(y, 0.94, left=x - 0.47, height=0.9, color=shade(value, least))
            axes.annotate(f"{value:.2f}", (x, y), ha="center", va="center", fontsize=8)
    axes.set(title=title, xlim=(-0.5, len(budgets) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(len(budgets)), budgets)
    axes.set_yticks(range(len(rows)), [f"{method}, {shape}" for shape, method in rows], fontsize=8)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def shade(ratio: float, least: float) -> str:
    """A light colour for a ratio."""
    if ratio < least:
        return "#f3c1b5" if ratio < least / 2 else "#fae3da"
    return "#d5ead4" if ratio <= 1.25 else "#dde9f5" if ratio <= 2 else "#b9d2ea"
