"""What the commands of `plait bench` share: options, and how they say what they are doing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

FORMAT = click.Choice(["table", "json"])
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
DEBUG = click.option("--debug", is_flag=True, help="Show a traceback when something fails.")


@contextmanager
def progress() -> Iterator[Any]:
    """A function that says what is being done: one changing line on a terminal, else plain lines on standard error."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda what: click.echo(what, err=True)
        return
    with console.status("") as status:
        yield status.update
