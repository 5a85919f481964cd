"""sd-mecha beside plait: it reads no recipes in YAML, so that the same merge is built through its Python interface."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from plait.ops.errors import PlaitError
from plait.ops.method import methods
from plait.planner.checkpoint import open_checkpoint, resolve_model
from plait.planner.recipe import load_recipe
from plait.planner.recipe_types import Recipe

#: Merges what a JSON object says: method, parameters, and the files of base and experts. Arguments: the object, the output's folder.
_DRIVER = """
import json, os, sys
import sd_mecha
w = json.loads(sys.argv[1])
os.makedirs(sys.argv[2], exist_ok=True)
experts = [sd_mecha.model(f) for f in w["experts"]]
base = sd_mecha.model(w["base"]) if w["base"] else None
deltas = [e - base for e in experts] if base is not None else []
total = lambda terms: sum(terms[1:], terms[0])
if w["method"] == "linear":
    merged = sd_mecha.n_average(*experts)
elif w["method"] == "task_arithmetic":
    merged = base + total([d * (w["lambda"] * k) for d, k in zip(deltas, w["weights"])])
elif w["method"] == "slerp":
    merged = sd_mecha.slerp(base, experts[0], alpha=w["t"])
elif w["method"] == "ties":
    merged = base + sd_mecha.ties_sum(*deltas, k=w["density"]) * w["lambda"]
else:
    merged = base + sd_mecha.model_stock(*deltas)
sd_mecha.merge(merged, output=os.path.join(sys.argv[2], "model.safetensors"))
"""
METHODS = ("linear", "task_arithmetic", "slerp", "ties", "model_stock")


def sd_mecha_words(venv: Path, recipe: Path) -> tuple[str, ...]:
    """The command line that merges as a recipe says, with `{out}` in it.

    Args:
        venv: virtual environment in which sd-mecha is installed.
        recipe: to merge.

    Raises:
        PlaitError: the environment has no Python, or sd-mecha cannot merge like this.
    """
    python = venv / "bin" / "python"
    if not python.exists():
        raise PlaitError(f"{venv} has no bin/python: make it with `python -m venv {venv}`, then install sd-mecha into it")
    return (str(python), "-c", _DRIVER, json.dumps(_wanted(load_recipe(recipe), recipe.resolve().parent)), "{out}")


def _wanted(recipe: Recipe, near: Path) -> dict[str, Any]:
    """The merge as data."""
    if recipe.method not in METHODS or recipe.sliced or recipe.steps:
        raise _cannot(recipe, f"its counterparts are {', '.join(METHODS)}, of whole models and without steps")
    written = yaml.safe_load(recipe.text)
    (part,) = recipe.parts
    names = [source.model.text for source in part.experts]
    own = [next(m.get("parameters") or {} for m in written["models"] if m["model"] == name) for name in names]
    overall = {"lambda": 1.0, "density": 1.0, **(written.get("parameters") or {})}
    weights = [p.get("weight", overall.get("weight", 1.0)) for p in own]
    densities = [p.get("density", overall["density"]) for p in own]
    numbers = [*weights, *densities, overall["lambda"], overall.get("t", 0.5)]
    if not all(isinstance(value, (int, float)) for value in numbers):
        raise _cannot(recipe, "it takes one number for all tensors")
    if len(set(densities)) > 1 or (recipe.method in ("linear", "ties") and len(set(weights)) > 1):
        raise _cannot(recipe, "it takes models of equal weight and density")
    base = recipe.base_model if methods()[recipe.method].base != "unused" else None
    facts = {"method": recipe.method, "weights": weights, "density": densities[0], "lambda": overall["lambda"], "t": overall.get("t", 0.5)}
    return {**facts, "base": _file(recipe, base.text, near) if base else None, "experts": [_file(recipe, name, near) for name in names]}


def _file(recipe: Recipe, model: str, near: Path) -> str:
    """The one file of a model."""
    files = open_checkpoint(resolve_model(model, near), model).files
    if len(files) != 1:
        raise _cannot(recipe, f"it reads models of one file, and {model} has {len(files)}")
    return files[0].path


def _cannot(recipe: Recipe, why: str) -> PlaitError:
    return PlaitError(f"{recipe.mark}: sd-mecha cannot merge as this recipe says: {why}; leave out --sd-mecha")
