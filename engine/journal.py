"""The journal: which ranges of an unfinished output are on the disk for good, in a form that a crash cannot falsify.

    plait journal 1\n                              the format and its version
    record*                                        each: kind, length, checksum, payload

The first record says what is being made (`engine/identity.py`); every other one lists ranges of shard files with the digests of their bytes.
A record is appended only after the data it names was flushed, and is flushed itself before anything relies on it. Its checksum covers its
place in the file as well, so a record that is torn, damaged or out of place ends the journal: it and all behind it count for nothing.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.engine.checksum import DIGEST_BYTES

JOURNAL_NAME = ".plait-journal"
VERSION = 1
_MAGIC = b"plait journal "
_FIRST_LINE = _MAGIC + str(VERSION).encode() + b"\n"
_HEAD, _DONE = 1, 2
_RECORD = Struct(f"<IQ{DIGEST_BYTES}s")
_MOST_PAYLOAD = 1 << 30

#: One range that is on the disk: where, how long, in which shard, and the digest of its bytes.
ENTRY = np.dtype([("offset", "<u8"), ("nbytes", "<u8"), ("shard", "<u4"), ("unused", "<u4"), ("digest", f"V{DIGEST_BYTES}")])
_PACKED = Struct(f"<QQII{DIGEST_BYTES}s")
Entries = npt.NDArray[Any]


def entry(shard: int, offset: int, nbytes: int, digest: bytes) -> bytes:
    """One range, packed as `ENTRY`."""
    return _PACKED.pack(offset, nbytes, shard, 0, digest)


def sorted_entries(packed: bytes | bytearray | memoryview | Entries) -> Entries:
    """Ranges by shard and offset, each once."""
    found = packed if isinstance(packed, np.ndarray) else np.frombuffer(bytes(packed), ENTRY)
    found = found[np.lexsort((found["offset"], found["shard"]))]
    again = (found["shard"][1:] == found["shard"][:-1]) & (found["offset"][1:] == found["offset"][:-1])
    ordered: Entries = found[np.concatenate(([True], ~again))] if found.size else found
    return ordered


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a journal says.

    Attributes:
        head: what is being made, or None where not even that was written whole.
        entries: ranges that are on the disk, as `ENTRY`, by shard and offset.
        version: of the format; 0 where the file is no journal.
        damaged: whether something behind the last good record was cut off.
    """

    head: dict[str, Any] | None
    entries: Entries
    version: int = VERSION
    damaged: bool = False


def read_journal(path: Path) -> Recovered:
    """Read a journal as far as it is good; a missing one is empty.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):  # a link is no journal of ours
            raise
        return Recovered(None, np.empty(0, ENTRY), 0)
    with open(fd, "rb") as stream:
        raw = stream.read() if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    version = _version(raw)
    if version != VERSION:
        return Recovered(None, np.empty(0, ENTRY), version, damaged=True)
    head: dict[str, Any] | None = None
    parts: list[bytes] = []
    good = len(_FIRST_LINE)
    for kind, payload, end in _records(raw):
        if kind == _HEAD and head is None:
            head = json.loads(payload)
        elif kind == _DONE and head is not None and len(payload) % ENTRY.itemsize == 0:
            parts.append(payload)
        else:
            break
        good = end
    return Recovered(head, sorted_entries(b"".join(parts)), VERSION, damaged=good != len(raw))


def _version(raw: bytes) -> int:
    first = raw[:64].split(b"\n", 1)[0]
    number = first[len(_MAGIC) :]
    return int(number) if first.startswith(_MAGIC) and number.isdigit() and b"\n" in raw[:64] else 0


def _records(raw: bytes) -> Iterator[tuple[int, bytes, int]]:
    at = len(_FIRST_LINE)
    while at + _RECORD.size <= len(raw):
        kind, length, checksum = _RECORD.unpack_from(raw, at)
        begin = at + _RECORD.size
        if length > min(_MOST_PAYLOAD, len(raw) - begin):
            return
        payload = raw[begin : begin + length]
        if _checksum(kind, at, payload) != checksum:
            return
        at = begin + length
        yield kind, payload, at


def _checksum(kind: int, at: int, payload: bytes) -> bytes:
    return blake2b(payload, digest_size=DIGEST_BYTES, salt=at.to_bytes(8, "little"), person=kind.to_bytes(8, "little")).digest()


class JournalWriter:
    """Appends records, each flushed before the call returns.

    Args:
        path: of the journal.
        head: what is being made.
        entries: ranges that are on the disk already.

    A journal is begun, or begun anew after a crash, under another name and renamed over the old one, so that one or the other is there whole.

    Raises:
        OSError: the disk is full or fails; what was recorded before stays valid.
    """

    def __init__(self, path: Path, head: dict[str, Any], entries: Entries | None = None) -> None:
        """Write the first record, and the second where something is there already."""
        fresh = path.with_name(path.name + ".new")
        self._fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            self._end = 0
            self._put(_FIRST_LINE)
            self._record(_HEAD, json.dumps(head, separators=(",", ":")).encode())
            if entries is not None and entries.size:
                self._record(_DONE, entries.tobytes())
            os.fsync(self._fd)
            os.rename(fresh, path)
            _sync_folder(path.parent)
        except BaseException:
            self.close()
            raise

    def append(self, packed: bytes) -> None:
        """Record ranges, packed by `entry`, whose data is on the disk."""
        self._record(_DONE, packed)
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file; harmless when called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _record(self, kind: int, payload: bytes) -> None:
        begin = self._end
        try:
            self._put(_RECORD.pack(kind, len(payload), _checksum(kind, begin, payload)) + payload)
        except OSError:
            self._end = begin  # the next record goes over the torn one
            raise

    def _put(self, data: bytes) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], self._end + done)
        self._end += len(data)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Found:
    """The ranges that an earlier run made durable.

    Args:
        entries: as `sorted_entries` gives them.
    """

    def __init__(self, entries: Entries | None = None) -> None:
        """Nothing, unless told."""
        found = np.empty(0, ENTRY) if entries is None else entries
        self.nbytes = int(found["nbytes"].sum())
        self._keys = (found["shard"].astype(np.uint64) << np.uint64(48)) + found["offset"]  # no file reaches 2^48 bytes
        self._ends = self._keys + found["nbytes"]
        self._before = np.concatenate((np.zeros(1, np.uint64), np.cumsum(found["nbytes"], dtype=np.uint64)))

    def __bool__(self) -> bool:
        return self.nbytes > 0

    def covers(self, shard: int, offset: int, nbytes: int) -> bool:
        """Whether every byte of a range of a shard is durable, in ranges that end where it ends."""
        if not self.nbytes:
            return False
        begin = (shard << 48) + offset
        first, last = np.searchsorted(self._keys, np.array([begin, begin + nbytes], np.uint64))
        if not nbytes:
            return True
        return bool(last > first and self._before[last] - self._before[first] == nbytes and self._ends[last - 1] == begin + nbytes)
