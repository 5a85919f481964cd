"""Check an output against its manifest, and against what its recipe gives."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from plait.engine.blockrun import Array
from plait.engine.checksum import RangeDigest, combined
from plait.engine.copying import read_source
from plait.engine.executor import execute
from plait.engine.journal import ENTRY, JOURNAL_NAME, Found, sorted_entries
from plait.engine.manifest import MANIFEST_NAME, file_sum, header_sum, read_manifest
from plait.engine.passes import COPY_UNIT
from plait.engine.reader import Reader
from plait.ops.dtypes import BY_CODE
from plait.ops.errors import CheckpointError, VerifyError
from plait.planner.blocks import block_count, block_elements
from plait.planner.header_text import shown
from plait.planner.plan import Component, Plan
from plait.planner.safetensors_header import read_header
from plait.planner.types import Place, SideFile

_TOLD = 5  # problems that a message names
#: What some loader may take for the model, or for a part of it.
_WEIGHTS = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack")


@dataclass(frozen=True, slots=True)
class Checked:
    """What was checked and found good.

    Attributes:
        tensors, nbytes: in the shards.
        files: other files.
        blocks: computed again, where that was asked for.
        foreign: names of files that somebody put there since, and that no loader takes for weights.
    """

    tensors: int
    nbytes: int
    files: int
    blocks: int = 0
    foreign: tuple[str, ...] = ()


# -- against the manifest ---------------------------------------------------------------------------
def verify(folder: Path, progress: Callable[[int], None], threads: int = 2, manifest: dict[str, Any] | None = None) -> Checked:
    """Read every byte of an output again and compare it with the manifest.

    Args:
        folder: the output.
        progress: hears of the bytes read, from any thread.
        threads: that read at once.
        manifest: of the folder, where it was read already.

    Raises:
        CheckpointError: there is no manifest.
        VerifyError: something differs; names what.
    """
    manifest = manifest or read_manifest(folder)
    foreign = _foreign(folder, manifest)
    try:
        names = [shard["name"] for shard in manifest["shards"]]
        rows = [(name, names[row["shard"]], row) for name, row in manifest["tensors"].items()]
        bad = _shard_problems(folder, manifest, rows)
        problems = [*bad.values(), *_side_problems(folder, manifest), *(f"{shown(n)} is not of this output" for n in foreign if n.endswith(_WEIGHTS))]
    except (KeyError, IndexError, TypeError) as error:
        raise CheckpointError(f"{folder}/plait.json lacks {error}; the manifest is damaged: merge again", path=str(folder)) from error
    local = threading.local()

    def check(item: tuple[str, str, dict[str, Any]]) -> str | None:
        if not hasattr(local, "digests"):
            local.digests = RangeDigest()
        return _tensor_problem(folder, reader, local.digests, item, progress)

    with Reader() as reader, ThreadPoolExecutor(threads, "plait-verify") as pool:
        rows = [row for row in rows if row[1] not in bad]
        problems += [found for found in pool.map(check, rows) if found]
    _complain(folder, problems)
    return Checked(len(rows), sum(row["bytes"] for _, _, row in rows), len(manifest["side_files"]), foreign=tuple(foreign))


def _complain(folder: Path, problems: Sequence[str]) -> None:
    if problems:
        more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
        told = "; ".join(problems[:_TOLD])
        raise VerifyError(f"{folder} is not what was written: {told}{more}. Merge again", path=str(folder), problems=tuple(problems))


def _foreign(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Names in the folder that the manifest does not have."""
    known = {str(Path(n).parts[0]) for n in (*manifest["side_files"], *(s["name"] for s in manifest["shards"]))} | {MANIFEST_NAME, JOURNAL_NAME}
    return sorted(name for name in os.listdir(folder) if name not in known)


def _shard_problems(folder: Path, manifest: dict[str, Any], rows: Sequence[tuple[str, str, dict[str, Any]]]) -> dict[str, str]:
    """What is wrong with each shard as a file, by name; the manifest and the shard's header must tell of the same tensors."""
    told: dict[str, dict[str, tuple[int, int]]] = {}
    for name, home, row in rows:
        told.setdefault(home, {})[name] = row["offset"], row["bytes"]
    found: dict[str, str] = {}
    for shard in manifest["shards"]:
        name, path = shard["name"], folder / shard["name"]
        if not path.is_file():
            found[name] = f"{name} is missing"
        elif path.stat().st_size != shard["bytes"]:
            found[name] = f"{name} has {path.stat().st_size} of {shard['bytes']} bytes"
        else:
            with open(path, "rb") as stream:
                if header_sum(stream.read(shard["header_bytes"])) != shard["header"]:
                    found[name] = f"{name} has another header"
                    continue
            held = {n: (ref.start, ref.nbytes) for n, ref in read_header(path).entries.items()}
            if held != told.get(name, {}):
                found[name] = f"{name} holds other tensors than {MANIFEST_NAME} says"
    return found


