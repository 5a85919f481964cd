"""Where a command's text goes: to the terminal, or whole into a file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from plait.ops.errors import OutputError
from plait.planner.header_text import printable

output_option = click.option("--output", "-o", type=click.Path(path_type=Path), metavar="FILE", help="Write to FILE instead of the terminal.")


def give(text: str, output: Path | None) -> None:
    """Print a text, or store it; a file that was there stays as it was until the new one is whole.

    Raises:
        OutputError: it cannot be written.
    """
    if output is None:
        click.echo(text, nl=not text.endswith("\n"))
        return
    folder = output.parent
    if not folder.is_dir():
        raise OutputError(f"{output} cannot be written: there is no folder {folder}; make it, or give another file")
    try:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{output.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, output)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}; give another file") from error
    click.echo(f"{printable(str(output))}: {len(text.encode()) / 1e6:.1f} MB written")


def _umask() -> int:
    """The process's mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
