"""The command line teaches, shows what is there, and leaves a folder that others can load."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors import safe_open

import plait
from plait.cli import main
from plait.ops.method import methods, steps
from support import tiny
from support.stored import read_folder

COMMANDS = ("merge", "plan", "methods", "inspect", "demo", "cache")


def run(*arguments: str, width: int = 80) -> Result:
    """The command in this process; it must end well."""
    result = CliRunner(env={"COLUMNS": str(width)}).invoke(main, list(arguments), prog_name="plait")
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return tiny.write_set(tmp_path / "models")


@pytest.fixture
def recipe(models: list[Path], tmp_path: Path) -> Callable[[str], str]:
    def write(name: str) -> str:
        (tmp_path / f"{name}.yml").write_text(tiny.recipes(models)[name])
        return str(tmp_path / f"{name}.yml")

    return write


# -- help -------------------------------------------------------------------------------------------
def test_help_names_every_command_with_examples():
    """`plait --help` says what it is for, what commands there are, and shows how they are used."""
    text = run("--help").stdout
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", text, re.MULTILINE)
    assert "Examples:" in text
    assert "plait merge recipe.yml out --memory 4GiB" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str):
    """Each says what it does in a sentence, and explains every option."""
    text = run(command, "--help").stdout
    assert text.startswith(f"Usage: plait {command}")
    assert max(map(len, text.splitlines())) <= 80
    options = re.findall(r"^  (?:-\w, )?(--[\w-]+)(.*(?:\n {10,}.*)*)", text, re.MULTILINE)
    assert len(options) >= 2
    for name, rest in options:
        explained = re.sub(r"\[.*?\]", "", rest).split()
        assert len(explained) >= 3, f"{command} {name} is not explained"
    assert f"Examples:\n    plait {command} " in text


@pytest.mark.parametrize("command", ["merge", "plan"])
def test_help_shows_a_recipe_that_works(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The recipe in the help is a real one: planned as it stands over three models, it gives a plan."""
    text = run(command, "--help").stdout
    written = re.sub(r"^  ", "", text[text.index("  merge_method:") :], flags=re.MULTILINE).rstrip()
    names = ("base", "math", "code")
    for name, folder in zip(names, tiny.write_set(tmp_path / "set"), strict=True):
        (tmp_path / "path" / "to").mkdir(parents=True, exist_ok=True)
        folder.rename(tmp_path / "path" / "to" / name)
    (tmp_path / "recipe.yml").write_text(re.sub(r"^  ", "", written, flags=re.MULTILINE))
    monkeypatch.chdir(tmp_path)
    assert "ties + magic_wsc" in run("plan", "recipe.yml", "--memory", "1GiB").stdout


def test_version():
    """The version of the package."""
    assert run("--version").stdout == f"plait {plait.__version__}\n"