def _side_problems(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    for name, expected in manifest["side_files"].items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif file_sum(path) != expected:
            yield f"{name} was changed"


def _tensor_problem(folder: Path, reader: Reader, digests: RangeDigest, item: tuple[str, str, dict[str, Any]], progress: Callable[[int], None]) -> str | None:
    name, shard, row = item
    read = partial(reader.read_into, str(folder / shard))
    found = b""
    for first in range(0, row["bytes"], max(1, row["block"])):
        length = min(row["block"], row["bytes"] - first)
        found += digests.of(read, row["offset"] + first, length)
        progress(length)
    return None if combined(found) == row["blake2b"] else f"tensor {name} in {shard} differs"


# -- against the inputs -----------------------------------------------------------------------------
class _Comparing:
    """A sink that compares what it is given with what lies in the output."""

    def __init__(self, folder: Path, plan: Plan, reader: Reader) -> None:
        self._files = [str(folder / shard.name) for shard in plan.layout.shards]
        self._reader = reader
        self._lock = threading.Lock()
        self.bytes_written = 0
        self.different: list[tuple[int, int, int]] = []

    def begin(self) -> None:
        """Nothing to get ready."""

    def write(self, shard: int, offset: int, data: memoryview | bytes | Array, known: bytes = b"") -> None:
        """Compare a block."""
        new = np.frombuffer(data, np.uint8)
        old = np.empty(new.size, np.uint8)
        self._reader.read_into(self._files[shard], offset, old)
        with self._lock:
            self.bytes_written += new.size
            if not np.array_equal(new, old):
                self.different.append((shard, offset, new.size))

    def past_cache(self, shard: int) -> bool:
        """Nothing is written to a disk."""
        return False

    def copy(self, shard: int, offset: int, source_fd: int, source_offset: int, nbytes: int, see: Callable[[Array], None] | None = None) -> None:
        """Compare bytes of an input file."""
        buffer = np.empty(min(nbytes, 1 << 20), np.uint8)
        for first in range(0, nbytes, 1 << 20):
            part = buffer[: min(1 << 20, nbytes - first)]
            read_source(source_fd, source_offset + first, part)
            self.write(shard, offset + first, part)

    def publish(self, extra_side_files: Sequence[SideFile] = ()) -> None:
        """Nothing was written."""

    def abandon(self) -> None:
        """Nothing was written."""


def recompute(folder: Path, plan: Plan, blocks: int, seed: int, stop: threading.Event | None = None) -> int:
    """Compute a sample of an output's blocks again from the inputs and compare the bits.

    Args:
        folder: the output.
        plan: of the recipe that is said to give it.
        blocks: how many, at most.
        seed: of the sample.
        stop: ends it early.

    Returns:
        How many blocks were compared.

    Raises:
        VerifyError: some differ; names tensors and places.
    """
    every = list(_blocks(plan))
    chosen = random.Random(seed).sample(range(len(every)), min(blocks, len(every)))
    left = np.ones(len(every), bool)
    left[chosen] = False
    packed = np.zeros(len(every), ENTRY)
    for field, values in zip(("shard", "offset", "nbytes"), zip(*every, strict=True), strict=True):
        packed[field] = values
    with Reader() as reader:
        sink = _Comparing(folder, plan, reader)
        execute(plan, sink, reader, found=Found(sorted_entries(packed[left])), stop=stop, allow_nonfinite=True)
        reader.check_unchanged(plan.files)
    problems = [f"bytes {first} to {first + n} of {plan.layout.shards[shard].name} ({_tensor_at(plan, shard, first)})" for shard, first, n in sink.different]
    if problems:
        told = "; ".join(sorted(problems)[:_TOLD])
        what = f"of {len(chosen)} blocks computed again {len(problems)} differ: {told}"
        raise VerifyError(f"{folder} is not what the recipe gives: {what}. It is damaged or came from other inputs or another recipe", path=str(folder))
    return len(chosen)


def _blocks(plan: Plan) -> Iterator[tuple[int, int, int]]:
    """Shard, offset and bytes of every block of the output, as the engine writes them."""
    for component in plan.components:
        place = plan.layout.places[component.name]
        size = _block_bytes(plan, component)
        for first in range(0, place.nbytes, max(1, size)):
            yield place.shard, place.offset + first, min(size, place.nbytes - first)


def _block_bytes(plan: Plan, component: Component) -> int:
    program = plan.program_of(component)
    if program.copy is not None or not program.stages:
        return COPY_UNIT
    last = program.stages[-1]
    return block_elements(last, program.numel) * BY_CODE[program.dtype].itemsize if block_count(last, program.numel) else 1


def _tensor_at(plan: Plan, shard: int, offset: int) -> str:
    def holds(place: Place) -> bool:
        return place.shard == shard and place.offset <= offset < place.offset + place.nbytes

    return next(name for name, place in plan.layout.places.items() if holds(place))
