"""Read the header of one safetensors file, and only that; trust nothing in it.

A safetensors file is an 8-byte little-endian length, a JSON object of that length, and the data:

    {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ..., "__metadata__": {"k": "v"}}

Offsets count from the end of the header. The data must be covered exactly: no holes, no overlaps,
nothing after the last tensor. Everything else is refused in one sentence that names the file and,
where there is one, the tensor. Time and memory are bounded before the JSON is parsed: by the length
of the header and by counting what its text can hold (`docs/decisions/0010`).
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import stat
import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from operator import itemgetter, mul, sub
from typing import Any, NoReturn

from plait.ops.dtypes import BY_CODE
from plait.ops.errors import CheckpointError
from plait.planner.collector import collector_paused
from plait.planner.header_text import Malformed, decoded, shown
from plait.planner.types import FileIdentity, TensorRef

#: What one file may describe. The reference implementation allows 100 MB of header, which as Python objects take a gigabyte.
MAX_HEADER_BYTES = 12_000_000
MAX_TENSORS = 65_536
MAX_NAME_CHARACTERS = 1024
MAX_DIMENSIONS = 64

#: Waits before a failed read is tried again: network disks and old ones often give on the second try.
READ_RETRIES_S = (0.01, 0.1, 0.5)

_MAX_INT64 = 2**63 - 1
_METADATA_MARKS = 40_000  # commas, colons or brackets that `__metadata__` may hold in a file of the most tensors
_ITEM_BYTES = {code: dtype.itemsize for code, dtype in BY_CODE.items()}
_PACKED = {"F4", "F6_E2M3", "F6_E3M2", "I4", "U4"}
_KEYS = {"dtype", "shape", "data_offsets"}
_DOWNLOAD = "download or copy it again"
_SPLIT = "save the model in several files"
_REF = partial(tuple.__new__, TensorRef)  # from its fields in order; twice as fast as calling the class


@dataclass(frozen=True, slots=True)
class Header:
    """The checked header of one file.

    Attributes:
        entries: tensors by name, in the order of their offsets.
        identity: what tells this version of the file from another.
        metadata: the `__metadata__` strings.
    """

    entries: dict[str, TensorRef]
    identity: FileIdentity
    metadata: dict[str, str]


def size_text(count: int) -> str:
    """A number of bytes for people: `999 bytes`, `12.0 MB`, `140.2 GB` (decimal units)."""
    if count < 1000:
        return f"{count} bytes"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.95 or unit == "TB":
            break
    return f"{value:.1f} {unit}"


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a safetensors file; no tensor data is read.

    Args:
        path: the file; the identity keeps its absolute path.

    Raises:
        CheckpointError: the file is absent, truncated, damaged or not safetensors.
    """
    file = os.path.abspath(path)
    raw, status = _raw_header(file)
    with collector_paused():
        entries, metadata = _parse(file, raw, status.st_size)
    digest = hashlib.blake2b(raw, digest_size=16).hexdigest()
    return Header(entries, FileIdentity(file, status.st_size, status.st_mtime_ns, digest), metadata)


