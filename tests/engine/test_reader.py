"""Reading: the right bytes from many threads, and one sentence when a file changes underneath."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from plait.engine.reader import Reader
from plait.ops.errors import CheckpointError
from plait.planner.safetensors_header import read_header
from plait.planner.types import FileIdentity, TensorRef


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "data"
    path.write_bytes(np.random.default_rng(0).bytes(300_000))
    return str(path)


def identity(file: str) -> FileIdentity:
    status = os.stat(file)
    return FileIdentity(file, status.st_size, status.st_mtime_ns, "")


def test_reads_exact_bytes_from_threads(file: str) -> None:
    """Eight threads reading overlapping ranges each get the file's bytes, and the counter adds up."""
    content = Path(file).read_bytes()
    wrong: list[int] = []
    counted: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(50):
            start = int(rng.integers(0, 299_000))
            buffer = np.empty(int(rng.integers(1, 1000)), np.uint8)
            reader.read_into(file, start, buffer)
            counted.append(buffer.size)
            if buffer.tobytes() != content[start : start + buffer.size]:
                wrong.append(start)

    with Reader() as reader:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert reader.bytes_read == sum(counted)
        before = reader.bytes_read
        reader.read_into(file, 0, np.empty((3, 4), np.float32))
        assert reader.bytes_read == before + 48


def test_any_buffer(file: str) -> None:
    """Arrays of any dtype and shape, memory views and empty buffers are filled."""
    content = Path(file).read_bytes()
    with Reader() as reader:
        for buffer in (np.empty((2, 3), np.uint16), memoryview(bytearray(10)), bytearray(5), np.empty((), np.float64)):
            reader.read_into(file, 7, buffer)
            assert bytes(memoryview(buffer).cast("B")) == content[7 : 7 + memoryview(buffer).nbytes]
        reader.read_into(file, 7, np.empty((0, 5), np.float32))


def test_short_reads_are_continued(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that delivers few bytes at a time still fills the buffer."""
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:7]], offset))
    buffer = bytearray(100)
    with Reader() as reader:
        reader.read_into(file, 1, buffer)
    assert bytes(buffer) == Path(file).read_bytes()[1:101]


def test_file_that_ends_early(file: str) -> None:
    """A file cut while it is read gives an error with its name and the byte, never a signal or wrong bytes."""
    with Reader() as reader:
        reader.read_into(file, 0, bytearray(10))
        os.truncate(file, 100)
        with pytest.raises(CheckpointError, match=r"data ended early, at byte 100: it changed while being read"):
            reader.read_into(file, 90, bytearray(20))


def test_read_error_names_the_file(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input/output error of the disk names the file and the byte."""

    def fail(fd: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(5, "Input/output error")

    with Reader() as reader:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(CheckpointError, match=r"data could not be read at byte 3 \(Input/output error\)"):
            reader.read_into(file, 3, bytearray(1))


def test_changes_are_found(file: str) -> None:
    """Another size, another time, another file under the name, and no file at all are each said."""
    first = identity(file)
    with Reader() as reader:
        reader.fd(file)
        reader.check_unchanged([first])
        os.utime(file, ns=(1, first.mtime_ns + 1))
        with pytest.raises(CheckpointError, match="time of change"):
            reader.check_unchanged([first])
        other = Path(file + ".new")
        other.write_bytes(Path(file).read_bytes())
        os.utime(other, ns=(first.mtime_ns, first.mtime_ns))
        os.replace(other, file)
        with pytest.raises(CheckpointError, match="another file under the same name"):
            reader.check_unchanged([first])
        os.truncate(file, 10)
        with pytest.raises(CheckpointError, match="size 300000 -> 10 bytes"):
            reader.check_unchanged([first])
        os.unlink(file)
        with pytest.raises(CheckpointError, match="is gone"):
            reader.check_unchanged([first])


def test_identity_of_the_header_is_accepted(tmp_path: Path) -> None:
    """What the planner saw of an untouched file is what the reader finds."""
    save_file({"a": np.zeros(3)}, tmp_path / "m.safetensors")
    with Reader() as reader:
        reader.check_unchanged([read_header(tmp_path / "m.safetensors").identity])


def test_missing_and_closed(tmp_path: Path, file: str) -> None:
    """A missing file is named; a closed reader opens nothing."""
    reader = Reader()
    with pytest.raises(CheckpointError, match="nowhere there is no such file"):
        reader.fd(str(tmp_path / "nowhere"))
    reader.fd(file)
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.fd(file)


def test_what_is_done_with_leaves_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Only where the inputs do not fit into it, and only the tensor's own bytes."""
    path = tmp_path / "f"
    path.write_bytes(bytes(1 << 16))
    ref = TensorRef(str(path), "w", "F32", (4096,), 8192, 16384)
    advised: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, start, length, advice: advised.append((start, length, advice)))
    for drop in (False, True):
        with Reader(drop_behind=drop) as reader:
            reader.done_with([ref])
    assert [entry for entry in advised if entry[2] == os.POSIX_FADV_DONTNEED] == [(8192, 16384, os.POSIX_FADV_DONTNEED)]
