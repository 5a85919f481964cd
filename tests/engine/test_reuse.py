"""Merges with a cache of results: the same bits whatever the cache holds, and no work done twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import plait
import plait.engine.reuse
import plait.planner.blocks
import plait.planner.reuse
from plait.engine import facts
from plait.engine.cache import files
from plait.engine.events import Report
from plait.engine.resultfile import Entry, check_tensor
from plait.engine.survey import survey
from plait.ops.errors import KernelError
from plait.ops.method import methods
from plait.planner.memory import CACHE_BYTES
from support.tiny import recipe, write_set

SHAPES = {"a.weight": (40, 24), "b.weight": (24, 40), "model.layers.0.c.weight": (30, 8), "d.norm": (70,)}
READING = plait.planner.reuse.reading_seconds
HALF = {"weight": 1.0, "density": 0.5}


@pytest.fixture(autouse=True, scope="module")
def everything_is_worth_it() -> Iterator[None]:
    """Many blocks in small tensors, and entries that cost nothing to open, so that small results are kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plait.planner.blocks, "BLOCK", 16)
        patch.setattr(plait.planner.reuse, "reading_seconds", lambda nbytes, setting: 0.0)
        patch.setattr(plait.engine.reuse, "OPEN_S", 0.0)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_set(tmp_path_factory.mktemp("models"), experts=3, shapes=SHAPES)


def texts(models: list[Path]) -> dict[str, str]:
    base, *experts = models
    wsc = {"method": "magic_wsc", "parameters": {"rule": "sphere"}, "base_model": str(base)}
    return {
        "iso_c": recipe("iso_c", experts, base=base),
        "iso_wsc": recipe("iso_c", experts, base=base, steps=[{"method": "magic_wsc"}]),
        "ties": recipe("ties", experts, base=base, each=HALF, parameters={"rescale": True}),
        "global": recipe("ties", experts, base=base, each=HALF, parameters={"scope": "global", "zero_sign": "majority", "elect": "normmass"}),
        "stock": recipe("model_stock", experts, base=base),
        "slerp": recipe("slerp", [base, experts[0]], base=base, parameters={"t": 0.4}),
        "dare": recipe("dare_linear", experts, base=base, each=HALF, parameters={"rescale_by": "l1"}),
        "knots": recipe("knots", experts, base=base, parameters={"scope": "global", "topk": 40.0}),
        "tsv": recipe("tsv_m", experts, base=base, each={"weight": 1.0}),
        "linear": recipe("linear", experts, each={"weight": 1.0}, steps=[wsc]),
    }


def merge(text: str, folder: Path, name: str, **options: Any) -> tuple[bytes, Report]:
    """The tensors' bytes of a merge, and its report."""
    (folder / f"{name}.yml").write_text(text)
    report = plait.merge(folder / f"{name}.yml", folder / name, plait.Options(**{"memory": "400MiB", "workers": 2, "backend": "torch", **options}))
    return (folder / name / "model.safetensors").read_bytes(), report


@pytest.mark.parametrize("which", ["iso_c", "iso_wsc", "ties", "global", "stock", "slerp", "dare"])
def test_a_second_run_reads_less_and_gives_the_same_bits(which: str, models: list[Path], tmp_path: Path):
    """Cold, filling and warm runs agree; the warm one skips passes and computes no whole op."""
    text = texts(models)[which]
    want, cold = merge(text, tmp_path, "cold")
    assert cold.cache is None
    first, filling = merge(text, tmp_path, "first", cache=tmp_path / "c")
    again, warm = merge(text, tmp_path, "again", cache=tmp_path / "c")
    assert want == first == again
    assert filling.cache is not None
    assert warm.cache is not None
    assert filling.cache.stored > 0 == filling.cache.hits
    assert filling.wholes == cold.wholes
    assert (warm.cache.hits, warm.cache.misses, warm.wholes, warm.cache.stored) == (filling.cache.stored, 0, {}, 0)
    assert warm.cache.spared_passes > 0
    planned = plait.plan(tmp_path / "again.yml", plait.Options(memory="400MiB", workers=2, backend="torch", cache=tmp_path / "c"))
    assert planned.outlook is not None
    assert (planned.outlook.hits, planned.outlook.results) == (warm.cache.hits, warm.cache.hits)
    assert planned.outlook.spared_bytes == warm.cache.spared_bytes
    unforeseen = cold.bytes_read - planned.prediction.bytes_read  # where a sample mispredicts a threshold
    assert warm.bytes_read + warm.cache.spared_bytes + unforeseen == filling.bytes_read == cold.bytes_read


