"""`plait plan`: what a recipe would do and need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plait.cli_options import RECIPE_FORM, cache_options, machine_options, optimisation_options, options_of

if TYPE_CHECKING:
    from plait.api import Options
    from plait.planner.plan import Plan

_PLAN_EXAMPLES = """
\b
Examples:
  plait plan recipe.yml --memory 4GiB
  plait plan recipe.yml --cache results    and what the cache saves
  plait plan recipe.yml --no-foresight     and what an optimisation is worth
"""


@click.command(epilog=_PLAN_EXAMPLES + RECIPE_FORM)
@click.argument("recipe", type=click.Path(path_type=Path))
@machine_options
@cache_options
@optimisation_options
@click.option("--format", "form", type=click.Choice(["tree", "json"]), default="tree", show_default=True, help="A tree to read, or data.")
def plan(recipe: Path, form: str, **machine: Any) -> None:
    """Show what RECIPE would do and need; reads file headers only.

    Everything wrong with the recipe, the models or the budget is found here, before a weight is read.
    """
    from plait.api import plan as make

    options = options_of(machine)
    planned = make(recipe, options)
    if form == "json":
        click.echo(planned.to_json())
        return
    from rich.console import Console

    from plait.planner.explain import to_tree

    Console(highlight=False).print(to_tree(planned, _costs(recipe, planned, options)))


def _costs(recipe: Path, planned: Plan, options: Options) -> list[str]:
    """For each optimisation that is switched off what it would be worth: the plan is made again with that one on."""
    from plait.api import plan as make
    from plait.planner.worth import worth

    lines = []
    for name in planned.without:
        others = tuple(other for other in planned.without if other != name)
        lines.append(f"{name}: {worth(make(recipe, replace(options, without=others)), planned)}")
    return lines
