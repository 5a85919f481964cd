"""What the commands of `plait bench` share: options, and how they say what they are doing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from plait.ops.errors import Stopped

FORMAT = click.Choice(["table", "json"])
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
DEBUG = click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
PLOT = click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw it, too, as PNG or SVG; needs matplotlib.")


@contextmanager
def progress() -> Iterator[Any]:
    """A function that says what is being done: one changing line on a terminal, else plain lines on standard error.

    A request to end (SIGTERM) unwinds the block as Ctrl-C does, so that what was made for measuring is removed.
    """
    before = signal.signal(signal.SIGTERM, _leave) if threading.current_thread() is threading.main_thread() else None
    try:
        with _told() as tell:
            yield tell
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    error = Stopped("stopped; what was made for measuring is removed")
    error.exit_status = 143
    raise error


@contextmanager
def _told() -> Iterator[Any]:
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda what: click.echo(what, err=True)
        return
    with console.status("") as status:
        yield status.update