def test_a_sweep_over_lambda_decomposes_once(models: list[Path], tmp_path: Path):
    """Of five strengths of iso_c only the first computes polar factors."""
    base, *experts = models
    counts = []
    for number, strength in enumerate((0.2, 0.4, 0.6, 0.8, 1.0)):
        text = recipe("iso_c", experts, base=base, parameters={"lambda": strength})
        data, report = merge(text, tmp_path, f"out{number}", cache=tmp_path / "c")
        assert data == merge(text, tmp_path, f"cold{number}")[0]
        counts.append(report.wholes)
    assert counts == [{"polar": 3}, {}, {}, {}, {}]


def test_another_set_of_experts_finds_what_it_shares(models: list[Path], tmp_path: Path):
    """Thresholds of two experts serve a merge of three in another order, copied to another folder, under another name."""
    base, one, two, three = models
    merge(recipe("ties", [one, two], base=base, each=HALF), tmp_path, "two", cache=tmp_path / "c")
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in two.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
        os.utime(moved / file.name, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    text = recipe("ties", [three, moved, one], base=base, each=HALF)
    data, report = merge(text, tmp_path, "three", cache=tmp_path / "c")
    assert data == merge(text, tmp_path, "cold")[0]
    assert report.cache is not None
    assert (report.cache.hits, report.cache.stored) == (2 * len(SHAPES), len(SHAPES))


@pytest.mark.parametrize("change", ["values", "time", "density", "base"])
def test_what_differs_is_not_found(change: str, models: list[Path], tmp_path: Path):
    """Other values, another time of change, another parameter and another base are other results."""
    folder = tmp_path / "own"
    base, *experts = write_set(folder, experts=2, shapes={"a.weight": (40, 24)}, seed=5)
    merge(recipe("ties", experts, base=base, each=HALF), tmp_path, "one", cache=tmp_path / "c")
    each = dict(HALF)
    for model in experts if change in ("values", "time") else [base] if change == "base" else []:
        file = model / "model.safetensors"
        data = bytearray(file.read_bytes())
        if change != "time":
            data[-2] ^= 1
        file.write_bytes(data)
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1000))
    if change == "density":
        each["density"] = 0.25
    text = recipe("ties", experts, base=base, each=each)
    data_warm, report = merge(text, tmp_path, "two", cache=tmp_path / "c")
    assert report.cache is not None
    assert report.cache.hits == 0
    assert data_warm == merge(text, tmp_path, "cold")[0]


#: Ops that nobody wants done twice.
EXPENSIVE = {"polar", "svd", "joint_svd", "doge_correction"}
SPECTRAL = [m.name for m in methods().values() if "whole" in m.kinds and not getattr(m, "statistics", ())]


@pytest.mark.parametrize("name", SPECTRAL)
def test_no_method_decomposes_twice(name: str, models: list[Path], tmp_path: Path):
    """Every method over whole matrices gives the bits of a run without a cache, cold and warm, and the warm run decomposes nothing."""
    method = methods()[name]
    base, *experts = models
    each = {p.name: p.default for p in method.params if p.required and p.per_expert}
    text = recipe(name, experts[: method.experts[1] or 3], base=None if method.base == "unused" else base, each=each)
    want, cold = merge(text, tmp_path, "cold")
    filling = merge(text, tmp_path, "first", cache=tmp_path / "c")
    warm = merge(text, tmp_path, "again", cache=tmp_path / "c")
    assert want == filling[0] == warm[0]
    assert all(count <= cold.wholes[op] for op, count in filling[1].wholes.items())  # fewer where a later sweep makes results again
    assert not warm[1].wholes.keys() & EXPENSIVE
    assert warm[1].statistics == cold.statistics
    assert warm[1].cache is not None
    assert warm[1].cache.stored == 0


