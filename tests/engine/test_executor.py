"""The executor: errors stop it and leave nothing, the ledger holds, components open within the window, an interrupt ends it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.engine import executor, ledger, writer
from plait.engine.events import Quiet
from plait.ops.errors import CheckpointError, KernelError
from plait.planner import blocks
from plait.planner.cost import component_bytes
from plait.planner.plan import Component
from plait.planner.windows import WINDOW
from support import faults, tiny
from support.stored import read_folder

TWO = plait.Options(memory="256MiB", workers=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return tiny.write_set(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def small_tensors_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds are sampled, counted and confirmed here, as in large tensors."""
    monkeypatch.setattr(blocks, "SEEN_WHOLE", 256)


@pytest.fixture
def recipe(models: list[Path], tmp_path: Path) -> Callable[[str], Path]:
    def write(name: str) -> Path:
        path = tmp_path / f"{name}.yml"
        path.write_text(tiny.recipes(models)[name])
        return path

    return write


class Doubles:
    """Counts reads and the calls of the sink, and fails from the k-th on."""

    def __init__(self, patch: pytest.MonkeyPatch, error: BaseException) -> None:
        self.calls, self.fail_at, self.lock = 0, 0, threading.Lock()
        for owner, name in ((os, "preadv"), (writer.OutputFolder, "write"), (writer.OutputFolder, "copy")):
            patch.setattr(owner, name, self._wrapped(getattr(owner, name), error))

    def _wrapped(self, original: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with self.lock:
                self.calls += 1
                failing = 0 < self.fail_at <= self.calls
            if failing:
                raise error
            return original(*args)

        return call


@pytest.mark.parametrize("most", [40, pytest.param(1 << 20, marks=pytest.mark.slow, id="all")])
@pytest.mark.parametrize("name", ["linear", "ties", "slerp", "passthrough", "ties_global"])
def test_failure_of_any_read_or_write(name: str, most: int, recipe: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whichever call fails, the run ends with an error that names the tensor; what is finished is kept, and the same call ends with the same bytes.

    Of many calls some, from the first to the last, stand for all.
    """
    doubles = Doubles(monkeypatch, RuntimeError("the disk is on fire"))
    path, out = recipe(name), tmp_path / "out"
    names = list(tiny.SHAPES)
    plait.merge(path, tmp_path / "good", TWO)
    total = doubles.calls
    assert total >= len(names)
    for number, k in enumerate(faults.spread(total, most), 1):
        doubles.calls, doubles.fail_at = 0, k
        with pytest.raises(KernelError, match="the disk is on fire") as caught:
            tiny.bounded(lambda: plait.merge(path, out, TWO))
        assert caught.value.facts["tensor"] in names
        assert str(caught.value.facts["tensor"]) in caught.value.message
        assert re.match(rf"{re.escape(str(path))}:\d+:\d+: [a-z]+: merging tensor", caught.value.message), "recipe line, method, tensor"
        assert caught.value.exit_status == 1
        assert isinstance(caught.value.__cause__, RuntimeError)
        kept = caught.value.facts.get("kept")
        assert tiny.leftovers(out) == ([".out.plait-partial"] if kept else [])
        assert ("the same command continues" in caught.value.advice) == bool(kept)
        if number % 3 == 0:  # else the next failure meets what this one left
            doubles.fail_at = 0
            report = tiny.bounded(lambda: plait.merge(path, out, TWO))
            assert (report.bytes_resumed > 0) == bool(kept)
            assert (out / "model.safetensors").read_bytes() == (tmp_path / "good/model.safetensors").read_bytes()
            assert tiny.leftovers(out) == ["out"]
            shutil.rmtree(out)
        else:
            shutil.rmtree(tmp_path / ".out.plait-partial", ignore_errors=True)
    assert all(not t.name.startswith("plait-") for t in threading.enumerate())


def test_errors_of_plait_pass_unchanged(recipe: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An error that already says what is wrong is raised as it is; nothing was finished, so nothing is left."""
    error = CheckpointError("shard 3 ended early; copy it again", path="shard 3")
    doubles = Doubles(monkeypatch, error)
    doubles.fail_at = 1
    with pytest.raises(CheckpointError) as caught:
        plait.merge(recipe("ties"), tmp_path / "out", TWO)
    assert caught.value is error
    assert tiny.leftovers(tmp_path / "out") == []


def test_the_same_run_works_after_a_failure(recipe: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A failed run leaves nothing that stops the next one."""
    with monkeypatch.context() as patch:
        Doubles(patch, RuntimeError("once")).fail_at = 5
        with pytest.raises(KernelError):
            plait.merge(recipe("linear"), tmp_path / "out", TWO)
    plait.merge(recipe("linear"), tmp_path / "out", TWO)
    assert set(read_folder(tmp_path / "out")) == set(tiny.SHAPES)


def test_an_input_that_changes_under_the_run(models: list[Path], recipe: Callable[[str], Path], tmp_path: Path):
    """A file touched between plan and end is noticed; nothing is published."""
    file = models[1] / "model.safetensors"

    class Touch(Quiet):
        def finished_component(self, component: Component) -> None:
            os.utime(file)

    with pytest.raises(CheckpointError, match=r"expert1.*changed"):
        plait.merge(recipe("linear"), tmp_path / "out", TWO, events=Touch())
    assert tiny.leftovers(tmp_path / "out") == []


# -- ledger, window, workers ------------------------------------------------------------------------
class Watch:
    """Records leases, and which components are open when one more is opened."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ledgers: list[ledger.Ledger] = []
        self.open: list[list[int]] = []
        watch, try_open, made = self, executor._Run._try_open, ledger.Ledger

        def recorded(*args: Any) -> ledger.Ledger:
            watch.ledgers.append(made(*args))
            return watch.ledgers[-1]

        def opening(run: Any) -> Any:
            task = try_open(run)
            if task is not None:
                watch.open.append([t.number for t in run.open])
            return task

        patch.setattr(executor, "Ledger", recorded)
        patch.setattr(executor._Run, "_try_open", opening)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("name", ["linear", "ties", "iso_c", "ties_global"])
def test_leases_and_window(name: str, workers: int, recipe: Callable[[str], Path], tmp_path: Path, watch: Watch):
    """Leases stay within the budget and are all returned; no component opens far from the oldest open one."""
    options = plait.Options(memory="96MiB", workers=workers)
    plan = plait.plan(recipe(name), options)
    report = tiny.bounded(lambda: plait.merge(recipe(name), tmp_path / "out", options))
    (book,) = watch.ledgers
    fixed = plan.prediction.runtime_bytes + plan.workers * (plan.prediction.worker_bytes + plan.prediction.slab_bytes)
    assert book.used_bytes == fixed
    assert fixed <= book.peak_bytes <= plan.prediction.peak_bytes <= plan.budget_bytes == book.limit_bytes
    assert book.peak_bytes >= fixed + max(component_bytes(p) for p in plan.programs)
    assert report.leased_peak_bytes == book.peak_bytes
    sweeps = len(watch.open) / len(plan.components)
    assert sweeps in ((2, 3, 5) if name == "ties_global" else (1,))  # one more where the sample foresaw the wrong digit, or three
    for numbers in watch.open:
        assert len(numbers) <= plan.workers
        assert numbers == sorted(numbers)
        assert numbers[-1] - numbers[0] <= WINDOW * plan.workers


def test_more_workers_than_blocks(recipe: Callable[[str], Path], tmp_path: Path):
    """Twelve workers on five small tensors give what one gives."""
    for name in ("ties", "slerp"):
        plan = plait.plan(recipe(name), plait.Options(memory="512MiB", workers=12))
        assert plan.workers == 12 > len(plan.components)
        tiny.bounded(lambda name=name: plait.merge(recipe(name), tmp_path / f"{name}12", plait.Options(memory="512MiB", workers=12)))
        plait.merge(recipe(name), tmp_path / f"{name}1", plait.Options(memory="512MiB", workers=1))
        assert (tmp_path / f"{name}12/model.safetensors").read_bytes() == (tmp_path / f"{name}1/model.safetensors").read_bytes()


def test_empty_tensors_and_scalars(tmp_path: Path):
    """Tensors of no and of one element go through every streamed method."""
    shapes = {"model.embed_tokens.weight": (0, 16), "model.layers.0.a.weight": (1, 1), "model.layers.0.scale": (), "model.norm.weight": (3,)}
    models = tiny.write_set(tmp_path / "m", shapes=shapes)
    for name, text in tiny.recipes(models).items():
        path, out = tmp_path / f"{name}.yml", tmp_path / name
        path.write_text(text)
        tiny.bounded(lambda path=path, out=out: plait.merge(path, out, TWO))
        assert {n: t.shape for n, t in read_folder(out).items()} == shapes


def test_events_tell_every_byte_and_tensor(recipe: Callable[[str], Path], tmp_path: Path):
    """Progress adds up to the predicted bytes, and every tensor is reported finished once."""

    class Listener(Quiet):
        done, finished = 0, ()

        def progress(self, read: int, written: int) -> None:
            self.done += read + written

        def finished_component(self, component: Component) -> None:
            self.finished = (*self.finished, component.name)

    for name in ("linear", "slerp", "passthrough", "ties", "ties_global", "iso_c"):
        heard = Listener()
        plan = plait.plan(recipe(name), TWO)
        plait.merge(recipe(name), tmp_path / name, TWO, events=heard)
        assert sorted(heard.finished) == sorted(tiny.SHAPES), name
        assert heard.done == plan.prediction.bytes_read + plan.prediction.bytes_written, name


# -- interruption -----------------------------------------------------------------------------------
_SLOW = """
import os, sys, time
read = os.preadv
def slow(*args):
    os.write(2, b"reading\\n")  # in one piece, for two workers do it
    time.sleep(0.2)
    return read(*args)
os.preadv = slow
from plait.cli import main
main()
"""


@pytest.mark.parametrize(("workers", "sent", "status"), [("1", signal.SIGINT, 130), ("2", signal.SIGINT, 130), ("1", signal.SIGTERM, 143)])
def test_interrupt_in_mid_merge(workers: str, sent: signal.Signals, status: int, recipe: Callable[[str], Path], tmp_path: Path):
    """Ctrl-C ends a merge with exit status 130 after the blocks in hand, says how to go on, and the same command does; SIGTERM likewise, with 143."""
    _interrupted(workers, recipe("linear"), tmp_path, sent, status)
    report = plait.merge(recipe("linear"), tmp_path / "out", TWO)
    assert report.bytes_resumed > 0
    plait.merge(recipe("linear"), tmp_path / "good", TWO)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "good/model.safetensors").read_bytes()
    assert tiny.leftovers(tmp_path / "out") == ["out"]


def _interrupted(workers: str, recipe: Path, tmp_path: Path, sent: signal.Signals, status: int) -> None:
    command = [sys.executable, "-c", _SLOW, "merge", str(recipe), str(tmp_path / "out"), "--memory", "256MiB", "--workers", workers]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line == "reading\n":
                break
        assert tiny.leftovers(tmp_path / "out") == [".out.plait-lock", ".out.plait-partial"]
        process.send_signal(sent)
        rest = process.stderr.read()
        assert process.wait(30) == status
    said = [line for line in rest.splitlines() if line and line != "reading"]
    assert len(said) == 2
    assert said[0] == "plait: the run was stopped before it was finished"
    assert re.search(r"\d.* of \d.* are done and kept: the same command continues; --restart begins anew, `rm -r .*/\.out\.plait-partial` drops them", said[1])
    assert tiny.leftovers(tmp_path / "out") == [".out.plait-partial"]
