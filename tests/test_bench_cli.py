"""`plait bench` in real processes: it measures, says what it found, stores it, and `plait plan` uses it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from plait.engine.ratefile import save_rates
from plait.ops.errors import PlaitError
from plait.peer_sd_mecha import sd_mecha_words
from plait.planner.rates import DEFAULT_RATES
from support import tiny

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


# -- machine -----------------------------------------------------------------------------------------
def test_measuring_is_stored_and_used(recipe: Path, tmp_path: Path):
    """Data goes to standard output and the file, progress to standard error; afterwards plans are made with it. The folder stays clean."""
    cache, work = tmp_path / "cache", tmp_path / "work"
    work.mkdir()
    cache.mkdir()
    (cache / "kernels").symlink_to(Path(KERNELS) / "kernels")
    out, err = plait("bench", "machine", "--folder", work, "--format", "json", cwd=tmp_path, cache=cache)
    found = json.loads(out)
    assert found["stored"] == str(cache / "machine.json")
    assert found["rates"] == {**json.loads((cache / "machine.json").read_text())["rates"], "measured": True}
    assert "measuring: reading" in err
    assert list(work.iterdir()) == []
    before, _ = plait("plan", recipe, "--format", "json", cwd=tmp_path)
    after, _ = plait("plan", recipe, "--format", "json", cwd=tmp_path, cache=cache)
    assert json.loads(after)["timing"]["measured"]
    assert not json.loads(before)["timing"]["measured"]
    assert json.loads(after)["fingerprint"] == json.loads(before)["fingerprint"]


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


def test_memory_as_a_table(recipe: Path, tmp_path: Path):
    """The table names budgets, refusals and what the figures are."""
    out, _ = plait("bench", "memory", recipe, "--budgets", "2MiB,128MiB", "--no-warm-up", cwd=tmp_path)
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


def test_peers_take_turns(recipe: Path, tmp_path: Path):
    """Floor, plait and another program are measured as often as asked, and nothing is left behind."""
    (tmp_path / "copier.py").write_text(COPY)
    work = tmp_path / "work"
    work.mkdir()
    peer = f"copier={sys.executable} {tmp_path / 'copier.py'} {{recipe}} {{out}}"
    out, err = plait("bench", "peers", recipe, "--peer", peer, "--repeat", "2", "--folder", work, "--format", "json", cwd=tmp_path)
    found = json.loads(out)
    rows = {row["subject"]: row for row in found["rows"]}
    assert {"floor", "plait", "copier"} <= set(rows)
    assert all(len(row["wall_s"]) == len(row["cpu_s"]) == 2 for row in rows.values())
    assert rows["plait"]["peak_bytes"][0] > 1 << 20
    assert found["bytes_read"] > found["bytes_written"] > 0
    assert "run 2 of 2: copier" in err
    assert list(work.iterdir()) == []
    shown, _ = plait("bench", "peers", recipe, "--peer", peer, "--repeat", "1", "--folder", work, cwd=tmp_path)
    assert re.search(r"copier +\d+\.\d\d", shown)
    assert max(map(len, shown.splitlines())) <= 80


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


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is not None, reason="matplotlib is installed")
def test_plots_need_matplotlib(recipe: Path, tmp_path: Path):
    """Without matplotlib nothing is measured in vain: the sentence says what to install."""
    _, err = plait("bench", "memory", recipe, "--plot", "m.png", cwd=tmp_path, status=2)
    assert "plait[bench]" in err


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_plots_are_pictures(recipe: Path, tmp_path: Path):
    """A PNG is drawn."""
    plait("bench", "memory", recipe, "--budgets", "64MiB,128MiB", "--no-warm-up", "--plot", tmp_path / "m.png", cwd=tmp_path)
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_machine_and_peers_are_drawn(recipe: Path, tmp_path: Path):
    """An SVG of each, whose text is text."""
    plait("bench", "machine", "--no-save", "--plot", "machine.svg", cwd=tmp_path)
    assert "reading from the disk" in (tmp_path / "machine.svg").read_text()
    (tmp_path / "copier.py").write_text(COPY)
    peer = f"copier={sys.executable} {tmp_path / 'copier.py'} {{recipe}} {{out}}"
    plait("bench", "peers", recipe, "--peer", peer, "--repeat", "1", "--plot", "peers.svg", cwd=tmp_path)
    assert "copier" in (tmp_path / "peers.svg").read_text()


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
