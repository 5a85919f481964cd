"""Writes checkpoints, runs plans, and evaluates lazy expressions through the real pipeline: file, plan, engine, bytes.

Arrays are stored by this file's own writer and read by `support.stored`, so that plait's reader and writer stand alone between them.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import plait
from plait.engine.executor import execute
from plait.engine.reader import Reader
from plait.ops.tensor import LazyTensor
from plait.planner.checkpoint import open_checkpoint
from plait.planner.expressions import OutputSpec
from plait.planner.layout import make_layout
from plait.planner.resources import Resources
from plait.planner.schedule import make_plan
from plait.planner.types import SideFile
from support.stored import Stored, read_folder

Bits = npt.NDArray[Any]
_CODES = {"<f4": "F32", "<f2": "F16", "<u2": "BF16", "<i8": "I64", "<i4": "I32"}
_BACK = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def stored_as(values: npt.ArrayLike, code: str) -> Bits:
    """Values as the array that a file of dtype `code` holds; bfloat16 as its bits, rounded to nearest even."""
    wide = np.asarray(values, np.float32)
    if code == "F32":
        return wide
    if code == "F16":
        return wide.astype(np.float16)
    bits = np.ascontiguousarray(wide).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16).reshape(wide.shape)


def write_model(folder: Path, tensors: Mapping[str, Bits], shards: int = 1, config: Mapping[str, Any] | None = None) -> Path:
    """A checkpoint folder of raw arrays (uint16 means bfloat16), in one file or in several with an index."""
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    names = list(tensors)
    if shards == 1:
        _write_file(folder / "model.safetensors", tensors)
        return folder
    parts = [names[i::shards] for i in range(shards)]
    where: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        _write_file(folder / file, {name: tensors[name] for name in part})
        where.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def _write_file(path: Path, tensors: Mapping[str, Bits]) -> None:
    header: dict[str, Any] = {}
    at = 0
    for name, array in tensors.items():
        header[name] = {"dtype": _CODES[array.dtype.newbyteorder("<").str], "shape": array.shape, "data_offsets": (at, at + array.nbytes)}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(np.ascontiguousarray(a).tobytes() for a in tensors.values()))


def raw(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a checkpoint as dtype, shape and bytes, for comparisons bit by bit."""
    return {name: (t.dtype, t.shape, stored_as(t.value, t.dtype).tobytes()) for name, t in read_folder(folder).items()}


def write_out(model: plait.Model, out: Path, **options: Any) -> dict[str, Stored]:
    """The public way: write an expression, read the folder back."""
    plait.write(model, out, plait.Options(**{"memory": "1GiB", "workers": 2, **options}))
    return read_folder(out)


@dataclass
class MemorySink:
    """Shards in memory."""

    sizes: Sequence[int]
    bytes_written: int = 0
    shards: list[bytearray] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        self.shards = [bytearray(size) for size in self.sizes]

    def write(self, shard: int, offset: int, data: memoryview | bytes | npt.NDArray[Any], known: bytes = b"") -> None:
        view = memoryview(data).cast("B")
        with self._lock:
            self.shards[shard][offset : offset + view.nbytes] = view
            self.bytes_written += view.nbytes

    def past_cache(self, shard: int) -> bool:
        return False

    def copy(self, shard: int, offset: int, source_fd: int, source_offset: int, nbytes: int, see: object = None) -> None:
        self.write(shard, offset, os.pread(source_fd, nbytes, source_offset))

    def publish(self, extra_side_files: Sequence[SideFile] = ()) -> None:
        raise AssertionError("a sink in memory is read, not published")

    def abandon(self) -> None:
        self.shards = []


def evaluate(
    outputs: Mapping[str, Mapping[str, Bits]],
    build: Callable[..., LazyTensor],
    *,
    dtype: str = "F32",
    workers: int = 2,
    backend: str = "numba",
    memory_bytes: int = 1 << 30,
) -> dict[str, Bits]:
    """Each output computed by the engine from named arrays in a file.

    Args:
        outputs: output name -> leaf name -> array; the leaves of one output have one shape.
        build: makes an output's expression; takes its leaves by name.
        dtype: storage code of the outputs.
        workers, backend, memory_bytes: how to run.
    """
    with tempfile.TemporaryDirectory() as folder:
        flat = {f"{output}|{leaf}": array for output, leaves in outputs.items() for leaf, array in leaves.items()}
        checkpoint = open_checkpoint(write_model(Path(folder, "arrays"), flat), "arrays")
        specs = []
        for output, leaves in outputs.items():
            refs = tuple(checkpoint.tensors[f"{output}|{leaf}"] for leaf in leaves)
            make = _by_name(build, list(leaves))
            specs.append(OutputSpec(output, dtype, refs, output, make))
        layout = make_layout([(s.name, dtype, s.leaves[0].shape) for s in specs])
        plan = make_plan("expression", specs, layout, checkpoint.files, Resources(memory_bytes, workers, backend))
        sink = MemorySink([shard.size for shard in layout.shards])
        sink.begin()
        with Reader() as reader:
            execute(plan, sink, reader)
    found = {}
    for spec in specs:
        place = layout.places[spec.name]
        data = bytes(sink.shards[place.shard][place.offset : place.offset + place.nbytes])
        found[spec.name] = np.frombuffer(data, _BACK[dtype]).reshape(spec.leaves[0].shape)
    return found


def _by_name(build: Callable[..., LazyTensor], names: list[str]) -> Callable[[Sequence[LazyTensor]], LazyTensor]:
    return lambda nodes: build(**dict(zip(names, nodes, strict=True)))
