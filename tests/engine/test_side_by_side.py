"""Ops on small matrices run side by side, one core each; large ones take turns with all."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.engine import whole
from plait.ops.wholes import on_one_core
from plait.planner.cost import component_bytes, lease_of
from plait.planner.explain import to_text
from support import tiny

NAMES = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(6)]
SMALL, LARGE = (300, 700), (1100, 2000)


class Watched:
    """The numerics of polar factors, with how many run at once and the threads that torch has for each.

    Args:
        meeting: each op waits for so many to run at once, or fails after half a minute.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, meeting: int = 1) -> None:
        self._real, self._lock, self._barrier = whole._numerics, threading.Lock(), threading.Barrier(meeting, timeout=30)
        self.now, self.most, self.threads = 0, 0, set()
        monkeypatch.setattr(whole, "_numerics", self._of)

    def _of(self, op: str) -> Any:
        run = self._real(op)
        return run if op != "polar" else lambda *args: self._watch(run, args)

    def _watch(self, run: Any, args: Any) -> Any:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.threads.add(torch.get_num_threads())
        try:
            self._barrier.wait()
            return run(*args)
        finally:
            with self._lock:
                self.now -= 1


def merged(folder: Path, out: Path, workers: int, method: str = "iso_c") -> Any:
    """A merge of what lies in a folder; its plan."""
    base, *experts = (plait.open(folder / name) for name in ("base", "expert1", "expert2"))
    model = getattr(plait.methods, method)(base=base, experts=experts)
    options = plait.Options(memory="1GiB", workers=workers, backend="torch")
    tiny.bounded(lambda: plait.write(model, out, options), 120)
    return plait.plan_model(model, options)


def models(tmp_path: Path, shape: tuple[int, int]) -> Path:
    """A base and two experts of six matrices, or of two large ones."""
    names = NAMES if shape == SMALL else NAMES[:2]
    tiny.write_set(tmp_path, dtype="F32", shapes=dict.fromkeys(names, shape))
    return tmp_path


def test_small_matrices_are_worked_on_at_once_on_one_core_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two workers meet in their ops, each of which sees one thread."""
    watched = Watched(monkeypatch, meeting=2)
    merged(models(tmp_path, SMALL), tmp_path / "out", 2)
    assert watched.most == 2
    assert watched.threads == {1}


def test_large_matrices_take_turns_with_all_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Never two at once, each with as many threads as torch had before."""
    before, watched = torch.get_num_threads(), Watched(monkeypatch)
    merged(models(tmp_path, LARGE), tmp_path / "out", 2)
    assert watched.most == 1
    assert watched.threads == {before}


def test_afterwards_threads_have_what_they_had(tmp_path: Path):
    """Torch's number of threads, for this thread and for new ones."""
    before, seen = torch.get_num_threads(), []
    merged(models(tmp_path, SMALL), tmp_path / "out", 2)
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert [torch.get_num_threads(), *seen] == [before, before]


def test_another_number_of_threads_is_taken_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a caller sets between merges holds for large matrices from then on, and in the caller's thread afterwards."""
    (tmp_path / "small").mkdir()
    (tmp_path / "large").mkdir()
    before = torch.get_num_threads()
    merged(models(tmp_path / "small", SMALL), tmp_path / "out", 2)
    folder = models(tmp_path / "large", LARGE)
    try:
        torch.set_num_threads(before + 1)
        watched = Watched(monkeypatch)
        merged(folder, tmp_path / "out2", 2)
        assert watched.threads == {before + 1}
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("method", ["iso_c", "tsv_m", "drm"])
def test_the_number_of_workers_changes_no_bit(method: str, tmp_path: Path):
    """One core each, whether others run beside or not."""
    folder = models(tmp_path, SMALL)
    for workers in (1, 3):
        merged(folder, tmp_path / f"{workers}", workers, method)
    one, three = ((tmp_path / f"{workers}" / "model.safetensors").read_bytes() for workers in (1, 3))
    assert one == three


def test_what_runs_side_by_side_leases_its_workspace_for_itself(tmp_path: Path):
    """Nothing is left to turns, and the plan says why; large matrices keep their turns."""
    (tmp_path / "small").mkdir()
    (tmp_path / "large").mkdir()
    plan = merged(models(tmp_path / "small", SMALL), tmp_path / "out", 2)
    for program in plan.programs:
        assert lease_of(program) == (component_bytes(program), 0)
    words = " ".join(to_text(plan).split())
    assert "several at once, one core each" in words
    large = merged(models(tmp_path / "large", LARGE), tmp_path / "out2", 2)
    assert all(lease_of(program).in_turn > 0 for program in large.programs)
    assert "one core each" not in to_text(large)


def test_which_ops_take_one_core():
    """Heads, experts and the like; neither matrices of a few dozen rows, which are done before others could begin, nor large ones."""
    from plait.ops import matrix as mx
    from plait.ops.algebra import polar
    from plait.ops.tensor import load

    def alone(rows: int, columns: int) -> bool:
        node = polar(mx.matrix(load(("a",), (rows, columns), "F32")))
        return on_one_core(node.op.name, node)

    assert [alone(*shape) for shape in ((16, 64), (128, 2048), (512, 2048), (768, 2048), (2048, 512))] == [False, True, True, True, True]
    assert not any(alone(*shape) for shape in ((2048, 2048), (256, 100_000), (4096, 4096)))
