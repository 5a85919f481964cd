"""The live view of a merge on a terminal: one calm block of a few lines, redrawn in place and gone when the merge is over."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from plait.engine.moments import Sample
from plait.following import Following
from plait.planner.header_text import printable
from plait.planner.plan import Plan
from plait.planner.sizes import size

_EVERY_S = 0.25  #: between two drawings
_OPEN_LINES = 3
_STYLES = {"reading": "cyan", "computing": "green", "writing": "magenta", "waiting": "yellow"}


class LiveView(Following):
    """Draws a run; a context manager. A console that is no terminal stays quiet, one that breaks is left alone.

    Args:
        console: where to draw.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._live: Live | None = None
        self._drawn_s = -1e9
        self._wide = (console.encoding or "").lower().startswith("utf")

    def __enter__(self) -> LiveView:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            with suppress(OSError):  # the terminal is gone
                live.stop()

    def started(self, plan: Plan) -> None:
        """Say what goes on before there is anything to measure."""
        super().started(plan)
        self._draw(Text(f"{printable(plan.title)}: preparing kernels", no_wrap=True, overflow="ellipsis"))

    def publishing(self) -> None:
        """Flushing may take a while."""
        super().publishing()
        if self.plan is not None:
            self._draw(Text(f"{printable(self.plan.title)}: making the output durable", no_wrap=True, overflow="ellipsis"))

    def show(self, sample: Sample) -> None:
        """Draw it, if it is time."""
        if sample.at_s - self._drawn_s >= _EVERY_S:
            self._drawn_s = sample.at_s
            self._draw(self.block(sample))

    def _draw(self, what: RenderableType) -> None:
        if self._live is not None:
            try:
                self._live.update(what, refresh=True)
            except OSError:
                self._live = None

    # -- what is drawn --------------------------------------------------------------------------
    def block(self, sample: Sample) -> Group:
        """The lines for the size that the terminal has now."""
        width, height = self._console.size
        lines = [self._head(sample, width)]
        if height >= 6 and self.plan is not None:
            lines += [self._memory(sample, width), *self._gpus(sample, width), self._threads()]
            room = max(0, min(_OPEN_LINES, height - len(lines) - 2))
            lines += self._open(sample)[:room]
        return Group(*lines)

    def _bar(self, part: float, width: int, style: str) -> Text:
        full, empty = ("━", "─") if self._wide else ("#", ".")
        filled = round(min(1.0, max(0.0, part)) * width)
        return Text.assemble((full * filled, style), (empty * (width - filled), "dim"))

    def _line(self, name: str, part: float, words: str, width: int, style: str) -> Text:
        room = width - len(words) - 12
        bar = self._bar(part, min(room, 24), style) + Text("  ") if room >= 8 else Text()
        line = Text.assemble((f"{name:<9}", "bold"), bar, words)
        line.no_wrap, line.overflow = True, "ellipsis"
        return line

    def _head(self, sample: Sample, width: int) -> Text:
        fraction = self.forecast.fraction(sample)
        return self._line(printable(self.plan.title if self.plan else "")[:8], fraction, f"{fraction:4.0%}  {self.progress_words(sample)}", width, "green")

    def _memory(self, sample: Sample, width: int) -> Text:
        assert self.plan is not None
        return self._line("memory", max(sample.leased_bytes, sample.private_bytes) / max(1, self.plan.budget_bytes), self.memory_words(sample), width, "blue")

    def _gpus(self, sample: Sample, width: int) -> list[Text]:
        budgets = self.plan.gpu_budget_bytes if self.plan is not None else ()
        levels = list(zip(sample.gpu_leased_bytes, budgets, strict=False))
        return [self._line(f"GPU {n}", used / max(1, most), f"{size(used)} leased of {size(most)}", width, "blue") for n, (used, most) in enumerate(levels)]

    def _threads(self) -> Text:
        line = Text.assemble((f"{'workers':<9}", "bold"), no_wrap=True, overflow="ellipsis")
        for number, (name, share) in enumerate(self.shares().items()):
            line.append("  " if number else "")
            line.append(f"{name} {share:.0%}", _STYLES[name])
        return line

    def _open(self, sample: Sample) -> list[Text]:
        found = []
        for opened in sample.open:
            words = f"{'':9}{printable(opened.component.name)}  pass {opened.number + 1}, block {opened.done} of {opened.units}"
            found.append(Text(words, style="dim", no_wrap=True, overflow="ellipsis"))
        return found
