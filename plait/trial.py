"""What a method would cost on the shapes of a model: a plan in which one checkpoint stands for the base and for every expert."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from plait.api import Options, _checkpoints, _make
from plait.catalogue import methods
from plait.models import Model, Opened, open_model, output_specs
from plait.ops.errors import PlanError
from plait.ops.method import Method
from plait.planner.plan import Plan
from plait.planner.types import Checkpoint


def trial_plan(method: Method, model: str, count: int | None = None, options: Options | None = None) -> tuple[Plan, int]:
    """The plan of a method with default parameters over a checkpoint, and how many experts it has.

    The plan is to be looked at, not to be run: its experts are the checkpoint under other names, so that each is read for itself.

    Args:
        method: of the catalogue.
        model: path of the checkpoint.
        count: experts; three, or as many as the method takes, when not given.
        options: how the machine may be used.

    Raises:
        PlanError: the method takes another number of experts, or cannot work on these shapes.
        CheckpointError: the model cannot be opened.
    """
    least, most = method.experts
    count = count if count is not None else max(least, min(most or 3, 3))
    base = open_model(model)
    copies = [_copy(base.donor, f"expert {k + 1}") for k in range(count)]
    call: dict[str, Any] = {"experts": copies}
    if method.base != "unused":
        call["base"] = base
    for statistic in getattr(method, "statistics", ()):
        if statistic.kind != "tensors":
            raise PlanError(
                f"{method.name} needs {statistic.name} of real experts, so that its cost cannot be told from shapes; plan a recipe", method=method.name
            )
        call[statistic.name] = [_copy(base.donor, f"{statistic.name} {k + 1}") for k in range(count)]
    if method.is_step:
        merged: Model = methods.linear(experts=copies, weight=1.0)
        expression = getattr(methods, method.name)(merged, **call)
    else:
        expression = getattr(methods, method.name)(**call)
    specs, notes = output_specs(expression, None)
    shapes = {spec.name: spec.leaves[0].shape for spec in specs}
    return _make(method.name, specs, shapes, _checkpoints(expression), options or Options(), notes), count


def _copy(checkpoint: Checkpoint, name: str) -> Opened:
    """The same headers as files of another model."""
    files = tuple(replace(f, path=f"{f.path} ({name})") for f in checkpoint.files)
    tensors = {n: ref._replace(file=f"{ref.file} ({name})") for n, ref in checkpoint.tensors.items()}
    return Opened(replace(checkpoint, label=name, path=f"{checkpoint.path} ({name})", files=files, tensors=tensors))
