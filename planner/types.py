"""The plain data that passes between the parts of the planner, and from the planner to the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from plait.ops.statistics import LayerScore


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a recipe: file, and line and column counted from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells one version of an input file from another.

    Attributes:
        path: absolute path.
        size: bytes.
        mtime_ns: time of last change.
        header: BLAKE2b-128 of the raw safetensors header, hex.
    """

    path: str
    size: int
    mtime_ns: int
    header: str


class TensorRef(NamedTuple):
    """One stored tensor: where its bytes are. A plain tuple: a plan holds hundreds of thousands.

    Attributes:
        file: absolute path of the safetensors file.
        name: its name in that file.
        dtype: safetensors code, such as `BF16`.
        shape: dimensions.
        start: absolute byte offset in the file.
        nbytes: length in bytes.
    """

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The headers of one model.

    Attributes:
        label: the model as the user wrote it; keys the random streams.
        path: absolute path of the folder or file.
        files: the safetensors files, in shard order.
        tensors: by name, in file order.
        config: parsed `config.json`, or an empty dict.
    """

    label: str
    path: str
    files: tuple[FileIdentity, ...]
    tensors: dict[str, TensorRef]
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StepCall:
    """A step after the merge, resolved for one tensor."""

    name: str
    params: tuple[tuple[str, Any], ...]


class Job(NamedTuple):
    """One output tensor of a recipe, everything resolved.

    Attributes:
        output: name in the output.
        shape: of the output and of every input.
        dtype: storage code of the output.
        method: name of the merge method, or `copy` for a tensor taken unchanged from `experts[0]`.
        params: keyword -> value; per-expert parameters are tuples, one value an expert.
        base: the base's tensor, where the method or a step needs it.
        experts: the experts' tensors, in recipe order.
        labels: the experts' labels, same order.
        load_dtype: storage code that inputs are rounded to on load (`dtype:`), or None.
        steps: steps after the merge.
        role: embedding, attention, mlp, norm, head or other.
        layer: output layer number, or None outside the layers.
        mark: recipe line to name in errors, where there is one.
        statistics: tensors of what is known of the experts: for each statistic of the method one an expert.
        scores: likewise, what is known of each expert's layer.
    """

    output: str
    shape: tuple[int, ...]
    dtype: str
    method: str
    params: tuple[tuple[str, Any], ...]
    base: TensorRef | None
    experts: tuple[TensorRef, ...]
    labels: tuple[str, ...]
    load_dtype: str | None = None
    steps: tuple[StepCall, ...] = ()
    role: str = "other"
    layer: int | None = None
    mark: Mark | None = None
    statistics: tuple[TensorRef, ...] = ()
    scores: tuple[LayerScore, ...] = ()


@dataclass(frozen=True, slots=True)
class SideFile:
    """A small file of the output folder: its name and either its bytes or the file it is copied from."""

    name: str
    content: bytes | None = None
    source: str | None = None


class Place(NamedTuple):
    """Where an output tensor lies: shard number and absolute byte offset in that shard's file."""

    shard: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One output safetensors file: final name, raw header (length prefix included) and total size in bytes."""

    name: str
    header: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of the output, all offsets known before anything is computed."""

    shards: tuple[Shard, ...]
    places: dict[str, Place]
    side_files: tuple[SideFile, ...] = field(default=())
