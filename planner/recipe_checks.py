"""Whether a recipe uses its method as the method allows: base, number of models, required parameters."""

from __future__ import annotations

from collections.abc import Mapping

from plait.ops.method import Method, nearest
from plait.planner import yaml_source as ys
from plait.planner.recipe_types import Part, Recipe, model_key


def check_use(recipe: Recipe, method: Method, steps: Mapping[str, Method], problems: ys.Problems) -> None:
    """Add to `problems` where the recipe and its merge method do not fit together."""
    if method.base == "unused":
        _unused_base(recipe, method, any(steps[s.name].base != "unused" for s in recipe.steps if s.name in steps), problems)
    for part in recipe.parts:
        if not part.sources:
            continue  # already said
        if method.base == "required" and part.base_model is None:
            role = "one of its two models" if method.endpoint_base else "the model the others were fine-tuned from"
            problems.add(part.mark if recipe.sliced else recipe.mark, f"{method.name} needs base_model; name {role}")
        else:
            _count(part, method, problems)
        _required_per_model(part, recipe, method, problems)
        _statistics(part, method, problems)
        for param in method.params:
            if param.required and not param.per_expert and not any(param.name in level for level in (part.settings, recipe.settings)):
                problems.add(recipe.mark, f"{method.name} needs the parameter {param.name!r}; give it under the recipe's parameters")


def _unused_base(recipe: Recipe, method: Method, needed: bool, problems: ys.Problems) -> None:
    """mergekit adds such a base as one more model; under `slices:` it only gives config and tokenizer."""
    base = recipe.base_model
    if base is None or needed or recipe.sliced:
        return
    if any(model_key(s.model.text) == model_key(base.text) for part in recipe.parts for s in part.sources):
        return
    weight = next((f" with a {p.name}" for p in method.params if p.per_expert and p.required), "")
    what = f"{method.name} uses no base, and base_model {base.text} is not among the models"
    problems.add(base.mark, f"{what}; list it under models{weight}, or remove base_model")


def _count(part: Part, method: Method, problems: ys.Problems) -> None:
    low, high = method.experts
    count = len(part.experts)
    if count >= low and (high is None or count <= high):
        return
    if method.endpoint_base and part.base is None and part.base_model is not None and count == low + 1:
        problems.add(part.base_model.mark, f"base_model {part.base_model.text} must be one of the two models that {method.name} takes")
        return
    allowed = f"exactly {low}" if low == high else f"at least {low}" if high is None else f"{low} to {high}"
    allowed += " model" if allowed.endswith(" 1") else " models"
    beside = " besides base_model" if method.base == "required" else ""
    problems.add(part.mark, f"{method.name} takes {allowed}{beside}, and {count} {'is' if count == 1 else 'are'} listed")


def _required_per_model(part: Part, recipe: Recipe, method: Method, problems: ys.Problems) -> None:
    for param in method.params:
        if not (param.required and param.per_expert) or param.name in part.settings or param.name in recipe.settings:
            continue
        for source in part.experts:
            if param.name not in source.settings:
                where = "under this model's parameters, or for all models under the recipe's parameters"
                problems.add(source.model.mark, f"{source.model.text} has no {param.name}, which {method.name} needs; give it {where}")


def _statistics(part: Part, method: Method, problems: ys.Problems) -> None:
    """Every expert has what the method is given beside the weights, and nothing has what it does not use."""
    needed = {statistic.name: statistic for statistic in method.statistics}
    for source in part.sources:
        for name, ref in source.statistics.items():
            if source is part.base:
                problems.add(ref.mark, f"{source.model.text} is the base, whose {name} has no effect; remove it")
            elif name not in needed:
                problems.add(ref.mark, f"{method.name} takes no {name}{nearest(name, needed) or '; remove it'}")
    for source in part.experts:
        for name, statistic in needed.items():
            if name not in source.statistics:
                kind = "a checkpoint with a tensor for each of the model's" if statistic.kind == "tensors" else "a JSON file of layers"
                problems.add(source.model.mark, f"{source.model.text} has no {name}, which {method.name} needs; write '{name}: PATH' beside it, {kind}")
