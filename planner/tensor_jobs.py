"""One output tensor at a time: find its inputs, check that they fit together, resolve its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plait.ops.dtypes import BY_CODE, BY_NAME, promote
from plait.ops.method import Method
from plait.ops.statistics import LayerScore
from plait.planner.findings import Findings
from plait.planner.layers import holds_vocabulary, rest_role, role, split
from plait.planner.parameters import MissingValue, Params, Resolver
from plait.planner.recipe_types import Recipe
from plait.planner.statistics import Given, LayerFile, tensor_of
from plait.planner.types import Checkpoint, Job, Mark, StepCall, TensorRef

#: Integer codes in which quantised weights are packed.
_PACKED = frozenset(("I8", "U8", "I32"))
_INTEGERS = frozenset(code for code, dtype in BY_CODE.items() if dtype.kind == "i")


@dataclass(frozen=True, slots=True)
class Group:
    """The models that make one part of the output.

    Attributes:
        experts: in recipe order.
        base: what jobs carry as base, for the method or for steps; or None.
        reference: index in `inputs` of the model whose shapes the others are compared with.
        resolver: of the method's parameters.
        mark: recipe line to name.
        inputs: every model that is read: the experts, then the base.
        labels: the experts'.
        statistics: for each expert what is known of it, in the method's order.
    """

    experts: tuple[Checkpoint, ...]
    base: Checkpoint | None
    reference: int
    resolver: Resolver
    mark: Mark
    inputs: tuple[Checkpoint, ...]
    labels: tuple[str, ...]
    statistics: tuple[tuple[Given, ...], ...] = ()


class JobBuilder:
    """Builds the jobs of one recipe and gathers what is wrong and what is worth saying."""

    def __init__(self, recipe: Recipe, method: Method, steps: Mapping[str, Method]) -> None:
        """For one recipe and its method."""
        self.jobs: list[Job] = []
        self.problems, self.unset = Findings(), Findings()
        self.integers: dict[str, list[str]] = {}
        self.tied: dict[tuple[str, str], str] = {}
        self.extra: dict[tuple[str, str], list[str]] = {}
        self._method = method
        self._load = BY_NAME[recipe.dtype].code if recipe.dtype else None
        self._store = BY_NAME[recipe.out_dtype].code if recipe.out_dtype else None
        self._steps = [(use.name, Resolver(steps[use.name].params, (use.settings,), ()), use.mark) for use in recipe.steps]
        self._fitting: dict[tuple[tuple[str, ...], bool], tuple[str, str | None]] = {}
        self._heads: dict[str, TensorRef | None] = {}

    def add(self, output: str, group: Group, names: Sequence[str], t: float, layer: int | None, rest: str) -> None:
        """One output tensor.

        Args:
            output: its name.
            group: the models it is made from.
            names: what each of `group.inputs` calls it.
            t: place in the layers, for gradients.
            layer: output layer number.
            rest: what follows the layer's number in the name; all of it outside the layers.
        """
        models = group.inputs
        found = [model.tensors.get(name) for model, name in zip(models, names, strict=True)]
        if None in found:
            found = [ref or self._tied(model, name) for ref, model, name in zip(found, models, names, strict=True)]
        kept = found[group.reference]
        if kept is not None and kept.dtype in _INTEGERS:
            self._copy(output, group, names, t, found, layer)
            return
        refs = [ref for ref in found if ref is not None]
        if len(refs) < len(found):
            self._missing(output, models, found)
            return
        params = self._params(output, group, names, t)
        if params is None or not self._fit(output, group, refs):
            return
        plain = self._is_plain(params)
        dtypes = self._fitting.get((tuple([ref.dtype for ref in refs]), plain)) or self._dtypes(output, models, refs, plain)
        if dtypes is None:
            return
        known = self._statistics(group, names, refs) if group.statistics else ((), ())
        if known is None:
            return
        count = len(group.experts)
        self.jobs.append(
            Job(
                output,
                refs[0].shape,
                dtypes[0],
                self._method.name,
                params,
                refs[count] if group.base is not None else None,
                tuple(refs[:count]),
                group.labels,
                dtypes[1],
                self._step_calls(output, t) if self._steps else (),
                rest_role(rest, layer is not None),
                layer,
                group.mark,
                *known,
            )
        )

    def left_out(self, model: Checkpoint, names: Sequence[str], donor: Checkpoint) -> None:
        """Remember tensors of a model that the output does not hold."""
        if names:
            self.extra.setdefault((model.label, donor.label), []).extend(names)

    def notes(self) -> list[str]:
        """What a user should know about how tensors were treated."""
        notes = [f"{_count(names, 'integer tensor')} copied from {label}: {_some(names)}" for label, names in self.integers.items()]
        notes += [f"{label} ties its head to its embedding: its {source} is merged as {name}" for (label, name), source in self.tied.items()]
        for (label, donor), names in self.extra.items():
            notes.append(f"left out {_count(list(dict.fromkeys(names)), 'tensor')} of {label} that {donor} does not have: {_some(list(dict.fromkeys(names)))}")
        return notes

    # -- values -------------------------------------------------------------------------------

    def _params(self, output: str, group: Group, names: Sequence[str], t: float) -> Params | None:
        try:
            return group.resolver(output, names, t)
        except MissingValue as gap:
            owner = f"{group.experts[gap.expert].label} has" if gap.expert is not None else "there is"
            advice = f"add a value without filter after the filtered ones of {gap.param}"
            self.unset.add((gap.param, gap.expert, group.mark), f"{owner} no {gap.param} for tensor {output!r}: no filter matches it; {advice}", group.mark)
            return None

    def _statistics(self, group: Group, names: Sequence[str], refs: Sequence[TensorRef]) -> tuple[tuple[TensorRef, ...], tuple[LayerScore, ...]] | None:
        """What is known of one tensor of each expert; None where something is missing."""
        tensors: list[TensorRef] = []
        scores: list[LayerScore] = []
        complete = True
        for kind in zip(*group.statistics, strict=True):  # one statistic, an expert each
            for i, given in enumerate(kind):
                owner = len(group.experts) if given.name.startswith("base_") and group.base is not None else i
                found: TensorRef | LayerScore | str
                if isinstance(given.source, LayerFile):
                    found = given.source.score(names[i]) or f"tensor {names[i]!r} belongs to no layer of {given.source.label}; add it, or its layer"
                else:
                    found = tensor_of(given, (names[owner], refs[owner].name), refs[owner].shape, group.inputs[owner].label)
                if isinstance(found, str):
                    self.problems.add((given.name, given.source.label), found, given.mark)
                    complete = False
                elif isinstance(found, LayerScore):
                    scores.append(found)
                else:
                    tensors.append(found)
        return (tuple(tensors), tuple(scores)) if complete else None

    def _step_calls(self, output: str, t: float) -> tuple[StepCall, ...]:
        calls = []
        for name, resolver, mark in self._steps:
            try:
                calls.append(StepCall(name, resolver(output, (), t)))
            except MissingValue as gap:
                self.unset.add((name, gap.param), f"the step {name} has no {gap.param} for tensor {output!r}: no filter matches it", mark)
        return tuple(calls)

    def _is_plain(self, params: Params) -> bool:
        """Whether a tensor goes through unchanged but for its dtype."""
        return self._method.name == "passthrough" and not self._steps and all(value is None or value == (None,) for key, value in params if key == "scale")

    # -- dtypes -------------------------------------------------------------------------------

    def _dtypes(self, output: str, models: Sequence[Checkpoint], refs: Sequence[TensorRef], plain: bool) -> tuple[str, str | None] | None:
        """Storage dtype of the output and dtype that inputs are rounded to on load; None where there is a problem."""
        codes = tuple([ref.dtype for ref in refs])
        stored = self._store or self._load or (codes[0] if len(set(codes)) == 1 else "")
        ok = True
        for model, ref in zip(models, refs, strict=True):
            kind = BY_CODE[ref.dtype].kind
            if kind == "i":
                self.problems.add(
                    ("int", model.path),
                    f"tensor {output!r} of {model.label} holds integers ({ref.dtype}), but other models hold floats there; use models of one kind",
                )
                ok = False
            elif kind == "q" and not (plain and stored == ref.dtype):
                name = BY_CODE[ref.dtype].name
                advice = "remove dtype and out_dtype to copy it" if plain else "use the model's unquantised weights"
                self.problems.add(
                    ("q", model.path, plain), f"tensor {output!r} of {model.label} is quantised ({name}), which can only be copied unchanged; {advice}"
                )
                ok = False
            elif ref.dtype == "F64" and self._load is None and not (plain and stored == "F64"):
                self.problems.add(
                    ("F64", model.path), f"tensor {output!r} of {model.label} is float64, which is not computed on; set dtype: float32 in the recipe"
                )
                ok = False
        if not ok:
            return None
        load = self._load if self._load is not None and any(code != self._load for code in codes) else None
        known = self._fitting[codes, plain] = stored or promote(list(codes)), load
        return known

    def _copy(self, output: str, group: Group, names: Sequence[str], t: float, found: Sequence[TensorRef | None], layer: int | None) -> None:
        """Integers are not merged: the reference's are kept."""
        model, reference = group.inputs[group.reference], found[group.reference]
        if reference is None:
            return
        for other, ref in zip(group.inputs, found, strict=True):
            if ref is not None and BY_CODE[ref.dtype].kind != "i":
                what = f"holds integers ({reference.dtype}) in {model.label} but {ref.dtype} in {other.label}"
                self.problems.add(("int", other.path), f"tensor {output!r} {what}; use models of one kind")
                return
        if "quantization_config" in model.config and reference.dtype in _PACKED and len(reference.shape) > 1:
            params = self._params(output, group, names, t)
            if params is None or not self._is_plain(params):
                what = f"of {model.label} holds packed quantised weights ({reference.dtype})"
                self.problems.add(("packed", model.path), f"tensor {output!r} {what}, which can only be copied unchanged; use the model's unquantised weights")
                return
        self.integers.setdefault(model.label, []).append(output)
        self.jobs.append(
            Job(output, reference.shape, reference.dtype, "copy", (), None, (reference,), (model.label,), role=role(output), layer=layer, mark=group.mark)
        )

    # -- presence and shape -------------------------------------------------------------------

    def _tied(self, model: Checkpoint, name: str) -> TensorRef | None:
        """The embedding of a model that ties its head to it, where `name` is that head's weight."""
        if not name.endswith("weight") or role(name) != "head" or not _ties(model):
            return None
        if model.path not in self._heads:
            names = (n for n in model.tensors if n.endswith("weight") and role(n) == "embedding" and holds_vocabulary(n) and split(n) is None)
            first = next(names, None)
            self._heads[model.path] = model.tensors[first] if first is not None else None
        ref = self._heads[model.path]
        if ref is not None:
            self.tied[model.label, name] = ref.name
        return ref

    def _missing(self, output: str, models: Sequence[Checkpoint], found: Sequence[TensorRef | None]) -> None:
        has = next((model.label for model, ref in zip(models, found, strict=True) if ref is not None), None)
        for model, ref in zip(models, found, strict=True):
            if ref is None:
                where = f"is in {has} but not in {model.label}" if has else f"belongs to the output but is not in {model.label}"
                self.problems.add(("missing", model.path), f"tensor {output!r} {where}; only models with the same tensors can be merged")

    def _fit(self, output: str, group: Group, refs: Sequence[TensorRef]) -> bool:
        ok = True
        reference, home = refs[group.reference], group.inputs[group.reference]
        if [ref.shape for ref in refs].count(reference.shape) == len(refs):  # nearly always; asked for every tensor
            return True
        for model, ref in zip(group.inputs, refs, strict=True):
            if ref.shape == reference.shape:
                continue
            ok = False
            a, b = reference.shape, ref.shape
            if holds_vocabulary(output) and len(a) == len(b) > 0 and a[1:] == b[1:]:
                what = f"the vocabulary sizes differ: {a[0]} in {home.label} and {b[0]} in {model.label}"
                self.problems.add(("vocabulary", model.path, output), f"tensor {output!r}: {what}; merge models that share one tokenizer")
            else:
                what = f"{model.label} has shape {list(b)} but {home.label} has {list(a)}"
                self.problems.add(("shape", model.path), f"tensor {output!r}: {what}; only models of one architecture and size can be merged")
        return ok


def _ties(model: Checkpoint) -> bool:
    nested = model.config.get("text_config")
    return model.config.get("tie_word_embeddings") is True or (isinstance(nested, dict) and nested.get("tie_word_embeddings") is True)


def _count(names: list[str], what: str) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
