"""Statistics beside models: found, checked with the recipe's line, streamed as stored, and part of what a run is known by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import plait
from plait.ops.errors import CheckpointError, PlaitError, PlanError, RecipeError
from plait.planner.statistics import read_layer_file
from support.evaluate import stored_as, write_model, write_out

NAMES = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight")


def tensors(seed: int, code: str = "F32", **change: Any) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    made = {name: stored_as(np.abs(random.standard_normal((6, 4) if "proj" in name else (4,))), code) for name in NAMES}
    return {**made, **change}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k, name in enumerate(("base", "a", "b")):
        write_model(tmp_path / name, tensors(k, "BF16"))
    for k, name in enumerate(("fa", "fb", "ga", "gb")):
        write_model(tmp_path / name, tensors(10 + k))
    return tmp_path


def recipe(folder: Path, method: str, beside: list[dict[str, str]], **more: Any) -> Path:
    models = [{"model": name, **given, **({"parameters": {"weight": 1.0}} if method == "linear" else {})} for name, given in zip("ab", beside, strict=True)]
    path = folder / "recipe.yml"
    path.write_text(yaml.safe_dump({"merge_method": method, "models": models, **more}, sort_keys=False))
    return path


def complaint(folder: Path, method: str, beside: list[dict[str, str]], error: type[PlaitError] = RecipeError, **more: Any) -> str:
    with pytest.raises(error) as found:
        plait.plan(recipe(folder, method, beside, **more), memory="1GiB")
    return str(found.value)


FISHER = [{"importance": "fa"}, {"importance": "fb"}]


def test_fisher_is_the_average_by_importance(folder: Path):
    """From recipe and from Python: the same numbers as numpy's, stored as the models are although the statistics are float32."""
    path = recipe(folder, "fisher", FISHER, parameters={"normalize": "none", "floor": 0.0})
    plait.merge(path, folder / "out", memory="1GiB")
    model = plait.methods.fisher(
        experts=[plait.open(folder / n) for n in "ab"], importance=[plait.open(folder / "fa"), str(folder / "fb")], normalize="none", floor=0.0
    )
    got = write_out(model, folder / "python")
    a, b, fa, fb = (plait_values(folder / n) for n in ("a", "b", "fa", "fb"))
    for name, tensor in got.items():
        assert tensor.dtype == "BF16"
        wanted = (fa[name] * a[name] + fb[name] * b[name]) / (fa[name] + fb[name])
        assert np.abs(tensor.value - wanted).max() <= 2.0**-8 * np.abs(wanted).max()
        assert (tensor.value == plait_values(folder / "out")[name]).all()


def plait_values(folder: Path) -> dict[str, Any]:
    from support.stored import read_folder

    return {n: t.value for n, t in read_folder(folder).items()}


def test_statistics_are_read_and_known(folder: Path):
    """Their files count as inputs: read once, in the fingerprint, and not rounded to the recipe's dtype."""
    path = recipe(folder, "fisher", FISHER, dtype="bfloat16", parameters={"normalize": "none"})
    plan = plait.plan(path, memory="1GiB")
    assert {Path(f.path).parent.name for f in plan.files} == {"a", "b", "fa", "fb"}
    assert plan.prediction.bytes_read == 52 * (2 * 2 + 2 * 4)
    assert not any(node.op == "cast" for program in plan.programs for node in program.nodes)
    (folder / "fb" / "model.safetensors").unlink()
    (folder / "fb").rmdir()
    write_model(folder / "fb", tensors(99))
    assert plait.plan(path, memory="1GiB").fingerprint != plan.fingerprint


