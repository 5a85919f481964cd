"""Writing: what is written is what other libraries read, and a destination that cannot take it is refused before computing."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from plait.engine import shardfile
from plait.engine.writer import OutputFolder
from plait.ops.errors import CheckpointError, OutputError
from plait.planner.checkpoint import open_checkpoint
from plait.planner.layout import make_layout
from plait.planner.types import Layout, SideFile


def fill(out: OutputFolder, layout: Layout, data: dict[str, bytes], chunk: int = 1 << 16) -> None:
    for name, place in layout.places.items():
        for start in range(0, place.nbytes, chunk):
            out.write(place.shard, place.offset + start, memoryview(data[name])[start : start + chunk])


def some_layout(limit: int = 10**9) -> tuple[Layout, dict[str, bytes]]:
    rng = np.random.default_rng(1)
    layout = make_layout([("a", "F32", (300, 100)), ("b", "F16", (7,)), ("c", "I64", (3,)), ("none", "F32", (0, 2)), ("scalar", "F64", ())], limit)
    return layout, {name: rng.bytes(place.nbytes) for name, place in layout.places.items()}


def loaded(folder: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.randoms(use_true_random=False), limit=st.sampled_from([16, 200, 10**9]), chunk=st.integers(1000, 70_000))
def test_any_order_of_blocks(order: object, limit: int, chunk: int, tmp_path: Path) -> None:
    """Blocks written from threads in any order give files that safetensors loads with the right bytes."""
    layout, data = some_layout(limit)
    blocks = [(n, s, min(s + chunk, p.nbytes)) for n, p in layout.places.items() for s in range(0, p.nbytes, chunk)]
    order.shuffle(blocks)  # type: ignore[attr-defined]
    shutil.rmtree(tmp_path / "out", ignore_errors=True)

    def work(part: list[tuple[str, int, int]]) -> None:
        for name, start, stop in part:
            place = layout.places[name]
            out.write(place.shard, place.offset + start, memoryview(data[name])[start:stop])

    with OutputFolder(tmp_path / "out", layout) as out:
        threads = [threading.Thread(target=work, args=(blocks[i::3],)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert out.bytes_written == sum(map(len, data.values()))
        out.publish()
    assert loaded(tmp_path / "out") == data
    assert leftovers(tmp_path) == ["out"]


@pytest.mark.parametrize("how", ["kernel", "refused", "partly", "absent"])
def test_copy(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are copied from a file by the kernel, and the same without its help."""
    layout, data = some_layout()
    source = tmp_path / "source"
    source.write_bytes(b"xyz" + data["a"])
    if how == "absent":
        monkeypatch.delattr(os, "copy_file_range")
    elif how != "kernel":
        real = os.copy_file_range

        def limited(src: int, dst: int, count: int, offset_src: int, offset_dst: int) -> int:
            if how == "refused" or offset_src > 3:
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            return real(src, dst, 1000, offset_src, offset_dst)

        monkeypatch.setattr(os, "copy_file_range", limited)
    with OutputFolder(tmp_path / "out", layout) as out, open(source, "rb") as stream:
        out.copy(0, layout.places["a"].offset, stream.fileno(), 3, len(data["a"]))
        for name in ("b", "c", "scalar"):
            out.write(0, layout.places[name].offset, memoryview(data[name]))
        assert out.bytes_written == sum(map(len, data.values()))
        out.publish()
    assert loaded(tmp_path / "out") == data


def test_copy_from_a_file_that_ends_early(tmp_path: Path) -> None:
    """A source that is too short is named, and nothing appears."""
    layout, data = some_layout()
    (tmp_path / "source").write_bytes(data["a"][:50])
    with (
        pytest.raises(CheckpointError, match="source ended early, at byte 50"),
        OutputFolder(tmp_path / "out", layout) as out,
        open(tmp_path / "source", "rb") as stream,
    ):
        out.copy(0, layout.places["a"].offset, stream.fileno(), 0, len(data["a"]))
    assert leftovers(tmp_path) == ["source"]


