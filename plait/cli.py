"""The command line. Errors are one readable line, exit status 2 for what the user can mend and 1 for failures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from plait.bench import bench
from plait.cached import cache
from plait.lora import extract_lora_command
from plait.ops.errors import PlaitError, PlanError, RecipeError, Stopped
from plait.planner.header_text import printable

_EXAMPLES = """
\b
Examples:
  plait demo                                 merge real models, made here in two minutes
  plait plan recipe.yml --memory 4GiB        what would it do, and what does it need?
  plait merge recipe.yml out --memory 4GiB   do it
  plait status out                           whole, running or interrupted, and how to go on
  plait verify out                           read it again: is it what was written?
  plait methods ties                         what a method does and takes
  plait inspect path/to/model                a checkpoint at a glance
  plait cache DIR                            what a cache of results holds
  plait bench machine                        measure this machine, for better predictions
"""
_PLAN_EXAMPLES = """
\b
Examples:
  plait plan recipe.yml --memory 4GiB
  plait plan recipe.yml --cache results    and what the cache saves
"""
_RECIPE_FORM = """
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
_MERGE_EXAMPLES = """
\b
Examples:
  plait merge recipe.yml out --memory 4GiB --workers 8
  plait merge recipe.yml out                 again after a crash: goes on
  plait merge recipe.yml out --restart       begins anew instead
  plait merge recipe.yml out --overwrite     replaces out in the end
  plait merge recipe.yml out --allow-nonfinite   merge a model that holds NaN
  plait merge recipe.yml out --cache results --cache-size 50GiB
"""
_STATUS_EXAMPLES = """
\b
Examples:
  plait status out                  nothing, running, interrupted at N of M bytes, or whole
  plait status out --format json    the same as data
"""
_VERIFY_EXAMPLES = """
\b
Examples:
  plait verify out                                   read every byte again and compare with the checksums of its manifest
  plait verify out --against recipe.yml              compute a sample of blocks again from the inputs and compare the bits
  plait verify out --against recipe.yml --blocks 100 --seed 7
"""
_METHODS_EXAMPLES = """
\b
Examples:
  plait methods                     all of them, a line each
  plait methods ties                what ties does, its parameters, its source
  plait methods ties --on MODEL     and what it would cost on these shapes
  plait methods --format json       the same as data
"""
_INSPECT_EXAMPLES = """
\b
Examples:
  plait inspect path/to/model             parameters, dtypes, layers, shards
  plait inspect path/to/model --tensors   and every tensor
  plait inspect model.safetensors --format json
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


main.add_command(bench)
main.add_command(cache)
main.add_command(extract_lora_command)


def _machine_options(command: Callable[..., Any]) -> Callable[..., Any]:
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


def _cache_options(command: Callable[..., Any]) -> Callable[..., Any]:
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


def _options(values: dict[str, Any]) -> Any:
    from plait.api import Options

    values.pop("debug", None)
    return Options(**values)


@main.command(epilog=_MERGE_EXAMPLES + _RECIPE_FORM)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@_machine_options
@_cache_options
@click.option("--restart", is_flag=True, help="Begin anew: drop what an interrupted run has finished, instead of continuing it.")
@click.option("--overwrite", is_flag=True, help="Replace the checkpoint at OUT; it stays until the new one is whole.")
@click.option("--allow-nonfinite", is_flag=True, help="Merge models that hold infinity or NaN, and write such values; they are counted and listed.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing unless something is wrong.")
def merge(recipe: Path, out: Path, quiet: bool, **machine: Any) -> None:
    """Merge as RECIPE says into the new folder OUT.

    OUT appears whole, at the end, or not at all; it must not exist or be empty, unless --overwrite replaces a checkpoint. The
    result is the same for every budget and number of workers.

    A run that is interrupted, killed or fails keeps what it has finished, and the same command continues it: with other
    --memory, --workers or --device too, but not with another recipe or changed inputs. `plait status OUT` says what is there.
    """
    from plait.api import merge as run
    from plait.stopping import stopped_by_signals

    options = _options(machine)
    if quiet or not sys.stderr.isatty():  # nobody looks at a bar, so it is not even imported
        with stopped_by_signals() as stop:
            report = run(recipe, out, options, stop=stop)
    else:
        from rich.console import Console

        from plait.progress import ProgressBar

        with stopped_by_signals() as stop, ProgressBar(Console(stderr=True, highlight=False)) as bar:
            report = run(recipe, out, options, events=bar, stop=stop)
    if not quiet:
        from plait.outcome import sentences

        click.echo("\n".join(sentences(out, report)), err=True)


@main.command(epilog=_PLAN_EXAMPLES + _RECIPE_FORM)
@click.argument("recipe", type=click.Path(path_type=Path))
@_machine_options
@_cache_options
@click.option("--format", "form", type=click.Choice(["tree", "json"]), default="tree", show_default=True, help="A tree to read, or data.")
def plan(recipe: Path, form: str, **machine: Any) -> None:
    """Show what RECIPE would do and need; reads file headers only.

    Everything wrong with the recipe, the models or the budget is found here, before a weight is read.
    """
    from plait.api import plan as make

    planned = make(recipe, _options(machine))
    if form == "json":
        click.echo(planned.to_json())
        return
    from rich.console import Console

    from plait.planner.explain import to_tree

    Console(highlight=False).print(to_tree(planned))


@main.command(epilog=_STATUS_EXAMPLES)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Sentences to read, or data.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def status(out: Path, form: str, debug: bool) -> None:
    """Say what lies at OUT: nothing, a running merge, an interrupted one, or a whole output.

    Of an interrupted merge it says how much is done, from which recipe, and how to go on.
    """
    from plait.keeping import status as look

    found = look(out)
    click.echo(json.dumps(found.to_dict(), indent=1) if form == "json" else "\n".join(map(printable, found.sentences())))


@main.command(epilog=_VERIFY_EXAMPLES)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), metavar="RECIPE", help="Compute a sample of blocks again from the inputs.")
@click.option("--blocks", type=click.IntRange(1), default=32, show_default=True, help="How many blocks --against computes, at most.")
@click.option("--seed", type=int, default=0, show_default=True, help="Choice of the sample of --against.")
@_machine_options
def verify(out: Path, against: Path | None, blocks: int, seed: int, **machine: Any) -> None:
    """Check that OUT is what was written: every byte, against the checksums in its plait.json.

    With --against RECIPE a sample of its blocks is computed again from the inputs instead, and the bits are compared. Exit
    status 1 says that something differs.
    """
    from rich.console import Console

    from plait.keeping import verify as check
    from plait.planner.schedule import size
    from plait.progress import ByteBar

    options = _options(machine)
    with ByteBar(Console(stderr=True, highlight=False), f"verify {printable(out.name)}") as bar:
        found = check(out, against, options=options, blocks=blocks, seed=seed, started=bar.begin, progress=bar.progress)
    where = printable(str(out))
    if against is not None:
        click.echo(f"{where}: {found.blocks} blocks computed again from the inputs have the same bits")
        return
    click.echo(f"{where}: {found.tensors} tensors of {size(found.nbytes)} and {found.files} other files are what was written")
    if found.foreign:
        told = ", ".join(map(printable, found.foreign[:5])) + (", ..." if len(found.foreign) > 5 else "")
        click.echo(f"beside them, not of this output: {told}")


@main.command(epilog=_METHODS_EXAMPLES)
@click.argument("name", required=False)
@click.option("--on", "model", metavar="MODEL", help="Say what NAME would cost on the shapes of this checkpoint; reads headers only.")
@click.option("--experts", type=click.IntRange(1), metavar="N", help="Experts for --on. Default: three, or what NAME takes.")
@click.option("--memory", "-m", metavar="SIZE", help="Budget for --on. Default: half of the free memory.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="A table to read, or data.")
def methods(name: str | None, model: str | None, experts: int | None, memory: str | None, form: str) -> None:
    """List the merge methods by family, or say all about method NAME."""
    from plait.method_text import as_data
    from plait.ops.method import methods as known_methods
    from plait.ops.method import nearest
    from plait.ops.method import steps as known_steps
    from plait.show_methods import show_cost, show_method, show_methods

    known = {**known_methods(), **known_steps()}
    if name is not None and name not in known:
        raise PlaitError(f"no merge method called {name!r}{nearest(name, known)}; `plait methods` lists them")
    if model is not None and name is None:
        raise PlaitError("--on needs the name of a method: `plait methods NAME --on MODEL`")
    trial = None
    if name is not None and model is not None:
        from plait.api import Options
        from plait.trial import trial_plan

        trial = trial_plan(known[name], model, experts, Options(memory=memory))
    if form == "json":
        found = [as_data(m) for m in ([known[name]] if name else known.values())]
        if trial is not None:
            found[0]["on"] = {"model": model, "experts": trial[1], **asdict(trial[0].prediction)}
        click.echo(json.dumps(found, indent=1))
    elif name:
        show_method(known[name])
        if trial is not None:
            show_cost(trial[0], str(model), trial[1])
    else:
        show_methods(list(known.values()))


@main.command(epilog=_INSPECT_EXAMPLES)
@click.argument("checkpoint")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="A table to read, or data.")
@click.option("--tensors", is_flag=True, help="List every tensor.")
def inspect(checkpoint: str, form: str, tensors: bool) -> None:
    """Show what CHECKPOINT holds; reads file headers only."""
    from plait.planner.checkpoint import open_checkpoint, resolve_model
    from plait.planner.inspect import summarise
    from plait.show import show_checkpoint

    opened = open_checkpoint(resolve_model(checkpoint), checkpoint)
    summary = summarise(opened)
    if form == "json":
        listed = {n: {"dtype": r.dtype, "shape": list(r.shape), "nbytes": r.nbytes} for n, r in opened.tensors.items()}
        click.echo(json.dumps({**summary, **({"tensors": listed} if tensors else {})}, indent=1))
    else:
        show_checkpoint(checkpoint, summary, opened if tensors else None)


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
