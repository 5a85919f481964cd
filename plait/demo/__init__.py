"""`plait demo`: a real sentence encoder, three experts fine-tuned from it in seconds, and their merges, measured.

The story in five steps, each in a module of its own:

1. `packages`  find the model and the texts among the installed packages
2. `tasks`     read three small classification tasks
3. `experts`   fine-tune an expert a task (`training`, on the forward pass of `encoder`), save ordinary checkpoints
4. `merging`   write the `recipes`, and plan and run each through the `plait` command
5. `report`    a table of accuracy and cost; everything is kept in the folder

Importing this package is light: torch is imported when the demo runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["run_demo"]


def run_demo(folder: Path, *, memory: str = "256MiB", console: Console) -> None:
    """Run the whole demo and keep its results in `folder`.

    Experts that an earlier run left in the folder are used again; recipes, merges and results are made anew.

    Args:
        folder: where checkpoints, recipes and results go; made if absent.
        memory: budget of each merge, as for `plait merge --memory`.
        console: where plans, progress and tables are printed.

    Raises:
        PlaitError: a package is missing (the message says how to install it), or a merge failed.
        OutputError: the folder holds something that the demo did not make.
    """
    from plait.demo.packages import find_packages
    from plait.demo.story import tell

    tell(folder, memory, find_packages(), console)