def test_what_is_missing_or_too_much_is_told_with_its_line(folder: Path):
    """A model without its statistic, a statistic that the method does not take, one of the base, and one that does not exist."""
    assert "recipe.yml:5:10: b has no importance, which fisher needs" in complaint(folder, "fisher", [{"importance": "fa"}, {}])
    assert "linear takes no importance; remove it" in complaint(folder, "linear", FISHER)
    assert "did you mean 'importance'" in complaint(folder, "fisher", [{"importance": "fa", "base_importance": "fb"}, {"importance": "fb"}])
    assert "unknown key 'importanec'" in complaint(folder, "fisher", [{"importanec": "fa"}, {"importance": "fb"}])
    assert "recipe.yml:6:15: no model 'fc'" in complaint(folder, "fisher", [{"importance": "fa"}, {"importance": "fc"}], CheckpointError)
    listed = [{"model": "base", "importance": "fa"}, {"model": "a", "importance": "fa", "base_importance": "fb"}]
    (folder / "recipe.yml").write_text(yaml.safe_dump({"merge_method": "led", "base_model": "base", "models": listed}))
    with pytest.raises(RecipeError, match="base is the base, whose importance has no effect"):
        plait.plan(folder / "recipe.yml", memory="1GiB")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({NAMES[2]: None}, "is not in fb, its importance"),
        ({NAMES[2]: np.ones(5, np.float32)}, r"has shape [5] in fb but [4] in b"),
        ({NAMES[2]: np.ones(4, np.int32)}, "of fb is stored as I32; a statistic is float32"),
    ],
)
def test_tensors_must_fit_those_of_the_model(folder: Path, change: dict[str, Any], words: str):
    """Each with the tensor, both sides, and the recipe's line."""
    (folder / "fb" / "model.safetensors").unlink()
    (folder / "fb").rmdir()
    write_model(folder / "fb", {n: t for n, t in tensors(1, **change).items() if t is not None})
    said = complaint(folder, "fisher", FISHER, PlanError)
    assert words in said
    assert said.count("recipe.yml:6:15") == 1
    assert NAMES[2] in said


def layers(path: Path, **content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_sens_takes_numbers_of_layers(folder: Path):
    """The longest name that a tensor begins with counts; coefficients sum to K lambda; another number is another fingerprint."""
    layers(folder / "a.json", layers={"model.layers.0": 3.0, "model.layers.1": 4.0, "model": 0.0}, transfer=1.0)
    layers(folder / "b.json", layers={"model": 1.0}, transfer=3.0)
    path = recipe(folder, "sens", [{"sensitivity": "a.json"}, {"sensitivity": "b.json"}], base_model="base", dtype="float32")
    plait.merge(path, folder / "out", memory="1GiB")
    base, a, b = (plait_values(folder / n) for n in ("base", "a", "b"))
    for name, share in zip(NAMES, (0.6, 0.8, 0.0), strict=True):
        powers = np.exp([share * 0.25, 1.0 * 0.75])
        sigma = 2 * powers / powers.sum()
        wanted = base[name] + sigma[0] * (a[name] - base[name]) + sigma[1] * (b[name] - base[name])
        assert np.allclose(plait_values(folder / "out")[name], wanted, rtol=1e-5, atol=1e-6)
    before = plait.plan(path, memory="1GiB").fingerprint
    layers(folder / "b.json", layers={"model": 1.0}, transfer=3.5)
    assert plait.plan(path, memory="1GiB").fingerprint != before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"transfer": 1.0}, "holds no `layers`"),
        ({"layers": {"a": "x"}}, "it must be a number, 0 or more"),
        ({"layers": {"a": -1.0}}, "it must be a number, 0 or more"),
        ({"layers": {"a": 1.0}, "transfers": 2.0}, "holds 'transfers'"),
    ],
)
def test_files_of_layers_are_checked(tmp_path: Path, content: dict[str, Any], words: str):
    """What is wrong and in which file."""
    with pytest.raises(CheckpointError) as error:
        read_layer_file(layers(tmp_path / "s.json", **content), "s.json")
    assert words in str(error.value)
    assert "s.json" in str(error.value)


def test_a_tensor_of_no_layer_and_a_transfer_of_one_model_alone(folder: Path):
    """Both end in a sentence before anything is read."""
    layers(folder / "a.json", layers={"model.layers": 3.0}, transfer=1.0)
    layers(folder / "b.json", layers={"model": 1.0})
    beside = [{"sensitivity": "a.json"}, {"sensitivity": "b.json"}]
    assert f"tensor {NAMES[2]!r} belongs to no layer of a.json" in complaint(folder, "sens", beside, PlanError, base_model="base")
    layers(folder / "a.json", layers={"model": 3.0}, transfer=1.0)
    assert "of every model or of none" in complaint(folder, "sens", beside, PlanError, base_model="base")


def test_python_wants_one_an_expert(folder: Path):
    """Too few, none, or a single path instead of a list: the sentence says what is wanted."""
    experts = [plait.open(folder / n) for n in "ab"]
    for given in ({}, {"importance": [str(folder / "fa")]}, {"importance": str(folder / "fa")}):
        with pytest.raises(PlanError, match=r"fisher needs importance=\[\.\.\.\]: 2 models or paths"):
            plait.methods.fisher(experts=experts, **given)
