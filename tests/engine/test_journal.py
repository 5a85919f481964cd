"""The journal: what was said to be durable is, whatever prefix of the disk's operations survived, and damage never speaks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.engine import checksum
from plait.engine.commits import Commits
from plait.engine.journal import ENTRY, Found, JournalWriter, entry, read_journal, sorted_entries
from support import tiny

HEAD = {"plait": "1", "files": [], "shards": []}


def packed(*ranges: tuple[int, int, int]) -> bytes:
    return b"".join(entry(shard, offset, nbytes, bytes([offset % 251]) * 16) for shard, offset, nbytes in ranges)


def written(path: Path, *records: bytes) -> list[int]:
    """A journal of some records; its length after each."""
    writer, lengths = JournalWriter(path, HEAD), []
    for record in records:
        lengths.append(path.stat().st_size)
        writer.append(record)
    writer.close()
    return [*lengths, path.stat().st_size]


# -- records ----------------------------------------------------------------------------------------
def test_what_is_written_is_read(tmp_path: Path):
    """Head and ranges come back, by shard and offset, each once."""
    written(tmp_path / "j", packed((1, 500, 10), (0, 900, 5)), packed((0, 100, 50), (1, 500, 10)))
    found = read_journal(tmp_path / "j")
    assert (found.head, found.version, found.damaged) == (HEAD, 1, False)
    assert [(int(e["shard"]), int(e["offset"]), int(e["nbytes"])) for e in found.entries] == [(0, 100, 50), (0, 900, 5), (1, 500, 10)]
    assert found.entries["digest"][0].tobytes() == bytes([100]) * 16


def test_missing_and_foreign(tmp_path: Path):
    """No journal, an empty one and another file say nothing; one of another version says that it is one."""
    assert read_journal(tmp_path / "none").head is None
    for content, version in ((b"", 0), (b"hello\n", 0), (b"plait journal 7\nwhatever", 7), (b"plait journal x\n", 0), (b"plait journal 1", 0)):
        (tmp_path / "j").write_bytes(content)
        found = read_journal(tmp_path / "j")
        assert (found.head, found.entries.size, found.version) == (None, 0, version)


def test_what_is_no_file(tmp_path: Path):
    """A pipe or a link under the journal's name says nothing, and does not keep anybody waiting."""
    written(tmp_path / "good", packed((0, 0, 10)))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("good")
    for name in ("pipe", "link"):
        assert tiny.bounded(lambda name=name: read_journal(tmp_path / name)).head is None


