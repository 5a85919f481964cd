"""What mergekit 0.1.5 does badly with bad input, row by row, and what plait does instead; through the real command line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from plait.cli import main
from support import faults, hostile, tiny
from support.stored import read_folder

Values = dict[str, NDArray[np.float32]]
HEAD = "lm_head.weight"


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return tiny.write_set(tmp_path / "models", experts=1)


def plait(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="plait")


def linear(models: list[Path], weights: tuple[float, ...] = (0.5, 0.5), **keys: Any) -> str:
    entries = [{"model": str(m), "parameters": {"weight": w}} for m, w in zip(models, weights, strict=True)]
    return json.dumps({"merge_method": "linear", "models": entries, **keys}, indent=1)


def again(model: Path, change: Callable[[Values], Any] = lambda values: None, dtype: str = "BF16") -> None:
    """Write a model anew with other tensors or another dtype."""
    values: Values = {name: np.full(shape, 0.5, np.float32) for name, shape in tiny.SHAPES.items()}
    change(values)
    shutil.rmtree(model)
    tiny.write_model(model, values, dtype)


def refused(models: list[Path], recipe: str, *words: str) -> str:
    """Planning and merging both say it in one line with status 2, and nothing is left."""
    path, out = models[0].parents[1] / "recipe.yml", models[0].parents[1] / "out"
    path.write_text(recipe)
    said = [plait("plan", str(path)), plait("merge", str(path), str(out), "--memory", "256MiB")]
    assert [r.exit_code for r in said] == [2, 2], said[1].output
    (line,) = said[1].stderr.splitlines()
    assert said[0].stderr == said[1].stderr
    assert all(word in line for word in words), line
    assert tiny.leftovers(out) == []
    return line


def merged(models: list[Path], recipe: str, *words: str) -> dict[str, Any]:
    """The plan says the words, and the merge ends well."""
    path, out = models[0].parents[1] / "recipe.yml", models[0].parents[1] / "out"
    path.write_text(recipe)
    planned = plait("plan", str(path), "--format", "json")
    assert planned.exit_code == 0, planned.output
    notes = " ".join(json.loads(planned.stdout)["notes"])
    assert all(word in notes for word in words), notes
    done = plait("merge", str(path), str(out), "--memory", "256MiB")
    assert done.exit_code == 0, done.output
    return read_folder(out)


def test_truncated_shard(models: list[Path]) -> None:
    """mergekit: a traceback without the file's name. Here the file, both sizes and the first tensor that is cut."""
    file = models[1] / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    refused(models, linear(models), str(file), "is truncated", "100 bytes are missing", f"from tensor '{HEAD}' on", "download or copy it again")


def test_missing_tensor(models: list[Path]) -> None:
    """mergekit: clear at the end of a traceback, and an empty output folder. Here one line, and no folder."""
    again(models[1], lambda values: values.pop("model.norm.weight"))
    refused(models, linear(models), "'model.norm.weight' is in", "but not in", "expert1")


def test_missing_lm_head_of_an_untied_model(models: list[Path]) -> None:
    """mergekit: silently averages that model's input embeddings into the other's output head. Here refused."""
    again(models[1], lambda values: values.pop(HEAD))
    refused(models, linear(models), f"'{HEAD}' is in", "but not in", "expert1")


def test_extra_tensor(models: list[Path]) -> None:
    """mergekit: silently dropped. Here the plan and the model card name it."""
    again(models[1], lambda values: values.update(extra=np.ones(3, np.float32)))
    held = merged(models, linear(models), "left out 1 tensor of", "extra")
    assert set(held) == set(tiny.SHAPES)
    assert "extra" in (models[0].parents[1] / "out" / "README.md").read_text()


def test_weights_that_sum_to_zero(models: list[Path]) -> None:
    """mergekit: infinities in every tensor. Here refused with the recipe's line."""
    refused(models, linear(models, (0.5, -0.5)), "recipe.yml:", "0.5, -0.5 sum to zero", "set normalize: false")


