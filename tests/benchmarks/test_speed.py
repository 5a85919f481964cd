"""The benchmarks measure what they say: floors move every byte, processes are watched truly, broken promises are found, no paths leak."""

from __future__ import annotations

import json
import os
import re
import socket
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plait.api import plan
from plait.engine import floor as floor_script
from plait.planner.layout import make_layout

_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if str(_BENCHMARKS) not in sys.path:
    sys.path.insert(0, str(_BENCHMARKS))  # the scripts import each other by their bare names

import full_70b  # noqa: E402
import grid  # noqa: E402
import growth  # noqa: E402
import machine  # noqa: E402
import measure  # noqa: E402
import memory_over_time  # noqa: E402
import peers  # noqa: E402
import recipes  # noqa: E402
import speed  # noqa: E402
from make_checkpoint import PRESETS, make_set  # noqa: E402

MIB = 1 << 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base and three experts."""
    folder = tmp_path_factory.mktemp("set")
    make_set(folder, PRESETS["tiny"], 3)
    return folder


def script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a benchmark as a user does."""
    return subprocess.run([sys.executable, str(_BENCHMARKS / name), *map(str, arguments)], capture_output=True, text=True)


def names_host(text: str) -> bool:
    """Whether the name of this machine stands in a text, as a word."""
    return re.search(rf"\b{re.escape(socket.gethostname())}\b", text) is not None


# -- recipes ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", recipes.METHODS)
def test_recipes_are_valid_and_read_the_models_that_the_floor_reads(method: str, tiny: Path, tmp_path: Path):
    """Each recipe plans, reads no other folders than `models_of` says, and writes as many bytes as the base has."""
    models = recipes.models_in(tiny)
    file = tmp_path / "recipe.yml"
    file.write_text(recipes.text_of(method, models))
    planned = plan(file, memory="256MiB")
    assert {Path(ref.file).parent.name for c in planned.components for ref in c.inputs} == {m.name for m in recipes.models_of(method, models)}
    assert planned.prediction.bytes_written == 2 * sum(_numel(s) for s in PRESETS["tiny"].tensors().values())


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def test_a_set_without_experts_says_how_to_make_one(tmp_path: Path):
    """The message holds the command that makes the set."""
    with pytest.raises(SystemExit, match=r"make_checkpoint\.py"):
        recipes.models_in(tmp_path)


# -- floor -----------------------------------------------------------------------------------------
@pytest.fixture(params=floor_script.WAYS)
def way(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each way of writing that this file system has."""
    if request.param == "direct" and not floor_script.writes_direct(tmp_path):
        pytest.skip("this file system does not write past the page cache")
    return str(request.param)


@pytest.mark.parametrize("passes", [1, 2])
def test_a_floor_reads_everything_each_pass_and_writes_every_byte_once(passes: int, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two files of odd sizes over several units: bytes read are their sizes times the passes; the writes tile the output in pieces of the way's size."""
    inputs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    sizes = [17 * MIB + 3, 5 * MIB + 1]
    for file, size in zip(inputs, sizes, strict=True):
        file.write_bytes(bytes(size))
    writes: list[tuple[int, int]] = []
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: writes.append((at, len(data))) or real(fd, data, at))
    found = floor_script.floor(inputs, tmp_path / "out", sizes[0], passes, write=way)
    assert found.bytes_read == passes * sum(sizes)
    ends = [0]
    for at, length in sorted(writes):
        assert at == ends[-1]
        assert 0 < length <= floor_script.WRITE_BYTES[way]
        ends.append(at + length)
    assert ends[-1] == sizes[0] == found.bytes_written
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sync", [True, False])
def test_a_floor_is_durable_when_asked(sync: bool, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The one fsync is of a file that has all its bytes by then."""
    file = tmp_path / "a.safetensors"
    file.write_bytes(bytes(MIB + 5))
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: sizes.append(os.fstat(fd).st_size))
    floor_script.floor([file], tmp_path / "out", MIB + 5, write=way, sync=sync)
    assert sizes == [MIB + 5] * sync


def test_the_best_way_of_writing_is_told(tmp_path: Path):
    """As a command it measures each way and prints the faster, which is one of them."""
    file = tmp_path / "a.safetensors"
    file.write_bytes(bytes(MIB))
    done = script("floor.py", file, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["write"] in floor_script.WAYS
    assert found["synced"]
    assert found["bytes_read"] == found["bytes_written"] == MIB


def test_durability_compares_with_a_bare_merge(tiny: Path, tmp_path: Path):
    """Both ways run as often as asked, the bare one without a manifest, and the outputs go."""
    done = script("durability.py", "--set", tiny, "--repeat", "2", "--out", tmp_path, "--results", tmp_path / "results")
    assert done.returncode in (0, 1), done.stderr  # of tiny merges the ratio means nothing
    (row,) = json.loads((tmp_path / "results" / "durability.json").read_text())["rows"]
    assert len(row["plait"]) == len(row["bare"]) == 2
    assert row["ratio"] == pytest.approx(statistics.median(row["plait"]) / statistics.median(row["bare"]), rel=0.01)
    assert [p.name for p in tmp_path.iterdir()] == ["results"]


def test_a_floor_never_writes_over_a_file(way: str, tmp_path: Path):
    """An output that exists is left as it is."""
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        floor_script.floor([file], file, 8, write=way)
    assert file.read_bytes() == b"precious"


def test_a_failing_thread_fails_the_floor(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An error while writing is raised, not swallowed by the thread, and the output is removed."""
    file = tmp_path / "a.safetensors"
    file.write_bytes(bytes(MIB))

    def full(*_: object) -> int:
        raise OSError(28, "disk full")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="disk full"):
        floor_script.floor([file], tmp_path / "out", MIB, write=way)
    assert not (tmp_path / "out").exists()


