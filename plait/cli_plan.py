"""`plait plan`: what a recipe would do and need, why, and what another recipe would change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plait.cli_options import RECIPE_FORM, cache_options, machine_options, optimisation_options, options_of
from plait.cli_output import give, output_option
from plait.ops.errors import PlanError

if TYPE_CHECKING:
    from rich.tree import Tree

    from plait.api import Options
    from plait.planner.plan import Plan

_PLAN_EXAMPLES = """
\b
Examples:
  plait plan recipe.yml                        what it needs and does
  plait plan recipe.yml --memory 4GiB          within a budget
  plait plan recipe.yml --why lm_head.weight   one tensor, and why so
  plait plan recipe.yml --diff other.yml       what another recipe changes
  plait plan recipe.yml --no-foresight         what an optimisation is worth
  plait plan recipe.yml --cache results        what the cache saves
  plait plan recipe.yml --format html -o plan.html   a page to look at
  plait plan recipe.yml --format json | jq .predicted_peak_bytes
  plait plan recipe.yml --format dot | dot -Tsvg > plan.svg
  plait plan --schema                          what --format json means

\b
How to read it: the first line is the answer. `needs` says what that is made
of, and which tensor sets the peak. Each line of `other budgets` is the same
merge, with the same bits, under another --memory. `passes` lists the ways in
which tensors are computed, each with a letter; the groups below name theirs.
"""
_FORMATS = ("tree", "json", "html", "dot", "mermaid")


def _schema(context: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.resources import files

        click.echo(files("plait.planner").joinpath("plan.schema.json").read_text(encoding="utf-8"), nl=False)
        context.exit()


@click.command(epilog=_PLAN_EXAMPLES + RECIPE_FORM)
@click.argument("recipe", type=click.Path(path_type=Path))
@machine_options
@cache_options
@click.option("--format", "form", type=click.Choice(_FORMATS), default="tree", show_default=True, help="A tree to read, data, a page, or a graph to draw.")
@output_option
@click.option("--why", "tensor", metavar="TENSOR", help="Say how one output tensor is computed, and why so.")
@click.option("--diff", "other", type=click.Path(path_type=Path), metavar="RECIPE", help="Say what another recipe would change.")
@click.option("--schema", is_flag=True, is_eager=True, expose_value=False, callback=_schema, help="Print the JSON Schema of --format json, and leave.")
@optimisation_options
def plan(recipe: Path, form: str, output: Path | None, tensor: str | None, other: Path | None, **machine: Any) -> None:
    """Show what RECIPE would do and need; reads file headers only.

    Everything wrong with the recipe, the models or the budget is found here, before a weight is read.
    """
    from plait.api import plan as make

    if tensor is not None and other is not None:
        raise PlanError("--why is about one plan and --diff about two; give one of them")
    asked = "--why" if tensor is not None else "--diff"
    if form in ("html", "dot", "mermaid") and (tensor is not None or other is not None):
        raise PlanError(f"{asked} has no picture; leave out --format {form}")
    if output is not None and (tensor is not None or other is not None):
        raise PlanError(f"{asked} answers on the terminal; leave out --output, or redirect it")
    options = options_of(machine)
    planned = make(recipe, options)
    if tensor is not None:
        _show_why(planned, tensor, form)
    elif other is not None:
        _show_diff(planned, make(other, options), (str(recipe), str(other)), form)
    elif form == "html":
        from plait.plan_page import plan_page

        give(plan_page(planned).render(), output)
    elif form == "tree" and output is not None:
        from plait.planner.explain import to_text

        give(to_text(planned, without=_costs(recipe, planned, options)) + "\n", output)
    elif form == "tree":
        from plait.planner.explain import to_tree

        _print(to_tree(planned, _costs(recipe, planned, options)))
    elif form == "json":
        give(planned.to_json(), output)
    else:
        from plait.planner import plan_graph

        give(plan_graph.to_dot(planned) if form == "dot" else plan_graph.to_mermaid(planned), output)


def _print(tree: Tree) -> None:
    from rich.console import Console

    Console(highlight=False).print(tree)


def _show_why(planned: Plan, tensor: str, form: str) -> None:
    from plait.planner.why import why, why_tree

    found = why(planned, tensor)
    if form == "json":
        click.echo(json.dumps(found.to_dict(), indent=1))
    else:
        _print(why_tree(found))


def _show_diff(before: Plan, after: Plan, labels: tuple[str, str], form: str) -> None:
    from plait.planner.plan_diff import diff_tree, plan_diff

    found = replace(plan_diff(before, after), before=labels[0], after=labels[1])
    if form == "json":
        click.echo(json.dumps(found.to_dict(), indent=1))
    else:
        _print(diff_tree(found))


def _costs(recipe: Path, planned: Plan, options: Options) -> list[str]:
    """For each optimisation that is switched off what it would be worth: the plan is made again with that one on."""
    from plait.api import plan as make
    from plait.planner.worth import worth

    lines = []
    for name in planned.without:
        others = tuple(other for other in planned.without if other != name)
        lines.append(f"{name}: {worth(make(recipe, replace(options, without=others)), planned)}")
    return lines
