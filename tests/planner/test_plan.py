"""A plan is plain data: stable across processes, sensitive to every input, right about the bytes, and quick for a 70B model."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.planner.plan import Plan
from support import tiny

REPO = Path(__file__).parents[2]
#: What scripts may rely on at the top level of `plait plan --format json`.
TOP_LEVEL = {
    "version",
    "title",
    "fingerprint",
    "predicted_peak_bytes",
    "minimum_budget_bytes",
    "budget_bytes",
    "bytes_read",
    "bytes_written",
    "passes",
    "predicted_seconds",
    "timing",
    "residency",
}
TOP_LEVEL |= {"workers", "backend", "device", "on_gpu", "prediction", "sweeps", "scopes", "notes", "programs", "components", "shards", "files"}
TOP_LEVEL |= {"headline", "optimisations", "pools", "savings", "whole_work", "what_if", "groups"}
TOP_LEVEL |= {"maps", "gpu_budget_bytes", "gpu_worker_bytes", "lean", "cache"}
OPTIONS = plait.Options(memory="256MiB", workers=2, device="cpu", backend="numba")


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return tiny.write_set(tmp_path / "models")


def make(folder: Path, text: str, options: plait.Options = OPTIONS) -> Plan:
    (folder / "recipe.yml").write_text(text)
    return plait.plan(folder / "recipe.yml", options)


# -- JSON -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", tiny.recipes([Path("b"), Path("x"), Path("y")]))
def test_json_is_the_plan(name: str, models: list[Path], tmp_path: Path):
    """JSON round trips, has the documented keys, and its parts agree with each other."""
    plan = make(tmp_path, tiny.recipes(models)[name])
    data: dict[str, Any] = json.loads(plan.to_json())
    assert data == json.loads(json.dumps(plan.to_dict()))
    assert data.keys() == TOP_LEVEL
    assert data["version"] == 1
    assert data["fingerprint"] == plan.fingerprint
    assert data["budget_bytes"] == 256 << 20
    assert data["predicted_peak_bytes"] == data["prediction"]["peak_bytes"] <= data["budget_bytes"]
    assert {c["name"] for c in data["components"]} == set(tiny.SHAPES)
    assert sum(c["output"]["nbytes"] for c in data["components"]) == data["bytes_written"] == 2 * tiny.elements()
    for component in data["components"]:
        program = data["programs"][component["program"]]
        assert len(component["inputs"]) == len(program["slots"])
        assert component["output"]["offset"] + component["output"]["nbytes"] <= data["shards"][component["output"]["shard"]]["bytes"]
    assert {f["path"] for f in data["files"]} >= {i["file"] for c in data["components"] for i in c["inputs"]}


# -- fingerprint ------------------------------------------------------------------------------------
def test_fingerprint_is_the_same_in_every_process(models: list[Path], tmp_path: Path):
    """Not a bit of it depends on hashing order or the process."""
    expected = {name: make(tmp_path, text).fingerprint for name, text in tiny.recipes(models).items()}
    for name, text in tiny.recipes(models).items():
        (tmp_path / f"{name}.yml").write_text(text)
    code = f"""