# -- measuring -------------------------------------------------------------------------------------
def test_private_memory_and_cpu_of_a_process_are_seen():
    """A process that holds 80 MiB and counts for 0.2 s of CPU is measured so, by limits from its own clock."""
    code = "import time; held = b'x' * (80 << 20); t = time.process_time()\nwhile time.process_time() - t < 0.2: pass"
    found = measure.run([sys.executable, "-c", code])
    assert 80 * MIB <= found.peak_bytes < 160 * MIB
    assert found.cpu_s >= 0.2
    assert found.wall_s >= 0.2
    assert [at for at, _ in found.samples] == sorted(at for at, _ in found.samples)


def test_file_pages_are_not_private(tmp_path: Path):
    """A mapped and touched file of 64 MiB does not count."""
    file = tmp_path / "mapped"
    file.write_bytes(bytes(64 * MIB))
    code = "import mmap, sys, time; f = open(sys.argv[1]); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); sum(m[::4096]); time.sleep(0.1)"
    assert measure.run([sys.executable, "-c", code, str(file)]).peak_bytes < 48 * MIB


def test_a_failing_command_is_an_error_with_its_output():
    """Exit status and last words are in the message."""
    with pytest.raises(measure.CommandFailed, match=r"exit status 3 .*\n.*no good") as raised:
        measure.run([sys.executable, "-c", "import sys; print('no good'); sys.exit(3)"])
    assert raised.value.status == 3


# -- peers -----------------------------------------------------------------------------------------
def test_a_peer_that_is_not_installed_says_what_to_do(tmp_path: Path):
    """A folder that is no virtual environment is named, with the next step."""
    with pytest.raises(SystemExit, match="mergekit"):
        peers.mergekit(tmp_path)


def test_any_command_can_be_a_peer(tmp_path: Path):
    """Placeholders are filled in; the models are those of the method."""
    peer = peers.other("mine=merge --how {method} {models} -o {out}/x --recipe={recipe}")
    models = [tmp_path / n for n in ("base", "expert1", "expert2")]
    assert peer.command("slerp", Path("r.yml"), models, Path("o")) == ["merge", "--how", "slerp", *map(str, models[:2]), "-o", "o/x", "--recipe=r.yml"]
    with pytest.raises(SystemExit, match="NAME=COMMAND"):
        peers.other("no placeholder")


