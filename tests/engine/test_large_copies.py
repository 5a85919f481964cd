"""Tensors large enough to be copied past the page cache: the same bytes, taken up where they were left, and looked at for infinity and NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plait
from plait.engine import commits, writer
from plait.keeping import verify
from plait.ops.errors import CheckpointError, OutputError
from plait.planner.blocks import COPY_PIECE
from support import tiny
from support.stored import read_folder

ONE = plait.Options(memory="64MiB", workers=1)
#: Bytes of the tensors in bf16: three pieces and a bit, exactly two, and less than goes through a buffer.
SIZES = {"large": 3 * COPY_PIECE + 514, "even": 2 * COPY_PIECE, "small": 4096}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    random = np.random.default_rng(2)
    model = tiny.write_model(tmp_path / "model", {f"{name}.weight": random.standard_normal(n // 2).astype(np.float32) for name, n in SIZES.items()})
    path = tmp_path / "r.yml"
    path.write_text(tiny.recipe("passthrough", [model]))
    return path


def raw(folder: Path) -> dict[str, bytes]:
    """Every tensor, exact in float64, in which numbers of 16 bits have one form."""
    return {name: tensor.value.tobytes() for name, tensor in read_folder(folder).items()}


def test_bytes_and_checksums(recipe: Path, tmp_path: Path):
    """Tensors come out as they went in, and the manifest's checksums are those of the files."""
    report = plait.merge(recipe, tmp_path / "out", plait.Options(memory="64MiB", workers=2))
    assert raw(tmp_path / "out") == raw(tmp_path / "model")
    assert verify(tmp_path / "out").nbytes == report.bytes_written == report.bytes_read == sum(SIZES.values())


@pytest.mark.parametrize("at", range(2, 6))
def test_a_copy_goes_on_in_the_middle(at: int, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pieces that are durable are not written again, wherever the run ended."""
    monkeypatch.setattr(commits.Commits.__init__, "__defaults__", (0.0, 1))
    real, calls = writer.OutputFolder.write, iter(range(1, 100))

    def failing(*args: Any, **kwargs: Any) -> None:
        if next(calls) >= at:
            raise OutputError("the disk is on fire", path="out")
        real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(writer.OutputFolder, "write", failing)
        with pytest.raises(OutputError, match="the disk is on fire"):
            plait.merge(recipe, tmp_path / "out", ONE)
    report = plait.merge(recipe, tmp_path / "out", ONE)
    assert report.bytes_resumed >= COPY_PIECE
    assert report.bytes_resumed + report.bytes_written == sum(SIZES.values())
    verify(tmp_path / "out")
    assert raw(tmp_path / "out") == raw(tmp_path / "model")


def test_what_is_not_finite_is_named(tmp_path: Path):
    """In any piece of a large tensor."""
    values = np.zeros(SIZES["large"] // 2, np.float32)
    values[-1] = np.nan
    model = tiny.write_model(tmp_path / "model", {"w.weight": values})
    (tmp_path / "r.yml").write_text(tiny.recipe("passthrough", [model]))
    with pytest.raises(CheckpointError, match=r"tensor 'w\.weight' holds 1 NaN among its \d+ values"):
        plait.merge(tmp_path / "r.yml", tmp_path / "out", ONE)
    assert not (tmp_path / "out").exists()
