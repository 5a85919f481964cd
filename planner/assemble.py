"""A recipe and the headers of its models become one job for each output tensor.

The output holds every tensor of the *donor*: `base_model`, else the first model. Nothing is left out in silence, and
everything that does not fit is found here, from headers alone, and told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

from plait.ops import method as registry
from plait.ops.dtypes import BY_CODE, BY_NAME
from plait.ops.errors import CheckpointError, PlanError, RecipeError
from plait.ops.method import Method
from plait.ops.statistics import Statistic
from plait.planner.checkpoint import resolve_model
from plait.planner.findings import Findings
from plait.planner.layers import infer_layers, layer_map, split
from plait.planner.parameters import Resolver
from plait.planner.recipe_types import ModelRef, Part, Recipe, Source, model_key
from plait.planner.sliced import add_slices
from plait.planner.statistics import Given, read_layer_file
from plait.planner.tensor_jobs import Group, JobBuilder
from plait.planner.tokenizer_check import check_same_tokenizer
from plait.planner.types import Checkpoint, Job


@dataclass(frozen=True, slots=True)
class Assembly:
    """Everything the output consists of.

    Attributes:
        jobs: in the donor's file order; sliced layers in output order.
        donor: the model that gives configuration and tokenizer.
        checkpoints: every model that is read, in recipe order.
        num_layers: the output's layer count where it differs from the donor's, else None.
        notes: what a user should know about how tensors were treated.
        dtype_name: dtype for the output's configuration.
        statistics: checkpoints of statistics that are read beside the models.
    """

    jobs: tuple[Job, ...]
    donor: Checkpoint
    checkpoints: tuple[Checkpoint, ...]
    num_layers: int | None
    notes: tuple[str, ...]
    dtype_name: str
    statistics: tuple[Checkpoint, ...] = ()


def assemble(
    recipe: Recipe,
    open: Callable[[str], Checkpoint],
    methods: Mapping[str, Method] | None = None,
    steps: Mapping[str, Method] | None = None,
    find: Callable[[str], Path] = resolve_model,
) -> Assembly:
    """The jobs of a recipe.

    Args:
        recipe: from `load_recipe`.
        open: gives a model's headers by the text in the recipe; called once for each model.
        find: gives the path of a file by the text in the recipe, for statistics that are no checkpoints.
        methods, steps: known methods and steps by name; by default plait's registry.

    Raises:
        RecipeError: layer ranges or settings do not hold for these models, or their tokenizers differ under `tokenizer_source`.
        CheckpointError: a model cannot be opened; the message begins with the recipe line that names it.
        PlanError: tensors do not fit together; one line for each kind of problem.
    """
    method = (registry.methods() if methods is None else methods)[recipe.method]
    known_steps = registry.steps() if steps is None else steps
    models = {model_key(ref.text): _open(open, ref) for ref in recipe.models()}
    donor = next(iter(models.values()))
    _check_tokenizers(recipe, models, open)
    groups = _groups(recipe, method, known_steps, models, donor)
    if method.statistics:
        groups = _with_statistics(recipe, method, groups, open, find)
    builder = JobBuilder(recipe, method, known_steps)
    num_layers = None
    if recipe.sliced:
        num_layers = add_slices(recipe, groups, donor, builder)
    else:
        _add_all(groups[0], donor, builder)
    builder.unset.raise_any(RecipeError)
    builder.problems.raise_any(PlanError)
    checkpoints = {model.path: model for group in groups for model in group.inputs}
    ordered = tuple({m.path: m for m in models.values() if m.path in checkpoints or m is donor}.values())
    dtype_name = _dtype_name(recipe, builder.jobs)
    notes = (*_base_notes(recipe), *builder.notes(), *_model_notes(recipe, donor, ordered, dtype_name))
    given = [known.source for group in groups for expert in group.statistics for known in expert]
    statistics = {source.path: source for source in given if isinstance(source, Checkpoint) and source.path not in checkpoints}
    return Assembly(tuple(builder.jobs), donor, ordered, num_layers, notes, dtype_name, tuple(statistics.values()))


def _open(open: Callable[[str], Checkpoint], ref: ModelRef) -> Checkpoint:
    try:
        return open(ref.text)
    except CheckpointError as error:
        raise type(error)(f"{ref.mark}: {error.message}", **error.facts) from error


def _check_tokenizers(recipe: Recipe, models: Mapping[str, Checkpoint], open: Callable[[str], Checkpoint]) -> None:
    source = recipe.tokenizer_source
    if source is None:
        return
    compared = list(models.values())
    if source.text not in ("base", "union") and model_key(source.text) not in models:
        compared.append(_open(open, source))
    check_same_tokenizer(tuple(compared), source.text, source.mark)


def _groups(recipe: Recipe, method: Method, steps: Mapping[str, Method], models: Mapping[str, Checkpoint], donor: Checkpoint) -> list[Group]:
    """For each part its models and parameters."""
    problems = Findings()
    step_base = any(steps[use.name].base != "unused" for use in recipe.steps)
    groups = []
    for part in recipe.parts:
        base_ref = _base_of(part, recipe, method, step_base)
        base = models[model_key(base_ref.text)] if base_ref is not None else None
        experts = tuple(models[model_key(source.model.text)] for source in part.experts)
        merges_base = base is not None and _merges_base(part, recipe, method)
        if merges_base and base is not None and part.base is None:
            _check_spelling(part.experts, experts, base, problems)
        own = [source.settings for source in part.experts]
        resolver = Resolver(method.params, (part.settings, recipe.settings), own)
        inputs = experts if base is None else (*experts, base)
        home = donor if not recipe.sliced else base if merges_base and base is not None else experts[0]
        reference = next((i for i, model in enumerate(inputs) if model is home), 0)
        mark = part.mark if recipe.sliced else recipe.mark
        groups.append(Group(experts, base, reference, resolver, mark, inputs, tuple(m.label for m in experts)))
    problems.raise_any(RecipeError)
    return groups


def _with_statistics(recipe: Recipe, method: Method, groups: Sequence[Group], open: Callable[[str], Checkpoint], find: Callable[[str], Path]) -> list[Group]:
    """The groups with what the recipe gives of each expert beside its weights."""
    opened: dict[tuple[str, str], Given] = {}

    def given(statistic: Statistic, source: Source) -> Given:
        ref = source.statistics[statistic.name]
        key = (statistic.kind, model_key(ref.text))
        if key not in opened:
            try:
                read = open(ref.text) if statistic.kind == "tensors" else read_layer_file(find(ref.text), ref.text)
            except CheckpointError as error:
                raise type(error)(f"{ref.mark}: {error.message}", **error.facts) from error
            opened[key] = Given(statistic.name, read, ref.mark)
        return replace(opened[key], name=statistic.name, mark=ref.mark)

    found = []
    for part, group in zip(recipe.parts, groups, strict=True):
        found.append(replace(group, statistics=tuple(tuple(given(s, source) for s in method.statistics) for source in part.experts)))
    return found


def _merges_base(part: Part, recipe: Recipe, method: Method) -> bool:
    """Whether the method itself uses the base here; as in mergekit, an optional base of a slice must be among its sources."""
    if method.base == "unused" or part.base_model is None:
        return False
    return method.base == "required" or not recipe.sliced or part.base is not None


def _base_of(part: Part, recipe: Recipe, method: Method, for_steps: bool) -> ModelRef | None:
    if _merges_base(part, recipe, method):
        return part.base_model
    return (part.base_model or recipe.step_base()) if for_steps else None


def _check_spelling(sources: Iterable[Source], experts: Iterable[Checkpoint], base: Checkpoint, problems: Findings) -> None:
    for source, expert in zip(sources, experts, strict=True):
        if expert.path == base.path:
            message = f"{source.model.text} is the base_model ({base.label}) under another name; write both the same way"
            problems.add(("spelling", source.model.text), message, source.model.mark)


def _add_all(group: Group, donor: Checkpoint, builder: JobBuilder) -> None:
    """`models:`: every tensor of the donor, merged with its namesakes."""
    places = list(map(split, donor.tensors))
    layers = layer_map(places)
    where = layers.positions()
    others = [m for m in {model.path: model for model in group.inputs}.values() if m.tensors.keys() != donor.tensors.keys()]
    for other in others:
        count = len(infer_layers(other.tensors).stacks.get(layers.main or "", ()))
        if count not in (0, layers.count()):
            what = f"{donor.label} has {layers.count()} layers and {other.label} has {count}"
            builder.problems.add(("layers", other.path), f"{what}; models of different depth need slices: with a layer_range for each")
    size = len(group.inputs)
    for name, place in zip(donor.tensors, places, strict=True):
        if place is None:
            builder.add(name, group, (name,) * size, 0.0, None, name)
        else:
            builder.add(name, group, (name,) * size, where[place[:2]], place[1], place[2])
    for other in others:
        builder.left_out(other, [name for name in other.tensors if name not in donor.tensors], donor)


def _base_notes(recipe: Recipe) -> list[str]:
    return [
        f"{part.base.mark}: the parameters of {part.base.model.text} have no effect, since it is the base"
        for part in recipe.parts
        if part.base and part.base.settings
    ]


def _model_notes(recipe: Recipe, donor: Checkpoint, models: Iterable[Checkpoint], dtype_name: str) -> list[str]:
    notes = []
    if not donor.config:
        notes.append(f"{donor.label} has no config.json, so the output has none: other tools may need one to load it")
    stored = {m.label: sorted({code for code in set(map(attrgetter("dtype"), m.tensors.values())) if BY_CODE[code].kind == "f"}) for m in models}
    if not recipe.dtype and not recipe.out_dtype and len(set(map(tuple, stored.values()))) > 1:
        listed = ", ".join(f"{label} {' and '.join(BY_CODE[code].name for code in codes) or 'no floats'}" for label, codes in stored.items())
        notes.append(
            f"models are stored in different dtypes ({listed}); each tensor is written in the widest of its inputs, {dtype_name} in most: give dtype to choose"
        )
    return notes


def _dtype_name(recipe: Recipe, jobs: list[Job]) -> str:
    given = recipe.out_dtype or recipe.dtype
    if given:
        return BY_NAME[given].name
    sizes: dict[str, int] = {}
    for job in jobs:
        if BY_CODE[job.dtype].kind != "i":
            sizes[job.dtype] = sizes.get(job.dtype, 0) + job.experts[0].nbytes
    return BY_CODE[max(sizes, key=lambda code: sizes[code], default="F32")].name