# -- promises --------------------------------------------------------------------------------------
def rows(**changes: float) -> dict[tuple[str, str], Any]:
    """`ties` that keeps every promise, but for the changes: seconds of both durable floors, tight, ample and mergekit, MiB of private memory."""
    found = {"floor": 2.0, "buffered": 9.0, "tight": 4.0, "ample": 3.5, "mergekit": 200.0, "private": 180, **changes}
    table = [("floor direct", 0, found["floor"], 20), ("floor buffered", 0, found["buffered"], 20), ("floor (not durable)", 0, 0.1, 20)]
    table += [("mergekit", 0, found["mergekit"], 4000)]
    table += [("plait 128MiB", 128 * MIB, found["tight"], found["private"]), ("plait 1GiB", 1 << 30, found["ample"], 900)]
    return {("ties", s): speed.Row("ties", s, b, wall_s=[w, w / 2, w * 2], cpu_s=[1.0], peak_bytes=[int(p * MIB)]) for s, b, w, p in table}


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({}, []),
        ({"floor": 1.7}, ["over the limit of 3.89 s"]),
        ({"floor": 9.0, "buffered": 2.0}, []),
        ({"buffered": 1.7}, ["over the limit of 3.89 s"]),
        ({"private": 257}, ["257 MiB of private memory"]),
        ({"ample": 3.0}, ["1.33 times the run in 1024 MiB"]),
        ({"mergekit": 114.0}, ["28.5 times as fast as mergekit"]),
    ],
)
def test_each_broken_promise_is_found(changes: dict[str, float], broken: list[str]):
    """One sentence for each, by medians, and none where all are kept."""
    found = speed.broken(rows(**changes))
    assert len(found) == len(broken)
    assert all(words in sentence for words, sentence in zip(broken, found, strict=True))


def test_a_peak_over_prediction_or_budget_is_told():
    """The imports' share is taken off before comparing."""
    facts = {"shape": "s", "method": "m", "budget": "1", "kernels": "warm", "predicted": 90, "limit": 100, "baseline": 50}
    assert [grid.Cell(**facts, peak=p).verdict for p in (140, 141, 151)] == ["ok", "over prediction", "over prediction and budget"]


def test_the_line_is_that_of_statistics():
    """Slope, start and R2 are those of the standard library's regression and correlation."""
    moved, seconds = [1.0, 2.0, 4.0, 9.0], [0.7, 1.2, 1.9, 4.6]
    found = growth.fitted("ties", "layers", [growth.Point(n, int(b * 1e9), s, 100 + n) for n, (b, s) in enumerate(zip(moved, seconds, strict=True))])
    line = statistics.linear_regression(moved, seconds)
    assert found.slope_s_per_gb == pytest.approx(line.slope, abs=1e-3)
    assert found.start_s == pytest.approx(line.intercept, abs=1e-3)
    assert found.r2 == pytest.approx(statistics.correlation(moved, seconds) ** 2, abs=1e-3)
    assert found.memory_spread == 1.03


# -- whole scripts ---------------------------------------------------------------------------------
def test_speed_measures_all_subjects_and_names_no_path(tiny: Path, tmp_path: Path):
    """Rows for plait, the floors and a peer, with every run and its ratios; no path or host name in what is kept; no output is left."""
    (tmp_path / "scratch").mkdir()
    options = ["--methods", "slerp", "--repeat", "1", "--memory", "128MiB", "--peer", f"nothing={sys.executable} -c 0 {{out}}", "--name", "tried"]
    done = script("speed.py", "--set", tiny, "--results", tmp_path, "--out", tmp_path / "scratch", *options)
    assert done.returncode in (0, 1), done.stderr  # 1: so small a set cannot keep a promise about 1.1B parameters
    data = json.loads((tmp_path / "tried.json").read_text())
    direct = ["floor direct"] * floor_script.writes_direct(tmp_path)
    assert done.returncode == bool(data["broken_promises"])
    assert [r["subject"] for r in data["rows"]] == ["plait 128MiB", *direct, "floor buffered", "floor (not durable)", "nothing"]
    assert all(len(r["wall_s"]) == len(r["peak_bytes"]) == 1 for r in data["rows"])
    mine, *others = data["rows"]
    floor = min((r for r in others if r["subject"] in speed.DURABLE), key=lambda r: statistics.median(r["wall_s"]))
    assert mine["plan"]["bytes_written"] > 0
    assert mine["ratio_to"]["floor"] == pytest.approx(mine["median_wall_s"] / statistics.median(floor["wall_s"]), rel=0.01)
    # the baseline also holds what is imported when a merge has ended, beside which a tiny merge is nothing
    assert mine["max_peak_bytes"] > 0.8 * data["import_baseline_bytes"] > MIB
    for file in ("tried.json", "tried.txt"):
        text = (tmp_path / file).read_text()
        assert str(tiny) not in text
        assert not names_host(text)
    assert not list((tmp_path / "scratch").iterdir())


