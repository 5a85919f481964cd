"""`plait plan`: what a recipe would do and need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from plait.cli_options import RECIPE_FORM, cache_options, machine_options, options_of

_PLAN_EXAMPLES = """
\b
Examples:
  plait plan recipe.yml --memory 4GiB
  plait plan recipe.yml --cache results    and what the cache saves
"""


@click.command(epilog=_PLAN_EXAMPLES + RECIPE_FORM)
@click.argument("recipe", type=click.Path(path_type=Path))
@machine_options
@cache_options
@click.option("--format", "form", type=click.Choice(["tree", "json"]), default="tree", show_default=True, help="A tree to read, or data.")
def plan(recipe: Path, form: str, **machine: Any) -> None:
    """Show what RECIPE would do and need; reads file headers only.

    Everything wrong with the recipe, the models or the budget is found here, before a weight is read.
    """
    from plait.api import plan as make

    planned = make(recipe, options_of(machine))
    if form == "json":
        click.echo(planned.to_json())
        return
    from rich.console import Console

    from plait.planner.explain import to_tree

    Console(highlight=False).print(to_tree(planned))
