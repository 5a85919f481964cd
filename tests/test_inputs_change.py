"""Inputs that shrink, vanish or change while a merge reads them: found, named, and nothing is published; never a signal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import plait
from plait.engine.events import Quiet
from plait.ops.errors import CheckpointError
from plait.planner.plan import Component
from support import tiny

#: Runs `plait ARGS`; at the n-th read of weights it does something to the file that is read.
WRAPPER = """
import itertools, os, runpy, shutil, sys
what, at, file = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.argv[1:4] = []

def at_once():
    if what == "truncate":
        os.truncate(file, 2000)
    elif what == "remove":
        os.unlink(file)
    elif what == "replace":
        status = os.stat(file)
        shutil.copy(file, file + ".new")
        os.utime(file + ".new", ns=(status.st_mtime_ns, status.st_mtime_ns))
        os.replace(file + ".new", file)
    elif what == "rewrite":
        with open(file, "r+b") as stream:
            stream.seek(-8, 2)
            stream.write(b"changed!")
    elif what in ("pipe", "folder"):
        os.unlink(file)
        (os.mkfifo if what == "pipe" else os.mkdir)(file)
    elif what == "grow":
        with open(file, "ab") as stream:
            stream.write(b"more")

real, number = os.preadv, itertools.count()

def preadv(fd, buffers, offset, *flags):
    if next(number) == at:
        at_once()
    if what == "short":  # as a network file system may: few bytes at a time
        buffers = [memoryview(buffers[0])[:7919]]
    return real(fd, buffers, offset, *flags)

os.preadv = preadv
runpy.run_module("plait", run_name="__main__", alter_sys=True)
"""
SAYS = {
    "truncate": "ended early|changed since the plan was made",
    "remove": "is gone",
    "replace": "another file under the same name",
    "rewrite": "changed since the plan was made (time of change",
    "grow": "changed since the plan was made (size",
    "pipe": "changed since the plan was made (size",
    "folder": "changed since the plan was made (size",
}


def merge(folder: Path, what: str, at: int) -> subprocess.CompletedProcess[str]:
    models = tiny.write_set(folder / "models", experts=1)
    (folder / "recipe.yml").write_text(tiny.recipe("slerp", models, base=models[0], parameters={"t": 0.5}))  # two passes
    file = models[1] / "model.safetensors"
    command = [sys.executable, "-c", WRAPPER, what, str(at), str(file), "merge", "recipe.yml", "out", "--memory", "256MiB", "--workers", "2"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("what", SAYS)
def test_an_input_changes_in_mid_run(what: str, tmp_path: Path) -> None:
    """The first line names the file and what became of it; the destination does not appear."""
    done = merge(tmp_path, what, 3)
    assert done.returncode == 2, done.stderr
    line, *more = done.stderr.splitlines()
    assert len(more) <= 1
    assert all("the same command continues" in advice for advice in more), "the second says what is kept, and nothing else follows"
    assert "Traceback" not in done.stderr
    assert line.startswith("plait: ")
    assert "expert1/model.safetensors" in line
    assert any(words in line for words in SAYS[what].split("|")), line
    assert not (tmp_path / "out").exists()
    assert "kept" not in done.stderr or what in ("truncate", "remove"), "what was computed from another file is not kept"


def test_short_reads_change_nothing(tmp_path: Path) -> None:
    """A system that delivers few bytes at a time gives the same output."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name, what in (("a", "short"), ("b", "nothing")):
        done = merge(tmp_path / name, what, -1)
        assert done.returncode == 0, done.stderr
    first, second = (tmp_path / name / "out" / "model.safetensors" for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_it_is_found_when_the_file_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the end of the run: the first of two files changes, and no tensor of the second is begun."""
    values = {f"model.layers.{i}.w.weight": np.full((8, 8), i, np.float32) for i in range(40)}
    models = [tiny.write_model(tmp_path / name, values, shards=2) for name in ("base", "expert")]
    (tmp_path / "r.yml").write_text(tiny.recipe("linear", models, each={"weight": 1.0}))
    finished: list[str] = []

    class Touch(Quiet):
        def finished_component(self, component: Component) -> None:
            if not finished:
                os.utime(models[0] / "model-00001-of-00002.safetensors", (1, 1))
            finished.append(component.name)

    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors changed since the plan was made"):
        plait.merge(tmp_path / "r.yml", tmp_path / "out", plait.Options(memory="256MiB", workers=1), events=Touch())
    assert len(finished) == 19
    assert tiny.leftovers(tmp_path / "out") == []
