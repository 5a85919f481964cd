"""The example package of docs/examples/own-method, installed as a user would and used from other processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.tiny import SHAPES, decode, write_set

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "own-method"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What sees the package that pip has installed from a copy of the example, without network."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(EXAMPLE, folder / "source")
    flags = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(folder / "site"))
    done = subprocess.run([sys.executable, "-m", "pip", "install", *flags, str(folder / "source")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(folder / "site"), os.environ.get("PYTHONPATH"))))}


def plait(environment: dict[str, str], *arguments: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-m", "plait", *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_catalogue_has_it(environment: dict[str, str], tmp_path: Path):
    """It stands in the table of its family, and its page says what its docstring says."""
    assert re.search(r"^unanimous +needed +none +1 pass", plait(environment, "methods", cwd=tmp_path), re.MULTILINE)
    page = plait(environment, "methods", "unanimous", cwd=tmp_path)
    for words in ("Keep the changes on whose sign all experts agree.", "worth more than what one of them did", "hardly any element is undisputed", "0 to 1"):
        assert words in " ".join(page.split())


def test_it_merges(environment: dict[str, str], tmp_path: Path):
    """The recipe of its README gives what the formula says, from the installed package."""
    base, math, code = write_set(tmp_path / "set", experts=2, dtype="F32")
    (tmp_path / "models").mkdir()
    for name, folder in (("base", base), ("math", math), ("code", code)):
        folder.rename(tmp_path / "models" / name)
    text = (EXAMPLE / "README.md").read_text()
    (tmp_path / "recipe.yml").write_text(text.split("```yaml\n")[1].split("```")[0].replace("bfloat16", "float32"))
    plait(environment, "merge", "recipe.yml", "out", "--backend", "torch", "--memory", "500MiB", cwd=tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    stored = {m: tensor(tmp_path / m / "model.safetensors", name) for m in ("models/base", "models/math", "models/code", "out")}
    start = stored["models/base"].astype(np.float64)
    deltas = [stored[m] - start for m in ("models/math", "models/code")]
    mean = (deltas[0] + deltas[1]) / 2
    want = start + np.where(deltas[0] * deltas[1] > 0, mean, 0.25 * mean)
    assert np.allclose(stored["out"], want, rtol=0, atol=1e-7)
    assert plait(environment, "methods", "unanimous", "--on", "models/base", "--experts", "2", cwd=tmp_path).count("in 1 pass,") == 1


def tensor(path: Path, name: str) -> np.ndarray:
    import json

    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + length])[name]
    first, last = entry["data_offsets"]
    assert tuple(entry["shape"]) == SHAPES[name]
    return decode(np.frombuffer(data[8 + length + first : 8 + length + last], np.float32), "F32").reshape(entry["shape"])


def test_its_readme_shows_the_recipe_that_the_catalogue_prints(environment: dict[str, str], tmp_path: Path):
    """Word for word."""
    shown = plait(environment, "methods", "unanimous", cwd=tmp_path).split("a recipe:\n")[1]
    assert shown == (EXAMPLE / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
