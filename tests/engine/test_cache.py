"""The folder of kept results: whole entries or none, bounded size, damage found and removed, other processes allowed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.cli import main
from plait.engine import cache as cache_module
from plait.engine.cache import ResultCache, files, locked, make_room
from plait.engine.resultfile import HEAD_BYTES, Damaged, open_result, result_bytes
from plait.engine.survey import check_entries, prune_to, survey
from plait.ops.errors import OutputError
from support import tiny

PAGE = 4096


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def path_of(cache: ResultCache, number: int) -> Path:
    return cache.folder / "00" / f"{key(number).hex()}.result"


def taken(folder: Path) -> int:
    return sum(-(-Path(f.path).stat().st_size // PAGE) * PAGE for f in files(folder))


def tensor(number: int, elements: int = 3000) -> Any:
    return np.random.default_rng(number).standard_normal(elements).astype(np.float32)


@pytest.fixture
def cache(tmp_path: Path) -> ResultCache:
    return ResultCache(tmp_path / "cache", 1 << 20)


def test_what_is_stored_is_found(cache: ResultCache):
    """Numbers and tensor come back bit for bit, with what the head says of them."""
    numbers, values = [1.5, float("nan"), -0.0], tensor(1)
    assert cache.find(key(1)) is None
    assert cache.store(key(1), "polar", numbers, values, 2.5)
    entry = cache.find(key(1), numbers=3, tensor_bytes=values.nbytes)
    assert entry is not None
    out = np.empty_like(values)
    entry.read(out)
    entry.close()
    assert out.tobytes() == values.tobytes()
    assert entry.numbers.tobytes() == np.array(numbers).tobytes()
    assert (entry.op, entry.seconds, entry.nbytes) == ("polar", 2.5, result_bytes(3, values.nbytes))
    assert (cache.use.hits, cache.use.misses, cache.use.stored) == (1, 1, 1)


def test_an_entry_is_stored_once(cache: ResultCache):
    """A second result of the same key changes nothing."""
    assert cache.store(key(1), "dot", [1.0])
    assert not cache.store(key(1), "dot", [2.0])
    entry = cache.find(key(1))
    assert entry is not None
    assert entry.numbers.tolist() == [1.0]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_damage_goes_unseen(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    """A flipped bit, a cut, an addition or another entry's file: never taken for the result, removed, and counted."""
    cache = ResultCache(tmp_path_factory.mktemp("c"), 1 << 20)
    values = tensor(1)
    cache.store(key(1), "polar", [3.0], values)
    cache.store(key(2), "polar", [3.0], tensor(2))
    path = path_of(cache, 1)
    good = path.read_bytes()
    what = data.draw(st.sampled_from(["flip", "cut", "more", "other", "empty"]))
    if what == "flip":
        at = data.draw(st.integers(0, len(good) - 1).filter(lambda n: not 8 <= n < 16))  # the count of uses is nobody's proof
        bad = bytearray(good)
        bad[at] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(bad)
    elif what == "other":
        path.write_bytes(path_of(cache, 2).read_bytes())
    else:
        path.write_bytes({"cut": good[: data.draw(st.integers(1, len(good) - 1))], "more": good + b"x", "empty": b""}[what])
    entry = cache.find(key(1), numbers=1, tensor_bytes=values.nbytes)
    if entry is not None:
        with pytest.raises(Damaged):
            entry.read(np.empty_like(values))
        cache.spoiled(entry, "damaged")
    assert not path.exists()
    assert (cache.use.hits, cache.use.damaged) == (0, 1)
    assert cache.use.trouble


def test_odd_files_under_the_name_of_an_entry_are_misses(cache: ResultCache, tmp_path: Path):
    """A link is removed and not followed; a folder is left alone; neither is an error."""
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    cache.store(key(3), "dot", [1.0])
    path_of(cache, 1).symlink_to(other)
    path_of(cache, 2).mkdir()
    assert cache.find(key(1)) is None
    assert cache.find(key(2)) is None
    assert not path_of(cache, 1).exists()
    assert other.read_bytes() == b"precious"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 4000), st.booleans()), min_size=1, max_size=40), st.integers(1, 12))
def test_the_folder_never_outgrows_its_size(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, bool]], pages: int):
    """After every step all files together take at most the size, counted in pages."""
    folder = tmp_path_factory.mktemp("c")
    cache = ResultCache(folder, pages * PAGE)
    for number, elements, ask in steps:
        if ask:
            entry = cache.find(key(number), tensor_bytes=4 * elements)
            if entry is not None:
                entry.close()
        else:
            cache.store(key(number), "polar", [], tensor(number, elements) if elements else None)
        assert taken(folder) <= pages * PAGE


