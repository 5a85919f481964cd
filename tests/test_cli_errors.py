"""Every mistake of a user ends in one clear sentence and exit status 2, and leaves nothing that looks like a checkpoint."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from plait.cli import main
from support import tiny

HALF = {"weight": 1.0, "density": 0.5}


@dataclass(frozen=True)
class Mistake:
    """A way to go wrong.

    Attributes:
        make: changes the models where needed, and gives the recipe's text (None: no recipe file at all).
        says: words that the sentence must hold, as regular expressions: what is wrong, where, and what to do.
        arguments: further arguments of `plait merge`.
        line: the recipe line that it must name, if any.
    """

    make: Callable[[list[Path]], str | None]
    says: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    line: int | None = None


def ties(models: list[Path], each: Mapping[str, Any] | None = None, **keys: Any) -> str:
    base, *experts = models
    return tiny.recipe("ties", experts, base=base, each=HALF if each is None else each, **keys)


def broken(models: list[Path], change: Callable[[Path], None]) -> str:
    change(models[1])
    return ties(models)


def rewrite(model: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write an expert anew with other tensors."""
    values = {name: np.zeros(shape, np.float32) for name, shape in tiny.SHAPES.items()}
    change(values)
    for file in model.iterdir():
        file.unlink()
    model.rmdir()
    tiny.write_model(model, values)