@pytest.mark.parametrize("name", ["tsv_m", "knots", "star"])
def test_another_strength_finds_the_decompositions(name: str, models: list[Path], tmp_path: Path):
    """A sweep over the scale of a merged update decomposes in its first run alone."""
    base, *experts = models
    method = methods()[name]
    scale = next(p.name for p in method.params if p.name in ("lambda", "scale", "eta"))
    each = {p.name: p.default for p in method.params if p.required and p.per_expert}
    found = []
    for number, value in enumerate((0.3, 0.6, 0.9)):
        text = recipe(name, experts, base=base, each=each, parameters={scale: value})
        data, report = merge(text, tmp_path, f"out{number}", cache=tmp_path / "c")
        assert data == merge(text, tmp_path, f"cold{number}")[0]
        found.append(sorted(report.wholes.keys() & EXPENSIVE))
    assert found[0]
    assert found[1:] == [[], []]


def test_statistics_of_the_model_over_decompositions(models: list[Path], tmp_path: Path):
    """Thresholds of the whole model over aligned coordinates: the second sweep finds what the first has decomposed, with the same bits."""
    base, *experts = models
    text = recipe("knots", experts, base=base, parameters={"scope": "global", "topk": 30.0, "zero_sign": "majority"})
    want, cold = merge(text, tmp_path, "cold")
    first, filling = merge(text, tmp_path, "first", cache=tmp_path / "c")
    again, warm = merge(text, tmp_path, "again", cache=tmp_path / "c")
    assert want == first == again
    assert filling.wholes["joint_svd"] < cold.wholes["joint_svd"]
    assert "joint_svd" not in warm.wholes
    assert warm.statistics == cold.statistics


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_bits_do_not_depend_on_the_cache(data: st.DataObject, models: list[Path], tmp_path_factory: pytest.TempPathFactory):
    """Whatever was merged with it before, whatever damage its entries took, and however small it is, the output is that of a run without it."""
    folder = tmp_path_factory.mktemp("run")
    recipes = texts(models)
    size = data.draw(st.sampled_from([1, 8 << 10, 40 << 10, 1 << 30]), label="size")
    before = data.draw(st.lists(st.sampled_from(sorted(recipes)), max_size=2), label="merged before")
    for number, which in enumerate(before):
        merge(recipes[which], folder, f"before{number}", cache=folder / "c", cache_size=size)
    damaged = 0
    for file in sorted(files(folder / "c"), key=lambda f: f.name):
        what = data.draw(st.sampled_from(["none", "none", "flip", "cut", "gone", "empty"]))
        good = Path(file.path).read_bytes()
        if what == "gone":
            Path(file.path).unlink()
        elif what != "none":
            at = data.draw(st.integers(16, len(good) - 1))
            bad = {"flip": good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], "cut": good[:at], "empty": b""}[what]
            Path(file.path).write_bytes(bad)
            damaged += 1
    which = data.draw(st.sampled_from(sorted(recipes)), label="recipe")
    workers = data.draw(st.integers(1, 3))
    residency = data.draw(st.sampled_from(["keep", "reread"]))
    got, report = merge(recipes[which], folder, "got", cache=folder / "c", cache_size=size, workers=workers, residency=residency)
    assert got == merge(recipes[which], folder, "want")[0]
    assert report.cache is not None
    assert report.cache.damaged <= damaged
    assert sum(-(-Path(f.path).stat().st_size // 4096) * 4096 for f in files(folder / "c")) <= size


def test_a_tensor_that_proves_damaged_when_it_is_read_is_computed(models: list[Path], tmp_path: Path):
    """The component begins again without it, the entry goes, is told of, and is stored anew."""
    text = texts(models)["iso_c"]
    want, _ = merge(text, tmp_path, "first", cache=tmp_path / "c")
    for file in files(tmp_path / "c"):
        if Path(file.path).stat().st_size > 500:
            bad = bytearray(Path(file.path).read_bytes())
            bad[-1] ^= 1
            Path(file.path).write_bytes(bad)
    got, report = merge(text, tmp_path, "second", cache=tmp_path / "c")
    assert got == want
    assert report.cache is not None
    assert (report.wholes, report.cache.damaged, report.cache.stored, report.cache.hits) == ({"polar": 3}, 3, 3, 0)
    assert "checksum" in report.cache.trouble
    assert merge(text, tmp_path, "third", cache=tmp_path / "c")[1].wholes == {}


def test_a_file_that_is_cut_short_under_a_run_ends_it(models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between the look at a matrix and the reading of its blocks; the entry goes, and the same command then succeeds."""
    text = texts(models)["iso_c"]
    want, _ = merge(text, tmp_path, "first", cache=tmp_path / "c")

    def check_and_cut(entry: Entry, _digests: object) -> None:
        check_tensor(entry)
        os.truncate(entry.path, entry.nbytes // 2)

    with monkeypatch.context() as patch:
        patch.setattr(plait.engine.reuse, "check_tensor", check_and_cut)
        with pytest.raises(KernelError, match=r"\.result changed while it was in use; give the same command again") as raised:
            merge(text, tmp_path, "second", cache=tmp_path / "c")
    assert not Path(str(raised.value.facts["path"])).exists()
    got, report = merge(text, tmp_path, "second", cache=tmp_path / "c")
    assert got == want
    assert report.cache is not None
    assert report.cache.stored >= 1


def test_a_matrix_of_which_blocks_are_wanted_is_not_held(tmp_path: Path):
    """A warm merge reads it block by block: all that it takes is less than the matrix."""
    models = write_set(tmp_path / "models", experts=2, shapes={"a.weight": (2048, 12288)})
    (tmp_path / "r.yml").write_text(recipe("iso_c", models[1:], base=models[0]))
    command = [sys.executable, "-m", "plait", "merge", str(tmp_path / "r.yml"), str(tmp_path / "out"), "--memory", "1GiB", "--cache", str(tmp_path / "c")]
    matrix = 4 * 2048 * 12288
    peaks = []
    for _ in range(2):
        subprocess.run([*command, "--quiet"], check=True)
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        peaks.append(report["memory"]["measured_peak_bytes"])
        shutil.rmtree(tmp_path / "out")
    assert report["cache"]["hits"] == 1
    assert report["counts"]["whole_ops"] == {}
    assert peaks[0] > matrix > 1.4 * peaks[1]


def test_memory_stays_within_the_ledger(models: list[Path], tmp_path: Path):
    """Warm or cold, what is leased is at most what was predicted for a cold run, and the prediction counts the cache."""
    (tmp_path / "r.yml").write_text(texts(models)["iso_c"])
    options = plait.Options(memory="400MiB", workers=2, backend="torch")
    without = plait.plan(tmp_path / "r.yml", options).prediction
    for name in ("cold", "warm"):
        _, report = merge(texts(models)["iso_c"], tmp_path, name, cache=tmp_path / "c")
        assert report.leased_peak_bytes <= without.peak_bytes + CACHE_BYTES
    planned = plait.plan(tmp_path / "r.yml", plait.Options(memory="400MiB", workers=2, backend="torch", cache=tmp_path / "c"))
    assert planned.prediction.peak_bytes == without.peak_bytes + CACHE_BYTES
    assert planned.prediction.bytes_read == without.bytes_read
    assert planned.fingerprint == plait.plan(tmp_path / "r.yml", options).fingerprint


def test_what_came_from_nan_is_not_kept(tmp_path: Path):
    """A run that allows NaN stores nothing of the tensors that hold it, so a strict one never finds what it would refuse."""
    base, *experts = write_set(tmp_path / "m", experts=2, dtype="F32", shapes={"a.weight": (40, 24), "b.weight": (40, 24)})
    file = experts[0] / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = np.array([np.nan], "<f4").tobytes()
    file.write_bytes(data)
    text = recipe("ties", experts, base=base, each=HALF)
    _, report = merge(text, tmp_path, "one", cache=tmp_path / "c", allow_nonfinite=True)
    assert report.cache is not None
    assert report.cache.stored == 2  # of the sound tensor
    with pytest.raises(plait.CheckpointError, match="holds 1 NaN"):
        merge(text, tmp_path, "two", cache=tmp_path / "c")


def test_a_part_of_a_pass_looks_for_nan(tmp_path: Path):
    """The inputs that only a reduced pass reads are looked through in it."""
    base, one, two = write_set(tmp_path / "m", experts=2, dtype="F32", shapes={"a.weight": (40, 24)})
    merge(recipe("ties", [one], base=base, each=HALF), tmp_path, "one", cache=tmp_path / "c")
    file = two / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = np.array([np.inf], "<f4").tobytes()
    file.write_bytes(data)
    with pytest.raises(plait.CheckpointError, match="holds 1 infinite"):
        merge(recipe("ties", [one, two], base=base, each=HALF), tmp_path, "two", cache=tmp_path / "c")
    assert survey(tmp_path / "c").entries == 1


def test_inputs_that_change_under_the_run_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Results of files that are no longer what was planned are not kept under the old name."""
    base, *experts = write_set(tmp_path / "m", experts=2, shapes={"a.weight": (40, 24)})
    from plait.engine import component

    whole = component.run_whole

    def changed(run: Any, i: int) -> None:
        os.utime(experts[0] / "model.safetensors", ns=(0, 0))
        whole(run, i)

    monkeypatch.setattr(component, "run_whole", changed)
    with pytest.raises(plait.PlaitError, match="changed since the plan was made"):
        merge(recipe("iso_c", experts, base=base), tmp_path, "out", cache=tmp_path / "c")
    assert survey(tmp_path / "c").entries == 0


def test_what_a_gpu_left_to_the_cpu_is_not_kept(models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A result that was not computed where it was planned has other last bits, and no name."""
    from plait.engine import whole

    monkeypatch.setenv("PLAIT_SIMULATED_GPUS", "1GiB")
    monkeypatch.setattr(whole, "_on_gpu", lambda run, node, matrix: None)
    _, report = merge(texts(models)["iso_c"], tmp_path, "out", cache=tmp_path / "c")
    assert report.wholes == {"polar": 3}
    assert survey(tmp_path / "c").entries == 0


def _merge_in_process(folder: str, name: str, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plait.planner.blocks, "BLOCK", 16)
        patch.setattr(plait.planner.reuse, "reading_seconds", lambda nbytes, setting: 0.0)
        for number in range(3):
            _, report = merge(text, Path(folder), f"{name}-{number}", cache=Path(folder) / "c", cache_size=60 << 10)
            assert report.cache is not None
            assert report.cache.damaged == 0


def test_two_merges_share_a_cache_at_once(models: list[Path], tmp_path: Path):
    """Two processes fill, use and evict one cache that is too small for both; each writes what it writes alone."""
    wanted = {name: texts(models)[name] for name in ("iso_c", "iso_wsc")}
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=_merge_in_process, args=(str(tmp_path), name, text)) for name, text in wanted.items()]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    assert [p.exitcode for p in running] == [0, 0]
    for name, text in wanted.items():
        want = merge(text, tmp_path, f"want-{name}")[0]
        assert all((tmp_path / f"{name}-{n}" / "model.safetensors").read_bytes() == want for n in range(3))


def test_parts_of_a_pass_run_in_compiled_kernels(models: list[Path], tmp_path: Path):
    """A pass of which only some thresholds are left gives the same bits when it is compiled."""
    base, one, two, _ = models
    merge(recipe("ties", [one], base=base, each=HALF), tmp_path, "one", cache=tmp_path / "c", backend="numba")
    text = recipe("ties", [one, two], base=base, each=HALF)
    data, report = merge(text, tmp_path, "both", cache=tmp_path / "c", backend="numba")
    assert report.cache is not None
    assert report.cache.hits == report.cache.stored == len(SHAPES)
    assert data == merge(text, tmp_path, "cold")[0]


def test_cheap_results_are_not_kept(models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A fold over a small tensor costs less than opening a file, and a map is never kept."""
    monkeypatch.setattr(plait.planner.reuse, "reading_seconds", READING)
    _, report = merge(texts(models)["stock"], tmp_path, "stock", cache=tmp_path / "c")
    assert report.cache is not None
    assert (report.cache.stored, report.cache.misses) == (0, 0)
    experts = models[1:]
    _, report = merge(recipe("linear", experts, each={"weight": 1.0}), tmp_path, "linear", cache=tmp_path / "c")
    assert report.cache is not None
    assert (report.cache.stored, report.cache.misses) == (0, 0)


def test_the_plan_and_the_command_line_say_what_the_cache_saves(models: list[Path], tmp_path: Path):
    """The tree and the JSON name hits and bytes; a plan makes no folder; a cache of nothing is refused."""
    from click.testing import CliRunner

    from plait.cli import main

    (tmp_path / "r.yml").write_text(texts(models)["iso_c"])
    shown = CliRunner().invoke(main, ["plan", str(tmp_path / "r.yml"), "--cache", str(tmp_path / "c")])
    assert shown.exit_code == 0, shown.stderr
    assert "none of 3 results are there yet" in shown.stdout
    assert not (tmp_path / "c").exists()
    for out in ("x", "y"):
        done = CliRunner().invoke(main, ["merge", str(tmp_path / "r.yml"), str(tmp_path / out), "--cache", str(tmp_path / "c"), "--backend", "torch"])
        assert done.exit_code == 0, done.stderr
    assert "cache: 3 results found, 0 stored (0 B); 3 passes and" in done.stderr
    found = json.loads(CliRunner().invoke(main, ["plan", str(tmp_path / "r.yml"), "--cache", str(tmp_path / "c"), "--format", "json"]).stdout)
    assert found["cache"]["hits"] == 3
    refused = CliRunner().invoke(main, ["plan", str(tmp_path / "r.yml"), "--cache", str(tmp_path / "c"), "--cache-size", "0"])
    assert refused.exit_code == 2
    assert "a cache of no bytes keeps nothing" in refused.stderr


def test_the_file_that_decides_threads_takes_part_in_names(monkeypatch: pytest.MonkeyPatch):
    """The number of threads decides the last bits of small matrices."""
    before, real = facts.numerics.__wrapped__(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: real(path) + b"#" * (path.name == "wholes.py"))
    assert facts.numerics.__wrapped__() != before


def test_predicted_savings_come_from_what_is_left_out(models: list[Path], tmp_path: Path):
    """A warm outlook is worth the polar factors' seconds; a cold one nothing."""
    (tmp_path / "r.yml").write_text(texts(models)["iso_c"])
    options = plait.Options(memory="400MiB", backend="torch", cache=tmp_path / "c")
    cold = plait.plan(tmp_path / "r.yml", options).outlook
    merge(texts(models)["iso_c"], tmp_path, "out", cache=tmp_path / "c")
    planned = plait.plan(tmp_path / "r.yml", options)
    assert cold is not None
    assert planned.outlook is not None
    assert (cold.spared_s, cold.spared_bytes, cold.stored_bytes > 0) == (0.0, 0, True)
    wholes = sum(s for c in planned.components for _, s in planned.keeping[c.program].whole_s)
    assert planned.outlook.spared_s > 0.0
    assert planned.outlook.spared_s > 0.5 * wholes - 1e-3
    assert planned.outlook.stored_bytes == 0
    assert np.isfinite(planned.outlook.spared_s)