import plait, json, sys
options = plait.Options(memory="256MiB", workers=2, device="cpu", backend="numba")
print(json.dumps({{n: plait.plan({str(tmp_path)!r} + f"/{{n}}.yml", options).fingerprint for n in {list(expected)!r}}}))
"""
    for seed in ("0", "1", "4242"):
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == expected


def test_fingerprint_does_not_depend_on_the_machine(models: list[Path], tmp_path: Path):
    """Budget, workers and backend change how the plan runs, not what it gives."""
    text = tiny.recipes(models)["ties"]
    prints = {make(tmp_path, text, plait.Options(memory=m, workers=w, backend=b)).fingerprint for m, w, b in (("64MiB", 1, "torch"), ("1GiB", 7, "numba"))}
    assert len(prints) == 1


def test_whatever_changes_the_output_changes_the_fingerprint(models: list[Path], tmp_path: Path):
    """Weights, methods, dtypes, shard sizes, seeds, and any input's content, time of change or path."""
    base, *experts = models

    def ties(each: Mapping[str, Any], parameters: Mapping[str, Any] | None = None, **keys: Any) -> str:
        return tiny.recipe("ties", experts, base=base, each=each, parameters={"normalize": False, **(parameters or {})}, **keys)

    each = {"weight": 1.0, "density": 0.5}
    seen = {"first": make(tmp_path, ties(each)).fingerprint}
    seen["weight"] = make(tmp_path, ties({**each, "weight": 0.9})).fingerprint
    seen["density"] = make(tmp_path, ties({**each, "density": 0.51})).fingerprint
    seen["lambda"] = make(tmp_path, ties(each, parameters={"lambda": 0.9})).fingerprint
    seen["dtype"] = make(tmp_path, ties(each, dtype="float32")).fingerprint
    seen["out_dtype"] = make(tmp_path, ties(each, out_dtype="float16")).fingerprint
    seen["step"] = make(tmp_path, ties(each, steps=["magic_wsc"])).fingerprint
    seen["order"] = make(tmp_path, tiny.recipe("ties", experts[::-1], base=base, each=each, parameters={"normalize": False})).fingerprint
    seen["shards"] = make(tmp_path, ties(each), plait.Options(memory="256MiB", shard_size="10KB")).fingerprint
    for seed in (0, 1):
        seen[f"seed {seed}"] = make(tmp_path, tiny.recipe("dare_linear", experts, base=base, each=each, parameters={"seed": seed})).fingerprint
    assert make(tmp_path, ties(each)).fingerprint == seen["first"]
    stat = (experts[1] / "model.safetensors").stat()
    os.utime(experts[1] / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    seen["mtime"] = make(tmp_path, ties(each)).fingerprint
    assert len(set(seen.values())) == len(seen)


# -- bytes ------------------------------------------------------------------------------------------
@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """File, offset and bytes of every read of tensors, those of compiled kernels too: they read through a replaced `os.preadv`."""
    found: list[tuple[str, int, int]] = []
    real = os.preadv

    def preadv(fd: int, buffers: Any, offset: int, *flags: int) -> int:
        count = real(fd, buffers, offset, *flags)
        found.append((os.readlink(f"/proc/self/fd/{fd}"), offset, count))
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    return found


@pytest.mark.parametrize("memory", ["least", "512MiB"])
@pytest.mark.parametrize("name", ["linear", "slerp", "model_stock", "della", "linear_wsc", "ties", "iso_c"])
def test_bytes_are_those_predicted(name: str, memory: str, models: list[Path], tmp_path: Path, reads: list[tuple[str, int, int]]):
    """Bytes read and written equal the prediction in every budget; thresholds may read what the plan calls extra, and samples and
    the block of the last tie, which is at most one more reading of each input."""
    path = tmp_path / "recipe.yml"
    path.write_text(tiny.recipes(models)[name])
    budget: str | int = memory
    if memory == "least":
        budget = plait.plan(path, OPTIONS).prediction.minimum_bytes
    options = plait.Options(memory=budget, workers=2, device="cpu")
    predicted = plait.plan(path, options).prediction
    report = tiny.bounded(lambda: plait.merge(path, tmp_path / "out", options), 20)
    assert report.bytes_written == predicted.bytes_written == 2 * tiny.elements()
    assert report.bytes_read == sum(n for _, _, n in reads)
    if name == "ties":
        assert predicted.bytes_read <= report.bytes_read <= predicted.bytes_read + predicted.bytes_read_extra + 2 * 3 * 2 * tiny.elements()
    else:
        assert report.bytes_read == predicted.bytes_read
        assert predicted.bytes_read_extra == 0


def test_every_input_byte_is_read_once_a_pass(models: list[Path], tmp_path: Path, reads: list[tuple[str, int, int]]):
    """A linear merge reads each byte of each tensor exactly once, and nothing else."""
    path = tmp_path / "recipe.yml"
    path.write_text(tiny.recipes(models)["linear"])
    plan = plait.plan(path, OPTIONS)
    plait.merge(path, tmp_path / "out", OPTIONS)
    wanted = sorted((ref.file, ref.start, ref.start + ref.nbytes) for c in plan.components for ref in c.inputs)
    assert sorted((file, offset, offset + n) for file, offset, n in reads) == wanted


def test_a_model_of_weight_zero_is_not_read(models: list[Path], tmp_path: Path):
    """Zero weights are culled: the plan reads the other models only."""
    base, one, two = models
    text = {"merge_method": "linear", "models": [{"model": str(m), "parameters": {"weight": w}} for m, w in ((base, 1.0), (one, 0.0), (two, 0.5))]}
    plan = make(tmp_path, json.dumps(text))
    assert plan.prediction.bytes_read == 2 * 2 * tiny.elements()
    (tmp_path / "recipe.yml").write_text(json.dumps(text))
    assert plait.merge(tmp_path / "recipe.yml", tmp_path / "out", OPTIONS).bytes_read == plan.prediction.bytes_read


def test_untouched_tensors_are_copied_undecoded(models: list[Path], tmp_path: Path):
    """A passthrough copies every byte, as predicted, and the file holds what the input held."""
    text = tiny.recipes(models)["passthrough"]
    plan = make(tmp_path, text)
    assert plan.prediction.bytes_copied == plan.prediction.bytes_written == plan.prediction.bytes_read
    report = plait.merge(tmp_path / "recipe.yml", tmp_path / "out", OPTIONS)
    assert report.bytes_written == plan.prediction.bytes_written
    stored = [(f / "model.safetensors").read_bytes()[-2 * tiny.elements() :] for f in (models[0], tmp_path / "out")]
    assert stored[0] == stored[1]


# -- a 70B model ------------------------------------------------------------------------------------
_70B = """
import resource, sys, json
import plait
plan = plait.plan(sys.argv[1], plait.Options(memory="4GiB", workers=8, device="cpu"))
usage = resource.getrusage(resource.RUSAGE_SELF)
heavy = sorted({"torch", "numba"} & sys.modules.keys())
print(json.dumps([usage.ru_utime + usage.ru_stime, heavy, len(plan.components), plan.prediction.bytes_written, len(plan.programs), plan.fingerprint]))
"""


@pytest.fixture(scope="module")
def seventy(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    spec = importlib.util.spec_from_file_location("make_checkpoint", REPO / "benchmarks" / "make_checkpoint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_checkpoint"] = module
    spec.loader.exec_module(module)
    return module.make_set(tmp_path_factory.mktemp("70b"), module.PRESETS["70b"], 2, sparse=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["linear", "ties", "della"])
def test_a_70b_recipe_plans_in_two_seconds(method: str, seventy: list[Path], tmp_path: Path):
    """723 tensors in 80 layers: under 2 s of processor time with imports, and neither torch nor numba."""
    base, *experts = seventy
    each = {"weight": 0.5} if method == "linear" else {"weight": 0.5, "density": 0.2}
    path = tmp_path / "recipe.yml"
    path.write_text(tiny.recipe(method, seventy if method == "linear" else experts, base=None if method == "linear" else base, each=each))
    done = subprocess.run([sys.executable, "-c", _70B, str(path)], capture_output=True, text=True, check=True)
    seconds, heavy, tensors, written, programs, _ = json.loads(done.stdout)
    assert heavy == []
    assert tensors == 723
    assert written == pytest.approx(141.1e9, rel=0.001)
    assert programs <= 12
    assert seconds < 2.0