def missing_shard(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    where = dict.fromkeys(tiny.SHAPES, "model-00001-of-00002.safetensors")
    where["lm_head.weight"] = "model-00002-of-00002.safetensors"
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def other_shape(model: Path) -> None:
    rewrite(model, lambda values: values.update({"model.layers.1.mlp.up_proj.weight": np.zeros((91, 70), np.float32)}))


def truncate(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def endless_header(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes((1 << 30).to_bytes(8, "little") + file.read_bytes()[8:])


def huge_header(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes((1 << 62).to_bytes(8, "little") + file.read_bytes()[8:])


def uneven_slices(models: list[Path]) -> str:
    sources = [{"model": str(m), "layer_range": [0, n], "parameters": {"weight": 1.0}} for m, n in zip(models, (2, 1), strict=False)]
    return json.dumps({"merge_method": "linear", "slices": [{"sources": sources}]}, indent=1)


def weights(models: list[Path], *values: float) -> str:
    entries = [{"model": str(m), "parameters": {"weight": w}} for m, w in zip(models, values, strict=False)]
    return json.dumps({"merge_method": "linear", "models": entries}, indent=1)


MISTAKES = {
    "misspelt parameter": Mistake(
        lambda m: ties(m).replace('"density"', '"densty"', 1), (r"ties has no parameter 'densty'", r"did you mean 'density'"), line=8
    ),
    "unknown method": Mistake(lambda m: ties(m).replace('"ties"', '"tise"'), (r"unknown merge method 'tise'", r"did you mean 'ties'"), line=2),
    "misspelt key": Mistake(lambda m: ties(m, dtyp="float32"), (r"unknown key 'dtyp'", r"did you mean 'dtype'")),
    "no recipe file": Mistake(lambda m: None, (r"recipe\.yml", r"cannot read the recipe", r"check the path")),
    "no model folder": Mistake(lambda m: ties([*m, m[0] / "nowhere"]), (r"nowhere", r"no model", r"give a folder that exists")),
    "missing shard": Mistake(
        lambda m: broken(m, missing_shard), (r"expert1/model-00002-of-00002\.safetensors", r"listed in .*index\.json", r"download it again")
    ),
    "other shape": Mistake(
        lambda m: broken(m, other_shape), (r"model\.layers\.1\.mlp\.up_proj\.weight", r"\[91, 70\]", r"\[90, 70\]", r"expert1", r"only models of one")
    ),
    "missing tensor": Mistake(
        lambda m: broken(m, lambda model: rewrite(model, lambda v: v.pop("model.norm.weight"))), (r"model\.norm\.weight", r"not in .*expert1", r"same tensors")
    ),
    "density out of range": Mistake(lambda m: ties(m).replace("0.5", "1.5", 1), (r"density must be between 0 and 1, not 1\.5",), line=8),
    "uneven layer ranges": Mistake(uneven_slices, (r"\[0, 1\] is 1 layer", r"\[0, 2\] on line \d+ is 2", r"same number of layers")),
    "budget too small": Mistake(ties, (r"4 MiB is too small", r"weight \[\d+, \d+\] needs", r"give --memory \d+MiB or more"), ("--memory", "4MiB")),
    "truncated shard": Mistake(lambda m: broken(m, truncate), (r"expert1/model\.safetensors", r"truncated|ends|shorter|bytes", r"again")),
    "header beyond the file": Mistake(lambda m: broken(m, endless_header), (r"expert1/model\.safetensors", r"header", r"again|damaged|not a safetensors")),
    "header of exabytes": Mistake(lambda m: broken(m, huge_header), (r"expert1/model\.safetensors", r"header")),
    "weights sum to zero": Mistake(
        lambda m: weights(m, 0.5, -0.5), (r"0\.5, -0\.5 sum to zero", r"change a weight or set normalize: false", r"recipe\.yml:\d+:\d+")
    ),
    "epsilon out of range": Mistake(
        lambda m: tiny.recipe("della", m[1:], base=m[0], each={"weight": 1.0, "density": 0.3, "epsilon": 0.35}),
        (r"density 0\.3 and epsilon 0\.35", r"epsilon must be below 0\.3", r"recipe\.yml:\d+:\d+"),
    ),
    "unknown option value": Mistake(ties, (r"'--device'", r"'gpu' is not one of 'auto', 'cpu', 'cuda'", r"plait merge --help"), ("--device", "gpu")),
    "unknown option": Mistake(ties, (r"No such option '?--memry", r"--memory", r"plait merge --help"), ("--memry", "1GiB")),
    "bad size": Mistake(ties, (r"memory", r"'lots' is not a size", r"512MiB or 4GiB"), ("--memory", "lots")),
    "bad shard size": Mistake(ties, (r"shard size", r"'5 apples' is not a size"), ("--shard-size", "5 apples")),
    "no shard size": Mistake(ties, (r"shard of at most 0 bytes", r"positive"), ("--shard-size", "0")),
    "no workers": Mistake(ties, (r"0 workers", r"at least 1"), ("--workers", "0")),
    "workers that are no number": Mistake(ties, (r"'--workers'", r"'two' is not a valid integer"), ("--workers", "two")),
    "not YAML": Mistake(lambda m: "merge_method: [ties\nmodels: {", (r"recipe\.yml:\d+:\d+",)),
    "empty recipe": Mistake(lambda m: "", (r"recipe\.yml:1:1", r"merge_method")),
    "recipe that is a list": Mistake(lambda m: "- ties\n", (r"recipe\.yml:1:1", r"a recipe is a mapping")),
    "no base": Mistake(lambda m: tiny.recipe("ties", m[1:], each=HALF), (r"ties needs base_model",)),
    "required parameter": Mistake(lambda m: re.sub(r'"weight": 1.0,\s*', "", ties(m), count=1), (r"expert1 has no weight, which ties needs",)),
    "no GPU": Mistake(ties, (r"--device cuda was asked for", r"--device auto or cpu"), ("--device", "cuda")),
}


def plait(arguments: list[str]) -> Result:
    """The command in this process, which is quicker."""
    return CliRunner().invoke(main, arguments, prog_name="plait")


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return tiny.write_set(tmp_path / "models")


def recipe_of(mistake: Mistake, models: list[Path], folder: Path) -> Path:
    path = folder / "recipe.yml"
    text = mistake.make(models)
    if text is not None:
        path.write_text(text)
    return path


def assert_one_sentence(status: int, said: str, mistake: Mistake, out: Path) -> None:
    """Exit status 2; one line that begins with `plait: `; the words; nothing left."""
    assert status == 2, said
    lines = said.splitlines()
    assert len(lines) == 1, said
    assert lines[0].startswith("plait: ")
    assert "Traceback" not in said
    assert "internal error" not in said
    for words in mistake.says:
        assert re.search(words, lines[0]), f"{words!r} is not in: {lines[0]}"
    if mistake.line is not None:
        assert re.search(rf"recipe\.yml:{mistake.line}:\d+", lines[0]), lines[0]
    assert tiny.leftovers(out) == []


@pytest.mark.parametrize("name", MISTAKES)
def test_one_sentence_and_status_2(name: str, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`plait merge` says what is wrong, where, and what to do, and leaves nothing."""
    mistake = MISTAKES[name]
    if name == "no GPU":
        monkeypatch.setattr("plait.api.gpu_memory", lambda: ())
    path = recipe_of(mistake, models, tmp_path)
    out = tmp_path / "out"
    result = plait(["merge", str(path), str(out), *mistake.arguments])
    assert_one_sentence(result.exit_code, result.stderr, mistake, out)
    assert result.stdout == ""


@pytest.mark.parametrize("name", [n for n, m in MISTAKES.items() if n != "no GPU"])
def test_plan_finds_it_too(name: str, models: list[Path], tmp_path: Path):
    """All of it is found at planning, before a weight is read."""
    mistake = MISTAKES[name]
    path = recipe_of(mistake, models, tmp_path)
    result = plait(["plan", str(path), *mistake.arguments])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize("name", ["misspelt parameter", "missing shard", "budget too small", "unknown option value", "truncated shard"])
def test_real_processes(name: str, models: list[Path], tmp_path: Path):
    """The same through the installed command, where nothing catches what we forgot."""
    mistake = MISTAKES[name]
    path, out = recipe_of(mistake, models, tmp_path), tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "plait", "merge", str(path), str(out), *mistake.arguments], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert_one_sentence(done.returncode, done.stderr, mistake, out)
    assert done.stdout == ""


# -- the destination --------------------------------------------------------------------------------
def refused(recipe: Path, out: Path, *words: str) -> None:
    result = plait(["merge", str(recipe), str(out), "--memory", "256MiB"])
    assert result.exit_code == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("plait: ")
    for word in words:
        assert re.search(word, line), line


@pytest.fixture
def recipe(models: list[Path], tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yml"
    path.write_text(ties(models))
    return path


def test_output_folder_not_empty(recipe: Path, tmp_path: Path):
    """What is there stays as it is."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "keep.txt").write_text("mine")
    refused(recipe, out, r"/out is not empty", "give a new folder")
    assert [p.name for p in out.iterdir()] == ["keep.txt"]
    assert tiny.leftovers(out) == ["out"]


def test_output_is_a_file(recipe: Path, tmp_path: Path):
    """A file in the way is not touched."""
    (tmp_path / "out").write_text("mine")
    refused(recipe, tmp_path / "out", "not a folder", "give a new folder")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("where", [".", "inside", ".."])
def test_output_touches_an_input(where: str, models: list[Path], recipe: Path):
    """An input model can neither be replaced, nor written into, nor be inside the output."""
    before = {p: p.stat().st_mtime_ns for p in sorted(models[0].parent.rglob("*"))}
    refused(recipe, models[0] / where, "input model", "give a new folder")
    assert {p: p.stat().st_mtime_ns for p in sorted(models[0].parent.rglob("*"))} == before


def test_output_below_a_file(recipe: Path, tmp_path: Path):
    """A parent that is a file is said, not stumbled over."""
    (tmp_path / "file").write_text("")
    refused(recipe, tmp_path / "file" / "out", "file", "choose another folder|give a new folder")


@pytest.mark.parametrize("name", ["with blanks", "new\nline", "\x1b[31mred", "模型", os.fsdecode(b"\xff\xfe"), "[red]markup[/]", "-dash", "it's"])
def test_odd_names_of_the_output(name: str, recipe: Path, tmp_path: Path):
    """Any name that the system takes works, and what is said of it is printable, on its own line."""
    out = tmp_path / name
    done = plait(["merge", "--memory", "256MiB", "--", str(recipe), str(out)])
    assert done.exit_code == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.rstrip("\n").isprintable()
    assert plait(["verify", str(out)]).exit_code == 0
    again = plait(["merge", "--memory", "256MiB", "--", str(recipe), str(out)])
    assert again.exit_code == 2
    assert len(again.stderr.splitlines()) == 1
    assert again.stderr.rstrip("\n").isprintable()


def test_paths_that_are_no_text(models: list[Path], tmp_path: Path):
    """Folders and recipes whose names are no UTF-8 are read, written into the manifest as escapes, and compared when a run is continued."""
    home = tmp_path / os.fsdecode(b"\xffhome")
    models[0].parent.rename(home)
    (home / os.fsdecode(b"\xfe.yml")).write_text(tiny.recipe("ties", [Path("expert1")], base=Path("base"), each=HALF))
    assert plait(["merge", str(home / os.fsdecode(b"\xfe.yml")), str(tmp_path / "out"), "--memory", "256MiB"]).exit_code == 0
    assert plait(["verify", str(tmp_path / "out")]).exit_code == 0
    assert "\\udcffhome/base/model.safetensors" in json.loads((tmp_path / "out" / "plait.json").read_text())["files"][0][0]
    assert plait(["status", str(tmp_path / "out")]).stdout.isascii()


@pytest.mark.parametrize("out", ["/", "//", "/..", "."])
def test_folders_that_cannot_be_replaced(out: str, recipe: Path):
    """The root of all folders has nothing beside it."""
    refused(recipe, Path(out), "cannot be replaced|contains the input model")


# -- other commands ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["methods", "tise"], ("no merge method called 'tise'", "did you mean 'ties'")),
        (["inspect", "nowhere"], ("no model", "nowhere", "give a folder that exists")),
        (["mrge"], ("No such command 'mrge'", "merge")),
        (["merge"], ("Missing argument 'RECIPE'", "plait merge --help")),
        (["plan", "x.yml", "--format", "xml"], ("'xml' is not one of 'tree', 'json'",)),
    ],
)
def test_other_commands(arguments: list[str], words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One sentence with the nearest right word."""
    monkeypatch.chdir(tmp_path)
    result = plait(arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("plait: ")
    assert all(word in line for word in words), line


def test_several_problems_are_told_at_once(models: list[Path], tmp_path: Path):
    """One line a problem, the first behind `plait: `, the rest below it."""
    path = tmp_path / "recipe.yml"
    path.write_text(ties(models, {"weight": 1.0, "density": 1.5, "scoop": 1}).replace('"ties"', '"ties", "dtyp": "float32"'))
    result = plait(["plan", str(path)])
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("plait: ")
    assert all(re.match(r"(plait: | {7}).*recipe\.yml:\d+:\d+: ", line) for line in lines)


def test_debug_shows_the_traceback(recipe: Path, tmp_path: Path):
    """With --debug the error itself comes through."""
    result = plait(["merge", str(recipe), str(tmp_path / "out"), "--memory", "1MiB", "--debug"])
    assert type(result.exception).__name__ == "BudgetTooSmall"


def test_an_internal_error_is_said_as_such(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What we did not foresee is one line too, with status 1 and the way to a traceback; nothing is left."""

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr("plait.engine.executor.execute", fail)
    result = plait(["merge", str(recipe), str(tmp_path / "out")])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("plait: internal error: ZeroDivisionError: unforeseen")
    assert "--debug" in line
    assert tiny.leftovers(tmp_path / "out") == []
