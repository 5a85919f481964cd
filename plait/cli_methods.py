"""`plait methods`: the catalogue."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from plait.ops.errors import PlaitError

_METHODS_EXAMPLES = """
\b
Examples:
  plait methods                     all of them, a line each
  plait methods ties                what ties does, its parameters, its source
  plait methods ties --on MODEL     and what it would cost on these shapes
  plait methods --format json       the same as data
"""


@click.command(epilog=_METHODS_EXAMPLES)
@click.argument("name", required=False)
@click.option("--on", "model", metavar="MODEL", help="Say what NAME would cost on the shapes of this checkpoint; reads headers only.")
@click.option("--experts", type=click.IntRange(1), metavar="N", help="Experts for --on. Default: three, or what NAME takes.")
@click.option("--memory", "-m", metavar="SIZE", help="Budget for --on. Default: half of the free memory.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="A table to read, or data.")
def methods(name: str | None, model: str | None, experts: int | None, memory: str | None, form: str) -> None:
    """List the merge methods by family, or say all about method NAME."""
    from plait.method_text import as_data
    from plait.ops.method import methods as known_methods
    from plait.ops.method import nearest
    from plait.ops.method import steps as known_steps
    from plait.show_methods import show_cost, show_method, show_methods

    known = {**known_methods(), **known_steps()}
    if name is not None and name not in known:
        raise PlaitError(f"no merge method called {name!r}{nearest(name, known)}; `plait methods` lists them")
    if model is not None and name is None:
        raise PlaitError("--on needs the name of a method: `plait methods NAME --on MODEL`")
    trial = None
    if name is not None and model is not None:
        from plait.api import Options
        from plait.trial import trial_plan

        trial = trial_plan(known[name], model, experts, Options(memory=memory))
    if form == "json":
        found = [as_data(m) for m in ([known[name]] if name else known.values())]
        if trial is not None:
            found[0]["on"] = {"model": model, "experts": trial[1], **asdict(trial[0].prediction)}
        click.echo(json.dumps(found, indent=1))
    elif name:
        show_method(known[name])
        if trial is not None:
            show_cost(trial[0], str(model), trial[1])
    else:
        show_methods(list(known.values()))
