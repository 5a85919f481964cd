"""Comparing models from Python: `plait.diff`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from plait.differences import Diff, TensorDiff
from plait.engine.events import Events, Report
from plait.planner.layers import role, split
from plait.planner.pairing import Pairing, comparison_plan, number_names, pair_up
from plait.planner.plan import Plan

#: Passes of Lanczos' method over each matrix.
RANK_PASSES = 8


def diff(
    a: str | Path,
    b: str | Path,
    base: str | Path | None = None,
    *,
    memory: str | int | None = None,
    workers: int | None = None,
    rank: bool = False,
    backend: str = "auto",
    events: Events | None = None,
    stop: threading.Event | None = None,
) -> Diff:
    """Compare two models, tensor by tensor, streamed in a memory budget.

    Args:
        a, b: model folders, files or names in the local Hugging Face cache.
        base: what both were tuned from; then their changes from it are compared, else B with A.
        memory: budget for private memory beside imports; None: half of what is free.
        workers: threads; None for the number of cores.
        rank: find the stable rank of changes of matrices, too: eight more passes.
        backend: `auto`, `numba` or `torch`.
        events: hears how the run goes on.
        stop: set it to end the run.

    Returns:
        Figures of every tensor, the same under every budget and number of workers.

    Raises:
        PlanError: the models have no tensor in common that could be compared.
        BudgetTooSmall, CheckpointError, KernelError, Stopped: as their docstrings say.
    """
    from plait.api import Options, resolve
    from plait.planner.checkpoint import open_checkpoint, resolve_model

    begun = time.perf_counter()
    given = [a, b] if base is None else [a, b, base]
    models = [open_checkpoint(resolve_model(str(name)), str(name)) for name in given]
    passes = RANK_PASSES if rank else 0
    pairing = pair_up(models, ("A", "B", "the base")[: len(models)], ranked=rank)
    resources, notes = resolve(Options(memory=memory, workers=workers, backend=backend, device="cpu"))
    plan = comparison_plan(pairing, models, resources, passes, notes)
    found, report = run_numbers(plan, events, stop)
    tensors = tuple(_tensor(pairing, number, passes, found, report) for number in range(len(pairing.pairs)))
    bitwise = _same_bits(pairing)
    seconds = time.perf_counter() - begun
    if events is not None:
        report.seconds = seconds
        events.ended(report)
    labels = tuple(model.label for model in models)
    peak, budget = plan.prediction.peak_bytes, plan.budget_bytes
    return Diff(labels, tensors, bitwise, pairing.left_out, seconds, report.bytes_read, peak, budget, passes)


def run_numbers(plan: Plan, events: Events | None = None, stop: threading.Event | None = None) -> tuple[Callable[[str], Sequence[float]], Report]:
    """Run a plan whose outputs are numbers.

    Returns:
        The numbers of an output by its name, and what the run did.

    Raises:
        CheckpointError: a model changed meanwhile.
        PlaitError: as for `plait.engine.executor.execute`.
    """
    from plait.engine.executor import execute
    from plait.engine.machine import available_memory
    from plait.engine.numbers import Numbers
    from plait.engine.reader import Reader

    sink = Numbers(plan.layout)
    with Reader(drop_behind=sum(file.size for file in plan.files) > available_memory()) as reader:
        report = execute(plan, sink, reader, events, stop=stop, allow_nonfinite=True)
        reader.check_unchanged(plan.files)
    return (lambda name: sink.of(name).tolist()), report


def _tensor(pairing: Pairing, number: int, passes: int, found: Callable[[str], Sequence[float]], report: Report) -> TensorDiff:
    pair = pairing.pairs[number]
    place = split(pair.name)
    sums = dict(zip(number_names(pair, passes), found(pair.name), strict=True))
    nonfinite = tuple(report.nonfinite_inputs.get((ref.file, ref.name), 0) for ref in pair.refs)
    dtypes = tuple(ref.dtype for ref in pair.refs)
    return TensorDiff(pair.name, role(pair.name), place[1] if place is not None else None, pair.refs[0].shape, dtypes, sums, nonfinite)


def _same_bits(pairing: Pairing) -> dict[str, bool]:
    """Whether tensors that are not computed on are equal, bit for bit."""
    if not pairing.bitwise:
        return {}
    from plait.engine.reader import Reader
    from plait.engine.weightdiff import changed
    from plait.planner.lora_targets import Target

    with Reader() as reader:
        targets = {pair.name: Target(pair.name, "", "whole", pair.refs[1], pair.refs[0]) for pair in pairing.bitwise}
        return {name: not changed(target, reader, lambda nbytes: None) for name, target in targets.items()}
