"""What does not fit between a recipe and its models, gathered over all tensors and told at once."""

from __future__ import annotations

from collections.abc import Hashable

from plait.ops.errors import PlanError, RecipeError
from plait.planner.types import Mark

MAX_LINES = 20


class Findings:
    """Problems in groups: the first of each kind is told in full, those like it are counted."""

    def __init__(self) -> None:
        """Nothing found yet."""
        self._groups: dict[Hashable, list[str]] = {}
        self._marks: dict[Hashable, Mark] = {}

    def add(self, kind: Hashable, message: str, mark: Mark | None = None) -> None:
        """Note one problem; those of the same `kind` are counted together."""
        self._groups.setdefault(kind, []).append(message)
        if mark is not None:
            self._marks.setdefault(kind, mark)

    def lines(self) -> tuple[str, ...]:
        """One line a group."""
        lines = []
        for kind, messages in self._groups.items():
            place = f"{self._marks[kind]}: " if kind in self._marks else ""
            more = f" (and {len(messages) - 1} more like it)" if len(messages) > 1 else ""
            lines.append(f"{place}{messages[0]}{more}")
        return tuple(lines)

    def raise_any(self, error: type[PlanError] | type[RecipeError]) -> None:
        """Raise everything found as one error; nothing when nothing was found."""
        lines = self.lines()
        if not lines:
            return
        shown = lines if len(lines) <= MAX_LINES else (*lines[:MAX_LINES], f"and {len(lines) - MAX_LINES} problems of other kinds")
        total = sum(len(messages) for messages in self._groups.values())
        raise error("\n".join(shown), problems=lines, count=total)
