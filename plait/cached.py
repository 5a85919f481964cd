"""`plait cache`: what a folder of kept results holds, and making it smaller."""

from __future__ import annotations

import json
from pathlib import Path

import click

_EXAMPLES = """
\b
Examples:
  plait cache DIR                  entries, bytes, ages and uses, by op
  plait cache DIR --prune 5GiB     down to 5 GiB, oldest use first
  plait cache DIR --check          read every entry again, remove damaged ones
  plait cache DIR --clear          all of them
"""


@click.command(epilog=_EXAMPLES)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--prune", metavar="SIZE", help="Remove the entries that were not used longest, until the rest takes no more than SIZE.")
@click.option("--clear", is_flag=True, help="Remove every entry.")
@click.option("--check", is_flag=True, help="Read every entry and compare checksums; what is damaged is removed. Exit status 1 says that something was.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="A table to read, or data.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def cache(folder: Path, prune: str | None, clear: bool, check: bool, form: str, debug: bool) -> int:
    """Show what the result cache DIR holds, or make it smaller.

    `plait merge --cache DIR` fills it: results that took longer to compute than to read, for other merges of the same inputs. Merges may go on
    while it is looked at, pruned or cleared.
    """
    from plait.api import checked_size
    from plait.engine.survey import check_entries, prune_to, survey
    from plait.ops.errors import PlanError
    from plait.show import show_cache

    if sum((prune is not None, clear, check)) > 1:
        raise PlanError("give one of --prune, --clear and --check")
    removed, damaged = 0, []
    if prune is not None or clear:
        removed = prune_to(folder, 0 if prune is None else checked_size(prune, "prune"))
    elif check:
        damaged = check_entries(folder)
    found = survey(folder)
    if form == "json":
        click.echo(json.dumps({**found.to_dict(), "removed": removed, "damaged": damaged}, indent=1))
    else:
        show_cache(found, removed, damaged)
    return 1 if damaged else 0
