"""A checkpoint at a glance from Python: `plait.inspect`."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.engine.events import Events
from plait.planner.inspect import summarise
from plait.planner.types import Checkpoint


@dataclass(frozen=True, slots=True)
class TensorScan:
    """What a look at all values of one tensor found.

    Attributes:
        name: of it.
        nan, infinite, zeros: elements that are.
        largest: largest magnitude of the finite ones.
        mean, std: of the finite ones, others counting as 0.
    """

    name: str
    nan: int
    infinite: int
    zeros: int
    largest: float
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class Scan:
    """What a look at all values found.

    Attributes:
        tensors: of every tensor that is computed on.
        equal: groups of tensors that hold the same bytes, such as tied embeddings; tensors of zeros or ones alone are left out.
        not_scanned: integer, float64, quantised and empty tensors.
        seconds: wall time.
        bytes_read: in all.
    """

    tensors: tuple[TensorScan, ...]
    equal: tuple[tuple[str, ...], ...]
    not_scanned: tuple[str, ...]
    seconds: float
    bytes_read: int

    @property
    def nonfinite(self) -> tuple[TensorScan, ...]:
        """Tensors that hold NaN or infinity."""
        return tuple(t for t in self.tensors if t.nan or t.infinite)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        tensors = {t.name: {key: getattr(t, key) for key in ("nan", "infinite", "zeros", "largest", "mean", "std")} for t in self.tensors}
        nonfinite = [t.name for t in self.nonfinite]
        facts = {"seconds": self.seconds, "bytes_read": self.bytes_read}
        return {"nonfinite": nonfinite, "equal": [list(g) for g in self.equal], "not_scanned": list(self.not_scanned), **facts, "tensors": tensors}


@dataclass(frozen=True, slots=True)
class Inspection:
    """A checkpoint's facts.

    Attributes:
        summary: from headers and configuration (`docs/inspect.md`).
        checkpoint: its headers.
        scan: what its values hold, where that was asked for.
    """

    summary: dict[str, Any]
    checkpoint: Checkpoint
    scan: Scan | None = None

    @property
    def parameters(self) -> int:
        """Elements of all float tensors."""
        return int(self.summary["parameters"])

    @property
    def odd(self) -> dict[str, list[str]]:
        """What does not fit in, by kind."""
        return dict(self.summary["odd"])

    def to_dict(self, *, tensors: bool = False) -> dict[str, Any]:
        """JSON-able form; with `tensors`, every tensor's dtype, shape and size in place of their number."""
        found = {**self.summary, **({"scan": self.scan.to_dict()} if self.scan is not None else {})}
        if tensors:
            listed = self.checkpoint.tensors.items()
            found["tensors"] = {n: {"dtype": r.dtype, "shape": list(r.shape), "nbytes": r.nbytes} for n, r in listed}
        return found

    def to_json(self, *, tensors: bool = False) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(tensors=tensors), indent=1, allow_nan=False)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from plait.inspection_page import notebook

        return notebook(self)


def inspect(
    path: str | Path,
    *,
    scan: bool = False,
    memory: str | int | None = None,
    workers: int | None = None,
    events: Events | None = None,
    stop: threading.Event | None = None,
) -> Inspection:
    """Say what a checkpoint holds; from headers alone, or with a look at every value.

    Args:
        path: a model folder, file, or name in the local Hugging Face cache.
        scan: read all weights, streamed: NaN, infinity, zeros, largest magnitudes, and tensors that hold the same bytes.
        memory, workers, events, stop: of the scan, as for `plait.diff`.

    Raises:
        CheckpointError: it is missing, damaged or not safetensors.
        BudgetTooSmall, KernelError, Stopped: of the scan.
    """
    from plait.planner.checkpoint import open_checkpoint, resolve_model

    opened = open_checkpoint(resolve_model(str(path)), str(path))
    return Inspection(summarise(opened), opened, _scan(opened, memory, workers, events, stop) if scan else None)


def _scan(model: Checkpoint, memory: str | int | None, workers: int | None, events: Events | None, stop: threading.Event | None) -> Scan:
    import math
    import time

    from plait.api import Options, resolve
    from plait.diffing import run_numbers
    from plait.ops.comparison import ONE
    from plait.planner.pairing import scan_plan

    begun = time.perf_counter()
    resources, notes = resolve(Options(memory=memory, workers=workers, device="cpu"))
    plan = scan_plan(model, resources, notes)
    found, report = run_numbers(plan, events, stop)
    tensors, alike = [], dict[tuple[Any, ...], list[str]]()
    planned = {component.name for component in plan.components}
    for ref in (ref for name, ref in model.tensors.items() if name in planned):
        numbers = dict(zip(ONE, found(ref.name), strict=True))
        count = math.prod(ref.shape)
        mean = numbers["sum"] / count
        spread = math.sqrt(max(0.0, numbers["squares"] / count - mean * mean))
        whole = {key: int(numbers[key]) for key in ("nan", "infinite", "zeros")}
        tensors.append(TensorScan(ref.name, **whole, largest=numbers["largest"], mean=mean, std=spread))
        if spread > 0.0:
            alike.setdefault((ref.shape, ref.dtype, *numbers.values()), []).append(ref.name)
    equal = _equal(model, [names for names in alike.values() if len(names) > 1])
    scanned = {t.name for t in tensors}
    left = tuple(name for name in model.tensors if name not in scanned)
    return Scan(tuple(tensors), equal, left, time.perf_counter() - begun, report.bytes_read)


def _equal(model: Checkpoint, groups: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Of tensors whose statistics are the same, those whose bytes are, too."""
    from plait.engine.reader import Reader
    from plait.engine.weightdiff import changed
    from plait.planner.lora_targets import Target

    found = []
    with Reader() as reader:
        for names in groups:
            first = model.tensors[names[0]]
            same = [n for n in names[1:] if not changed(Target(n, "", "whole", model.tensors[n], first), reader, lambda nbytes: None)]
            if same:
                found.append((names[0], *same))
    return tuple(found)
