"""`plait bench methods` in real processes: every method is merged, refused or skipped with a reason, and nothing is left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from plait.cli import main
from plait.method_recipe import recipe_of
from plait.method_runs import MethodRun, chosen, need_space
from plait.ops.errors import OutputError
from plait.ops.method import methods, steps
from plait.synthetic import open_base, write_layer_scores, write_like
from support import tiny
from support.stored import read_folder

KNOWN = {**methods(), **steps()}


def plait(*args: str | Path, cwd: Path, status: int = 0) -> tuple[str, str]:
    """Standard output and error of `plait bench methods ARGS`, which must end with the status."""
    command = [sys.executable, "-m", "plait", "bench", "methods", *map(str, args)]
    done = subprocess.run(command, cwd=cwd, env=os.environ.copy(), capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def test_methods_are_measured_beside_their_predictions(tmp_path: Path):
    """Streamed, ranked, given statistics, on whole matrices, a step: each runs within prediction and budget, in the bytes that were predicted."""
    out, err = plait("--shapes", "tiny", "--methods", "linear,led,sens,iso_c,magic_wsc", "--format", "json", cwd=tmp_path)
    runs = {run["method"]: run for run in json.loads(out)["runs"]}
    assert set(runs) == {"linear", "led", "sens", "iso_c", "magic_wsc"}
    for run in runs.values():
        assert run["state"] == "ran", run["why"]
        assert run["within"]
        assert run["read_bytes"] >= run["predicted_read_bytes"] > run["written_bytes"] > 0
        assert run["seconds"] > 0
        assert run["cpu_s"] > 0
        assert run["prepare_s"] > 0
        assert run["private_bytes"] > run["peak_bytes"]
    assert [name for name, run in runs.items() if not run["streams"]] == ["iso_c"]
    assert runs["led"]["made_up"] == ["importance", "base_importance"]
    assert re.search(r"\d of 5: iso_c, about", err)
    assert list(tmp_path.iterdir()) == []


def test_models_of_the_user(tmp_path: Path):
    """Given experts are merged as they are; without them some are made up from the model; methods that take more say so."""
    base, one, _ = tiny.write_set(tmp_path / "set")
    work = tmp_path / "work"
    work.mkdir()
    shown, _ = plait("--on", base, "--expert", one, "--methods", "slerp,nuslerp", "--folder", work, "--no-warm-up", "--through", "nice", cwd=tmp_path)
    assert re.search(r"slerp +\S+ s", shown)
    assert "nuslerp: takes 2 experts, and there are 1" in shown
    assert max(map(len, shown.splitlines())) <= 100
    out, err = plait("--on", base, "--methods", "ties", "--experts", "2", "--memory", "1MiB", "--folder", work, "--format", "json", cwd=tmp_path)
    (run,) = json.loads(out)["runs"]
    assert (run["state"], run["experts"]) == ("refused", 2)
    assert "needs" in run["why"]
    assert "making up expert 2 of 2" in err
    assert list(work.iterdir()) == []


def test_a_merge_is_stopped_at_its_limit(tmp_path: Path):
    """What is not finished in time says so; what is predicted to take far longer is not begun."""
    out, _ = plait("--shapes", "tiny", "--methods", "linear", "--limit", "0.35", "--no-warm-up", "--format", "json", cwd=tmp_path)
    assert json.loads(out)["runs"][0]["why"] == "not finished in 0.35 s"
    out, _ = plait("--shapes", "tiny", "--methods", "linear", "--limit", "0.01", "--format", "json", cwd=tmp_path)
    assert json.loads(out)["runs"][0]["why"].startswith("predicted to take")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_being_stopped_leaves_nothing_behind(number: signal.Signals, status: int, tmp_path: Path):
    """In the middle of a run: one line, the status of the signal, and neither models nor outputs."""
    command = [sys.executable, "-m", "plait", "bench", "methods", "--shapes", "tiny", "--methods", "linear,ties,sce,ram"]
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ.copy(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        assert process.stderr is not None
        while "2 of 4" not in process.stderr.readline():
            assert time.monotonic() < until
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert len(err.splitlines()) == 1
    assert err.startswith("plait: ")
    assert list(tmp_path.iterdir()) == []


def test_odd_arguments_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Options that exclude each other, methods and models that are not there, pictures of another kind: nothing runs."""
    monkeypatch.chdir(tmp_path)
    for args, said in (
        (("--methods", "tyes"), "did you mean 'ties'"),
        (("--on", "nowhere"), "nowhere"),
        (("--on", "x", "--shapes", "tiny"), "exclude"),
        (("--expert", "x"), "--on"),
        (("--plot", "m.jpg"), ".svg"),
        (("--memory", "much"), "much"),
    ):
        done = CliRunner().invoke(main, ["bench", "methods", *args])
        assert done.exit_code == 2
        assert len(done.stderr.splitlines()) == 1
        assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_the_picture_names_the_methods(tmp_path: Path):
    """An SVG whose text is text."""
    plait("--shapes", "tiny", "--methods", "slerp", "--no-warm-up", "--plot", "m.svg", cwd=tmp_path)
    text = (tmp_path / "m.svg").read_text()
    assert "slerp" in text
    assert "predicted" in text