@pytest.mark.parametrize("shape", [(49, 70), (1, 70), (70,)])
def test_wrong_shape(shape: tuple[int, ...], models: list[Path]) -> None:
    """mergekit: sizes without the models' names; for shapes that broadcast, too. Here tensor and models by name."""
    name = "model.layers.0.mlp.up_proj.weight"
    again(models[1], lambda values: values.update({name: np.ones(shape, np.float32)}))
    refused(models, linear(models), f"'{name}'", "base", "expert1", str(list(shape)), "[90, 70]")


def test_density_of_50(models: list[Path]) -> None:
    """mergekit: `density: 50` is taken as dense. Here refused with the line and the range."""
    recipe = tiny.recipe("ties", models[1:], base=models[0], each={"weight": 1.0, "density": 50})
    refused(models, recipe, "recipe.yml:8:", "density must be between 0 and 1, not 50")


def test_misspelt_parameter(models: list[Path]) -> None:
    """mergekit: silently ignored. Here refused with the line and the nearest name."""
    recipe = tiny.recipe("ties", models[1:], base=models[0], each={"weight": 1.0, "dnesity": 0.5})
    refused(models, recipe, "recipe.yml:8:", "ties has no parameter 'dnesity'", "did you mean 'density'")


def test_missing_weight(models: list[Path]) -> None:
    """mergekit: said, without a line, behind a traceback. Here with the line of the model."""
    recipe = tiny.recipe("ties", models[1:], base=models[0], each={"density": 0.5})
    refused(models, recipe, "recipe.yml:5:", "expert1 has no weight, which ties needs")


def test_unknown_method(models: list[Path]) -> None:
    """mergekit: a traceback and no suggestion. Here the line and the nearest name."""
    refused(models, linear(models).replace('"linear"', '"liner"'), "recipe.yml:2:", "unknown merge method 'liner'", "did you mean 'linear'")


def test_missing_model(models: list[Path]) -> None:
    """mergekit: 57 lines that end in the rules for names of repositories. Here the places that were looked at."""
    missing = models[0].parent / "nowhere"
    refused([models[0], missing], linear([models[0], missing]), "recipe.yml:", "no model", str(missing), "plait never downloads", "give a folder that exists")


def test_no_configuration(models: list[Path]) -> None:
    """mergekit: 36 lines of traceback. Here the weights are merged all the same, and a note says what is absent."""
    for model in models:
        (model / "config.json").unlink()
    assert set(merged(models, linear(models), "has no config.json, so the output has none")) == set(tiny.SHAPES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ((2**63 - 1).to_bytes(8, "little") + b"{}", "claims a header of 9223372036854775807 bytes"),
        ((1 << 32).to_bytes(8, "little") + b"{}", "claims a header of 4294967296 bytes"),
        (hostile.container(b"garbage"), "is not valid JSON"),
        (hostile.container({"a": hostile.entry(0, 99)}, b"1"), "is truncated"),
        (hostile.container({"a": hostile.entry(5, 6)}, b"1"), "hole"),
    ],
)
def test_bad_header(content: bytes, words: str, models: list[Path]) -> None:
    """mergekit: 40 lines, the file not named. Here the file and what is wrong."""
    (models[1] / "model.safetensors").write_bytes(content)
    refused(models, linear(models), str(models[1] / "model.safetensors"), words)


def test_index_out_of_the_folder(models: list[Path]) -> None:
    """mergekit: follows it and reads a file that is not the model's. Here refused."""
    secret = models[0].parent / "secret"
    secret.mkdir()
    shutil.move(models[1] / "model.safetensors", secret / "x.safetensors")
    index = models[1] / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tiny.SHAPES, "../secret/x.safetensors")}))
    refused(models, linear(models), str(index), "'../secret/x.safetensors'", "only name safetensors files of its own folder")


