"""LoRA extraction from Python: `plait.extract_lora`."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from plait.ops.errors import BudgetTooSmall, PlanError

if TYPE_CHECKING:
    from plait.engine.extract import Extracted
    from plait.planner.lora_targets import Target
    from plait.planner.types import Checkpoint


def extract_lora(
    base: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    rank: int = 64,
    energy: float | None = None,
    accuracy: Literal["exact", "fast"] = "exact",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    memory: str | int | None = None,
    distribute_scale: bool = True,
    dtype: str | None = None,
    save_whole: bool = False,
    overwrite: bool = False,
    started: Callable[[int], None] = lambda nbytes: None,
    progress: Callable[[int], None] = lambda nbytes: None,
    stop: threading.Event | None = None,
) -> Extracted:
    """Approximate what a fine-tuned model changed by a LoRA adapter, one tensor at a time.

    Args:
        base: the model it was tuned from: folder, file or name in the local Hugging Face cache.
        model: the fine-tuned model.
        out: adapter folder to make; it appears whole, at the end, or not at all.
        rank: most rank of one tensor.
        energy: take the smallest rank that holds this share of ‖W - W_0‖², if it is below `rank`.
        accuracy: `exact`, the best there is at that rank; `fast`, random sketches (`ops/kernels/randomized.py` has the bound).
        include, exclude: regular expressions searched in tensor names.
        memory: budget for private memory beside imports; None: half of what is free.
        distribute_scale: share singular values between A and B; else all are in A.
        dtype: of the factors; None: that of most of the model.
        save_whole: save in full what has changed and cannot be decomposed.
        overwrite: replace what is at `out`, at the end.
        started, progress: hear how many bytes will be read, and of bytes read.
        stop: when set, the run ends after the tensor at hand.

    Returns:
        Rank and captured energy of every tensor, and what is not in the adapter.

    Raises:
        BudgetTooSmall: the largest tensor does not fit; nothing was read.
        CheckpointError, KernelError, OutputError, PlanError, Stopped: as their docstrings say; nothing was published.
    """
    from plait.engine.adapter import AdapterFolder
    from plait.engine.extract import Settings, extract
    from plait.engine.peftconfig import peft_config
    from plait.engine.reader import Reader
    from plait.planner.checkpoint import open_checkpoint, resolve_model
    from plait.planner.lora_targets import TRANSPOSED, find_targets, storage_code

    _check(rank, energy, accuracy)
    old, new = (open_checkpoint(resolve_model(str(name)), str(name)) for name in (base, model))
    targets = find_targets(old, new, include, exclude)
    code = _most_used(new) if dtype is None else storage_code(dtype)
    _check_memory(targets.wanted, rank, accuracy, memory)
    settings = Settings(rank, energy, accuracy, code, distribute_scale, save_whole)
    transposed = new.config.get("model_type") in TRANSPOSED
    started(sum(t.model.nbytes + (t.base.nbytes if t.base is not None else 0) for t in targets.wanted))
    folder = AdapterFolder(Path(out), [t.name for t in targets.wanted for _ in range(2)], (old.path, new.path), overwrite=overwrite)
    with folder, Reader() as reader:
        found = extract(targets, settings, folder, reader, progress, stop, transposed=transposed)
        reader.check_unchanged((*old.files, *new.files))
        architectures = old.config.get("architectures")
        names = [str(a) for a in architectures] if isinstance(architectures, list) else []
        folder.publish(peft_config(found, targets, str(base), names, transposed=transposed))
    return found


def _check(rank: int, energy: float | None, accuracy: str) -> None:
    if rank < 1:
        raise PlanError(f"rank {rank} holds nothing; give at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise PlanError(f"energy {energy} is no share of a whole; give a number above 0 and at most 1")
    if accuracy not in ("exact", "fast"):
        raise PlanError(f"accuracy {accuracy!r} is not one of exact, fast")


def _most_used(model: Checkpoint) -> str:
    """The dtype that factors can have and most bytes of the model do; float32 where there is none."""
    counts: Counter[str] = Counter()
    for tensor in model.tensors.values():
        if tensor.dtype in ("BF16", "F16", "F32"):
            counts[tensor.dtype] += tensor.nbytes
    return counts.most_common(1)[0][0] if counts else "F32"


def _check_memory(targets: Sequence[Target], rank: int, accuracy: Literal["exact", "fast"], memory: str | int | None) -> None:
    """Refuse a budget that the largest tensor does not fit into."""
    from plait.api import checked_size
    from plait.engine.machine import available_memory
    from plait.planner.lora_targets import target_bytes
    from plait.planner.sizes import size, size_up

    budget = checked_size(memory, "memory") if memory is not None else available_memory() // 2
    needed, largest = max(((target_bytes(t, rank, accuracy, os.cpu_count() or 1), t) for t in targets), key=lambda pair: pair[0])
    if needed > budget:
        hint = "--accuracy fast needs less; or " if accuracy == "exact" and target_bytes(largest, rank, "fast", os.cpu_count() or 1) <= budget else ""
        raise BudgetTooSmall(
            f"{largest.name} of {list(largest.model.shape)} needs {size(needed)} to be decomposed at rank {rank}, and {size(budget)} is the budget: "
            f"{hint}give --memory {size_up(needed)} or more, or leave it out with --exclude",
            tensor=largest.name,
            needed=needed,
            budget=budget,
        )
