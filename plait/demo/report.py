"""The tables at the end of the demo, and the same numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from plait.demo.merging import Cost


@dataclass(frozen=True, slots=True)
class Row:
    """One checkpoint: its kind (base, expert or merge), its accuracy on each task, and what its merge cost."""

    name: str
    kind: str
    accuracy: tuple[float, ...]
    cost: Cost | None = None

    @property
    def mean(self) -> float:
        """Mean accuracy over the tasks."""
        return sum(self.accuracy) / len(self.accuracy)


def accuracy_table(rows: Sequence[Row], tasks: Sequence[str], tested: int) -> Table:
    """Accuracy of every checkpoint on every task, in per cent; the best of a column is bold."""
    table = Table(title=f"Accuracy in %, on {tested} unseen texts a task", title_justify="left")
    table.add_column("checkpoint", no_wrap=True)
    for task in [*tasks, "mean"]:
        table.add_column(task, justify="right", no_wrap=True)
    columns = [*zip(*(row.accuracy for row in rows), strict=True), tuple(row.mean for row in rows)]
    best = [max(column) for column in columns]
    for number, row in enumerate(rows):
        last = number + 1 == len(rows) or rows[number + 1].kind != row.kind
        values = [column[number] for column in columns]
        table.add_row(
            f"{row.kind} {row.name}" if row.kind != "base" else "base",
            *(f"[bold]{100 * value:.1f}[/bold]" if value == top else f"{100 * value:.1f}" for value, top in zip(values, best, strict=True)),
            end_section=last,
        )
    return table


def cost_table(rows: Sequence[Row], memory: str) -> Table:
    """Seconds, bytes and peak memory of every merge."""
    table = Table(title=f"Cost of each merge, --memory {memory}", title_justify="left")
    table.add_column("merge", no_wrap=True)
    for heading in ("seconds", "written", "predicted peak", "measured peak", "imports"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row.cost is not None:
            cost = row.cost
            peaks = (cost.predicted_peak_bytes, cost.measured_above_bytes, cost.baseline_bytes)
            table.add_row(row.name, f"{cost.seconds:.1f}", size(cost.written_bytes), *map(size, peaks))
    table.caption = "Peaks are of private memory (RssAnon) above what Python and its imports take, which is the last column."
    table.caption_justify = "left"
    return table


def story_lines(rows: Sequence[Row], tasks: Sequence[str]) -> list[str]:
    """What the accuracies say, worked out from them alone."""
    base = next(row for row in rows if row.kind == "base")
    experts = [row for row in rows if row.kind == "expert"]
    merges = sorted((row for row in rows if row.kind == "merge"), key=lambda row: -row.mean)
    own = [100 * (expert.accuracy[index] - base.accuracy[index]) for index, expert in enumerate(experts)]
    single = max(experts, key=lambda row: row.mean)
    lines = ["On its own task an expert is better than the base by " + ", ".join(f"{gain:+.1f} ({task})" for gain, task in zip(own, tasks, strict=True)) + "."]
    lines.append(
        f"All three tasks at once: base {100 * base.mean:.1f}, the best expert {100 * single.mean:.1f} ({single.name}), "
        f"the best merge {100 * merges[0].mean:.1f} ({merges[0].name}), the worst {100 * merges[-1].mean:.1f} ({merges[-1].name}); "
        f"three separate experts, each on its own task, {100 * sum(row.accuracy[i] for i, row in enumerate(experts)) / len(experts):.1f}."
    )
    return lines


def write_results(path: Path, rows: Sequence[Row], tasks: Sequence[str], memory: str) -> None:
    """Keep the numbers of the tables as JSON."""
    data = {
        "tasks": list(tasks),
        "memory": memory,
        "checkpoints": [
            {
                "name": row.name,
                "kind": row.kind,
                "accuracy": dict(zip(tasks, row.accuracy, strict=True)),
                "mean": row.mean,
                "cost": asdict(row.cost) if row.cost else None,
            }
            for row in rows
        ],
    }
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def size(count: int | None) -> str:
    """A number of bytes in MiB, or a dash where it is not known."""
    return "-" if count is None else f"{count / 2**20:.1f} MiB"
