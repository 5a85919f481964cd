"""`plait inspect`: a checkpoint at a glance."""

from __future__ import annotations

import json

import click

_INSPECT_EXAMPLES = """
\b
Examples:
  plait inspect path/to/model             parameters, dtypes, layers, shards
  plait inspect path/to/model --tensors   and every tensor
  plait inspect model.safetensors --format json
"""


@click.command(epilog=_INSPECT_EXAMPLES)
@click.argument("checkpoint")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="A table to read, or data.")
@click.option("--tensors", is_flag=True, help="List every tensor.")
def inspect(checkpoint: str, form: str, tensors: bool) -> None:
    """Show what CHECKPOINT holds; reads file headers only."""
    from plait.planner.checkpoint import open_checkpoint, resolve_model
    from plait.planner.inspect import summarise
    from plait.show import show_checkpoint

    opened = open_checkpoint(resolve_model(checkpoint), checkpoint)
    summary = summarise(opened)
    if form == "json":
        listed = {n: {"dtype": r.dtype, "shape": list(r.shape), "nbytes": r.nbytes} for n, r in opened.tensors.items()}
        click.echo(json.dumps({**summary, **({"tensors": listed} if tensors else {})}, indent=1))
    else:
        show_checkpoint(checkpoint, summary, opened if tensors else None)