def test_there_must_be_room(tmp_path: Path):
    """More than the disk has is refused before anything is written."""
    with pytest.raises(OutputError, match=r"models need .* free: give --folder"):
        need_space(tmp_path, 1 << 60, "models")


def test_those_that_stream_come_first():
    """All methods, once, and whole matrices last."""
    order = chosen(())
    assert {m.name for m in order} == set(KNOWN)
    assert [m.name for m in chosen(["iso_c", "ties", "ties"])] == ["ties", "iso_c"]


def test_runs_survive_json():
    """What is stored is read back."""
    run = MethodRun("led", "importance", made_up=("importance",), seconds=1.5)
    assert MethodRun.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_recipes_name_what_the_method_takes():
    """A base only where one is used, experts up to the most, statistics beside each, and a step after an average."""
    experts = [Path("a"), Path("b")]
    assert recipe_of(KNOWN["linear"], Path("base"), experts)["models"][1] == {"model": "b", "parameters": {"weight": 1.0}}
    assert "base_model" not in recipe_of(KNOWN["linear"], Path("base"), experts)
    assert len(recipe_of(KNOWN["slerp"], Path("base"), experts)["models"]) == 1
    assert recipe_of(KNOWN["fisher"], Path("base"), experts, {"importance": experts})["models"][0]["importance"] == "a"
    step = recipe_of(KNOWN["svc"], Path("base"), experts)
    assert step["merge_method"] == "linear"
    assert step["steps"] == [{"method": "svc", "base_model": "base"}]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_made_up_experts_are_the_model_and_noise(dtype: str, tmp_path: Path):
    """The same files and shapes, values near the model's, the same again from the same seed; statistics are positive."""
    base = tiny.write_set(tmp_path / "set", experts=0, dtype=dtype, shards=2)[0]
    model = open_base(base)
    expert, again = (read_folder(write_like(model, tmp_path / name, 1)) for name in ("one", "again"))
    importance = read_folder(write_like(model, tmp_path / "importance", 1, positive=True))
    own = read_folder(base)
    assert {p.name for p in (tmp_path / "one").iterdir()} >= {p.name for p in base.glob("model*")}
    for name, tensor in own.items():
        assert expert[name].value.shape == tensor.value.shape
        assert 0 < abs(expert[name].value - tensor.value).max() < 0.1
        assert (expert[name].value == again[name].value).all()
        assert importance[name].value.min() >= 0
    scores = json.loads(write_layer_scores(list(own), tmp_path / "scores.json", 1).read_text())
    assert {"model.layers.0", "lm_head.weight"} <= set(scores["layers"])
