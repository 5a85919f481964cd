"""Publication: the destination is absent or whole, whatever happens and whenever."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from plait.engine import publish
from plait.engine.writer import OutputFolder
from plait.ops.errors import CheckpointError, OutputError
from plait.planner.checkpoint import open_checkpoint
from plait.planner.layout import make_layout
from plait.planner.types import Layout, SideFile


def sharded() -> Layout:
    return make_layout([(f"w{i}", "U8", (1000,)) for i in range(4)], 2000)


def fill(out: OutputFolder, layout: Layout) -> None:
    for i, place in enumerate(layout.places.values()):
        out.write(place.shard, place.offset, np.full(place.nbytes, i, np.uint8))


def run(destination: Path, layout: Layout, *side_files: SideFile, before: Callable[[], object] = lambda: None) -> None:
    with OutputFolder(destination, layout) as out:
        fill(out, layout)
        before()
        out.publish(side_files)


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_whole_folder(tmp_path: Path) -> None:
    """Shards, index and side files, also in a subfolder, are all there, and nothing beside them."""
    layout = sharded()
    (tmp_path / "tokenizer").write_text("tokens")
    first = (SideFile("config.json", content=b"{}"), SideFile("tokenizer.json", source=str(tmp_path / "tokenizer")))
    layout = Layout(layout.shards, layout.places, first)
    with OutputFolder(tmp_path / "out", layout) as out:
        fill(out, layout)
        assert not (tmp_path / "out").exists()
        assert not list(out.working.glob("*.safetensors"))
        out.publish([SideFile("1_Pooling/config.json", content=b"1"), SideFile("config.json", content=b'{"a": 1}')])
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert names(tmp_path / "out") == sorted(["1_Pooling", "1_Pooling/config.json", "config.json", *shards, "model.safetensors.index.json", "tokenizer.json"])
    assert names(tmp_path) == sorted(["tokenizer", "out", *(f"out/{n}" for n in names(tmp_path / "out"))])
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "tokens"
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.config == {"a": 1}
    assert {n: load_file(t.file)[n][0] for n, t in checkpoint.tensors.items()} == {f"w{i}": i for i in range(4)}


def test_single_file_has_no_index(tmp_path: Path) -> None:
    """One shard is one model.safetensors, and an existing empty folder is replaced by it."""
    layout = make_layout([("w", "U8", (3,))])
    (tmp_path / "out").mkdir()
    with OutputFolder(tmp_path / "out", layout) as out:
        fill(out, layout)
        out.publish()
    assert names(tmp_path / "out") == ["model.safetensors"]


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    """An error in the run leaves neither destination nor working folder nor lock."""
    layout = sharded()

    def stop() -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        run(tmp_path / "out", layout, before=stop)
    assert names(tmp_path) == []


def test_unfinished_run_is_not_published(tmp_path: Path) -> None:
    """An output with bytes missing is refused by publish."""
    layout = sharded()
    with OutputFolder(tmp_path / "out", layout) as out:
        out.write(0, layout.places["w0"].offset, bytes(1000))
        with pytest.raises(OutputError, match="only 1000 of 4000 bytes were written"):
            out.publish()
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["../escape", "/tmp/absolute-escape", "a/../../b"])
def test_side_files_stay_inside(name: str, tmp_path: Path) -> None:
    """A side file cannot be written outside the output folder."""
    with pytest.raises(OutputError, match="outside the output folder"):
        run(tmp_path / "out", sharded(), SideFile(name, content=b"x"))
    assert names(tmp_path) == []


def test_side_file_that_vanished(tmp_path: Path) -> None:
    """A tokenizer removed while the merge ran is named."""
    with pytest.raises(CheckpointError, match="gone there is no such file"):
        run(tmp_path / "out", sharded(), SideFile("tokenizer.json", source=str(tmp_path / "gone")))
    assert names(tmp_path) == []


def test_finished_work_is_kept_when_the_place_is_taken(tmp_path: Path) -> None:
    """Somebody who fills the destination meanwhile loses nothing, and neither does the run: its whole result is kept and named."""

    def take() -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "precious").write_text("x")

    with pytest.raises(OutputError, match="the whole result is in") as caught:
        run(tmp_path / "out", sharded(), before=take)
    assert names(tmp_path / "out") == ["precious"]
    assert len(open_checkpoint(str(caught.value.facts["kept"])).tensors) == 4


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """A second run on the same destination is refused and does not disturb the first."""
    layout = sharded()
    with OutputFolder(tmp_path / "out", layout) as first:
        with pytest.raises(OutputError, match="another run is writing to"):
            OutputFolder(tmp_path / "out", layout).begin()
        fill(first, layout)
        first.publish()
    assert len(open_checkpoint(tmp_path / "out").tensors) == 4
    assert names(tmp_path)[0] == "out"


def test_lock_whose_file_was_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock got on a file that its last holder has just removed does not count: a new one is taken."""
    lock = publish.DestinationLock(tmp_path / "out")
    other = publish.DestinationLock(tmp_path / "out")
    real = publish.fcntl.flock
    raced: list[int] = []

    def race(fd: int, how: int) -> None:
        if not raced:
            raced.append(fd)
            (tmp_path / ".out.plait-lock").unlink()
        real(fd, how)

    monkeypatch.setattr(publish.fcntl, "flock", race)
    lock.acquire()
    with pytest.raises(OutputError, match="another run"):
        other.acquire()
    lock.release()
    assert names(tmp_path) == []


