"""`slices:`: output layers taken from layer ranges of models, renumbered in order.

What lies outside the layers comes, as in mergekit, from the first slice's models where it reads the input (embeddings)
and from the last slice's models otherwise (final norm, head); from all of them, where mergekit drops some.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plait.ops.errors import RecipeError
from plait.planner.findings import Findings
from plait.planner.layers import infer_layers, reads_input, split
from plait.planner.recipe_types import Part, Recipe, Source, model_key
from plait.planner.tensor_jobs import Group, JobBuilder
from plait.planner.types import Checkpoint


@dataclass(frozen=True, slots=True)
class Layered:
    """A model with one stack of layers.

    Attributes:
        stack: what stands before the layer number in names.
        layers: number -> the rests of its tensors' names, in file order.
        before, after: names outside the layers, by where they stand in the file.
    """

    stack: str
    layers: dict[int, tuple[str, ...]]
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of layers, by the highest number."""
        return max(self.layers) + 1

    def name(self, layer: int, rest: str) -> str:
        """Full name of a tensor of a layer."""
        return f"{self.stack}.{layer}.{rest}" if rest else f"{self.stack}.{layer}"


def add_slices(recipe: Recipe, groups: Sequence[Group], donor: Checkpoint, builder: JobBuilder) -> int | None:
    """Add the jobs of a recipe with slices.

    Returns:
        The output's number of layers where it differs from the donor's.

    Raises:
        RecipeError: a model has no single stack of layers, or a range reaches beyond its model.
    """
    models = {model.path: model for model in (donor, *(m for group in groups for m in group.inputs))}
    problems = Findings()
    layered = {path: _layered(model, recipe, problems) for path, model in models.items()}
    problems.raise_any(RecipeError)
    known = {path: found for path, found in layered.items() if found is not None}
    starts = [_starts(part, group, known, problems) for part, group in zip(recipe.parts, groups, strict=True)]
    home = known[donor.path]
    for path, found in known.items():
        if found.stack != home.stack:
            what = f"{models[path].label} names its layers {found.stack}.N but {donor.label} names them {home.stack}.N"
            problems.add(("stack", path), f"{what}; only models of one architecture can be merged", recipe.mark)
    problems.raise_any(RecipeError)
    for name in home.before:
        _add_outside(name, groups, builder)
    total = _add_layers(recipe, groups, starts, known, builder)
    for name in home.after:
        _add_outside(name, groups, builder)
    _outside_left(groups, donor, known, builder)
    return total if total != home.count else None


def _layered(model: Checkpoint, recipe: Recipe, problems: Findings) -> Layered | None:
    found = infer_layers(model.tensors)
    if len(found.stacks) != 1 or found.main is None:
        what = (
            "no layers that its tensors' names tell of" if not found.stacks else f"{len(found.stacks)} stacks of layers ({', '.join(sorted(found.stacks)[:4])})"
        )
        problems.add(("stacks", model.path), f"slices need models with one stack of layers, and {model.label} has {what}; use models: instead", recipe.mark)
        return None
    layers: dict[int, list[str]] = {}
    before: list[str] = []
    after: list[str] = []
    for name in model.tensors:
        place = split(name)
        if place is None:
            (after if layers else before).append(name)
        else:
            layers.setdefault(place[1], []).append(place[2])
    return Layered(found.main, {number: tuple(rests) for number, rests in layers.items()}, tuple(before), tuple(after))


def _starts(part: Part, group: Group, known: dict[str, Layered], problems: Findings) -> tuple[int, ...]:
    """First layer of each of the group's inputs."""
    ranges = [_checked(source, model, known, problems) for source, model in zip(part.experts, group.experts, strict=True)]
    if group.base is not None:
        wanted = part.base or next((s for s in part.sources if part.base_model and model_key(s.model.text) == model_key(part.base_model.text)), None)
        if wanted is not None:
            ranges.append(_checked(wanted, group.base, known, problems))
        elif len(set(ranges)) > 1:
            what = f"the base {group.base.label} is not among this slice's sources, whose layer ranges differ"
            problems.add(("base", part.mark), f"{what}; list it with the layer_range it has here", part.mark)
        elif ranges[0][1] > known[group.base.path].count:
            what = f"the layers [{ranges[0][0]}, {ranges[0][1]}] reach beyond the {known[group.base.path].count} layers of the base {group.base.label}"
            problems.add(("range", part.mark), what, part.mark)
        else:
            ranges.append(ranges[0])
    return tuple(start for start, _ in ranges)


def _checked(source: Source, model: Checkpoint, known: dict[str, Layered], problems: Findings) -> tuple[int, int]:
    start, end = source.layer_range or (0, 0)
    have = known[model.path]
    if end > have.count:
        what = f"layer_range [{start}, {end}] reaches beyond the {have.count} layers of {source.model.text}, numbered 0 to {have.count - 1}"
        problems.add(("range", source.mark), f"{what}; END is not included, so it may be {have.count} at most", source.mark)
    elif gap := [n for n in range(start, end) if n not in have.layers]:
        problems.add(("gap", source.mark), f"{source.model.text} has no layer {gap[0]}, which layer_range [{start}, {end}] includes", source.mark)
    return start, end


def _add_layers(recipe: Recipe, groups: Sequence[Group], starts: Sequence[tuple[int, ...]], known: dict[str, Layered], builder: JobBuilder) -> int:
    out = 0
    for part, group, first in zip(recipe.parts, groups, starts, strict=True):
        span = next((s.layer_range for s in part.sources if s.layer_range), (0, 0))
        length = span[1] - span[0]
        views = [known[model.path] for model in group.inputs]
        for offset in range(length):
            numbers = [start + offset for start in first]
            rests = views[group.reference].layers[numbers[group.reference]]
            t = offset / (length - 1) if length > 1 else 1.0
            for rest in rests:
                names = tuple([view.name(number, rest) for view, number in zip(views, numbers, strict=True)])
                builder.add(views[group.reference].name(out, rest), group, names, t, out, rest)
            reference = group.inputs[group.reference]
            for model, view, number in zip(group.inputs, views, numbers, strict=True):
                extra = [view.name(number, rest) for rest in view.layers[number] if rest not in rests] if model is not reference else []
                builder.left_out(model, extra, reference)
            out += 1
    return out


def _add_outside(name: str, groups: Sequence[Group], builder: JobBuilder) -> None:
    group = groups[0] if reads_input(name) else groups[-1]
    builder.add(name, group, (name,) * len(group.inputs), 0.0, None, name)


def _outside_left(groups: Sequence[Group], donor: Checkpoint, known: dict[str, Layered], builder: JobBuilder) -> None:
    for group, reads in ((groups[0], True), (groups[-1], False)):
        for model in {m.path: m for m in group.inputs}.values():
            view = known[model.path]
            extra = [name for name in (*view.before, *view.after) if name not in donor.tensors and reads_input(name) == reads]
            builder.left_out(model, extra, donor)
