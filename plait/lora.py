"""`plait extract-lora`: what fine-tuning changed, as a LoRA adapter that PEFT loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from plait.engine.extract import Extracted

_EXAMPLES = """
\b
Examples:
  plait extract-lora base math math-lora --rank 64
  plait extract-lora base math math-lora --rank 128 --energy 0.95      fewer where 95 % is reached
  plait extract-lora base math math-lora --accuracy fast               20 times as fast, and nearly as good
  plait extract-lora base math math-lora --include '\\.q_proj' --include '\\.v_proj'
  plait extract-lora base math math-lora --save-whole                  changed embeddings and norms, too
"""


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

    from plait.extraction import extract_lora
    from plait.progress import ByteBar
    from plait.stopping import stopped_by_signals

    with stopped_by_signals() as stop, ByteBar(Console(stderr=True, highlight=False, quiet=quiet), f"extract {out.name}") as bar:
        found = extract_lora(base, model, out, started=bar.begin, progress=bar.advance, stop=stop, **options)
    if form == "json":
        click.echo(json.dumps(found.to_dict(), indent=1))
    elif not quiet:
        _show(out, found)


def _show(out: Path, found: Extracted) -> None:
    """Table of tensors, then what is in the adapter and what is not."""
    from rich.console import Console
    from rich.table import Table

    from plait.planner.header_text import printable
    from plait.planner.sizes import size

    table = Table(box=None, pad_edge=False)
    for heading, justify in (("tensor", "left"), ("shape", "right"), ("rank", "right"), ("captured", "right")):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for f in found.factored:
        table.add_row(printable(f.name), " x ".join(map(str, f.shape)), str(f.rank), f"{100 * f.captured:.1f} %")
    console = Console(highlight=False, markup=False)
    console.print(table)
    tensors = f"{len(found.factored)} tensors as factors" + (f", {len(found.whole)} in full" if found.whole else "")
    console.print(f"{out}: {tensors}, {size(found.nbytes)}; {100 * found.captured:.1f} % of the change captured", soft_wrap=True)
    if found.left_out:
        names = list(found.left_out)
        shown = ", ".join(f"{printable(n)} ({found.left_out[n]})" for n in names[:4]) + (f", and {len(names) - 4} more" if len(names) > 4 else "")
        console.print(f"changed but not in the adapter: {shown}; --save-whole saves what it can in full", soft_wrap=True)
    if found.missing:
        console.print(f"{len(found.missing)} tensors of the base are not in the model, such as {printable(found.missing[0])}", soft_wrap=True)