def test_every_torn_tail(tmp_path: Path):
    """Cut anywhere, the journal holds exactly the records that are whole."""
    lengths = written(tmp_path / "j", packed((0, 0, 10)), packed((0, 10, 10), (0, 20, 10)), packed((0, 30, 5)))
    raw = (tmp_path / "j").read_bytes()
    for cut in range(len(raw) + 1):
        (tmp_path / "cut").write_bytes(raw[:cut])
        found = read_journal(tmp_path / "cut")
        whole = sum(length <= cut for length in lengths)
        assert (found.head is not None) == (whole > 0)
        assert found.entries.size == {0: 0, 1: 0, 2: 1, 3: 3, 4: 4}[whole]
        assert found.damaged == (cut not in lengths and cut != len(b"plait journal 1\n"))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_ends_the_journal(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    """Bytes changed anywhere invalidate their record and all behind it, and no others."""
    path = tmp_path_factory.mktemp("j") / "j"
    lengths = written(path, packed((0, 0, 10)), packed((0, 10, 10), (0, 20, 10)), packed((0, 30, 5)))
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(len(b"plait journal 1\n"), len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(raw))
    found = read_journal(path)
    assert found.entries.size == {0: 0, 1: 0, 2: 1, 3: 3}[sum(length <= at for length in lengths)]
    assert found.damaged


def test_a_record_out_of_its_place(tmp_path: Path):
    """A good record that stands elsewhere, as a lost write leaves it, does not count."""
    lengths = written(tmp_path / "j", packed((0, 0, 10)), packed((0, 10, 10)), packed((0, 20, 10)))
    raw = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(raw[: lengths[1]] + raw[lengths[2] :])
    assert read_journal(tmp_path / "j").entries.size == 1


# -- ranges -----------------------------------------------------------------------------------------
@settings(max_examples=200, deadline=None)
@given(cuts=st.lists(st.integers(1, 40), min_size=1, max_size=12), lost=st.sets(st.integers(0, 11)), first=st.integers(0, 3), count=st.integers(1, 6))
def test_covers(cuts: list[int], lost: set[int], first: int, count: int):
    """A range is covered when every block in it is there, and only then."""
    starts = [100 + sum(cuts[:i]) for i in range(len(cuts))]
    found = Found(sorted_entries(packed(*((2, s, n) for i, (s, n) in enumerate(zip(starts, cuts, strict=True)) if i not in lost), (1, 100, 7))))
    chosen = range(min(first, len(cuts) - 1), min(first + count, len(cuts)))
    nbytes = sum(cuts[i] for i in chosen)
    assert found.covers(2, starts[chosen[0]], nbytes) == (not lost & set(chosen))
    assert not found.covers(3, starts[chosen[0]], nbytes)
    assert not found.covers(2, starts[chosen[0]], starts[-1] + cuts[-1] + 1 - starts[chosen[0]])


def test_digests_see_what_disks_do():
    """A flipped bit, a zeroed sector, two pages exchanged and a byte too few all show; ranges read through a buffer give the same digest."""
    data = np.random.default_rng(1).integers(0, 256, (2 << 20) + 123, np.uint8)
    good = checksum.digest(data)

    def changed(change: Callable[[Any], None]) -> bytes:
        other = data.copy()
        change(other)
        return checksum.digest(other)

    def exchange(other: Any) -> None:
        other[4096:8192], other[40960:45056] = data[40960:45056], data[4096:8192]

    bad = [changed(lambda x, b=bit: x.__setitem__(b >> 3, x[b >> 3] ^ (1 << (b & 7)))) for bit in (0, 77_777, 8 * data.size - 1)]
    bad += [changed(lambda x: x.__setitem__(slice(512, 1024), 0)), changed(exchange), checksum.digest(data[:-1])]
    assert len({good, *bad}) == 1 + len(bad)
    for nbytes in (0, 1, 4072, 16384, 16385, 300_000, data.size):
        part = checksum.RangeDigest().of(lambda at, out: out.__setitem__(slice(None), data[at : at + out.size]), 5 if nbytes < data.size else 0, nbytes)
        assert part == checksum.digest(data[5 if nbytes < data.size else 0 :][:nbytes])


# -- batches ----------------------------------------------------------------------------------------
def test_a_batch_is_flushed_before_it_is_recorded():
    """Data first, journal second; all of it in the end; no more than twice a batch is ever at stake."""
    order: list[tuple[str, int]] = []
    at_stake, lock = [0], threading.Lock()

    def record(data: bytes) -> None:
        with lock:
            order.append(("record", len(data) // ENTRY.itemsize))

    batches = Commits(lambda shards: order.append(("sync", len(list(shards)))), record, interval_s=60.0, batch_bytes=1000)
    for i in range(50):
        batches.note(i % 2, 100, packed((i % 2, 100 * i, 100)))
        at_stake[0] = max(at_stake[0], 100 * (i + 1) - batches.durable_bytes)
    batches.finish(commit=True)
    assert batches.durable_bytes == 5000
    assert sum(n for kind, n in order if kind == "record") == 50
    assert [kind for kind, _ in order] == ["sync", "record"] * (len(order) // 2)
    assert at_stake[0] <= 2100


def test_a_failed_commit_is_raised_at_the_next_write():
    """The first error of the disk ends the run and is not forgotten."""

    def fail(shards: Any) -> None:
        raise OSError(5, "broken")

    batches = Commits(fail, lambda data: None, interval_s=0.0, batch_bytes=1)

    def write_on() -> None:
        for i in range(10_000):
            batches.note(0, 1, packed((0, i, 1)))

    with pytest.raises(OSError, match="broken"):
        write_on()
    with pytest.raises(OSError, match="broken"):
        batches.finish(commit=True)
    assert batches.durable_bytes == 0
