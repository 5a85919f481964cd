"""The demo from its beginning to its end; the other modules do the work."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from plait.demo import encoder, experts, training
from plait.demo.folder import DemoFolder, open_folder
from plait.demo.merging import plan_and_merge
from plait.demo.packages import Packages
from plait.demo.recipes import RECIPES, WHOLE_PLAN
from plait.demo.report import Row, accuracy_table, cost_table, story_lines, write_results
from plait.demo.tasks import load_tasks


def tell(root: Path, memory: str, packages: Packages, console: Console) -> None:
    """Run all steps; see `plait.demo.run_demo`."""
    begin = time.monotonic()
    folder = open_folder(root)
    tasks = load_tasks(packages.data)
    base = experts.copy_base(packages.model, folder)
    with training.one_thread():
        console.rule("[bold]1. the base: a sentence encoder of 22.7 million parameters", align="left")
        config = encoder.BertConfig.read(base)
        weights = encoder.load_weights(base)
        exams = training.at_once(lambda task: training.prepare_exam(task, base, weights, config), tasks)
        rows = [Row(base.name, "base", _grade(exams, weights))]
        _say(console, rows[-1], exams, "reads the label names, knows no task")
        rows += _make_experts(exams, weights, folder, console)
        rows += _make_merges(exams, folder, memory, console)
    names = [task.name for task in tasks]
    write_results(folder.results, rows, names, memory)
    console.rule("[bold]4. what came out", align="left")
    console.print(accuracy_table(rows, names, len(tasks[0].test)))
    console.print(cost_table(rows, memory))
    for line in story_lines(rows, names):
        console.print(line, highlight=False)
    _go_on(folder, memory, time.monotonic() - begin, console)


def _make_experts(exams: Sequence[training.Exam], weights: encoder.Weights, folder: DemoFolder, console: Console) -> list[Row]:
    """Train or find the experts, one a task."""
    console.rule("[bold]2. three experts: its upper three layers trained on a task each", align="left")
    rows = []
    with console.status("fine-tuning them, each on one thread"):
        made = training.at_once(lambda exam: experts.obtain_expert(exam.task, exam, weights, folder, training.Settings()), exams)
    for exam, expert in zip(exams, made, strict=True):
        with console.status(f"grading the expert for {expert.task}"):
            rows.append(Row(expert.task, "expert", _grade(exams, encoder.load_weights(expert.folder))))
        texts = f"{len(exam.task.train)} texts, {len(exam.task.labels)} classes"
        _say(console, rows[-1], exams, f"{texts}, " + ("kept from an earlier run" if expert.seconds is None else f"trained in {expert.seconds:.0f} s"))
    return rows


def _make_merges(exams: Sequence[training.Exam], folder: DemoFolder, memory: str, console: Console) -> list[Row]:
    """Write, plan, run and grade every recipe."""
    console.rule("[bold]3. their merges, each planned and run by the plait command", align="left")
    rows = []
    for recipe in RECIPES:
        path, out = folder.recipe(recipe.name), folder.merged(recipe.name)
        path.write_text(recipe.text([exam.task.name for exam in exams]), encoding="utf-8")
        folder.clear_merge(recipe.name)
        console.print(f"\n[bold]{recipe.name}[/bold]: {recipe.what}", highlight=False)
        cost = plan_and_merge(path, out, memory, recipe.name == WHOLE_PLAN, console)
        with console.status(f"grading {recipe.name}"):
            rows.append(Row(recipe.name, "merge", _grade(exams, encoder.load_weights(out)), cost))
        _say(console, rows[-1], exams, f"{cost.seconds:.1f} s")
    return rows


def _grade(exams: Sequence[training.Exam], weights: encoder.Weights) -> tuple[float, ...]:
    return tuple(training.at_once(lambda exam: exam.accuracy(weights), exams))


def _say(console: Console, row: Row, exams: Sequence[training.Exam], note: str) -> None:
    grades = "  ".join(f"{exam.task.name} {100 * value:.1f}" for exam, value in zip(exams, row.accuracy, strict=True))
    console.print(f"{row.kind} [bold]{row.name}[/bold]: {grades}  [dim]({note})[/dim]", highlight=False)


def _go_on(folder: DemoFolder, memory: str, seconds: float, console: Console) -> None:
    """Say where everything lies and how to go on with it."""
    recipe, again = shlex.quote(str(folder.recipe("ties"))), shlex.quote(str(folder.merged("ties-again")))
    console.rule(f"[bold]done in {seconds:.0f} s", align="left")
    lines = (
        f"Kept in {folder.root}: models/ (base and experts), recipes/, merged/ and results.json. Go on with them:",
        f"  plait plan {recipe} --memory {memory}",
        f"  plait plan {recipe} --format json",
        f"  plait merge {recipe} {again} --memory {memory}",
        "Copy a recipe, change it, and name models of your own in it; `plait methods` lists what there is.",
    )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