def test_python_dash_m(tmp_path: Path):
    """`python -m plait` is the same command."""
    done = subprocess.run([sys.executable, "-m", "plait", "--version"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == f"plait {plait.__version__}\n"


# -- methods and inspect ----------------------------------------------------------------------------
def test_methods_lists_all():
    """Every method and step under its family, with what it needs; nothing is cut off in 80 columns."""
    text = run("methods").stdout
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for name, method in {**methods(), **steps()}.items():
        assert re.search(rf"^{name}\b", text, re.MULTILINE)
        assert re.search(rf"^{re.escape(method.family)}\b", text, re.MULTILINE)


@pytest.mark.parametrize("name", [*methods(), *steps()])
def test_each_method_in_full(name: str):
    """Source, kinds, and every parameter with its default and what it does."""
    method = {**methods(), **steps()}[name]
    text = run("methods", name, width=200).stdout
    assert text.startswith(name)
    assert f"source: {method.source}" in text
    for param in method.params:
        assert re.search(rf"^{param.name}\b.*{re.escape(param.doc[:20])}", text, re.MULTILINE)
        assert all(choice in text for choice in param.choices)
    assert "…" not in run("methods", name).stdout


def test_methods_as_json():
    """The same as data: one entry a method, parameters with their bounds."""
    listed = json.loads(run("methods", "--format", "json").stdout)
    assert {m["name"] for m in listed} == methods().keys() | steps().keys()
    (ties,) = json.loads(run("methods", "ties", "--format", "json").stdout)
    density = next(p for p in ties["parameters"] if p["name"] == "density")
    assert (density["low"], density["high"], density["per_expert"], density["type"]) == (0.0, 1.0, True, "float")
    assert ties["experts"] == {"least": 1, "most": None}


def test_inspect(models: list[Path]):
    """Elements, dtype, layers and shards of a checkpoint; with --tensors each of them."""
    text = run("inspect", str(models[0])).stdout
    assert f"parameters: {tiny.elements():,}" in text
    assert "bfloat16" in text
    assert re.search(r"layers: 2\b", text)
    listed = run("inspect", str(models[0]), "--tensors", width=120).stdout
    for name, shape in tiny.SHAPES.items():
        assert re.search(rf"^{re.escape(name)} +BF16 +{re.escape(str(list(shape)))}", listed, re.MULTILINE)


def test_inspect_as_json(models: list[Path]):
    """The same as data."""
    data = json.loads(run("inspect", str(models[0]), "--format", "json", "--tensors").stdout)
    assert data["parameters"] == tiny.elements()
    assert data["layers"] == 2
    assert {n: tuple(t["shape"]) for n, t in data["tensors"].items()} == tiny.SHAPES
    assert sum(t["nbytes"] for t in data["tensors"].values()) == data["bytes"] == 2 * tiny.elements()


# -- plan -------------------------------------------------------------------------------------------
def test_plan_as_tree_and_as_json_agree(recipe: Callable[[str], str]):
    """Both show the same plan."""
    data = json.loads(run("plan", recipe("ties"), "--memory", "96MiB", "--workers", "2", "--format", "json").stdout)
    text = run("plan", recipe("ties"), "--memory", "96MiB", "--workers", "2").stdout
    assert data["fingerprint"][:12] in text
    assert data["title"] == "ties"
    assert "of 96 MiB" in text
    assert "2 workers" in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def test_plan_without_memory_says_what_it_took(recipe: Callable[[str], str]):
    """The default budget is named, since it is a guess."""
    assert re.search(r"no --memory given: half of the free memory, [\d.]+ [MG]iB", " ".join(run("plan", recipe("linear"), width=200).stdout.split()))


def test_plan_writes_nothing(recipe: Callable[[str], str], tmp_path: Path):
    """Planning leaves the disk as it was."""
    path = recipe("ties")
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    run("plan", path, "--memory", "256MiB")
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


# -- merge ------------------------------------------------------------------------------------------
def test_merge_says_one_line(recipe: Callable[[str], str], tmp_path: Path):
    """Where no terminal is, the only output is one line on standard error: place, bytes, seconds, speed."""
    result = run("merge", recipe("linear"), str(tmp_path / "out"), "--memory", "256MiB")
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert re.fullmatch(rf"{re.escape(str(tmp_path / 'out'))}: 38\.7 KiB written, 116 KiB read in [\d.]+ s \([\d.]+ [KM]iB/s\)", line)


def test_quiet_says_nothing(recipe: Callable[[str], str], tmp_path: Path):
    """--quiet is quiet."""
    result = run("merge", recipe("linear"), str(tmp_path / "out"), "--memory", "256MiB", "--quiet")
    assert result.output == ""


def test_output_folder(models: list[Path], recipe: Callable[[str], str], tmp_path: Path):
    """Weights, config with the right dtype, tokenizer, generation settings, model card, recipe and manifest; nothing else, and no mode of its own."""
    (tmp_path / "r.yml").write_text(tiny.recipe("linear", models, each={"weight": 1.0}, out_dtype="float32"))
    run("merge", str(tmp_path / "r.yml"), str(tmp_path / "out"), "--memory", "256MiB")
    out = tmp_path / "out"
    made = {"README.md", "plait_recipe.yml", "plait.json", "report.json"}
    assert {p.name for p in out.iterdir()} == {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json", *made}
    assert json.loads((out / "config.json").read_text()) == {**json.loads((models[0] / "config.json").read_text()), "torch_dtype": "float32"}
    assert (out / "tokenizer.json").read_bytes() == (models[0] / "tokenizer.json").read_bytes()
    assert (out / "plait_recipe.yml").read_text() == (tmp_path / "r.yml").read_text()
    card = (out / "README.md").read_text()
    assert card.startswith("---\n")
    assert "`linear`" in card
    assert str(tmp_path) not in card.split("Recipe:")[0]
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask
    assert all(p.stat().st_mode & 0o777 == 0o666 & ~umask for p in out.iterdir())
    assert tiny.leftovers(out) == ["out"]
    inputs = [read_folder(m) for m in models]
    with safe_open(out / "model.safetensors", framework="np") as tensors:
        assert list(tensors.keys()) == sorted(tiny.SHAPES) or set(tensors.keys()) == set(tiny.SHAPES)
        assert tensors.metadata() == {"format": "pt"}
        for name, shape in tiny.SHAPES.items():
            merged = tensors.get_tensor(name)
            assert merged.shape == shape
            assert merged.dtype == np.float32
            exact = sum(i[name].value for i in inputs) / 3
            np.testing.assert_allclose(merged, exact, rtol=0, atol=3e-8)


def test_shards_and_index(models: list[Path], recipe: Callable[[str], str], tmp_path: Path):
    """Small shards hold the same tensors in model order, and the index says where each is."""
    run("merge", recipe("ties"), str(tmp_path / "one"), "--memory", "256MiB")
    run("merge", recipe("ties"), str(tmp_path / "many"), "--memory", "256MiB", "--shard-size", "15KB")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted(p.name for p in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 1
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    assert list(index["weight_map"]) == list(tiny.SHAPES)
    assert list(index["weight_map"].values()) == sorted(index["weight_map"].values())
    assert index["metadata"]["total_size"] == 2 * tiny.elements()
    one, many = read_folder(tmp_path / "one"), read_folder(tmp_path / "many")
    assert all(np.array_equal(one[name].value, many[name].value) for name in tiny.SHAPES)
    assert plait.open(tmp_path / "many").names == list(tiny.SHAPES)


def test_sharded_inputs_give_the_same_bits(models: list[Path], recipe: Callable[[str], str], tmp_path: Path):
    """It does not matter how the inputs are cut into files."""
    cut = tiny.write_set(tmp_path / "cut", shards=3)
    (tmp_path / "cut.yml").write_text(tiny.recipes(cut)["ties"])
    run("merge", recipe("ties"), str(tmp_path / "a"), "--memory", "256MiB")
    run("merge", str(tmp_path / "cut.yml"), str(tmp_path / "b"), "--memory", "256MiB")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_an_empty_output_folder_may_exist(recipe: Callable[[str], str], tmp_path: Path):
    """An empty folder is as good as none, and missing parents are made."""
    (tmp_path / "empty").mkdir()
    run("merge", recipe("linear"), str(tmp_path / "empty"), "--memory", "256MiB")
    run("merge", recipe("linear"), str(tmp_path / "a" / "b" / "out"), "--memory", "256MiB")
    assert (tmp_path / "empty" / "model.safetensors").read_bytes() == (tmp_path / "a" / "b" / "out" / "model.safetensors").read_bytes()


def test_the_torch_backend_gives_the_same_bits(recipe: Callable[[str], str], tmp_path: Path):
    """The interpreter is the reference: whole merges agree with compiled ones."""
    for name in ("ties", "della", "slerp", "linear_wsc"):
        for backend in ("numba", "torch"):
            run("merge", recipe(name), str(tmp_path / f"{name}-{backend}"), "--memory", "256MiB", "--backend", backend, "-q")
        numba, torch = (tmp_path / f"{name}-{b}" / "model.safetensors" for b in ("numba", "torch"))
        assert numba.read_bytes() == torch.read_bytes(), name
