"""A comparison as a picture: heat maps of layers by kinds of tensor (needs matplotlib, `pip install 'plait[bench]'`)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.differences import Diff, Figures, after_layer
from plait.ops.errors import OutputError, PlanError
from plait.planner.header_text import printable
from plait.planner.inspect import ROLES

_ENDINGS = (".png", ".svg", ".pdf")
#: Cells of a map that anybody could look at; names out of strangers' files may ask for millions.
MOST_CELLS = 100_000


@dataclass(frozen=True, slots=True)
class View:
    """One figure over layers and kinds.

    Attributes:
        name: of it.
        value: of a group of tensors.
        about: how to read it.
        low, high: ends of the colour scale; None for the extremes.
        signed: it has a sign: colours part at 0.
    """

    name: str
    value: Callable[[Figures], float | None]
    about: str
    low: float | None = None
    high: float | None = None
    signed: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells of a map.

    Attributes:
        kinds: rows: what follows the layer's number in names.
        layers: columns.
        cells: figures of those that are there.
        outside: tensors outside the layers, by name.
    """

    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    cells: dict[tuple[int, str], Figures]
    outside: dict[str, Figures]

    @property
    def drawable(self) -> bool:
        """Whether there are cells, and no more than can be shown."""
        return bool(self.cells) and len(self.kinds) * len(self.layers) <= MOST_CELLS

    def values(self, view: View) -> list[list[float | None]]:
        """`[kind][layer]`."""
        return [[view.value(self.cells[layer, kind]) if (layer, kind) in self.cells else None for layer in self.layers] for kind in self.kinds]


def views(diff: Diff) -> list[View]:
    """The figures that a comparison has maps of."""
    named = [(" of A", 0), (" of B", 1)] if diff.has_base else [("", 0)]
    found = [View(f"relative change{of}", _of_change(n, "relative"), "size of the change over the size of what was changed", 0.0) for of, n in named]
    if not diff.has_base:
        found.append(View("unchanged elements", _of_change(0, "unchanged"), "share of elements that are as they were", 0.0, 1.0))
    if diff.passes:
        found += [View(f"stable rank{of}", _of_change(n, "stable_rank"), "low: few directions hold the change", 0.0) for of, n in named]
    if diff.has_base:
        found.append(View("cosine of the changes", lambda f: f.cosine, "near 0 they add up, near 1 they repeat one another, below 0 they fight", signed=True))
        found.append(View("sign conflict", _conflict, "of the elements that both changed; 0.5 is chance", 0.0, 0.5))
    return found


def _of_change(number: int, attribute: str) -> Callable[[Figures], float | None]:
    return lambda figures: getattr(figures.changes[number], attribute)


def _conflict(figures: Figures) -> float | None:
    return None if figures.sign_agreement is None else 1.0 - figures.sign_agreement


def grid(diff: Diff) -> Grid:
    """The cells of a comparison's maps, kinds in the order of their groups."""
    cells = diff.by_layer_and_kind()
    role_of = {after_layer(t.name): t.role for t in diff.tensors}
    kinds = sorted(dict.fromkeys(kind for _, kind in cells), key=lambda kind: ROLES.index(role_of.get(kind, "other")))
    stack = diff.main_stack()
    outside = {t.name.removesuffix(".weight"): t.figures for t in diff.tensors if t.usable and (t.layer is None or not t.name.startswith(f"{stack}."))}
    return Grid(tuple(kinds), tuple(sorted({layer for layer, _ in cells})), cells, outside)


