"""Decide where every output tensor will lie before anything is computed.

Tensors go into shards in model order. Inside a shard they keep that order too, unless an element
would then start off a multiple of its own size (an F32 tensor behind an odd number of BF16 elements):
readers that map a file view the bytes in place and refuse such an offset. That shard is then ordered
by element size, widest first, which always aligns; equal sizes keep the model order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring
from typing import NamedTuple

from plait.ops.dtypes import BY_CODE
from plait.ops.errors import PlanError
from plait.planner.safetensors_header import MAX_HEADER_BYTES, MAX_TENSORS
from plait.planner.types import Layout, Place, Shard

INDEX_NAME = "model.safetensors.index.json"

#: Data starts on a page, so that tensors of whole pages can be written past the page cache.
_ALIGNMENT = 4096
_ENTRY_BYTES = 64  # of one header entry beside its name, shape and offsets, generously
_SPARE_BYTES = 100_000  # of a header for padding and metadata


class _Item(NamedTuple):
    name: str
    quoted: str  # the name in JSON
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    itemsize: int


def make_layout(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]],
    max_shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] | None = None,
) -> Layout:
    """Place tensors in shards.

    Args:
        tensors: (name, dtype code, shape) in model order.
        max_shard_bytes: most bytes of tensors in one file; a larger tensor gets a file of its own.
        metadata: strings for each header; `{"format": "pt"}`, which transformers asks for, when not given.

    Raises:
        PlanError: a name comes twice or cannot be written, or the limit is not positive.
    """
    if max_shard_bytes < 1:
        raise PlanError(f"a shard of at most {max_shard_bytes} bytes can hold nothing; give a positive shard size", max_shard_bytes=max_shard_bytes)
    items = _items(tensors)
    groups = _split(items, max_shard_bytes)
    strings = dict(metadata) if metadata is not None else {"format": "pt"}
    shards: list[Shard] = []
    places = {item.name: Place(0, 0, 0) for item in items}  # in model order, which a shard need not keep
    for number, group in enumerate(groups):
        name = "model.safetensors" if len(groups) == 1 else f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        ordered = _aligned(group)
        header = _header(ordered, strings)
        cursor = len(header)
        for item in ordered:
            places[item.name] = Place(number, cursor, item.nbytes)
            cursor += item.nbytes
        shards.append(Shard(name, header, cursor))
    return Layout(tuple(shards), places)


def index_json(layout: Layout, metadata: Mapping[str, object] | None = None) -> bytes:
    """The content of `model.safetensors.index.json`: which shard holds which tensor, in model order.

    Args:
        layout: of the output.
        metadata: further entries beside `total_size`, the bytes of all tensors.
    """
    total = sum(place.nbytes for place in layout.places.values())
    weight_map = {name: layout.shards[place.shard].name for name, place in layout.places.items()}
    # The same bytes as json.dumps(indent=2) of the whole, which would go through 100,000 names in Python.
    head = _json({"metadata": {"total_size": total, **(metadata or {})}}, indent=2).removesuffix(b"\n}")
    names = _json(weight_map, separators=(",\n    ", ": "))[1:-1]
    return head + b',\n  "weight_map": ' + (b"{\n    " + names + b"\n  }" if weight_map else b"{}") + b"\n}\n"


def _items(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> list[_Item]:
    items: list[_Item] = []
    seen: set[str] = set()
    for name, code, shape in tensors:
        if name in seen or name == "__metadata__":
            raise PlanError(f"the output would hold two tensors named {name!r}; rename or drop one", tensor=name)
        seen.add(name)
        itemsize = BY_CODE[code].itemsize
        items.append(_Item(name, encode_basestring(name), code, tuple(shape), math.prod(shape) * itemsize, itemsize))
    return items


def _split(items: Sequence[_Item], max_shard_bytes: int) -> list[list[_Item]]:
    groups: list[list[_Item]] = [[]]
    data_bytes = header_bytes = 0
    most = MAX_HEADER_BYTES - _SPARE_BYTES  # plait must be able to read what it writes
    for item in items:
        end = data_bytes + item.nbytes
        entry = _ENTRY_BYTES + len(item.quoted.encode()) + len(str(item.shape)) + 2 * len(str(max(end, max_shard_bytes)))
        full = end > max_shard_bytes or header_bytes + entry > most or len(groups[-1]) == MAX_TENSORS
        if full and groups[-1]:
            groups.append([])
            data_bytes = header_bytes = 0
        groups[-1].append(item)
        data_bytes += item.nbytes
        header_bytes += entry
    return groups


def _aligned(group: Sequence[_Item]) -> list[_Item]:
    cursor = 0
    for item in group:
        if cursor % item.itemsize:
            return sorted(group, key=lambda i: -i.itemsize)
        cursor += item.nbytes
    return list(group)


def _header(items: Sequence[_Item], metadata: Mapping[str, str]) -> bytes:
    """Length prefix and JSON, padded with spaces so that the data behind it is aligned."""
    entries = [f'"__metadata__":{_json(metadata).decode()}'] if metadata else []
    cursor = 0
    for item in items:  # put together here: building the same dict of dicts for json.dumps takes three times as long
        shape = ",".join(map(str, item.shape))
        entries.append(f'{item.quoted}:{{"dtype":"{item.dtype}","shape":[{shape}],"data_offsets":[{cursor},{cursor + item.nbytes}]}}')
        cursor += item.nbytes
    text = ("{" + ",".join(entries) + "}").encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _json(value: object, indent: int | None = None, separators: tuple[str, str] = (",", ":")) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=None if indent else separators).encode()
