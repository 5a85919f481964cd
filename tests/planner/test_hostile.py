"""Every kind of broken and hostile input gives one clear error, soon and in little memory, and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from plait.ops.errors import CheckpointError
from plait.planner.checkpoint import open_checkpoint, resolve_model
from plait.planner.layout import make_layout
from plait.planner.safetensors_header import MAX_HEADER_BYTES, MAX_TENSORS
from support import hostile, tiny
from support.hostile import COSTLY, MODELS, MOST_BYTES, MOST_SECONDS, RECIPES, Case


def check(case: Case, outcome: dict[str, Any], kind: str, path: Path) -> None:
    """The right class of error; printable lines that name the file and say what is wrong; within the time."""
    message = outcome["message"]
    assert outcome["error"] == ("CheckpointError" if kind == "model" else "RecipeError"), message
    if kind == "model":
        assert "\n" not in message
        assert len(message) < 1500
    assert all(line.isprintable() for line in message.split("\n")), ascii(message)
    assert (case.names or (path.name if kind == "recipe" else str(path))) in message
    assert re.search(case.words, message) or case.words in message, message
    assert outcome["seconds"] < MOST_SECONDS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "m"
    made.mkdir()
    return made


@pytest.mark.parametrize("name", MODELS)
def test_bad_model(name: str, folder: Path) -> None:
    """One sentence of the checkpoint's kind names the file and what is wrong with it."""
    path = MODELS[name].make(folder)
    check(MODELS[name], hostile.opened("model", path), "model", path)


@pytest.mark.parametrize("name", RECIPES)
def test_bad_recipe(name: str, folder: Path) -> None:
    """One error of the recipe's kind names the file, and the line where there is one."""
    path = RECIPES[name].make(folder)
    check(RECIPES[name], hostile.opened("recipe", path), "recipe", path)


@pytest.fixture(scope="module")
def opener() -> Iterator[Callable[[Path], dict[str, Any]]]:
    """Opens a model in a process of its own; tells how that ended and what it cost."""
    with subprocess.Popen([sys.executable, hostile.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        questions, answers = process.stdin, process.stdout
        assert questions is not None
        assert answers is not None

        def ask(path: Path) -> dict[str, Any]:
            print(json.dumps(["model", str(path)]), file=questions, flush=True)
            outcome: dict[str, Any] = json.loads(tiny.bounded(answers.readline))
            return outcome

        try:
            yield ask
        finally:
            process.kill()


@pytest.mark.parametrize("name", COSTLY)
def test_large_input_costs_little(name: str, folder: Path, opener: Callable[[Path], dict[str, Any]]) -> None:
    """Where size is the attack: less than a second and 200 MB, measured in a process of its own."""
    path = COSTLY[name].make(folder)
    outcome = opener(path)
    check(COSTLY[name], outcome, "model", path)
    assert outcome["bytes"] < MOST_BYTES


def test_no_code_of_a_pickle_runs(folder: Path) -> None:
    """The pickles of the corpus do run code when they are loaded, which shows that none was loaded here."""
    marker = Path("/tmp/plait-was-here")
    marker.unlink(missing_ok=True)
    for number, name in enumerate(hostile.PICKLES):
        inner = folder / str(number)
        inner.mkdir()
        with pytest.raises(CheckpointError):
            open_checkpoint(hostile.PICKLES[name].make(inner))
    assert not marker.exists()


@pytest.mark.parametrize("text", ["a\0b", "~nobody-of-this-name/model", "m" * 5000, "a/" * 3000, "\ud800", ""])
def test_bad_paths(text: str, tmp_path: Path) -> None:
    """Paths that the system itself refuses are errors of plait's, in one line."""
    for attempt in (lambda: resolve_model(text, tmp_path), lambda: open_checkpoint(text or str(tmp_path))):
        with pytest.raises(CheckpointError) as caught:
            attempt()
        assert "\n" not in caught.value.message
        assert caught.value.message.isprintable()


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    """An output of more tensors than one file may describe goes into several files within the limits of reading."""
    layout = make_layout([(f"model.layers.{i}.{'x' * 300 if i % 2 else 'y'}.weight", "BF16", (8, 1, 8)) for i in range(MAX_TENSORS + 1000)], 10**12)
    assert len(layout.shards) > 1
    for shard in layout.shards:
        assert len(shard.header) <= MAX_HEADER_BYTES
        with open(tmp_path / shard.name, "wb") as stream:
            stream.write(shard.header)
            stream.truncate(shard.size)
    assert len(open_checkpoint(tmp_path).tensors) == MAX_TENSORS + 1000