def test_grid_compares_prediction_and_measurement(tmp_path: Path):
    """A cell in which the prediction holds; a budget that is refused is listed as such."""
    done = script("grid.py", "--preset", "tiny", "--methods", "linear", "--budgets", "1MiB,128MiB", "--no-cold", "--results", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = json.loads((tmp_path / "grid.json").read_text())["cells"]
    assert [(c["budget"], c["kernels"], c["verdict"]) for c in cells] == [("1MiB", "", "refused"), ("128MiB", "warm", "ok")]
    assert all(c["used"] <= c["predicted"] <= c["limit"] and c["peak"] > MIB for c in cells[1:])


def test_growth_fits_a_line_to_every_size(tmp_path: Path):
    """Each size is merged as often as asked, moves more than the one before, and no checkpoint is left."""
    (tmp_path / "scratch").mkdir()
    options = ["--preset", "tiny", "--methods", "linear", "--counts", "1,2", "--repeat", "1", "--scratch", tmp_path / "scratch", "--results", tmp_path]
    done = script("growth.py", *options)
    assert done.returncode in (0, 1), done.stderr  # 1: a start-up of half a second hides so little work
    found = json.loads((tmp_path / "growth.json").read_text())["growth"]
    assert [(g["what"], [p["count"] for p in g["points"]]) for g in found] == [("layers", [1, 2]), ("experts", [1, 2])]
    assert all(g["points"][0]["bytes_moved"] < g["points"][1]["bytes_moved"] and g["r2"] <= 1 for g in found)
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(
    ("r2", "spread", "what", "broken"), [(0.99, 1.0, "layers", 0), (0.8, 1.0, "experts", 1), (0.99, 1.2, "layers", 1), (0.99, 1.2, "experts", 0)]
)
def test_what_does_not_grow_as_it_should_is_told(r2: float, spread: float, what: str, broken: int):
    """A line that fits badly, and memory that follows the layers; with more experts it may grow."""
    assert len(growth.broken([growth.Growth("ties", what, (), 1.0, 0.5, r2, spread)])) == broken


@pytest.mark.parametrize("sink", full_70b.SINKS)
def test_a_sparse_model_is_merged_from_plan_to_end(sink: str, tmp_path: Path):
    """Every predicted byte is read and written, memory is within prediction and budget, and neither inputs nor output are left."""
    (tmp_path / "scratch").mkdir()
    options = ["--preset", "tiny", "--layers", "3", "--memory", "128MiB", "--sink", sink, "--scratch", tmp_path / "scratch", "--results", tmp_path]
    done = script("full_70b.py", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "full_70b.json").read_text())["result"]
    assert found["bytes_read"] >= found["predicted_read"] > 0
    assert found["bytes_written"] == 2 * sum(_numel(s) for s in replace(PRESETS["tiny"], layers=3).tensors().values())
    assert (found["output_at_once"] > found["bytes_written"]) == (sink == "remove")  # headers count on the disk
    assert "zeros" in (tmp_path / "full_70b.txt").read_text()
    assert not list((tmp_path / "scratch").iterdir())


def test_sinks_that_keep_nothing_notice_what_is_missing(tmp_path: Path):
    """A file goes when its last byte has come; bytes that never come, and bytes outside the data, are errors."""
    layout = make_layout([("a", "F32", (4,)), ("b", "F32", (4,))], max_shard_bytes=16)
    sink = full_70b.Remove(layout, tmp_path)
    sink.write(0, layout.places["a"].offset, bytes(16))
    assert not list(tmp_path.iterdir())
    sink.write(1, layout.places["b"].offset, bytes(8))
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(RuntimeError, match=layout.shards[1].name):
        sink.publish()
    with pytest.raises(ValueError, match="not in the data"):
        sink.write(1, layout.places["b"].offset + 12, bytes(8))
    sink.abandon()
    assert not list(tmp_path.iterdir())


def test_the_machine_is_described_without_its_name(tmp_path: Path):
    """Cores and memory are the system's; neither host name nor folder appears."""
    found = machine.describe(tmp_path)
    assert found["cores"] <= (os.cpu_count() or 1)
    assert found["memory_bytes"] > 1 << 28
    assert found["versions"]["plait"]
    assert not names_host(json.dumps(found))
    assert str(tmp_path) not in json.dumps(found)
    assert machine.line(found)


def test_without_matplotlib_there_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Drawing says so instead of failing."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not memory_over_time.draw({"memory": "128MiB", "runs": {}}, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