def open_regular(file: str, wanted: str = "a .safetensors file or a model folder") -> tuple[int, os.stat_result]:
    """Open a regular file for reading without ever blocking (a FIFO would); the caller closes it. `wanted` is what to give instead."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        _refuse(file, "there is no such file; check the path")
    except OSError as error:
        _refuse(file, f"cannot be opened ({error.strerror}); check the file and its permissions")
    except ValueError:  # a NUL, or half a surrogate pair
        _refuse(shown(file), "is no file name; check the path")
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        _refuse(file, f"is not a regular file; give {wanted}")
    return fd, status


def _raw_header(file: str) -> tuple[bytes, os.stat_result]:
    fd, status = open_regular(file)
    try:
        prefix = _pread(file, fd, 8, 0)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, status.st_size - 8):
            _refuse_length(file, fd, length, status.st_size)
        raw = _pread(file, fd, length, 8)
    finally:
        os.close(fd)
    if len(raw) < length:
        _refuse(file, f"ended at byte {8 + len(raw)} while its header was read; {_DOWNLOAD}")
    return raw, status


def _pread(file: str, fd: int, count: int, offset: int) -> bytes:
    parts: list[bytes] = []
    while count:
        try:
            part = _some(fd, count, offset)
        except OSError as error:
            _refuse(file, f"cannot be read ({error.strerror}); check the disk, or {_DOWNLOAD}")
        if not part:
            break
        parts.append(part)
        count -= len(part)
        offset += len(part)
    return b"".join(parts)


def _some(fd: int, count: int, offset: int) -> bytes:
    """`os.pread`, tried again a few times when the disk reports an error."""
    for wait_s in READ_RETRIES_S:
        try:
            return os.pread(fd, count, offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        time.sleep(wait_s)
    return os.pread(fd, count, offset)


def _refuse_length(file: str, fd: int, length: int, size: int) -> NoReturn:
    """Say why the first eight bytes cannot be a header length; the usual mistakes have a sentence of their own."""
    start = _pread(file, fd, 48, 0)
    if start.startswith(b"version https://git-lfs"):
        _refuse(file, "is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        _refuse(file, "is a PyTorch pickle under a safetensors name; save the model again as safetensors")
    if size < 8:
        _refuse(file, f"is truncated: {size} bytes cannot hold a safetensors header; {_DOWNLOAD}", size=size)
    if length > MAX_HEADER_BYTES:
        why = f"is not safetensors, is damaged or describes too much: it claims a header of {length} bytes (the limit is {MAX_HEADER_BYTES})"
        _refuse(file, f"{why}; {_DOWNLOAD}, or {_SPLIT}", length=length)
    _refuse(file, f"is truncated: its header alone would take {size_text(length)} and the file holds {size_text(size)}; {_DOWNLOAD}", length=length, size=size)


def _refuse(file: str, why: str, tensor: str | None = None, **facts: object) -> NoReturn:
    raise CheckpointError(f"{file}: tensor {shown(tensor)} {why}" if tensor is not None else f"{file} {why}", path=file, tensor=tensor, **facts)


def _parse(file: str, raw: bytes, size: int) -> tuple[dict[str, TensorRef], dict[str, str]]:
    """Tensors in the order of their offsets, and metadata, from the header of a file of `size` bytes."""
    _check_density(file, raw)
    try:
        top = decoded(raw)
    except UnicodeDecodeError as error:
        _refuse(file, f"is damaged: its header is not UTF-8 at byte {8 + error.start}; {_DOWNLOAD}")
    except Malformed as error:
        _refuse(file, f"is damaged: its header {error}; {_DOWNLOAD}")
    except RecursionError:
        _refuse(file, f"is damaged: its header is nested too deeply; {_DOWNLOAD}")
    except ValueError as error:
        _refuse(file, f"is damaged: its header is not valid JSON ({error}); {_DOWNLOAD}")
    if not isinstance(top, dict):
        _refuse(file, f"is damaged: its header is not a JSON object; {_DOWNLOAD}")
    metadata = _metadata(file, top.pop("__metadata__", None))
    data_start = 8 + len(raw)
    if len(top) > MAX_TENSORS:
        _refuse(file, f"describes {len(top)} tensors, more than the {MAX_TENSORS} that plait reads from one file; {_SPLIT}", limit=MAX_TENSORS)
    _check_names(file, top)
    entries = _plain_entries(file, top, data_start, size)
    if entries is None:  # unusual or damaged: one by one, to name the tensor
        entries = {name: _entry(file, name, value, data_start) for name, value in top.items()}
        entries = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)))
        _check_coverage(file, entries, data_start, size)
    return entries, metadata


def _check_density(file: str, raw: bytes) -> None:
    """Refuse, before it is parsed, text that would become more or larger objects than the tensors that plait accepts.

    A tensor takes at least 45 bytes for its 3 brackets, 4 colons and a few commas; the rest is `__metadata__`, which may quote them.
    """
    brackets, colons, commas = raw.count(b"[") + raw.count(b"{"), raw.count(b":"), raw.count(b",")
    if brackets > len(raw) // 8 + 8 or commas > len(raw) // 3 + 64:
        _refuse(file, f"is damaged: its header is not a list of tensors; {_DOWNLOAD}")
    if brackets > 3 * MAX_TENSORS + _METADATA_MARKS or colons > 4 * MAX_TENSORS + _METADATA_MARKS or commas > 8 * MAX_TENSORS + _METADATA_MARKS:
        _refuse(file, f"describes more than the {MAX_TENSORS} tensors that plait reads from one file; {_SPLIT}", limit=MAX_TENSORS)


def _metadata(file: str, value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(type(text) is str for text in value.values()):
        _refuse(file, f"is damaged: `__metadata__` in its header is not a map of strings; {_DOWNLOAD}")
    try:
        "".join(chain(value, value.values())).encode()
    except UnicodeEncodeError:
        _refuse(file, f"is damaged: `__metadata__` in its header holds half a surrogate pair; {_DOWNLOAD}")
    return value


def _check_names(file: str, names: Collection[str]) -> None:
    """Refuse names that could climb a path, disturb a terminal, or are no names."""
    joined = "".join(names)
    plain = joined.isprintable() and "/" not in joined and "\\" not in joined and ".." not in joined
    if plain and "" not in names and max(map(len, names), default=0) <= MAX_NAME_CHARACTERS:
        return  # none can be bad: the check of each is slow where there are many
    for name in names:
        if not name.isprintable() or not name or len(name) > MAX_NAME_CHARACTERS or name[0] in "/\\" or ".." in name.replace("\\", "/").split("/"):
            _refuse(file, "has a name with control characters, a climbing path, or no sensible length; the file is damaged or hostile: do not use it", name)


def _plain_entries(file: str, top: dict[str, Any], data_start: int, size: int) -> dict[str, TensorRef] | None:
    """The tensors of a header in which all is as it should be and they stand in the order of their offsets; None of any other.

    A header may hold a million tensors: they are checked together, column by column. Right types and lengths, known dtypes, dimensions in
    their bounds, equal sizes and unbroken coverage of the file leave nothing that `_entry` and `_check_coverage` would refuse.
    """
    rows = list(top.values())
    if set(map(type, rows)) != {dict} or set(map(len, rows)) != {3}:
        return None
    try:
        codes, shapes, offsets = (list(map(itemgetter(key), rows)) for key in ("dtype", "shape", "data_offsets"))
    except KeyError:
        return None
    if set(map(type, codes)) != {str} or set(map(type, chain(shapes, offsets))) != {list} or not _ITEM_BYTES.keys() >= set(codes):
        return None
    dimensions = list(chain.from_iterable(shapes))
    if set(map(type, chain(dimensions, chain.from_iterable(offsets)))) != {int} or set(map(len, offsets)) != {2}:
        return None
    if max(map(len, shapes)) > MAX_DIMENSIONS or min(dimensions, default=0) < 0 or max(dimensions, default=0) > _MAX_INT64:
        return None
    sizes = list(map(mul, map(math.prod, shapes), map(_ITEM_BYTES.__getitem__, codes)))
    begins, ends = (list(map(itemgetter(side), offsets)) for side in (0, 1))
    if [0, *ends] != [*begins, size - data_start] or list(map(sub, ends, begins)) != sizes:
        return None
    # One object for equal shapes, and for a name that many models have. Tensors of one size are mostly of one shape: no table of shapes,
    # whose hashes a hostile file could make collide.
    tuples = list(map(tuple, shapes))
    last = dict(zip(sizes, tuples, strict=True))
    shared = [one if (one := last[nbytes]) == shape else shape for nbytes, shape in zip(sizes, tuples, strict=True)]
    names = list(map(sys.intern, top))
    starts = [data_start + begin for begin in begins]
    columns = zip(repeat(file), names, map(sys.intern, codes), shared, starts, sizes, strict=False)
    return dict(zip(names, map(_REF, columns), strict=True))


def _entry(file: str, name: str, value: object, data_start: int) -> TensorRef:
    """One tensor from its description, everything checked."""
    if type(value) is not dict or value.keys() != _KEYS:
        _refuse(file, f"is not described by exactly dtype, shape and data_offsets; {_DOWNLOAD}", name)
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    dtype = BY_CODE.get(code) if type(code) is str else None
    if dtype is None:
        kind = "packed below a byte" if type(code) is str and code in _PACKED else "which plait does not know"
        _refuse(file, f"has dtype {shown(code)}, {kind}; use a checkpoint in one of {', '.join(BY_CODE)}", name, dtype=code)
    sound = type(shape) is list and type(offsets) is list and len(offsets) == 2 and len(shape) <= MAX_DIMENSIONS
    if not sound or not all(type(number) is int and number >= 0 for number in (*shape, *offsets)):
        _refuse(file, f"has a shape or offsets that are not lists of whole numbers from 0; {_DOWNLOAD}", name)
    begin, end = offsets
    nbytes = math.prod(shape) * dtype.bits // 8
    if nbytes > _MAX_INT64 or end > _MAX_INT64 or (not nbytes and max(shape) > _MAX_INT64):
        _refuse(file, f"overflows: shape {shown(str(shape))} in {dtype.code} does not fit 64 bits; {_DOWNLOAD}", name)
    if end - begin != nbytes:
        why = f"takes {end - begin} bytes but shape {_brief(shape)} in {dtype.code} needs {nbytes}"
        _refuse(file, f"{why}; {_DOWNLOAD}", name, needed=nbytes, found=end - begin)
    return TensorRef(file, sys.intern(name), dtype.code, tuple(shape), data_start + begin, nbytes)


def _brief(shape: list[int]) -> str:
    return str(shape) if len(shape) <= 8 else f"{str(shape[:8])[:-1]}, ...]"


def _check_coverage(file: str, entries: dict[str, TensorRef], data_start: int, size: int) -> None:
    """Tensors follow each other without holes or overlaps and end exactly where the file ends."""
    cursor = data_start
    previous = None
    for name, entry in entries.items():
        if entry.start != cursor:
            where = f"after {shown(previous)}" if previous is not None else "at the start of the data"
            what = f"overlaps {shown(previous)}" if entry.start < cursor else f"leaves a hole of {entry.start - cursor} bytes {where}"
            _refuse(file, f"{what}; {_DOWNLOAD}", name)
        cursor = entry.start + entry.nbytes
        previous = name
    if cursor > size:
        cut = _first_cut(entries.items(), size)
        why = f"it holds {size_text(size)} of the {size_text(cursor)} its header promises ({cursor - size} bytes are missing, from tensor {shown(cut)} on)"
        raise CheckpointError(f"{file} is truncated: {why}; {_DOWNLOAD}", path=file, tensor=cut, needed=cursor, found=size)
    if cursor < size:
        _refuse(file, f"holds {size - cursor} bytes after its last tensor; {_DOWNLOAD}", needed=cursor, found=size)


def _first_cut(items: Iterable[tuple[str, TensorRef]], size: int) -> str:
    return next(name for name, entry in items if entry.start + entry.nbytes > size)