def test_index_of_a_shard_that_is_absent(models: list[Path]) -> None:
    """mergekit: reads whatever files lie there. Here the index is the authority, and the absent file is named."""
    (models[1] / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tiny.SHAPES, "model-00001-of-00002.safetensors")}))
    (models[1] / "model.safetensors").rename(models[1] / "model-00002-of-00002.safetensors")
    refused(models, linear(models), "model-00001-of-00002.safetensors is listed in model.safetensors.index.json but is not in the folder")


def test_mixed_dtypes_without_dtype(models: list[Path]) -> None:
    """mergekit: silently float32. Here the widest too, as the values need it, and a note says so and how to choose."""
    again(models[1], dtype="F32")
    held = merged(models, linear(models), "base bfloat16", "expert1 float32", "widest of its inputs, float32", "give dtype to choose")
    assert {tensor.dtype for tensor in held.values()} == {"F32"}


def test_square_tensor_transposed(models: list[Path]) -> None:
    """mergekit: merged. Shapes and names cannot show it, so here too; the bytes are what the recipe asks for, element by element."""
    square = np.arange(16, dtype=np.float32).reshape(4, 4)
    again(models[0], lambda values: values.update(square=square))
    again(models[1], lambda values: values.update(square=np.ascontiguousarray(square.T)))
    np.testing.assert_array_equal(merged(models, linear(models))["square"].value, (square + square.T) / 2)


@pytest.mark.parametrize("flag", [(), ("--overwrite",), ("--restart",)])
def test_output_is_an_input(flag: tuple[str, ...], models: list[Path]) -> None:
    """mergekit: overwrites the input model, whose weights are lost. Here refused, whatever is asked for, and not a byte is touched."""
    recipe, before = models[0].parents[1] / "recipe.yml", {p: p.read_bytes() for p in models[0].iterdir()}
    recipe.write_text(linear(models))
    for out in (models[0], models[0] / ".", models[0] / "inner", models[0].parent):
        done = plait("merge", str(recipe), str(out), "--memory", "256MiB", *flag)
        assert done.exit_code == 2
        (line,) = done.stderr.splitlines()
        assert "the input model" in line
        assert "must not be written to; give a new folder" in line
    assert {p: p.read_bytes() for p in models[0].iterdir()} == before


def test_stale_files_in_the_output_folder(models: list[Path]) -> None:
    """mergekit: left beside the new file, and the old index loads the old model. Here refused, or with --overwrite gone when the new model is there."""
    recipe, out = models[0].parents[1] / "recipe.yml", models[0].parents[1] / "out"
    recipe.write_text(linear(models))
    rng = np.random.default_rng(1)
    tiny.write_model(out, {name: rng.standard_normal(shape).astype(np.float32) for name, shape in tiny.SHAPES.items()}, shards=2)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    done = plait("merge", str(recipe), str(out), "--memory", "256MiB")
    assert done.exit_code == 2
    assert "is not empty; give a new folder, or --overwrite to replace the checkpoint there" in done.stderr
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    done = plait("merge", str(recipe), str(out), "--memory", "256MiB", "--overwrite")
    assert done.exit_code == 0, done.output
    assert [p.name for p in out.iterdir() if "safetensors" in p.name] == ["model.safetensors"]
    assert plait("verify", str(out)).exit_code == 0


def test_disk_full(models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """mergekit: found when it writes, and an empty folder is left. Here before anything is computed; `tests/test_real_disks.py` mounts small disks."""
    recipe, out = models[0].parents[1] / "recipe.yml", models[0].parents[1] / "out"
    recipe.write_text(linear(models))
    monkeypatch.setattr("plait.engine.executor.execute", lambda *args, **more: pytest.fail("something was computed"))
    with faults.injected("a full disk at the beginning") as counter:
        done = plait("merge", str(recipe), str(out), "--memory", "256MiB")
    assert counter.failed == 1
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert "(No space left on device); free some space and run again" in line
    assert tiny.leftovers(out) == []
