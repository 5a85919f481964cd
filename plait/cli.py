"""The command line. Errors are one readable line, exit status 2 for what the user can mend and 1 for failures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from plait.bench import bench
from plait.cached import cache
from plait.cli_inspect import inspect
from plait.cli_merge import merge, status, verify
from plait.cli_methods import methods
from plait.cli_plan import plan
from plait.cli_report import report
from plait.lora import extract_lora_command
from plait.ops.errors import PlaitError, PlanError, RecipeError, Stopped
from plait.planner.header_text import printable

_EXAMPLES = """
\b
Examples:
  plait demo                                 merge real models, made here in two minutes
  plait plan recipe.yml --memory 4GiB        what would it do, and what does it need?
  plait merge recipe.yml out --memory 4GiB   do it
  plait report out                           was the plan right, and where did the time go?
  plait status out                           whole, running or interrupted, and how to go on
  plait verify out                           read it again: is it what was written?
  plait methods ties                         what a method does and takes
  plait inspect path/to/model                a checkpoint at a glance
  plait cache DIR                            what a cache of results holds
  plait bench machine                        measure this machine, for better predictions
"""
_DEMO_EXAMPLES = """
\b
Examples:
  plait demo                      two minutes on two cores
  plait demo --folder my-demo     keep experts and merges there
"""


class _Group(click.Group):
    """Turns plait's errors, and click's, into one line and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; Ctrl-C where it does nothing that could be kept is an error like others."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # click would print an empty line first
            raise Stopped("interrupted; nothing was changed") from None

    def main(self, *args: Any, **kwargs: Any) -> Any:
        debug = "--debug" in (kwargs.get("args") or sys.argv[1:])
        try:
            # not click's own standalone mode: it would print usage errors its way and turn an interrupt into exit status 1
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
            sys.exit(status if isinstance(status, int) else 0)
        except click.UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # a bare `plait`: its message is the whole help
                error.show()
            else:
                path = error.ctx.command_path if error.ctx else "plait"
                click.echo(f"plait: {error.format_message().rstrip('.')}; `{path} --help` says what it takes", err=True)
            sys.exit(error.exit_code)
        except PlaitError as error:
            if debug:
                raise
            click.echo("\n".join(_told(error)), err=True)
            sys.exit(error.exit_status)
        except Exception as error:
            if debug:
                raise
            why = printable(f"{type(error).__name__}: {error}")
            click.echo(f"plait: internal error: {why}; run again with --debug and report the traceback", err=True)
            sys.exit(1)


def _told(error: PlaitError) -> list[str]:
    """What went wrong as the first line; below it more problems of a recipe, or how to go on. Nothing that a terminal would obey."""
    problems = error.message.splitlines() if isinstance(error, (RecipeError, PlanError)) else [error.message]  # others are one line, whatever a path holds
    first, *more = [printable(line) for line in (*(problems or [type(error).__name__]), error.advice) if line]
    return [f"plait: {first}", *(f"       {line}" for line in more)]


def _version(context: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from plait import __version__

        click.echo(f"plait {__version__}")
        context.exit()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=_EXAMPLES)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and leave.")
def main() -> None:
    """Merge neural-network checkpoints that do not fit in memory.

    A recipe says what to merge. plait plans it from file headers alone, says what it will need before a weight is read, and
    runs it inside a memory budget.
    """


for _command in (merge, plan, report, status, verify, methods, inspect, cache, extract_lora_command, bench):
    main.add_command(_command)


@main.command(epilog=_DEMO_EXAMPLES)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("plait-demo"), show_default=True, help="Where experts and merges are kept.")
@click.option("--memory", "-m", metavar="SIZE", default="256MiB", show_default=True, help="Budget of each merge.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def demo(folder: Path, memory: str, debug: bool) -> None:
    """Fine-tune three experts of a real sentence encoder, merge them, and compare.

    Takes about two minutes on two cores. Everything is kept in the folder, to go on with.
    """
    from rich.console import Console

    from plait.api import checked_size
    from plait.demo import run_demo

    checked_size(memory, "memory")

    run_demo(folder, memory=memory, console=Console(highlight=False))
