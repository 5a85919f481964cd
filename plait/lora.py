"""`plait extract-lora`: what fine-tuning changed, as a LoRA adapter that PEFT loads."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from plait.ops.errors import BudgetTooSmall, PlanError

if TYPE_CHECKING:
    from plait.engine.extract import Extracted
    from plait.planner.lora_targets import Target
    from plait.planner.types import Checkpoint

_EXAMPLES = """
\b
Examples:
  plait extract-lora base math math-lora --rank 64
  plait extract-lora base math math-lora --rank 128 --energy 0.95      fewer where 95 % is reached
  plait extract-lora base math math-lora --accuracy fast               20 times as fast, and nearly as good
  plait extract-lora base math math-lora --include '\\.q_proj' --include '\\.v_proj'
  plait extract-lora base math math-lora --save-whole                  changed embeddings and norms, too
"""


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
    from plait.planner.schedule import size, size_up

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


@click.command("extract-lora", epilog=_EXAMPLES)
@click.argument("base")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--rank", "-r", type=click.IntRange(1), default=64, show_default=True, help="Most rank of one tensor.")
@click.option("--energy", type=float, metavar="SHARE", help="Smallest rank that holds this share of the change's squared norm, such as 0.95.")
@click.option("--accuracy", type=click.Choice(["exact", "fast"]), default="exact", show_default=True, help="The best of that rank, or random sketches.")
@click.option("--include", multiple=True, metavar="REGEX", help="Only tensors whose name matches; may be given again.")
@click.option("--exclude", multiple=True, metavar="REGEX", help="No tensor whose name matches; may be given again.")
@click.option("--memory", "-m", metavar="SIZE", help="Budget for private memory, such as 2GiB. Default: half of the free memory.")
@click.option("--distribute-scale/--no-distribute-scale", default=True, show_default=True, help="Share singular values between A and B.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of the factors. Default: that of most of the model.")
@click.option("--save-whole", is_flag=True, help="Save changed embeddings, heads, norms and biases, too (modules_to_save).")
@click.option("--overwrite", is_flag=True, help="Replace the adapter or checkpoint at OUT; it stays until the new one is whole.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="A table to read, or data.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing unless something is wrong.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def extract_lora_command(base: str, model: str, out: Path, form: str, quiet: bool, debug: bool, **options: Any) -> None:
    """Extract what MODEL changed in BASE as a LoRA adapter, into the new folder OUT.

    Matrices and convolutions are decomposed, one at a time: the adapter is the best approximation of its rank, and PEFT loads
    it on BASE. What is shown as captured is the share of the change's squared norm that the written factors give back.
    """
    from rich.console import Console

    from plait.progress import ByteBar
    from plait.stopping import stopped_by_signals

    with stopped_by_signals() as stop, ByteBar(Console(stderr=True, highlight=False, quiet=quiet), f"extract {out.name}") as bar:
        found = extract_lora(base, model, out, started=bar.begin, progress=bar.progress, stop=stop, **options)
    if form == "json":
        click.echo(json.dumps(found.to_dict(), indent=1))
    elif not quiet:
        _show(out, found)


def _show(out: Path, found: Extracted) -> None:
    """Table of tensors, then what is in the adapter and what is not."""
    from rich.console import Console
    from rich.table import Table

    from plait.planner.schedule import size

    table = Table(box=None, pad_edge=False)
    for heading, justify in (("tensor", "left"), ("shape", "right"), ("rank", "right"), ("captured", "right")):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for f in found.factored:
        table.add_row(f.name, " x ".join(map(str, f.shape)), str(f.rank), f"{100 * f.captured:.1f} %")
    console = Console(highlight=False, markup=False)
    console.print(table)
    tensors = f"{len(found.factored)} tensors as factors" + (f", {len(found.whole)} in full" if found.whole else "")
    console.print(f"{out}: {tensors}, {size(found.nbytes)}; {100 * found.captured:.1f} % of the change captured", soft_wrap=True)
    if found.left_out:
        names = list(found.left_out)
        shown = ", ".join(f"{n} ({found.left_out[n]})" for n in names[:4]) + (f", and {len(names) - 4} more" if len(names) > 4 else "")
        console.print(f"changed but not in the adapter: {shown}; --save-whole saves what it can in full", soft_wrap=True)
    if found.missing:
        console.print(f"{len(found.missing)} tensors of the base are not in the model, such as {found.missing[0]}", soft_wrap=True)