def test_link_in_the_place_of_the_working_folder(tmp_path: Path) -> None:
    """A link under the working folder's name is removed, never followed."""
    layout = sharded()
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").write_text("x")
    (tmp_path / ".out.plait-partial").symlink_to("victim")
    with OutputFolder(tmp_path / "out", layout) as out:
        fill(out, layout)
        out.publish()
    assert names(tmp_path / "victim") == ["file"]
    assert not (tmp_path / "out").is_symlink()


WRITER = """
import os, sys
import numpy as np
from pathlib import Path
from plait.engine import publish, writer
from plait.planner.layout import make_layout
from plait.planner.types import SideFile

stop_at = int(sys.argv[2])
calls = 0
def stepping(function):
    def step(*args, **kwargs):
        global calls
        calls += 1
        if calls == stop_at:
            os.kill(os.getpid(), 9)
        return function(*args, **kwargs)
    return step
for name in ("pwrite", "fsync", "rename", "mkdir", "open", "unlink"):
    setattr(os, name, stepping(getattr(os, name)))
layout = make_layout([(f"w{i}", "U8", (1000,)) for i in range(4)], 2000)
with writer.OutputFolder(Path(sys.argv[1]), layout) as out:
    print("began", flush=True)
    for i, place in enumerate(layout.places.values()):
        out.write(place.shard, place.offset, np.full(place.nbytes, i, np.uint8))
    if stop_at == 0:
        sys.stdin.read()
    out.publish([SideFile("config.json", content=b"{}")])
print(calls)
"""


def whole(folder: Path) -> bool:
    checkpoint = open_checkpoint(folder)
    return (folder / "config.json").exists() and {n: int(load_file(t.file)[n][0]) for n, t in checkpoint.tensors.items()} == {f"w{i}": i for i in range(4)}


def test_kill_in_the_middle_of_writing(tmp_path: Path) -> None:
    """kill -9 with blocks written leaves no destination and nothing that opens as a checkpoint; the next run succeeds and tidies up."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "out", "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"began\n"
    with pytest.raises(OutputError, match="another run"):
        OutputFolder(tmp_path / "out", sharded()).begin()
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert not (tmp_path / "out").exists()
    assert ".out.plait-partial" in os.listdir(tmp_path)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / ".out.plait-partial")
    subprocess.run([sys.executable, "-c", WRITER, tmp_path / "out", "-1"], check=True, capture_output=True)
    assert whole(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_kill_at_each_step(tmp_path: Path) -> None:
    """kill -9 before any system call of a run, also those of publication: the destination is absent or whole, and the same command then finishes."""
    counted = subprocess.run([sys.executable, "-c", WRITER, tmp_path / "count", "-1"], check=True, capture_output=True, text=True)
    total = int(counted.stdout.split()[-1])
    assert total > 20
    steps = sorted({total, total - 1, total - 2, *random.Random(7).sample(range(1, total), 4)})
    seen = set()
    for step in steps:
        out = tmp_path / f"out{step}"
        done = subprocess.run([sys.executable, "-c", WRITER, out, str(step)], capture_output=True)
        assert done.returncode == -signal.SIGKILL
        seen.add(out.exists())
        if out.exists():
            assert whole(out)
        else:
            subprocess.run([sys.executable, "-c", WRITER, out, "-1"], check=True, capture_output=True)
            assert whole(out)
            assert f".{out.name}.plait-partial" not in os.listdir(tmp_path)
    assert seen == {True, False}


def test_order_of_publication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file's bytes are on disk before it has its name, the index comes last, and the destination appears by the last rename."""
    events: list[tuple[str, str]] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(fd: int) -> None:
        events.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))
        real_fsync(fd)

    def rename(old: Path, new: Path) -> None:
        events.append(("rename", os.path.basename(new)))
        real_rename(old, new)

    layout = sharded()
    with OutputFolder(tmp_path / "out", layout) as out:
        fill(out, layout)
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "rename", rename)
        out.publish([SideFile("config.json", content=b"{}")])
    assert events == [
        ("fsync", "shard-00001.partial"),
        ("fsync", "shard-00002.partial"),
        ("fsync", "config.json"),
        ("rename", "model-00001-of-00002.safetensors"),
        ("rename", "model-00002-of-00002.safetensors"),
        ("fsync", "model.safetensors.index.json"),
        ("fsync", ".out.plait-partial"),
        ("rename", "out"),
        ("fsync", tmp_path.name),
    ]
    assert json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["metadata"]["total_size"] == 4000
