"""`plait report`: what a finished merge was promised to take, what it took, and where time and memory went."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import click

_EXAMPLES = """
\b
Examples:
  plait report out                  promised and measured, threads, memory, slowest tensors
  plait report out --format json    all of it as data (docs/report-format.md)
  plait report out --html page.html a page: memory and threads over time, every kind of tensor
  plait report --schema             the JSON Schema of that data
"""


@click.command(epilog=_EXAMPLES)
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Lines to read, or data.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write the report as one html page.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of reports instead.")
def report(out: Path | None, form: str, html: Path | None, schema: bool, debug: bool) -> None:
    """Show what the merge that wrote OUT was promised to take and what it took.

    Every merge leaves a report.json in its output. It compares prediction and measurement by kind of tensor, says what each
    thread did, how memory went over time and which tensors took longest, and names the group that is to blame where a
    prediction was off.
    """
    if schema:
        from plait.engine import runreport

        click.echo(Path(runreport.__file__).with_name("report.schema.json").read_text(), nl=False)
        return
    if out is None:
        raise click.UsageError("give the folder of an output")
    from plait.reports import report as read
    from plait.reports import to_text

    found = read(out)
    if html is not None:
        from plait.cli_output import give
        from plait.report_page import page_text

        give(page_text(found, out), html)
        return
    if form == "json":
        click.echo(json.dumps(found, indent=1))
        return
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    click.echo(to_text(found, out, width=max(60, shutil.get_terminal_size((80, 24)).columns), unicode=unicode))
