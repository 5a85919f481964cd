"""The pictures of `plait bench`: measured and predicted figures, as PNG or SVG. matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.ops.errors import OutputError, PlaitError

if TYPE_CHECKING:
    from plait.measuring import MemoryRun
    from plait.method_runs import MethodRun
    from plait.planner.rates import Rates
    from plait.sidebyside import Row

MIB, GIB = 1 << 20, 1 << 30
#: Told apart by colour-blind readers, and in print without colours by their lightness.
MEASURED, PREDICTED, BUDGET, OTHER = "#1f5f99", "#e69f00", "0.45", "#9ab5cc"
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
}
_FORMATS = (".png", ".svg")


def check_picture(path: Path | None) -> None:
    """Before anything is measured: a picture of this name can be drawn here.

    Raises:
        PlaitError: it is not PNG or SVG, or matplotlib is missing.
    """
    if path is None:
        return
    if path.suffix.lower() not in _FORMATS:
        raise PlaitError(f"{path} is neither PNG nor SVG: give --plot a name that ends in .png or .svg")
    _pyplot()


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise PlaitError("--plot needs matplotlib; pip install 'plait[bench]', or leave --plot out") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


@contextmanager
def picture(path: Path, width: float, height: float, rows: int = 1, columns: int = 1, **more: Any) -> Iterator[tuple[Any, Any]]:
    """A figure of some inches and its axes, saved at the end of the block.

    Raises:
        OutputError: the file cannot be written.
    """
    pyplot = _pyplot()
    with pyplot.rc_context(_STYLE):
        figure, axes = pyplot.subplots(rows, columns, figsize=(width, height), layout="constrained", **more)
        try:
            yield figure, axes
            figure.savefig(path, dpi=160)
        except (OSError, ValueError) as error:
            raise OutputError(f"{path} cannot be drawn ({error})") from error
        finally:
            pyplot.close(figure)


def draw_memory(title: str, runs: Sequence[MemoryRun], path: Path) -> None:
    """Peaks and seconds of a merge over its budget."""
    ran = [run for run in runs if not run.refused]
    refused = [run for run in runs if run.refused]
    budgets = [run.budget_bytes / MIB for run in ran]
    with picture(path, 7, 5.6, 2, sharex=True, height_ratios=(3, 2)) as (_, (above, below)):
        above.plot(budgets, budgets, color=BUDGET, linestyle=":", label="budget")
        _two_lines(above, budgets, [r.predicted_peak_bytes / MIB for r in ran], [r.peak_bytes / MIB for r in ran])
        for run in refused:
            above.axvline(run.budget_bytes / MIB, color=BUDGET, linewidth=1)
            above.annotate("too small", (run.budget_bytes / MIB, 0.02), xycoords=("data", "axes fraction"), rotation=90, color=BUDGET, ha="right", va="bottom")
        above.set(xscale="log", yscale="log", ylabel="peak private memory, MiB", title=title)
        above.set_xticks([run.budget_bytes / MIB for run in runs], [run.budget for run in runs])
        above.minorticks_off()
        above.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        _two_lines(below, budgets, [r.predicted_seconds for r in ran], [r.seconds for r in ran])
        below.set(xlabel="--memory", ylabel="seconds, whole command", ylim=(0, None))
        above.legend()


def _two_lines(axes: Any, x: Sequence[float], predicted: Sequence[float], measured: Sequence[float]) -> None:
    axes.plot(x, predicted, color=PREDICTED, marker="D", markersize=4, linestyle="--", label="predicted by the plan")
    axes.plot(x, measured, color=MEASURED, marker="o", markersize=5, label="measured")
    axes.grid(axis="y", color="0.92")


def draw_peers(title: str, rows: Sequence[Row], path: Path) -> None:
    """Seconds and private memory of each program as bars; a line from the fastest to the slowest run."""
    names = [row.subject for row in rows]
    own = next(row.wall for row in rows if row.subject == "plait")
    with picture(path, 7.5, 1.3 + 0.42 * len(rows), 1, 2, sharey=True, width_ratios=(3, 2)) as (figure, (left, right)):
        colors = [MEASURED if name == "plait" else OTHER for name in names]
        left.barh(names, [row.wall for row in rows], color=colors, height=0.62)
        for number, row in enumerate(rows):
            left.plot((min(row.wall_s), max(row.wall_s)), (number, number), color="0.2", linewidth=1)
            times = "" if row.subject == "plait" else f" ({row.wall / own:.1f}x)"
            left.annotate(f"{row.wall:.2f} s{times}", (max(row.wall_s), number), xytext=(4, 0), textcoords="offset points", va="center")
        peaks = [max(row.peak_bytes) / MIB for row in rows]
        right.barh(names, peaks, color=colors, height=0.62)
        for number, peak in enumerate(peaks):
            text = f"{peak:.0f} MiB" if peak else "not measured"
            right.annotate(text, (peak, number), xytext=(4, 0), textcoords="offset points", va="center", color="0.2" if peak else BUDGET)
        left.invert_yaxis()
        left.set_xlabel("seconds, whole process (lower is better)")
        right.set_xlabel("peak private memory, MiB")
        left.margins(x=0.25)
        right.margins(x=0.35)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)


def draw_machine(title: str, words: dict[str, str], rates: Rates, defaults: Rates, path: Path) -> None:
    """Rates as bars, those that are assumed without measuring as diamonds: bytes a second, and nanoseconds an element."""
    groups = [("bytes_s", 1e-9, "GB/s (higher is better)"), ("_ns", 1.0, "ns an element (lower is better)")]
    parts = [[name for name in words if name.endswith(end)] for end, _, _ in groups]
    with picture(path, 7.5, 1.5 + 0.26 * sum(map(len, parts)), 2, height_ratios=[len(p) + 1 for p in parts]) as (figure, all_axes):
        for axes, names, (_, scale, label) in zip(all_axes, parts, groups, strict=True):
            here = [getattr(rates, name) * scale for name in names]
            axes.barh([words[n] for n in names], here, color=MEASURED, height=0.62, label="this machine")
            axes.plot([getattr(defaults, n) * scale for n in names], range(len(names)), "D", color=PREDICTED, markersize=5, label="assumed without measuring")
            for number, value in enumerate(here):
                end = max(value, getattr(defaults, names[number]) * scale)
                axes.annotate(f"{value:.3g}", (end, number), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
            axes.set(xlabel=label, xscale="log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.invert_yaxis()
            axes.margins(x=0.1)
        all_axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)


def draw_methods(title: str, runs: Sequence[MethodRun], path: Path) -> None:
    """Seconds and peaks of every method that ran, as bars beside what was predicted."""
    ran = sorted((run for run in runs if run.state == "ran"), key=lambda run: (not run.streams, run.seconds))
    names = [run.method for run in ran]
    with picture(path, 8, 1.6 + 0.2 * len(ran), 1, 2, sharey=True) as (figure, (left, right)):
        _bars(left, names, [run.seconds for run in ran], [run.predicted_seconds for run in ran], ran)
        _bars(right, names, [run.peak_bytes / MIB for run in ran], [run.predicted_peak_bytes / MIB for run in ran], ran)
        left.set_xlabel("seconds, whole command")
        right.set_xlabel("peak private memory above the imports, MiB")
        left.invert_yaxis()
        left.margins(y=0.01)
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)


def _bars(axes: Any, names: Sequence[str], measured: Sequence[float], predicted: Sequence[float], runs: Sequence[MethodRun]) -> None:
    for streams, color, label in ((True, MEASURED, "measured, streamed"), (False, OTHER, "measured, whole matrices")):
        rows = [number for number, run in enumerate(runs) if run.streams is streams]
        if rows:
            axes.barh(rows, [measured[r] for r in rows], color=color, height=0.68, label=label)
    axes.plot(predicted, range(len(names)), "D", color=PREDICTED, markersize=3.5, label="predicted")
    axes.set_yticks(range(len(names)), names)
    axes.grid(axis="x", color="0.92")
    if measured and max(measured) > 20 * max(min(measured), 1e-9):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
