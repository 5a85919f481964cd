"""`plait bench` in real processes: it measures, says what it found, stores it, and `plait plan` uses it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from plait.engine.ratefile import save_rates
from plait.ops.errors import PlaitError
from plait.peer_sd_mecha import sd_mecha_words
from plait.planner.rates import DEFAULT_RATES
from support import tiny

MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
needs_matplotlib = pytest.mark.skipif(not MATPLOTLIB, reason="matplotlib is not installed")
KERNELS = os.environ["PLAIT_CACHE_DIR"]


def plait(*args: str | Path, cwd: Path, cache: Path | str = KERNELS, status: int = 0) -> tuple[str, str]:
    """Standard output and error of `plait ARGS`, which must end with the status."""
    environment = {**os.environ, "PLAIT_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, "-m", "plait", *map(str, args)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    (folder / "slerp.yml").write_text(tiny.recipes(tiny.write_set(folder / "models"))["slerp"])
    return folder / "slerp.yml"


class Ran(NamedTuple):
    """A command that several tests look at: what it printed, and the picture that it drew where matplotlib is."""

    out: str
    err: str
    folder: Path
    picture: Path


def ran(folder: Path, *args: str | Path, ending: str = "svg", cache: Path | str = KERNELS) -> Ran:
    picture = folder / f"picture.{ending}"
    out, err = plait("bench", *args, *(["--plot", picture] if MATPLOTLIB else []), cwd=folder, cache=cache)
    return Ran(out, err, folder, picture)


# -- machine -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A measured machine, with a cache of its own but for compiled kernels."""
    folder = tmp_path_factory.mktemp("machine")
    (folder / "cache").mkdir()
    (folder / "work").mkdir()
    (folder / "cache" / "kernels").symlink_to(Path(KERNELS) / "kernels")
    return ran(folder, "machine", "--folder", folder / "work", "--format", "json", cache=folder / "cache")


def test_measuring_is_stored_and_used(machine: Ran, recipe: Path, tmp_path: Path):
    """Data goes to standard output and the file, progress to standard error; afterwards plans are made with it. The folder stays clean."""
    cache = machine.folder / "cache"
    found = json.loads(machine.out)
    assert found["stored"] == str(cache / "machine.json")
    assert found["rates"] == {**json.loads((cache / "machine.json").read_text())["rates"], "measured": True}
    assert "measuring: reading" in machine.err
    assert list((machine.folder / "work").iterdir()) == []
    before, _ = plait("plan", recipe, "--format", "json", cwd=tmp_path)
    after, _ = plait("plan", recipe, "--format", "json", cwd=tmp_path, cache=cache)
    assert json.loads(after)["timing"]["measured"]
    assert not json.loads(before)["timing"]["measured"]
    assert json.loads(after)["fingerprint"] == json.loads(before)["fingerprint"]


@needs_matplotlib
def test_a_machine_is_drawn(machine: Ran):
    """An SVG whose text is text."""
    assert "reading from the disk" in machine.picture.read_text()


def test_a_damaged_file_is_said_and_survived(recipe: Path, tmp_path: Path):
    """The plan is made with default rates and its notes say why."""
    save_rates(DEFAULT_RATES, tmp_path / "machine.json").write_text("{")
    out, _ = plait("plan", recipe, "--format", "json", cwd=tmp_path, cache=tmp_path)
    assert any("machine.json is damaged" in note for note in json.loads(out)["notes"])
    assert json.loads(out)["timing"]["measured"] is False


def test_missing_folders_are_the_users_mistake(tmp_path: Path):
    """A folder that does not exist is one line and status 2."""
    _, err = plait("bench", "machine", "--folder", "nowhere", cwd=tmp_path, status=2)
    assert len(err.splitlines()) == 1
    assert "nowhere" in err


