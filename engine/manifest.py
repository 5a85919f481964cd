"""`plait.json`: what an output folder is, where it came from and what its bytes are, written with every output and read by `plait verify`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from plait.engine.checksum import DIGEST_BYTES, combined
from plait.engine.events import Report
from plait.engine.journal import Entries
from plait.ops.errors import CheckpointError
from plait.planner.json_file import read_json
from plait.planner.plan import Plan
from plait.planner.safetensors_header import MAX_HEADER_BYTES
from plait.planner.types import Layout

MANIFEST_NAME = "plait.json"
FORMAT = 1
_SUM = b',\n "sum": "'  # of all that is before it
_MOST_BYTES, _MOST_MARKS = 512 << 20, 32_000_000  # of a million tensors, twice
_LEAST_BLOCK = 1 << 16  # bytes of a block of a tensor of several
_VERSIONS = ("numpy", "numba", "torch")
#: Reports of figures that are known only when the folder is in place stay out.
_MEASURED = ("seconds", "bytes_read", "bytes_written", "bytes_resumed", "leased_peak_bytes", "recounted", "gpu_retries")


def manifest(identity: Mapping[str, Any], layout: Layout, entries: Entries, sides: Mapping[str, str], facts: Mapping[str, Any]) -> bytes:
    """The text of `plait.json`.

    Args:
        identity: of what was made.
        layout: of the files.
        entries: digests of everything that was written, by shard and offset.
        sides: checksum of every other file, by name.
        facts: further entries, such as the figures of `figures`.
    """
    head = {
        "format": FORMAT,
        "checksum": "blake2b-128 over the digests of blocks, as in plait's engine/checksum.py",
        **identity,
        "versions": _versions(),
        **facts,
        "shards": [{"name": s.name, "bytes": s.size, "header_bytes": len(s.header), "header": _blake(s.header)} for s in layout.shards],
        "side_files": dict(sides),
    }
    rows = tensor_sums(layout, entries)
    lines = ",\n  ".join([f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()])
    text = (json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}") + ',\n "tensors": {\n  ' + lines + "\n }").encode()
    return signed(text)


def signed(text: bytes) -> bytes:
    """A manifest but for its closing brace, with the checksum of itself behind it."""
    return text + _SUM + _blake(text).encode() + b'"\n}\n'


def tensor_sums(layout: Layout, entries: Entries) -> dict[str, dict[str, Any]]:
    """For every tensor its shard, bytes, block size and checksum.

    Raises:
        ValueError: the entries do not cover a tensor.
    """
    names = list(layout.places)
    spans = np.array([(p.shard, p.offset, p.nbytes) for p in layout.places.values()], np.uint64).reshape(-1, 3)
    keys = (entries["shard"].astype(np.uint64) << np.uint64(48)) + entries["offset"]
    begins = (spans[:, 0] << np.uint64(48)) + spans[:, 1]
    firsts, lasts = np.searchsorted(keys, begins), np.searchsorted(keys, begins + spans[:, 2])
    before = np.concatenate((np.zeros(1, np.uint64), np.cumsum(entries["nbytes"], dtype=np.uint64)))
    digests = entries["digest"].tobytes()
    found: dict[str, dict[str, Any]] = {}
    for name, first, last in zip(names, firsts.tolist(), lasts.tolist(), strict=True):
        place = layout.places[name]
        done = int(before[last] - before[first])
        if done != place.nbytes:
            raise ValueError(f"the digests cover {done} of {place.nbytes} bytes of {name}")
        block = int(entries["nbytes"][first]) if done else 0
        own = digests[DIGEST_BYTES * first : DIGEST_BYTES * last]
        found[name] = {"shard": place.shard, "offset": place.offset, "bytes": done, "block": block, "blake2b": combined(own)}
    return found


def figures(plan: Plan, report: Report) -> dict[str, Any]:
    """Predicted and measured figures of a run."""
    prediction = {k: v for k, v in asdict(plan.prediction).items() if k != "peak_task"}
    inputs = [{"file": file, "tensor": name, "values": count} for (file, name), count in sorted(report.nonfinite_inputs.items())]
    outputs = {name: {"values": count, "overflowed": beyond} for name, (count, beyond) in sorted(report.nonfinite_outputs.items())}
    nonfinite = {"nonfinite": {"inputs": inputs, "outputs": outputs}} if inputs or outputs else {}
    wide = {"model_wide": report.statistics} if report.statistics else {}
    return {"predicted": prediction, "measured": {key: getattr(report, key) for key in _MEASURED}, **nonfinite, **wide}


def file_sum(path: Path) -> str:
    """BLAKE2b-128 of a small file."""
    state = blake2b(digest_size=DIGEST_BYTES)
    with open(path, "rb") as stream:
        while part := stream.read(1 << 20):
            state.update(part)
    return state.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an output folder.

    Raises:
        CheckpointError: there is none, it is damaged, or another version of plait wrote it.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {MANIFEST_NAME}: it is not an output of plait, or not a whole one; give a folder that plait wrote", path=str(path)
        )
    found = read_json(path, _MOST_BYTES, "the manifest", _MOST_MARKS)
    if found.get("format") != FORMAT:
        raise CheckpointError(f"{path} is of format {found.get('format')!r} and this plait reads {FORMAT}; use the plait that wrote it", path=str(path))
    wanted: Sequence[tuple[str, type]] = (("tensors", dict), ("shards", list), ("side_files", dict))
    for key, kind in wanted:
        if not isinstance(found.get(key), kind):
            raise CheckpointError(f"{path} has no {key}; the manifest is damaged: merge again", path=str(path))
    if not _unchanged(path):
        raise CheckpointError(f"{path} is not as it was written: its own checksum differs; merge again", path=str(path))
    if not _sound(found):
        raise CheckpointError(f"{path} describes files as plait does not write them; the manifest is damaged: merge again", path=str(path))
    return found


def _unchanged(path: Path) -> bool:
    """Whether the manifest ends in the checksum of what is before it."""
    whole = path.read_bytes()
    return whole == signed(whole.rpartition(_SUM)[0])


def _sound(found: dict[str, Any]) -> bool:
    """Whether a manifest names files of its folder alone, and sizes and blocks that can be."""
    names = [*found["side_files"], *(s.get("name") for s in found["shards"] if isinstance(s, dict))]
    plain = all(isinstance(n, str) and n and not Path(n).is_absolute() and ".." not in Path(n).parts for n in names)
    shards = all(isinstance(s, dict) and _count(s.get("bytes")) and _count(s.get("header_bytes"), MAX_HEADER_BYTES + 8) for s in found["shards"])
    return plain and shards and all(_sound_tensor(row, len(found["shards"])) for row in found["tensors"].values())


def _sound_tensor(row: Any, shards: int) -> bool:
    if not isinstance(row, dict) or not _count(row.get("shard"), shards - 1) or not all(_count(row.get(key)) for key in ("offset", "bytes", "block")):
        return False
    return bool(row["block"] >= min(row["bytes"], _LEAST_BLOCK))


def _count(value: Any, most: int = 1 << 62) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def header_sum(header: bytes) -> str:
    """Checksum of a shard's header."""
    return _blake(header)


def _blake(data: bytes) -> str:
    return blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def _versions() -> dict[str, str]:
    """Of Python and of the libraries that the run loaded."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _VERSIONS:
        module = sys.modules.get(name)
        if module is not None:
            found[name] = str(module.__version__)
    return found