def test_what_was_not_used_longest_goes_first(tmp_path: Path):
    """A use counts as new, however old the entry is."""
    cache = ResultCache(tmp_path / "c", 10 * PAGE)
    for number in range(10):
        cache.store(key(number), "dot", [1.0])
        age = time.time() - 1000 * (20 - number)
        os.utime(path_of(cache, number), (age, age))
    entry = cache.find(key(0))
    assert entry is not None
    entry.close()
    cache.store(key(10), "dot", [1.0])
    left = [n for n in range(11) if path_of(cache, n).exists()]
    assert left == [0, *range(2, 11)]


def test_a_damaged_bound_is_counted_anew(tmp_path: Path):
    """Whatever the lock file holds, the size is kept."""
    cache = ResultCache(tmp_path / "c", 5 * PAGE)
    for number, text in enumerate([b"", b"x", bytes(16), b"\xff" * 16, b"y" * 100] * 3):
        (cache.folder / "lock").write_bytes(text)
        assert cache.store(key(number), "dot", [1.0])
        assert taken(cache.folder) <= 5 * PAGE


def test_a_full_or_missing_disk_fails_nothing(cache: ResultCache):
    """What cannot be stored is noted once, and finding goes on."""
    cache.store(key(1), "dot", [1.0])
    (cache.folder / "01").write_text("in the way")
    assert not cache.store(bytes([1] * 16), "dot", [1.0])
    assert "takes no more results" in cache.use.trouble
    assert cache.find(key(1)) is not None


def test_a_folder_with_something_else_is_refused(tmp_path: Path):
    """Nothing is written among files that are not plait's; looking alone makes nothing."""
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(OutputError, match="not empty and no cache"):
        ResultCache(tmp_path, 1 << 20)
    with pytest.raises(OutputError, match="not empty and no cache"):
        ResultCache(tmp_path, 1 << 20, make=False)
    assert os.listdir(tmp_path) == ["thesis.txt"]
    ResultCache(tmp_path / "new", 1 << 20, make=False)
    assert not (tmp_path / "new").exists()
    with pytest.raises(OutputError, match="cannot be used as a cache"):
        ResultCache(tmp_path / "thesis.txt" / "x", 1 << 20)


# -- other processes ----------------------------------------------------------------------------------
def _hammer(folder: str, seed: int, limit: int) -> None:
    cache, random = ResultCache(Path(folder), limit), np.random.default_rng(seed)
    for _ in range(150):
        number = int(random.integers(30))
        entry = cache.find(key(number), numbers=1, tensor_bytes=4 * 3000)
        if entry is not None:
            out = np.empty(3000, np.float32)
            entry.read(out)
            entry.close()
            assert out.tobytes() == tensor(number).tobytes()
        cache.store(key(number), "polar", [1.0], tensor(number))
        found = taken_now(Path(folder))
        assert found <= limit, found
    assert cache.use.damaged == 0


