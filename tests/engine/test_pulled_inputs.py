"""Kernels that read their inputs themselves, piece by piece: the bits of whole blocks, and every failure told as the reader tells it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plait
import plait.planner.blocks
from plait.engine import component, pulling
from plait.ops.errors import CheckpointError
from support import tiny

PIECE = 1024
SIZES = (1, 1023, 1024, 1025, 5000, 3 * 1024)
RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"weight": 0.4},
    "slerp": {},
    "model_stock": {},
    "ties": {"weight": 0.5, "density": 0.3},
    "dare_ties": {"weight": 0.5, "density": 0.4},
    "task_arithmetic": {"weight": 0.5},
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces a block, several blocks a tensor, and none that its sample is all of."""
    for module in (plait.planner.blocks, pulling, component):
        monkeypatch.setattr(module, "PULL_PIECE", PIECE)
    monkeypatch.setattr(plait.planner.blocks, "BLOCK", 2 * PIECE)
    monkeypatch.setattr(plait.planner.blocks, "SEEN_WHOLE", 0)
    monkeypatch.setattr(plait.planner.blocks, "SEARCH_PIECE", PIECE)


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Base and two experts; headers of odd lengths, so that tensors lie anywhere in their pages."""
    random, found = np.random.default_rng(3), []
    for number in range(3):
        values = {f"t{n}.weight": (0.02 * random.standard_normal(n)).astype(np.float32) for n in SIZES}
        found.append(tiny.write_model(tmp_path / f"m{number}", values))
    return found


def recipe(folder: Path, method: str, models: list[Path]) -> Path:
    base = method in ("ties", "dare_ties", "task_arithmetic", "model_stock", "slerp")
    experts = models[1:2] if method == "slerp" else models[1:]
    text: dict[str, Any] = {"merge_method": method, "models": [{"model": str(m), "parameters": RECIPES[method]} for m in experts], "dtype": "float32"}
    if base:
        text["base_model"] = str(models[0])
    if method == "slerp":
        text["parameters"] = {"t": 0.3}
    path = folder / f"{method}.yml"
    path.write_text(json.dumps(text))
    return path


def merged(path: Path, out: Path, backend: str) -> bytes:
    plait.merge(path, out, plait.Options(memory="512MiB", workers=2, backend=backend))
    return (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", RECIPES)
def test_pieces_give_the_bits_of_whole_blocks(method: str, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The interpreter is given whole blocks; kernels never ask for more than a piece."""
    path, real, sizes = recipe(tmp_path, method, models), os.preadv, []
    wanted = merged(path, tmp_path / "torch", "torch")
    direct = merged(path, tmp_path / "numba", "numba")

    def preadv(fd: int, buffers: Any, offset: int, *flags: int) -> int:
        sizes.append(memoryview(buffers[0]).nbytes)
        return real(fd, buffers, offset, *flags)

    monkeypatch.setattr(os, "preadv", preadv)
    assert direct == merged(path, tmp_path / "seen", "numba") == wanted
    assert sizes.count(2 * PIECE) >= 10, "bytes of a piece of 16-bit values"
    assert max(sizes) == 2 * PIECE or method == "ties", "the sample of a threshold is read by others"


def failing(once: bool, error: int) -> Callable[..., int]:
    real, calls = os.preadv, iter(range(1 << 30))

    def preadv(fd: int, buffers: Any, offset: int, *flags: int) -> int:
        number = next(calls)
        if number == 7 or (number > 7 and not once):
            if not error:
                return 0
            raise OSError(error, os.strerror(error))
        return real(fd, buffers, offset, *flags)

    return preadv


@pytest.mark.parametrize(
    ("error", "says"), [(errno.EIO, "could not be read at byte"), (errno.EACCES, "could not be read at byte"), (0, "ended early, at byte")]
)
def test_a_read_that_fails_is_told_with_file_and_byte(error: int, says: str, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As when the reader reads; nothing appears at the destination."""
    path = recipe(tmp_path, "linear", models)
    monkeypatch.setattr("plait.engine.reader._RETRIES_S", (0.0,))
    monkeypatch.setattr(os, "preadv", failing(False, error))
    with pytest.raises(CheckpointError, match=says) as caught:
        merged(path, tmp_path / "out", "numba")
    assert "model.safetensors" in caught.value.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, 0])
def test_a_read_that_fails_once_is_made_again(error: int, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The block is computed once more, and comes out as if nothing had been."""
    path = recipe(tmp_path, "linear", models)
    wanted = merged(path, tmp_path / "wanted", "torch")
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing(True, error))
        assert merged(path, tmp_path / "out", "numba") == wanted