def check_plot(path: Path) -> None:
    """Refuse a picture that could not be drawn, before anything is read.

    Raises:
        PlanError: the ending is of no kind of picture, or matplotlib is not installed.
        OutputError: the folder is not there.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise PlanError(f"{path} names no kind of picture; end it with {', '.join(_ENDINGS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise PlanError("pictures need matplotlib, which is not installed; pip install 'plait[bench]', or use --format json")
    if not path.resolve().parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.resolve().parent}; make it first", path=str(path))


def plot_diff(diff: Diff, path: Path) -> None:
    """Draw the heat maps of a comparison.

    Raises:
        PlanError: it has no layers to draw, or as for `check_plot`.
        OutputError: the file cannot be written.
    """
    check_plot(path)
    cells = grid(diff)
    if not cells.drawable:
        what = "no tensor of a layer was compared" if not cells.cells else f"{len(cells.kinds)} kinds in {len(cells.layers)} layers were compared"
        raise PlanError(f"{path}: {what}, so there is no map to draw; use --format json")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shown = views(diff)
    across = 2 if len(shown) > 2 else 1
    down = -(-len(shown) // across)
    width = 1.9 + across * min(8.0, max(3.0, 0.9 + 0.15 * len(cells.layers)))
    height = 0.7 + down * (0.55 + 0.17 * len(cells.kinds))
    with mpl.rc_context({"font.size": 8, "font.family": "sans-serif", "svg.fonttype": "none", "svg.hashsalt": "plait", "axes.titlesize": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False)
        for place, view in enumerate(shown):
            axis = axes[place // across, place % across]
            _draw(figure, axis, cells, view, first=place % across == 0, last=place + across >= len(shown))
        for axis in axes.flat[len(shown) :]:
            axis.set_axis_off()
        figure.suptitle(_title(diff), fontsize=10, x=0.01, ha="left")
        try:
            figure.savefig(
                path, dpi=200, metadata={} if path.suffix.lower() == ".png" else {"Date": None} if path.suffix.lower() == ".svg" else {"CreationDate": None}
            )
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror}); name another file", path=str(path)) from error


def _title(diff: Diff) -> str:
    a, b, *base = (_plain(Path(label).name or label) for label in diff.labels)
    return f"Changes of A = {a} and B = {b} from {base[0]}" if base else f"Change of {b} from {a}"


def _plain(name: str) -> str:
    """A name without what matplotlib would read as formulas."""
    return printable(name, 60).replace("$", r"\$")


def _draw(figure: Any, axis: Any, cells: Grid, view: View, *, first: bool, last: bool) -> None:
    """One map with its scale."""
    rows = [[math.nan if value is None else value for value in row] for row in cells.values(view)]
    found = [value for row in rows for value in row if math.isfinite(value)]
    low, high = _ends(view, found)
    image = axis.imshow(rows, aspect="auto", cmap="RdBu_r" if view.signed else "viridis", vmin=low, vmax=high, interpolation="nearest")
    axis.set_facecolor("0.85")
    axis.set_yticks(range(len(cells.kinds)), [_plain(kind) if first else "" for kind in cells.kinds])
    step = max(1, -(-len(cells.layers) // 22))
    axis.set_xticks(range(0, len(cells.layers), step), [str(layer) for layer in cells.layers[::step]])
    axis.tick_params(length=0)
    axis.set_xticks([x - 0.5 for x in range(1, len(cells.layers))], minor=True)
    axis.set_yticks([y - 0.5 for y in range(1, len(cells.kinds))], minor=True)
    axis.grid(which="minor", color="white", linewidth=0.4)
    axis.tick_params(which="minor", length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.set_title(view.name, loc="left", fontweight="bold")
    axis.set_title(_outside(cells, view), loc="right", fontsize=6.5, color="0.35")
    if last:
        axis.set_xlabel("layer")
    bar = figure.colorbar(image, ax=axis, pad=0.01, aspect=12, fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, labelsize=7)


def _ends(view: View, found: Sequence[float]) -> tuple[float, float]:
    """Ends of the colour scale."""
    if view.signed:
        reach = max([0.1, *map(abs, found)])
        return -reach, reach
    low = view.low if view.low is not None else min(found, default=0.0)
    high = view.high if view.high is not None else max(found, default=1.0)
    return low, high if high > low else low + 1.0


def _outside(cells: Grid, view: View) -> str:
    """The same figure of the few tensors outside the layers."""
    told = [(name, view.value(figures)) for name, figures in list(cells.outside.items())[:3]]
    return "   ".join(f"{_plain(name.rpartition('.')[2])} {value:.2g}" for name, value in told if value is not None)