def test_calls_are_small_and_short_writes_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No call writes more than 256 KiB, and a system that takes few bytes at a time still gets all."""
    layout = make_layout([("a", "U8", (3_000_000,))])
    data = np.random.default_rng(2).bytes(3_000_000)
    sizes: list[int] = []
    real = os.pwrite

    def recorded(fd: int, view: memoryview, offset: int) -> int:
        sizes.append(len(view))
        return real(fd, view[: 1 + len(view) // 2], offset)

    monkeypatch.setattr(os, "pwrite", recorded)
    with OutputFolder(tmp_path / "out", layout) as out:
        out.write(0, layout.places["a"].offset, np.frombuffer(data, np.uint16))
        out.publish()
    assert max(sizes) == 1 << 18
    assert loaded(tmp_path / "out") == {"a": data}


def test_a_write_outside_the_data_is_a_bug(tmp_path: Path) -> None:
    """Nothing can be written over a header or behind a file's end."""
    layout, _ = some_layout()
    with OutputFolder(tmp_path / "out", layout) as out:
        for offset in (0, layout.shards[0].size - 1):
            with pytest.raises(ValueError, match=r"are not in the data of model\.safetensors"):
                out.write(0, offset, b"12")


def test_destination_not_empty(tmp_path: Path) -> None:
    """A folder that holds anything, and a file, are refused and left alone."""
    layout, _ = some_layout()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(OutputError, match=r"out is not empty; give a new folder"):
        OutputFolder(tmp_path / "out", layout).begin()
    with pytest.raises(OutputError, match="exists and is not a folder"):
        OutputFolder(tmp_path / "out" / "precious", layout).begin()
    with pytest.raises(OutputError, match="a part of the path is a file"):
        OutputFolder(tmp_path / "out" / "precious" / "deeper", layout).begin()
    assert leftovers(tmp_path / "out") == ["precious"]
    assert leftovers(tmp_path) == ["out"]


@pytest.mark.parametrize("place", ["model", "model/out", ".", "link", "model/model.safetensors"])
def test_destination_touches_an_input(place: str, tmp_path: Path) -> None:
    """An output that is, holds or lies inside an input model, also through a link, is refused; the model survives."""
    layout, _ = some_layout()
    home = tmp_path / "home"
    (home / "model").mkdir(parents=True)
    save_file({"a": np.ones(3)}, home / "model" / "model.safetensors")
    (home / "link").symlink_to("model")
    for given_as in ("model", "link"):
        with pytest.raises(OutputError, match="input model"):
            OutputFolder(home / place, layout, [str(home / given_as)]).begin()
    with pytest.raises(OutputError, match="input model" if place in ("model/model.safetensors", ".") else "not empty|input model"):
        OutputFolder(home / place, layout, [str(home / "model/model.safetensors"), str(home / "model")]).begin()
    assert list(open_checkpoint(home / "model").tensors) == ["a"]
    assert leftovers(home) == ["link", "model"]


def test_beside_an_input_file(tmp_path: Path) -> None:
    """An output beside a single input file, or of a name that begins like an input's, is fine."""
    layout, data = some_layout()
    save_file({"a": np.ones(3)}, tmp_path / "out.safetensors")
    (tmp_path / "ou").mkdir()
    with OutputFolder(tmp_path / "out", layout, [str(tmp_path / "out.safetensors"), str(tmp_path / "ou")]) as out:
        fill(out, layout, data)
        out.publish()
    assert loaded(tmp_path / "out") == data


def test_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder would vanish under the user's shell: refused."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="current folder"):
        OutputFolder(Path(), some_layout()[0]).begin()


def test_parents_are_made_and_taken_back(tmp_path: Path) -> None:
    """Missing parents are created; when the run fails they go again."""
    layout, data = some_layout()
    with pytest.raises(RuntimeError, match="stop"), OutputFolder(tmp_path / "x" / "y" / "out", layout):
        raise RuntimeError("stop")
    assert leftovers(tmp_path) == []
    with OutputFolder(tmp_path / "x" / "y" / "out", layout) as out:
        fill(out, layout, data)
        out.publish()
    assert loaded(tmp_path / "x" / "y" / "out") == data


