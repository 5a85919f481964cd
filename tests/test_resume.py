"""An interrupted merge is continued by the same command, gives the same bytes, and refuses to mix what does not belong together."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kill_loop
import pytest

import plait
from plait.engine import commits, journal, publish, reader, shardfile
from plait.engine.events import Quiet
from plait.keeping import status, verify
from plait.ops.errors import CheckpointError, OutputError, ResumeError, Stopped
from plait.planner.plan import Component
from support import tiny

SHAPES = kill_loop.SHAPES
TWO = plait.Options(memory="256MiB", workers=2)
OUTPUT_BYTES = sum(2 * a * (b or [1])[0] for a, *b in SHAPES.values())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return tiny.write_set(tmp_path_factory.mktemp("models"), shapes=SHAPES)


@pytest.fixture(scope="module")
def good(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    folder, made = tmp_path_factory.mktemp("good"), {}

    def bytes_of(name: str) -> bytes:
        if name not in made:
            (folder / f"{name}.yml").write_text(tiny.recipes(models)[name])
            plait.merge(folder / f"{name}.yml", folder / name, TWO)
            made[name] = (folder / name / "model.safetensors").read_bytes()
        return made[name]

    return bytes_of


@pytest.fixture
def recipe(models: list[Path], tmp_path: Path) -> Callable[[str], Path]:
    def write(name: str) -> Path:
        path = tmp_path / f"{name}.yml"
        path.write_text(tiny.recipes(models)[name])
        return path

    return write


FULL = OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def failing_writes(at: int, error: BaseException = FULL) -> Iterator[None]:
    """The `at`-th write of a block to a shard fails, and every one behind it."""
    write, lock, calls = shardfile.ShardFile.write, threading.Lock(), [0]

    def call(self: Any, view: memoryview, address: int, offset: int) -> None:
        if offset:  # headers are written at the beginning
            with lock:
                calls[0] += 1
                failing = calls[0] >= at
            if failing:
                raise error
        write(self, view, address, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shardfile.ShardFile, "write", call)
        yield


def interrupt(path: Path, out: Path, at: int = 4, options: plait.Options = TWO) -> plait.PlaitError:
    """A run that ends because the disk fills up at the `at`-th block."""
    with failing_writes(at), pytest.raises(OutputError) as caught:
        plait.merge(path, out, options)
    return caught.value


def outcome(path: Path, out: Path, options: plait.Options = TWO) -> plait.PlaitError | None:
    """The error that a merge ends with, if any."""
    try:
        plait.merge(path, out, options)
    except plait.PlaitError as error:
        return error
    return None


# -- going on ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["linear", "ties", "ties_global", "della", "slerp", "linear_wsc"])
def test_same_bytes_under_another_budget(name: str, recipe: Callable[[str], Path], good: Callable[[str], bytes], tmp_path: Path):
    """What a full disk left is continued with other memory and workers: nothing durable is written again, and the bytes are the same."""
    path, out = recipe(name), tmp_path / "out"
    error = interrupt(path, out, at=4, options=plait.Options(memory="96MiB", workers=1))
    assert "free some space and run again" in error.message
    kept = error.facts["kept_bytes"]
    assert 0 < kept < OUTPUT_BYTES
    found = status(out)
    assert (found.state, found.done_bytes) == ("interrupted", kept)

    class Listener(Quiet):
        finished: tuple[str, ...] = ()
        done = 0

        def finished_component(self, component: Component) -> None:
            self.finished += (component.name,)

        def progress(self, read: int, written: int) -> None:
            self.done += read + written

    heard = Listener()
    options = plait.Options(memory="400MiB", workers=3)
    report = plait.merge(path, out, options, events=heard)
    assert (report.bytes_resumed, report.bytes_written) == (kept, OUTPUT_BYTES - kept)
    assert sorted(heard.finished) == sorted(SHAPES)
    prediction = plait.plan(path, options).prediction
    assert heard.done <= prediction.bytes_read + prediction.bytes_written
    if name in ("linear", "ties", "slerp"):
        assert heard.done == prediction.bytes_read + prediction.bytes_written
    assert report.bytes_read < plait.merge(path, tmp_path / "whole", options).bytes_read
    assert (out / "model.safetensors").read_bytes() == good(name)
    assert tiny.leftovers(out) == ["out"]
    verify(out)


def test_interrupted_again_and_again(recipe: Callable[[str], Path], good: Callable[[str], bytes], tmp_path: Path):
    """One block a run is enough to get there."""
    path, out, before = recipe("linear"), tmp_path / "out", 0
    for _ in range(20):
        with failing_writes(2):
            error = outcome(path, out, plait.Options(memory="256MiB", workers=1))
        if error is None:
            break
        assert error.facts["kept_bytes"] > before
        before = error.facts["kept_bytes"]
    assert (out / "model.safetensors").read_bytes() == good("linear")


def test_stop_finishes_the_blocks_in_hand(recipe: Callable[[str], Path], good: Callable[[str], bytes], tmp_path: Path):
    """An event set from outside ends a run with `Stopped`; everything that was computed is kept."""
    path, out, stop = recipe("ties"), tmp_path / "out", threading.Event()

    class Stopper(Quiet):
        def finished_component(self, component: Component) -> None:
            stop.set()

    with pytest.raises(Stopped, match="stopped before it was finished") as caught:
        plait.merge(path, out, TWO, events=Stopper(), stop=stop)
    assert 0 < caught.value.facts["kept_bytes"] < OUTPUT_BYTES
    assert "the same command continues" in caught.value.advice
    plait.merge(path, out, TWO)
    assert (out / "model.safetensors").read_bytes() == good("ties")


def test_everything_was_done_but_the_publication(recipe: Callable[[str], Path], good: Callable[[str], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run that fails while it names its shards is published by the next one, which reads nothing."""
    path, out = recipe("slerp"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(publish, "sync_folder", lambda folder: (_ for _ in ()).throw(OutputError("the disk is gone")))
        with pytest.raises(OutputError, match="the disk is gone"):
            plait.merge(path, out, TWO)
    report = plait.merge(path, out, TWO)
    assert (report.bytes_resumed, report.bytes_written, report.bytes_read) == (OUTPUT_BYTES, 0, 0)
    assert (out / "model.safetensors").read_bytes() == good("slerp")
    verify(out)
    assert not list(out.glob(".*"))


def test_nothing_finished_leaves_nothing(recipe: Callable[[str], Path], tmp_path: Path):
    """A run that fails at its first block, and has nothing to keep, cleans up."""
    error = interrupt(recipe("linear"), tmp_path / "a" / "out", at=1)
    assert "kept" not in error.facts
    assert not (tmp_path / "a").exists()


def test_a_lost_shard_is_made_again(models: list[Path], tmp_path: Path, recipe: Callable[[str], Path]):
    """Of an interrupted output whose second shard somebody removed, the first is continued and the second begun anew."""
    options = plait.Options(memory="256MiB", workers=1, shard_size="4MB")
    path, out = recipe("linear"), tmp_path / "out"
    plait.merge(path, tmp_path / "whole", options)
    interrupt(path, out, at=5, options=options)
    partial = tmp_path / ".out.plait-partial"
    lost = int(journal.read_journal(partial / journal.JOURNAL_NAME).entries["shard"].max())
    assert lost > 0
    (partial / f"shard-{lost + 1:05d}.partial").unlink()
    plait.merge(path, out, options)
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert (out / file.name).read_bytes() == file.read_bytes()


def test_a_replaced_shard_is_made_again(recipe: Callable[[str], Path], good: Callable[[str], bytes], tmp_path: Path):
    """A file of the same name and size that holds other bytes than the journal says is noticed, and nothing of it is believed."""
    path, out = recipe("linear"), tmp_path / "out"
    interrupt(path, out)
    shard = tmp_path / ".out.plait-partial" / "shard-00001.partial"
    nbytes = shard.stat().st_size
    shard.unlink()
    shard.write_bytes(bytes(nbytes))
    report = plait.merge(path, out, TWO)
    assert (report.bytes_resumed, report.bytes_written) == (0, OUTPUT_BYTES)
    assert (out / "model.safetensors").read_bytes() == good("linear")
    verify(out)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_same_bytes_under_another_backend(backend: str, recipe: Callable[[str], Path], good: Callable[[str], bytes], tmp_path: Path):
    """What compiled kernels began the interpreter finishes, and the other way round."""
    path, out = recipe("ties"), tmp_path / "out"
    other = {"numba": "torch", "torch": "numba"}[backend]
    interrupt(path, out, options=plait.Options(memory="600MiB", workers=2, backend=backend))
    assert plait.merge(path, out, plait.Options(memory="600MiB", workers=1, backend=other)).bytes_resumed > 0
    assert (out / "model.safetensors").read_bytes() == good("ties")


# -- what does not belong together ------------------------------------------------------------------
def refused(path: Path, out: Path, *words: str, options: plait.Options = TWO) -> None:
    kept = {p: p.read_bytes() for p in (out.parent / f".{out.name}.plait-partial").iterdir()}
    with pytest.raises(ResumeError) as caught:
        plait.merge(path, out, options)
    for word in (*words, "--restart"):
        assert re.search(word, caught.value.message), caught.value.message
    assert {p: p.read_bytes() for p in (out.parent / f".{out.name}.plait-partial").iterdir()} == kept
    assert not out.exists()


def test_another_recipe_is_refused(recipe: Callable[[str], Path], good: Callable[[str], bytes], tmp_path: Path):
    """The lines that differ are told and nothing is touched; a comment is no difference; the old recipe goes on, and --restart takes the new one."""
    path, out = recipe("ties"), tmp_path / "out"
    text = path.read_text()
    interrupt(path, out)
    path.write_text(text.replace('"density": 0.5', '"density": 0.6', 1))
    refused(path, out, r'`"density": 0\.5` is gone', r'`"density": 0\.6` is new', "put that back")
    path.write_text("# in passing\n" + text)
    assert plait.merge(path, out, TWO).bytes_resumed > 0
    assert (out / "model.safetensors").read_bytes() == good("ties")
    interrupt(path, tmp_path / "out2")
    report = plait.merge(recipe("passthrough"), tmp_path / "out2", plait.Options(memory="256MiB", restart=True))
    assert (report.bytes_resumed, report.bytes_written) == (0, OUTPUT_BYTES)


def test_other_options_are_refused(recipe: Callable[[str], Path], tmp_path: Path):
    """An option that changes the files is named with both sides."""
    interrupt(recipe("linear"), tmp_path / "out")
    refused(
        recipe("linear"), tmp_path / "out", r"the output's files: 1 of \d+ bytes -> 2 of \d+ bytes", options=plait.Options(memory="256MiB", shard_size="6MB")
    )


def test_changed_inputs_are_refused(recipe: Callable[[str], Path], models: list[Path], tmp_path: Path):
    """An input of another time of change is named with both times; put back as it was, it is accepted."""
    path, out, file = recipe("linear"), tmp_path / "out", models[1] / "model.safetensors"
    before = file.stat()
    interrupt(path, out)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    try:
        refused(path, out, rf"input {file} changed \(time of change {before.st_mtime_ns} -> {before.st_mtime_ns + 1}\)")
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert plait.merge(path, out, TWO).bytes_resumed > 0


def test_inputs_that_change_under_the_run_spoil_it(recipe: Callable[[str], Path], models: list[Path], tmp_path: Path):
    """What was computed from them is not kept."""
    file = models[1] / "model.safetensors"
    before = file.stat()

    class Touch(Quiet):
        def finished_component(self, component: Component) -> None:
            os.utime(file)

    try:
        with pytest.raises(CheckpointError, match="changed since the plan was made"):
            plait.merge(recipe("linear"), tmp_path / "out", TWO, events=Touch())
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert tiny.leftovers(tmp_path / "out") == []


def test_a_journal_of_another_version_is_refused(recipe: Callable[[str], Path], tmp_path: Path):
    """A newer plait's work is not thrown away by an older one unless told."""
    interrupt(recipe("linear"), tmp_path / "out")
    file = tmp_path / ".out.plait-partial" / journal.JOURNAL_NAME
    file.write_bytes(file.read_bytes().replace(b"plait journal 1\n", b"plait journal 9\n", 1))
    refused(recipe("linear"), tmp_path / "out", "version 9 and this plait writes 1")


# -- the old output ---------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["exchange", "aside"])
def test_overwrite(how: str, recipe: Callable[[str], Path], good: Callable[[str], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The old output stays whole until the new one is, and goes then; what is no checkpoint is not replaced."""
    if how == "aside":
        monkeypatch.setattr(publish, "exchange", lambda one, other: False)
    out, options = tmp_path / "out", plait.Options(memory="256MiB", overwrite=True)
    plait.merge(recipe("linear"), out, TWO)
    with failing_writes(4), pytest.raises(OutputError):
        plait.merge(recipe("ties"), out, options)
    assert (out / "model.safetensors").read_bytes() == good("linear")
    assert status(out).whole
    assert plait.merge(recipe("ties"), out, options).bytes_resumed > 0
    assert (out / "model.safetensors").read_bytes() == good("ties")
    verify(out)
    assert tiny.leftovers(out) == ["out"]
    for file in out.iterdir():
        file.unlink()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"not empty.*holds no checkpoint"):
        plait.merge(recipe("linear"), out, options)
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]


def test_kill_between_the_renames_of_a_replacement(recipe: Callable[[str], Path], good: Callable[[str], bytes], tmp_path: Path):
    """Where names cannot be exchanged, an old output that was just renamed aside is put back by the next run, and then replaced."""
    out = tmp_path / "out"
    plait.merge(recipe("linear"), out, TWO)
    shutil.move(out, tmp_path / ".out.plait-old")
    assert status(out).state == "interrupted"
    with pytest.raises(OutputError, match="not empty"):
        plait.merge(recipe("ties"), out, TWO)
    assert (out / "model.safetensors").read_bytes() == good("linear")
    plait.merge(recipe("ties"), out, plait.Options(memory="256MiB", overwrite=True))
    assert (out / "model.safetensors").read_bytes() == good("ties")
    assert tiny.leftovers(out) == ["out"]


# -- faults -----------------------------------------------------------------------------------------
def test_a_disk_that_reads_on_the_second_try(recipe: Callable[[str], Path], good: Callable[[str], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An EIO that goes away is not even noticed; one that stays ends the run with the file's name, after a bounded number of tries."""
    preadv, calls = os.preadv, [0]
    monkeypatch.setattr(reader, "_RETRIES_S", (0.0, 0.0, 0.0))

    def sometimes(fd: int, buffers: list[Any], offset: int) -> int:
        calls[0] += 1
        if calls[0] % 3:
            raise OSError(errno.EIO, "Input/output error")
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", sometimes)
    plait.merge(recipe("linear"), tmp_path / "out", plait.Options(memory="256MiB", workers=1))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == good("linear")

    def never(fd: int, buffers: list[Any], offset: int) -> int:
        calls[0] += 1
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", never)
    calls[0] = 0
    with pytest.raises(CheckpointError, match=r"model\.safetensors could not be read at byte \d+ \(Input/output error\)"):
        plait.merge(recipe("linear"), tmp_path / "other", plait.Options(memory="256MiB", workers=1))
    assert calls[0] == 1 + 4 + 4, "once by the kernel, and as often as the reader tries by both"


@pytest.mark.parametrize("name", ["fdatasync", "pwrite"])
def test_a_journal_that_cannot_be_written(name: str, recipe: Callable[[str], Path], good: Callable[[str], bytes], tmp_path: Path):
    """Whichever call of the disk fails with EIO, the run ends with an error of plait's, and the same command then gives the same bytes."""
    path, out = recipe("slerp"), tmp_path / "out"
    for at in (1, 2, 3, 5, 8):
        real, calls = getattr(os, name), [0]

        def failing(*args: Any, real: Any = real, calls: list[int] = calls, at: int = at) -> Any:
            calls[0] += 1
            if calls[0] == at:
                raise OSError(errno.EIO, "Input/output error")
            return real(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, name, failing)
            patch.setattr(commits.Commits.__init__, "__defaults__", (0.01, 1))
            error = outcome(path, out)
        assert error is None or (isinstance(error, OutputError) and "Input/output error" in error.message)
        if not out.exists():
            plait.merge(path, out, TWO)
        assert (out / "model.safetensors").read_bytes() == good("slerp")
        shutil.rmtree(out)


# -- killed -----------------------------------------------------------------------------------------
def test_a_second_interrupt_leaves_at_once(recipe: Callable[[str], Path], good: Callable[[str], bytes], tmp_path: Path):
    """The first Ctrl-C waits for a block that takes long; the second does not, and nothing that was durable is lost."""
    script = """
import time
from plait.engine import commits, shardfile
commits.Commits.__init__.__defaults__ = (0.01, 1)
write, calls = shardfile.ShardFile.write, []
def slow(*args):
    calls.append(1)
    if len(calls) > 2:
        print("slow", flush=True)
        time.sleep(60)
    write(*args)
    time.sleep(0.2)
shardfile.ShardFile.write = slow
import threading
class Heard(threading.Event):
    def set(self):
        super().set()
        print("heard", flush=True)
from types import SimpleNamespace
from plait import stopping
stopping.threading = SimpleNamespace(Event=Heard, current_thread=threading.current_thread, main_thread=threading.main_thread)
from plait.cli import main
main()
"""
    path, out = recipe("linear"), tmp_path / "out"
    command = [sys.executable, "-c", script, "merge", str(path), str(out), "--memory", "256MiB", "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "slow\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "heard\n", "the system makes one of two signals that come before the first is heard"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "left at once" in process.stderr.read()
    assert status(out).state == "interrupted"
    report = plait.merge(path, out, TWO)
    assert report.bytes_resumed > 0
    assert (out / "model.safetensors").read_bytes() == good("linear")


def test_kills(tmp_path: Path):
    """After SIGKILL at any moment and at named steps the destination is absent or verifies whole, and the same command ends with the same bytes."""
    seen = kill_loop.run(tmp_path, 8, seed=5)
    assert seen["killed"] >= 4
    assert seen["continued"] >= 1


@pytest.mark.slow
def test_two_hundred_kills(tmp_path: Path):
    """The same two hundred times."""
    seen = kill_loop.run(tmp_path, 200, seed=11)
    assert seen["killed"] >= 150
    assert seen["continued"] >= 40
