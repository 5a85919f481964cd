"""Whatever call of the system fails, and whenever: one error that says so, nothing half-made, and the same command then gives the same bytes."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import plait
from plait.engine import commits
from plait.engine.shardfile import ShardFile
from plait.keeping import verify
from plait.ops.errors import OutputError, PlaitError
from support import faults, tiny

#: Several blocks in one tensor, and small ones.
SHAPES = {"model.embed_tokens.weight": (1100, 1000), "model.layers.0.mlp.up_proj.weight": (300, 1000), "model.norm.weight": (70,), "lm_head.weight": (50, 70)}
METHODS = ("linear", "ties_global", "slerp", "passthrough", "della", "linear_wsc")
OPTIONS = plait.Options(memory="256MiB", workers=2)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recipes")
    models = tiny.write_set(folder / "models", shapes=SHAPES)
    for name, text in tiny.recipes(models).items():
        (folder / f"{name}.yml").write_text(text)
    return {name: folder / f"{name}.yml" for name in tiny.recipes(models)}


@pytest.fixture(scope="module")
def good(recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    folder, made = tmp_path_factory.mktemp("good"), dict[str, bytes]()

    def bytes_of(name: str) -> bytes:
        if name not in made:
            plait.merge(recipes[name], folder / name, OPTIONS)
            made[name] = (folder / name / "model.safetensors").read_bytes()
        return made[name]

    return bytes_of


@dataclass
class Tally:
    """Runs under a fault that does not go away: all, those that met it, and those that it ended."""

    runs: int = 0
    met: int = 0
    ended: int = 0

    def check(self, fault: str, calls_at_all: bool = True) -> None:
        """The test means something: there were runs, most met the fault, and most of them ended where it is one to end them, else none did.

        Not all: which calls there are, and whether the last of them still matter, hangs on how the threads take turns.
        """
        assert (self.runs > 0) == calls_at_all
        assert self.met * 2 > self.runs or not calls_at_all
        assert self.ended * 2 > self.runs if faults.FAULTS[fault].says else not self.ended


def failed(recipe: Path, out: Path, fault: str, at: int, times: int) -> tuple[bool, bool]:
    """Run a merge under a fault; whether it met it and ended with the error that the fault says. Whatever is at the destination then is whole."""
    ended, caught = False, PlaitError("")
    with faults.injected(fault, at, times) as counter:
        try:
            plait.merge(recipe, out, OPTIONS)
        except PlaitError as error:
            ended, caught = True, error
            says, said = faults.FAULTS[fault].says, error.message
    if ended:
        assert counter.failed, said
        assert says, f"this fault should pass unnoticed: {said}"
        assert re.search(says, said), said
        assert "\n" not in said
        left = (out.parent / f".{out.name}.plait-partial").exists()
        assert left == ("kept" in caught.facts) or (left and "unlink" in faults.FAULTS[fault].names), said  # where nothing can be removed, it stays
        assert not ("kept" in caught.facts and out.exists()), "nothing is left to be continued"
    if out.exists():
        verify(out)
    return counter.failed > 0, ended


def every(recipe: Path, good: bytes, folder: Path, fault: str, most: int) -> Tally:
    """The fault at up to `most` different calls, for good and once."""
    with faults.injected(fault, at=0) as counter:
        plait.merge(recipe, folder / "counted", OPTIONS)
    tally = Tally()
    for at in faults.spread(counter.calls, most):
        for times in (1 << 40, 1):
            out = folder / f"out{at}-{times}"
            met, ended = failed(recipe, out, fault, at, times)
            if times > 1:
                tally = Tally(tally.runs + 1, tally.met + met, tally.ended + ended)
            if not out.exists():
                plait.merge(recipe, out, OPTIONS)
            assert (out / "model.safetensors").read_bytes() == good, f"{fault} at call {at}"
            verify(out)
            assert set(tiny.leftovers(out)) - {f".{out.name}.plait-lock"} == {out.name}  # a file that nobody holds locks nobody out
            shutil.rmtree(out)
    return tally


def copies(fault: str) -> bool:
    """Whether it is one of copies in the kernel, which only some methods make."""
    return "copy_file_range" in faults.FAULTS[fault].names


@pytest.mark.parametrize("number", range(len(faults.FAULTS)), ids=list(faults.FAULTS))
def test_some_calls_fail(number: int, recipes: dict[str, Path], good: Callable[[str], bytes], tmp_path: Path):
    """Each kind of fault, at calls from the first to the last, for good and in passing, under one method."""
    fault = list(faults.FAULTS)[number]
    name = "passthrough" if copies(fault) else METHODS[number % len(METHODS)]
    every(recipes[name], good(name), tmp_path, fault, 3).check(fault)


@pytest.mark.slow
@pytest.mark.parametrize("fault", faults.FAULTS)
@pytest.mark.parametrize("name", METHODS)
def test_every_call_fails(name: str, fault: str, recipes: dict[str, Path], good: Callable[[str], bytes], tmp_path: Path):
    """Each kind of fault at every call, up to a hundred of them, under several methods."""
    every(recipes[name], good(name), tmp_path, fault, 100).check(fault, name == "passthrough" or not copies(fault))


def test_a_flush_that_failed_is_not_believed_the_second_time(recipes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After a failed flush the system may have dropped the data, and the next flush succeeds: what was at stake is not recorded as durable."""
    calls = []

    def fail_once(self: ShardFile) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(ShardFile, "sync", fail_once)
    monkeypatch.setattr(ShardFile, "sync_data", lambda self: calls.append(2))
    monkeypatch.setattr(commits.Commits.__init__, "__defaults__", (1e9, 1 << 40))  # everything is at stake in the end
    with pytest.raises(OutputError, match="cannot flush the data to disk") as caught:
        plait.merge(recipes["linear"], tmp_path / "out", OPTIONS)
    assert calls == [1]
    assert "kept" not in caught.value.facts
    assert tiny.leftovers(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["ties"])
def test_devices_without_memory(name: str, recipes: dict[str, Path], good: Callable[[str], bytes], tmp_path: Path):
    """A GPU whose k-th allocation or transfer fails: the block is done again there or on the CPU, the report counts it, and the bytes are the same."""
    options = plait.Options(memory="512MiB", workers=2, maps="cuda")
    with faults.devices_that_fail([1 << 30]) as (device,):
        plait.merge(recipes[name], tmp_path / "clean", options)
        allocations, transfers = device.allocations, device.uploads + device.downloads
    for count, kind in ((allocations, "allocations"), (transfers, "transfers")):
        for at in faults.spread(count, 2):
            out = tmp_path / f"{kind}{at}"
            with faults.devices_that_fail([1 << 30], **{kind: frozenset({at})}):
                report = plait.merge(recipes[name], out, options)
            assert report.gpu_retries == 1
            assert (out / "model.safetensors").read_bytes() == good(name)
