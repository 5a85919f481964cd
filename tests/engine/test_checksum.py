"""Digests of output bytes: those that kernels add up on the way are those of the bytes, and any damage shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plait
from plait.engine.checksum import COLUMNS, digest, digest_of
from plait.keeping import verify
from plait.ops.kernels.jit_bits import add_words16, add_words32
from support import tiny

WIDTHS = {"<u2": 4 * COLUMNS, "<u4": 2 * COLUMNS}


def summed(data: np.ndarray, chunks: list[int]) -> np.ndarray:
    """The sums of whole rows as a kernel takes them, in chunks of any lengths."""
    width = WIDTHS[data.dtype.str]
    sums, whole, at = np.zeros(width, np.uint32 if data.dtype.itemsize == 2 else np.uint64), len(data) // width * width, 0
    while at < len(data):
        for length in chunks:
            part = data[at : at + length]
            if data.dtype.itemsize == 2:
                add_words16(sums, part, at, min(len(part), whole - at), width)
            else:
                add_words32(sums, part.view(np.float32), at, min(len(part), whole - at), width)
            at += len(part)
    return sums


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(WIDTHS)), st.integers(1, 70_000), st.lists(st.integers(1, 5000), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_sums_taken_on_the_way_give_the_digest_of_the_bytes(dtype: str, n: int, chunks: list[int], seed: int):
    """Of any length, in chunks of any lengths, for words of either width, full ones too."""
    random = np.random.default_rng(seed)
    data = random.integers(0, np.iinfo(dtype).max, n, dtype, endpoint=True)
    data[random.random(n) < 0.2] = np.iinfo(dtype).max
    assert digest_of(summed(data, chunks), data) == digest(data)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_the_largest_block_does_not_overflow(dtype: str):
    """A million elements of nothing but ones."""
    data = np.full(1 << 20, np.iinfo(dtype).max, dtype)
    assert digest_of(summed(data, [1024]), data) == digest(data)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_manifests_of_kernels_and_interpreter_are_the_same(dtype: str, tmp_path: Path):
    """Whole blocks, rows that are no multiple of a chunk, and ends of tensors: checksums that kernels took are those of the bytes, which verify reads."""
    shapes = {"model.layers.0.mlp.up_proj.weight": (1100, 1003), "model.layers.1.mlp.up_proj.weight": (33, 4097), "lm_head.weight": (70, 9)}
    base, *experts = tiny.write_set(tmp_path, dtype=dtype, shapes=shapes)
    for name, each in {"task_arithmetic": {"weight": 0.3}, "della": {"weight": 1.0, "density": 0.5, "epsilon": 0.1}}.items():
        path = tmp_path / f"{name}.yml"
        path.write_text(tiny.recipe(name, experts, base=base, each=each))
        found = []
        for backend in ("numba", "torch"):
            out = tmp_path / f"{name}-{backend}"
            plait.merge(path, out, plait.Options(memory="512MiB", backend=backend))
            verify(out)
            found.append(json.loads((out / "plait.json").read_text())["tensors"])
        assert found[0] == found[1]
        assert len(found[0]) == len(shapes)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40_000), st.data())
def test_damage_shows(n: int, data: st.DataObject):
    """A changed byte, two words exchanged, and bytes that are missing at the end."""
    bytes_ = np.random.default_rng(n).integers(0, 256, 8 * n, np.uint8)
    known = digest(bytes_)
    at = data.draw(st.integers(0, 8 * n - 1))
    other = bytes_.copy()
    other[at] ^= data.draw(st.integers(1, 255))
    assert digest(other) != known
    assert digest(bytes_[:-1]) != known
    first, second = sorted((at // 8, data.draw(st.integers(0, n - 1))))
    words = bytes_.view("<u8").copy()
    if (second - first) % COLUMNS and words[first] != words[second]:
        words[[first, second]] = words[[second, first]]
        assert digest(words.view(np.uint8)) != known