# -- memory ------------------------------------------------------------------------------------------
def test_memory_over_budgets(recipe: Path, tmp_path: Path):
    """Each budget is refused or measured, within prediction and budget; larger ones come later; nothing is left in the folder."""
    out, err = plait("bench", "memory", recipe, "--budgets", "1MiB,64MiB, 256MiB", "--folder", tmp_path, "--format", "json", cwd=tmp_path)
    found = json.loads(out)
    refused, *ran = found["runs"]
    assert refused["refused"]
    assert refused["budget"] == "1MiB"
    assert refused["seconds"] == 0.0
    assert [r["budget"] for r in ran] == ["64MiB", "256MiB"]
    for run in ran:
        assert not run["refused"]
        assert run["within"]
        assert run["peak_bytes"] <= run["predicted_peak_bytes"] <= run["budget_bytes"]
        assert run["seconds"] > 0
        assert run["predicted_seconds"] > 0
        assert run["bytes_read"] > 0
    assert found["imports_bytes"] > 1 << 20
    assert "merging at --memory 64MiB" in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def memory(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return ran(tmp_path_factory.mktemp("memory"), "memory", recipe, "--budgets", "2MiB,128MiB", "--no-warm-up", ending="png")


def test_memory_as_a_table(memory: Ran):
    """The table names budgets, refusals and what the figures are."""
    out = memory.out
    assert re.search(r"2MiB +too small", out)
    assert re.search(r"128MiB +\S+ \S+ of \S+ MiB +\S+ s of \S+ s", out)
    assert "above the" in out
    assert max(map(len, out.splitlines())) <= 80


def test_odd_arguments_are_one_line(recipe: Path, tmp_path: Path):
    """Sizes that are none, recipes that are not there, and no budgets at all: one line, status 2, and nothing runs."""
    for args in (("--budgets", "big"), ("--budgets", ",")):
        _, err = plait("bench", "memory", recipe, *args, cwd=tmp_path, status=2)
        assert len(err.splitlines()) == 1
    _, err = plait("bench", "memory", "missing.yml", "--budgets", "64MiB", cwd=tmp_path, status=2)
    assert "missing.yml" in err
    assert list(tmp_path.iterdir()) == []


# -- peers -------------------------------------------------------------------------------------------
COPY = "import pathlib, sys; out = pathlib.Path(sys.argv[2]); out.mkdir(); (out / 'seen').write_text(pathlib.Path(sys.argv[1]).read_text())"


def peers_options(folder: Path, recipe: Path, repeat: int) -> list[str | Path]:
    (folder / "copier.py").write_text(COPY)
    (folder / "work").mkdir()
    peer = f"copier={sys.executable} {folder / 'copier.py'} {{recipe}} {{out}}"
    return ["peers", recipe, "--peer", peer, "--repeat", str(repeat), "--folder", folder / "work"]


@pytest.fixture(scope="module")
def peers(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("peers")
    return ran(folder, *peers_options(folder, recipe, 1))


def test_peers_take_turns(recipe: Path, tmp_path: Path):
    """Floor, plait and another program are measured as often as asked, and nothing is left behind."""
    out, err = plait("bench", *peers_options(tmp_path, recipe, 2), "--format", "json", cwd=tmp_path)
    found = json.loads(out)
    rows = {row["subject"]: row for row in found["rows"]}
    assert {"floor", "plait", "copier"} <= set(rows)
    assert all(len(row["wall_s"]) == len(row["cpu_s"]) == 2 for row in rows.values())
    assert rows["plait"]["peak_bytes"][0] > 1 << 20
    assert found["bytes_read"] > found["bytes_written"] > 0
    assert "run 2 of 2: copier" in err
    assert list((tmp_path / "work").iterdir()) == []


def test_peers_as_a_table(peers: Ran):
    """A row for each, and nothing is left behind."""
    assert re.search(r"copier +\d+\.\d\d", peers.out)
    assert max(map(len, peers.out.splitlines())) <= 80
    assert list((peers.folder / "work").iterdir()) == []


def test_peers_that_fail_are_named(recipe: Path, tmp_path: Path):
    """A program that cannot start, or ends with an error, is one line with its last words; odd options run nothing."""
    _, err = plait("bench", "peers", recipe, "--peer", "odd", cwd=tmp_path, status=2)
    assert "NAME=COMMAND" in err
    _, err = plait("bench", "peers", recipe, "--mergekit", tmp_path, cwd=tmp_path, status=2)
    assert "mergekit-yaml" in err
    bad = f"bad={sys.executable} -c raise(SystemExit('broken')) {{recipe}} {{out}}"
    _, err = plait("bench", "peers", recipe, "--peer", bad, "--repeat", "1", cwd=tmp_path, status=1)
    assert "bad ended with status 1: broken" in err
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".plait")]


def test_plots_need_matplotlib(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without matplotlib nothing is measured in vain: the sentence says what to install."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "matplotlib.py").write_text("raise ModuleNotFoundError('as if it were not installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "without"), prepend=os.pathsep)
    _, err = plait("bench", "memory", recipe, "--plot", "m.png", cwd=tmp_path, status=2)
    assert "plait[bench]" in err


@needs_matplotlib
def test_memory_is_drawn(memory: Ran):
    """As a PNG."""
    assert memory.picture.read_bytes().startswith(b"\x89PNG")


@needs_matplotlib
def test_peers_are_drawn(peers: Ran):
    """As an SVG whose text is text."""
    assert "copier" in peers.picture.read_text()


# -- sd-mecha ----------------------------------------------------------------------------------------
def test_a_recipe_becomes_sd_mechas(tmp_path: Path):
    """Method, parameters and files of a recipe that it can merge; another recipe is refused with the reason and the recipe's line."""
    models = tiny.write_set(tmp_path / "models")
    made = tiny.recipes(models)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").touch()
    (tmp_path / "r.yml").write_text(made["slerp"])
    *_, wanted, out = sd_mecha_words(tmp_path / "venv", tmp_path / "r.yml")
    assert out == "{out}"
    assert json.loads(wanted)["method"] == "slerp"
    assert json.loads(wanted)["base"] == str(models[0] / "model.safetensors")
    entries = "".join(f"  - {{model: {m}, parameters: {{weight: {w}, density: 0.5}}}}\n" for m, w in zip(models[1:], (1, 2), strict=True))
    for text, why in (
        (f"merge_method: linear\nmodels:\n{entries.replace(', density: 0.5', '')}", "equal weight"),
        (f"merge_method: dare_ties\nbase_model: {models[0]}\nmodels:\n{entries}", "counterparts"),
    ):
        (tmp_path / "r.yml").write_text(text)
        with pytest.raises(PlaitError, match=rf"r.yml:1:\d+: sd-mecha cannot .*{why}"):
            sd_mecha_words(tmp_path / "venv", tmp_path / "r.yml")
    with pytest.raises(PlaitError, match="bin/python"):
        sd_mecha_words(tmp_path / "nowhere", tmp_path / "r.yml")
