"""What commands share: options of the machine and of a cache, and the form of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from plait.api import Options

RECIPE_FORM = """
\b
A recipe is mergekit's YAML:
  merge_method: ties
  base_model: path/to/base
  models:
    - model: path/to/math
      parameters: {weight: 1.0, density: 0.2}
    - model: path/to/code
      parameters: {weight: 1.0, density: 0.2}
  parameters: {lambda: 1.0}
  dtype: bfloat16
  steps:                         # after the merge; not in mergekit
    - method: magic_wsc
"""


def machine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how a plan may use the machine."""
    options = [
        click.option("--memory", "-m", metavar="SIZE", help="Budget for private memory, such as 512MiB or 4GiB. Default: half of the free memory."),
        click.option("--workers", "-j", type=int, metavar="N", help="Worker threads. Default: the cores this process may use."),
        click.option(
            "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where whole-tensor ops (SVD, polar) run."
        ),
        click.option("--gpu-memory", metavar="SIZE", help="Budget on each GPU. Default: 90 % of what is free there."),
        click.option(
            "--maps",
            type=click.Choice(["cpu", "cuda"]),
            default="cpu",
            show_default=True,
            help="Where streamed work runs. It waits for disk and PCIe, so a GPU rarely makes it faster; the output is the same.",
        ),
        click.option(
            "--backend",
            type=click.Choice(["auto", "numba", "torch"]),
            default="auto",
            show_default=True,
            help="What runs streamed work: compiled kernels or the interpreter.",
        ),
        click.option("--shard-size", metavar="SIZE", default="5GB", show_default=True, help="Most bytes of one output file."),
        click.option(
            "--residency",
            type=click.Choice(["auto", "keep", "reread"]),
            default="auto",
            show_default=True,
            help="Whether inputs stay in memory between passes: where that is faster, wherever they fit, or nowhere.",
        ),
        click.option("--debug", is_flag=True, help="Show a traceback when something fails."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def cache_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a result cache."""
    options = [
        click.option(
            "--cache",
            metavar="DIR",
            type=click.Path(path_type=Path),
            help="Keep expensive results (polar factors, thresholds, Gram matrices) in DIR for other merges of these inputs. Default: off.",
        ),
        click.option("--cache-size", metavar="SIZE", default="20GiB", show_default=True, help="Most bytes of DIR; what was not used longest goes first."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def optimisation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A `--no-<name>` for each optimisation."""
    from plait.planner.optimisations import OPTIMISATIONS

    for o in reversed(OPTIMISATIONS.values()):
        command = click.option(f"--no-{o.name}", f"without_{o.name.replace('-', '_')}", is_flag=True, help=f"Switch off: {o.does[0].lower()}{o.does[1:]}")(
            command
        )
    return command


def options_of(values: dict[str, Any]) -> Options:
    """The `Options` that a command line means."""
    from plait.api import Options

    values.pop("debug", None)
    off = [key for key in values if key.startswith("without_")]
    without = tuple(key.removeprefix("without_").replace("_", "-") for key in off if values[key])
    return Options(**{key: value for key, value in values.items() if key not in off}, without=without)
