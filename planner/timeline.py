"""Predicted memory over predicted time: what `Prediction.peak_bytes` is the largest value of.

Three things are held: what the program itself takes, from the beginning to the end; buffers of the workers, while tensors are merged; and
what the open components hold, which is bounded by the same sliding window that predicts the peak (`schedule.windows`). A component
becomes the oldest open one when the one before it is done, after its share of the predicted time. Reading ahead and waiting for the disk
move these moments, not the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from plait.planner.cost import lease_of, stage_read_bytes
from plait.planner.device_cost import device_whole_bytes, spread
from plait.planner.plan import Plan
from plait.planner.schedule import stage_sweeps
from plait.planner.windows import WINDOW, windows

#: More points are drawn by no screen.
MOST_POINTS = 2000
STARTING, PUBLISHING = "starting", "publishing"


class Point(NamedTuple):
    """What is held at most from a moment on, until the next point.

    Attributes:
        seconds: since the start.
        task: the oldest output tensor that is open then, or `starting` or `publishing`.
        program_bytes: of the program itself.
        buffer_bytes: of the workers' buffers, and of the inputs that they keep between passes.
        held_bytes: of what open tensors hold.
        gpu_bytes: on each GPU that the plan uses.
    """

    seconds: float
    task: str
    program_bytes: int
    buffer_bytes: int = 0
    held_bytes: int = 0
    gpu_bytes: tuple[int, ...] = ()

    @property
    def host_bytes(self) -> int:
        """Private memory above the import baseline."""
        return self.program_bytes + self.buffer_bytes + self.held_bytes


@dataclass(frozen=True, slots=True)
class Timeline:
    """A staircase of memory.

    Attributes:
        points: in order of time.
        seconds: where the last of them ends.
    """

    points: tuple[Point, ...]
    seconds: float

    @property
    def peak(self) -> Point:
        """The first point that is highest on the host."""
        return max(self.points, key=lambda p: p.host_bytes)


def timeline(plan: Plan, most: int = MOST_POINTS) -> Timeline:
    """The predicted memory of a plan over its predicted time.

    Args:
        plan: whole, with its timing.
        most: points at most, about; neighbours become one that has the highest values of each.
    """
    p, timing = plan.prediction, plan.timing
    idle = (0,) * len(plan.gpu_budget_bytes)
    found = [Point(0.0, STARTING, p.runtime_bytes, gpu_bytes=idle)]
    shares = [share for sweep in _shares(plan) for share in sweep]
    total = sum(shares)
    scale = max(0.0, timing.seconds - timing.starting_s - timing.publishing_s) / total if total else 0.0
    buffers = plan.workers * (p.worker_bytes + p.slab_bytes)
    now, held, gpus = timing.starting_s, _held(plan), _gpus(plan)
    points = []
    for number, share in enumerate(shares):
        k = number % len(held)
        if share or not total:
            points.append(Point(now, plan.components[k].name, p.runtime_bytes, buffers, held[k], gpus[k]))
            now += share * scale
    found += _fewer(points, max(1, most - 2))
    found.append(Point(now, PUBLISHING, p.runtime_bytes, gpu_bytes=idle))
    return Timeline(tuple(found), max(timing.seconds, now))


def _shares(plan: Plan) -> Iterator[list[float]]:
    """For each sweep the predicted seconds of each component, without waiting; a sweep has those of the passes that run in it."""
    after = {scope.key: scope.sweep for scope in plan.scopes}
    each = {t.program: t.seconds / t.count for t in plan.timing.programs}
    parts: list[list[float]] = []
    for program in plan.programs:
        weights = [0.0] * plan.sweeps
        for stage, sweep in zip(program.stages, stage_sweeps(program, after), strict=True):
            weights[sweep] += 1.0 + stage_read_bytes(program, stage)
        whole = sum(weights)
        parts.append([w / whole for w in weights] if whole else [1.0] + [0.0] * (plan.sweeps - 1))
    for sweep in range(plan.sweeps):
        yield [each.get(c.program, 0.0) * parts[c.program][sweep] for c in plan.components]


def _held(plan: Plan) -> list[int]:
    """For each component what the open ones hold together at most while it is the oldest."""
    p = plan.prediction
    leases = [lease_of(q, on_gpu=n in plan.on_gpu, lean=n in plan.lean) for n, q in enumerate(plan.programs)]
    limit = plan.budget_bytes - p.runtime_bytes - plan.workers * (p.worker_bytes + p.slab_bytes)
    return windows([leases[c.program] for c in plan.components], plan.workers, limit)


def _gpus(plan: Plan) -> list[tuple[int, ...]]:
    """For each component what is leased on each GPU at most while it is the oldest: blocks of the workers, and whole ops wherever there is room."""
    budgets = plan.gpu_budget_bytes
    if not budgets:
        return [()] * len(plan.components)
    room, _ = spread(budgets, plan.gpu_worker_bytes, plan.workers) if plan.gpu_worker_bytes else (list(budgets), 0)
    wholes = [0] * len(plan.programs)
    for n in plan.on_gpu:
        program = plan.programs[n]
        wholes[n] = max((device_whole_bytes(program.nodes[w]) for stage in program.stages for w in stage.wholes), default=0)
    needs, reach = [wholes[c.program] for c in plan.components], WINDOW * plan.workers
    together = [sum(sorted(needs[k : k + reach])[-plan.workers :]) for k in range(len(needs))]
    return [tuple(budget - free + min(free, nbytes) for budget, free in zip(budgets, room, strict=True)) for nbytes in together]


def _fewer(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points, each for as many neighbours."""
    step = -(-len(points) // most)
    return [_highest(points[k : k + step]) for k in range(0, len(points), step)] if step > 1 else list(points)


def _highest(points: Sequence[Point]) -> Point:
    """One point for several: it begins with the first, names the highest, and is nowhere lower than they are."""
    top = max(points, key=lambda p: p.host_bytes)
    gpus = tuple(max(values) for values in zip(*(p.gpu_bytes for p in points), strict=True))
    return Point(points[0].seconds, top.task, top.program_bytes, top.buffer_bytes, top.held_bytes, gpus)
