"""docs/methods is what the code says, its recipes run, and a method's cost can be told from a checkpoint's headers."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

import plait
from plait.cli import main
from plait.method_text import as_data, example
from plait.ops.method import Method, methods, steps
from plait.trial import trial_plan
from support.tiny import write_set

REPO = Path(__file__).parents[1]
KNOWN = {**methods(), **steps()}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("method_pages", REPO / "scripts" / "method_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models/base, models/math, models/code, whose two experts a step may name too."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "models").mkdir()
    for name, model in zip(("base", "math", "code"), write_set(folder / "set", experts=2), strict=True):
        model.rename(folder / "models" / name)
    return folder


def test_the_committed_pages_are_up_to_date(generator: ModuleType):
    """`python scripts/method_pages.py` would change nothing."""
    there = {p.name: p.read_text() for p in (REPO / "docs" / "methods").glob("*.md")}
    stale = sorted(name for name in {*there, *generator.pages()} if there.get(name) != generator.pages().get(name))
    assert not stale, "run python scripts/method_pages.py"


def test_every_page_says_what_there_is_to_say(generator: ModuleType):
    """Summary, source, parameters, recipe and the code without its docstring; the table names every method."""
    pages = generator.pages()
    for name, method in KNOWN.items():
        text = pages[f"{name}.md"]
        assert method.summary in text
        assert method.source in text
        assert all(f"| `{p.name}` |" in text for p in method.params)
        assert f"merge_method: {'linear' if method.is_step else name}" in text
        code = text.split("## Code")[1]
        assert f"def {method.build.__name__}(" in code
        assert method.summary not in code
        assert f"[`{name}`]({name}.md)" in pages["README.md"]


def test_pages_of_methods_that_are_gone_go(generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writing makes the folder what it should be, and --check says what is not."""
    monkeypatch.setattr(generator, "FOLDER", tmp_path / "pages")
    assert generator.main(check=True) == 1
    assert generator.main(check=False) == 0
    (tmp_path / "pages" / "gone.md").write_text("x")
    (tmp_path / "pages" / "ties.md").write_text("x")
    assert generator.main(check=True) == 1
    assert generator.main(check=False) == 0
    assert not (tmp_path / "pages" / "gone.md").exists()
    assert generator.main(check=True) == 0


def runs_on_weights(method: Method) -> bool:
    return not getattr(method, "statistics", ())


@pytest.mark.parametrize("name", [n for n, m in KNOWN.items() if runs_on_weights(m)])
def test_the_recipe_of_a_page_runs(name: str, models: Path, tmp_path: Path):
    """As it stands, over a base and two experts."""
    method = KNOWN[name]
    recipe = models / f"{name}.yml"
    recipe.write_text(example(method))
    report = plait.merge(recipe, tmp_path / "out", plait.Options(memory="500MiB", backend="torch"))
    assert report.bytes_written > 0


@pytest.mark.parametrize("name", [n for n, m in KNOWN.items() if runs_on_weights(m)])
def test_cost_is_told_from_headers(name: str, models: Path):
    """A plan over the checkpoint in the place of base and experts reads each of them, and more for more experts."""
    method = KNOWN[name]
    options = plait.Options(memory="500MiB", backend="torch")
    planned, count = trial_plan(method, str(models / "models" / "base"), options=options)
    assert method.experts[0] <= count <= (method.experts[1] or 3)
    assert planned.prediction.bytes_read >= planned.prediction.bytes_written > 0
    assert planned.prediction.seconds > 0
    if method.experts[1] is None:
        more, _ = trial_plan(method, str(models / "models" / "base"), count + 2, options)
        assert more.prediction.bytes_read > planned.prediction.bytes_read


def command(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["methods", *arguments], env={"COLUMNS": "80"})


def test_the_command_line_tells_cost(models: Path):
    """Passes, bytes, time and peak under the method's page, and as data; mistakes are one line."""
    base = str(models / "models" / "base")
    shown = command("iso_c", "--on", base, "--experts", "4", "--memory", "500MiB")
    assert shown.exit_code == 0, shown.stderr
    assert re.search(r"with 4 experts of its shapes.*reads .* in 2 passes, writes .*about .* s.*peak memory .* of 500 MiB", shown.stdout, re.DOTALL)
    (found,) = json.loads(command("iso_c", "--on", base, "--format", "json").stdout)
    assert found["on"]["experts"] == 3
    assert found["on"]["passes"] == 2
    assert command("--on", base).exit_code == 2
    assert "takes 1 experts, not 2" in command("slerp", "--on", base, "--experts", "2").stderr


def test_data_has_the_parts_of_the_page():
    """Idea, formula, differences, caveats and a recipe are in the JSON of a method."""
    found = as_data(methods()["ties"])
    assert "majority" in found["idea"]
    assert len(found["differs"]) >= 2
    assert found["cost"] == "2+ passes"
    assert found["example"].startswith("merge_method: ties\n")
