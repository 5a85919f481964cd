"""A method as a recipe over given models, with the parameters of its example: what `plait bench methods` runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from plait.ops.method import Method


def recipe_of(
    method: Method,
    base: Path,
    experts: Sequence[Path],
    statistics: Mapping[str, Sequence[Path]] | None = None,
    dtype: str = "bfloat16",
) -> dict[str, Any]:
    """The recipe of a method, as the data that its YAML means.

    Args:
        method: of the catalogue; a step follows the average of the experts.
        base: path of the base model; left out where the method uses none.
        experts: paths of the experts; those beyond what the method takes are left out.
        statistics: for each statistic that the method is given, a path an expert.
        dtype: of the output.
    """
    each, overall = example_parameters(method)
    own = {"weight": 1.0} if method.is_step else each
    entries: list[dict[str, Any]] = []
    for number, expert in enumerate(experts[: method.experts[1]]):
        entry: dict[str, Any] = {"model": str(expert), **{name: str(paths[number]) for name, paths in (statistics or {}).items()}}
        entries.append({**entry, "parameters": own} if own else entry)
    recipe: dict[str, Any] = {"merge_method": "linear" if method.is_step else method.name, "models": entries, "dtype": dtype}
    if method.is_step:
        step = {"method": method.name, "base_model": str(base)}
        return {**recipe, "steps": [{**step, "parameters": overall} if overall else step]}
    if method.base == "required":
        recipe["base_model"] = str(base)
    return {**recipe, "parameters": overall} if overall else recipe


def example_parameters(method: Method) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of each expert and of the merge: those of the method's example, and required ones by their default."""
    given = {name: yaml.safe_load(text) for name, text in method.parts.example}
    each: dict[str, Any] = {}
    overall: dict[str, Any] = {}
    for p in method.params:
        if p.name in given or p.required:
            (each if p.per_expert else overall)[p.name] = given.get(p.name, p.default)
    return each, overall