def taken_now(folder: Path) -> int:
    """What all files take at one moment: without the lock, what is removed and what comes in its place could both be counted."""
    sizes = {}
    with locked(folder):
        for file in files(folder):
            with suppress(FileNotFoundError):
                status = os.stat(file.path)
                sizes[status.st_ino] = -(-status.st_size // PAGE) * PAGE  # under both its names where it is just renamed
    return sum(sizes.values())


def test_processes_share_a_folder(tmp_path: Path):
    """Three of them store, find and evict at once: nothing is found damaged, and the size holds at every look."""
    context = multiprocessing.get_context("spawn")
    limit = 20 * 4 * PAGE
    running = [context.Process(target=_hammer, args=(str(tmp_path / "c"), seed, limit)) for seed in range(3)]
    for process in running:
        process.start()
    tiny.bounded(lambda: [process.join() for process in running], 300)
    assert [p.exitcode for p in running] == [0, 0, 0]
    assert check_entries(tmp_path / "c") == []


def test_a_result_gets_its_name_under_the_lock(cache: ResultCache, monkeypatch: pytest.MonkeyPatch):
    """Whoever counts what is taken holds the lock, so a file that is renamed meanwhile could be missed under both names, and the size outgrown."""
    lock = cache_module.locked
    held: list[Path] = []
    renamed: list[bool] = []

    @contextmanager
    def noted(folder: Path) -> Iterator[int]:
        with lock(folder) as fd:
            held.append(folder)
            yield fd
            held.clear()

    def rename(self: Path, target: Path) -> Path:
        renamed.append(held == [cache.folder])
        return self.replace(target)

    monkeypatch.setattr(cache_module, "locked", noted)
    monkeypatch.setattr(Path, "rename", rename)
    assert cache.store(key(1), "polar", [1.0], tensor(1))
    assert renamed == [True]


def test_processes_make_a_folder_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What another has half made, or makes and uses just now, is a cache and nothing else."""
    (tmp_path / "CACHEDIR.TAG.1.2.partial").touch()
    ResultCache(tmp_path, 1 << 20)
    listdir = os.listdir

    def made_meanwhile(folder: Path) -> list[str]:
        monkeypatch.setattr(os, "listdir", listdir)
        ResultCache(folder, 1 << 20).store(key(1), "dot", [1.0])
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", made_meanwhile)
    assert ResultCache(tmp_path / "c", 1 << 20).holds(key(1))


_KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
import plait.engine.resultfile as r
from plait.engine.cache import ResultCache
whole, written = r._write, 0
def write(fd, view):
    global written
    if len(view) > 4096:
        whole(fd, view[:len(view) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    whole(fd, view)
r._write = write
ResultCache(Path(sys.argv[1]), 1 << 20).store(bytes(16), "polar", [1.0], np.ones(3000, np.float32))
"""


def test_a_kill_in_the_middle_of_a_store_leaves_nothing_to_find(tmp_path: Path):
    """What was half written is no entry; it counts until room is made, and goes then."""
    folder = tmp_path / "c"
    done = subprocess.run([sys.executable, "-c", _KILLED, str(folder)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    (left,) = files(folder)
    assert left.name.endswith(".partial")
    cache = ResultCache(folder, 6 * PAGE)
    assert cache.find(bytes(16)) is None
    assert survey(folder).partial_bytes == 3 * PAGE
    assert cache.store(bytes(16), "polar", [1.0], np.ones(3000, np.float32))
    assert cache.store(key(1), "polar", [1.0], np.ones(2500, np.float32))
    assert not any(f.name.endswith(".partial") for f in files(folder))
    assert taken(folder) <= 6 * PAGE


def test_room_is_not_made_of_what_is_being_written(tmp_path: Path):
    """A file that its writer holds stays, and counts with its final size."""
    cache = ResultCache(tmp_path / "c", 1 << 20)
    begun = cache._begin(path_of(cache, 1), 3 * PAGE)
    assert begun is not None
    fd, partial = begun
    assert make_room(cache.folder, 0) == 3 * PAGE
    assert partial.exists()
    os.close(fd)
    assert make_room(cache.folder, 0) == 0


# -- looking in -----------------------------------------------------------------------------------------
def command(*args: object) -> Any:
    return CliRunner().invoke(main, ["cache", *map(str, args)])


def test_plait_cache_shows_prunes_checks_and_clears(cache: ResultCache):
    """Entries, bytes and uses by op; pruning down to a size; damage found and removed with exit status 1; clearing."""
    for number in range(4):
        cache.store(key(number), "polar" if number % 2 else "dot", [1.0], tensor(number) if number % 2 else None, 1.0)
    for _ in range(3):
        entry = cache.find(key(1), tensor_bytes=12000)
        assert entry is not None
        entry.close()
    found = json.loads(command(cache.folder, "--format", "json").stdout)
    assert (found["entries"], found["nbytes"], found["kinds"]["polar"]["hits"], found["kinds"]["dot"]["entries"]) == (4, 8 * PAGE, 3, 2)
    assert "polar" in command(cache.folder).stdout
    spoilt = bytearray(path_of(cache, 3).read_bytes())
    spoilt[HEAD_BYTES + 100] ^= 1
    path_of(cache, 3).write_bytes(spoilt)
    checked = command(cache.folder, "--check")
    assert checked.exit_code == 1
    assert "does not match its checksum" in checked.stdout
    assert command(cache.folder, "--check").exit_code == 0
    assert prune_to(cache.folder, 4 * PAGE) == PAGE
    assert command(cache.folder, "--clear").exit_code == 0
    assert survey(cache.folder).entries == 0


def test_plait_cache_refuses_other_folders(tmp_path: Path):
    """A folder that is no cache is named, and nothing in it is touched."""
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "x.result").write_text("mine")
    for option in ([], ["--clear"], ["--check"]):
        done = command(tmp_path, *option)
        assert done.exit_code == 2
        assert "is no result cache of plait" in done.stderr
    assert (tmp_path / "ab" / "x.result").read_text() == "mine"
    assert command(tmp_path, "--clear", "--check").exit_code == 2


def test_an_entry_stays_readable_while_it_is_removed(cache: ResultCache):
    """Eviction by another process takes the name, not the bytes of one who has begun to use it."""
    cache.store(key(1), "polar", [1.0], tensor(1))
    entry = cache.find(key(1), tensor_bytes=12000)
    assert entry is not None
    make_room(cache.folder, 0)
    assert open_result(path_of(cache, 1), key(1)) is None
    out = np.empty(3000, np.float32)
    entry.read(out)
    entry.close()
    assert out.tobytes() == tensor(1).tobytes()