def test_too_little_space_is_found_before_computing(tmp_path: Path) -> None:
    """An output larger than the disk is refused by begin with both figures, and nothing is left."""
    layout = make_layout([(f"w{i}", "F32", (10**12,)) for i in range(300)])
    with pytest.raises(OutputError, match=r"the output needs 1200.0 TB .* bytes\), the disk has .* free") as caught:
        OutputFolder(tmp_path / "out", layout).begin()
    assert caught.value.facts["needed"] == sum(s.size for s in layout.shards)
    assert leftovers(tmp_path) == []


TMPFS = """
import os, sys
from pathlib import Path
import numpy as np
from plait.engine import shardfile, writer
from plait.ops.errors import OutputError
from plait.planner.layout import make_layout

home = Path(sys.argv[1])
big = make_layout([("a", "U8", (2_000_000,))])
small = make_layout([("a", "U8", (600_000,))])

def attempt(name, layout, spoil=None):
    try:
        with writer.OutputFolder(home / name, layout) as out:
            print(name, "began")
            if spoil is not None:
                spoil()
            out.write(0, layout.places["a"].offset, np.ones(layout.places["a"].nbytes, np.uint8))
            out.publish()
            print(name, "published")
    except OutputError as error:
        print(name, "refused:", error)

def hog():
    with open(home / "hog", "wb") as stream:
        try:
            while True:
                os.write(stream.fileno(), bytes(4096))
        except OSError:
            pass

attempt("big", big)
real_statvfs = os.statvfs
class Roomy:
    f_bavail, f_frsize, f_blocks = 10**12, 1, 1
os.statvfs = lambda path: Roomy
attempt("unseen", big)
shardfile._reserve = os.ftruncate
attempt("late", small, hog)
os.unlink(home / "hog")
attempt("fits", small)
print("left:", sorted(p.name for p in home.iterdir()))
"""


def test_full_disk(tmp_path: Path) -> None:
    """On a disk of 1 MiB: too large is refused by figures, or by reserving, or (space taken later) by the write; nothing is left and what fits is written."""
    home = tmp_path / "small"
    home.mkdir()
    (tmp_path / "script.py").write_text(TMPFS)
    command = 'mount -t tmpfs -o size=1m tmpfs "$1" || exit 77; exec "$2" "$3" "$1"'
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", command, "sh", home, sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=60
        )
    except FileNotFoundError:
        pytest.skip("no unshare command to mount a small disk with")
    if done.returncode in (1, 77) and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "the output needs 2.0 MB (2004" in lines[0]
    assert lines[0].startswith("big refused:")
    assert lines[1].startswith("unseen refused:")
    assert "cannot reserve 2004" in lines[1]
    assert "No space left on device" in lines[1]
    assert lines[2] == "late began"
    assert "cannot write to model.safetensors (No space left on device); free some space and run again" in lines[3]
    assert lines[4:] == ["fits began", "fits published", "left: ['fits']"]


def test_read_only_destination(tmp_path: Path) -> None:
    """A folder that cannot be written to is refused with the reason."""
    script = "import sys; from pathlib import Path; from plait.engine.writer import OutputFolder; from plait.planner.layout import make_layout\n"
    script += "try: OutputFolder(Path(sys.argv[1]) / 'out', make_layout([('a', 'U8', (3,))])).begin()\nexcept Exception as e: print(type(e).__name__, e)"
    if os.geteuid():
        tmp_path.chmod(0o500)
        done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=60)
        tmp_path.chmod(0o700)
    else:
        command = 'mount -t tmpfs -o ro tmpfs "$1" || exit 77; exec "$2" -c "$3" "$1"'
        done = subprocess.run(["unshare", "-rm", "sh", "-c", command, "sh", tmp_path, sys.executable, script], capture_output=True, text=True, timeout=60)
        if done.returncode in (1, 77):
            pytest.skip(f"a read-only disk cannot be mounted here: {done.stderr.strip()}")
    assert done.stdout.startswith("OutputError")
    assert "choose a" in done.stdout


def test_filesystem_that_cannot_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where blocks cannot be reserved the size is set, and the output is the same."""
    layout, data = some_layout()
    monkeypatch.setattr(shardfile.ctypes, "CDLL", lambda *a, **k: object())
    with OutputFolder(tmp_path / "out", layout) as out:
        fill(out, layout, data)
        out.publish([SideFile("config.json", content=b"{}")])
    assert loaded(tmp_path / "out") == data
