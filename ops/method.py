"""The registry of merge methods and of steps after a merge.

A method is a short function in lazy algebra, declared with its typed parameters:

    @method("task_arithmetic", family="task vectors", base="required", source="Ilharco et al. 2023", params=(WEIGHT, LAMBDA))
    def task_arithmetic(t, *, weight, lam): ...

`t` is a `MergeInputs`: the base, the experts and their deltas for one tensor, as `LazyTensor`s. The docstring is the method's page in the
catalogue: a summary, the formula, and headings that `plait.ops.method_doc` describes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from plait.ops.errors import PlaitError
from plait.ops.method_doc import MethodDoc, parse_doc
from plait.ops.statistics import Statistic


@dataclass(frozen=True, slots=True)
class Param:
    """One typed, documented parameter of a method.

    Attributes:
        name: its key in a recipe (`lambda`, `density`).
        type: `float`, `int`, `bool`, `str` or `list` (a list of strings).
        doc: one sentence on what it does.
        default: value where the recipe is silent; `None` allows leaving it out.
        per_expert: True where each model has its own value (recipes: `models[].parameters`).
        required: a recipe must give it (Python calls use `default`).
        low, high: inclusive bounds, where there are any.
        choices: the allowed words of a `str`.
        gradient: whether a list of numbers means interpolation over the layers.
        python: keyword in Python, where it differs from `name` (`lam` for `lambda`).
        reads: the value names a file of names; a method gets what is in it, `((name, score or None), ...)`.
    """

    name: str
    type: type
    doc: str
    default: Any = None
    per_expert: bool = False
    required: bool = False
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    gradient: bool = True
    python: str = ""
    reads: bool = False

    @property
    def keyword(self) -> str:
        """Its name in Python."""
        return self.python or self.name

    def check(self, value: Any) -> Any:
        """`value` as this parameter's type.

        Raises:
            ValueError: wrong type, out of bounds or not among the choices; the sentence says which.
        """
        if value is None and self.default is None and not self.required:
            return None
        if self.type in (float, int):
            return self._number(value)
        if self.type is list:
            if isinstance(value, str):
                value = [value]
            if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
                raise ValueError(f"{self.name} must be a list of names, not {value!r}")
            return tuple(value)
        if not isinstance(value, self.type):
            raise ValueError(f"{self.name} must be {_ARTICLE[self.type]}, not {value!r}")
        if self.choices and value not in self.choices:
            raise ValueError(f"{self.name} must be one of {', '.join(self.choices)}, not {value!r}{nearest(str(value), self.choices)}")
        return value

    def _number(self, value: Any) -> float | int:
        if isinstance(value, str):  # YAML 1.1 reads 1e-5 as text
            try:
                value = float(value)
            except ValueError:
                raise ValueError(f"{self.name} must be a number, not {value!r}") from None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{self.name} must be a number, not {value!r}")
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{self.name} must be finite, not {value!r}")
        if self.type is int and value != int(value):
            raise ValueError(f"{self.name} must be a whole number, not {value!r}")
        low, high = self.low, self.high
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = (
                f"between {low:g} and {high:g}" if low is not None and high is not None else f"at least {low:g}" if low is not None else f"at most {high:g}"
            )
            raise ValueError(f"{self.name} must be {bounds}, not {value:g}")
        return int(value) if self.type is int else float(value)


_ARTICLE = {bool: "true or false", str: "a word"}


@dataclass(frozen=True, slots=True)
class Method:
    """A registered merge method, or a step after any merge.

    Attributes:
        name: its name in recipes.
        build: `(MergeInputs, **parameters) -> LazyTensor`; a step also takes the merged tensor second.
        family: group in the catalogue.
        base: `required`, `optional` (used where given) or `unused`.
        experts: smallest and largest number of experts (`None`: no limit). The base does not count.
        endpoint_base: the base is itself one of the two models being interpolated (slerp).
        params: its parameters.
        source: paper and section.
        summary: one line for the catalogue.
        kinds: op kinds it is built of.
        uses_name: the expression depends on the tensor's name or role, not on its shape alone.
        statistics: what it is given of every expert beside its weights.
        symmetric: the order of the experts does not matter to the result.
    """

    name: str
    build: Callable[..., Any]
    family: str
    base: Literal["required", "optional", "unused"]
    experts: tuple[int, int | None]
    params: tuple[Param, ...]
    source: str
    summary: str
    doc: str
    kinds: tuple[str, ...]
    endpoint_base: bool = False
    uses_name: bool = False
    symmetric: bool = True
    statistics: tuple[Statistic, ...] = ()
    is_step: bool = False

    @property
    def parts(self) -> MethodDoc:
        """Its docstring, in parts."""
        return parse_doc(self.doc)

    def param(self, name: str) -> Param | None:
        """The parameter called `name` in recipes, or None."""
        return next((p for p in self.params if p.name == name), None)


_METHODS: dict[str, Method] = {}
_STEPS: dict[str, Method] = {}


def method(name: str, **facts: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the merge method `name`; `facts` are fields of `Method`."""
    return _register(_METHODS, name, facts, is_step=False)


def step(name: str, **facts: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as a step that follows any merge."""
    return _register(_STEPS, name, facts, is_step=True)


def _register(table: dict[str, Method], name: str, facts: dict[str, Any], *, is_step: bool) -> Callable[..., Any]:
    def add(build: Callable[..., Any]) -> Callable[..., Any]:
        if name in table and table[name].build.__module__ != build.__module__:
            raise ValueError(f"a method called {name!r} is there already, from {table[name].build.__module__}; give this one another name")
        doc = (build.__doc__ or "").strip()
        table[name] = Method(name=name, build=build, doc=doc, summary=doc.split("\n", 1)[0], is_step=is_step, **facts)
        return build

    return add


class _Registered(Mapping[str, Method]):
    """Methods by name. Those of other packages are looked for when a name is none of plait's own, or all are wanted: that takes 30 ms."""

    def __init__(self, table: dict[str, Method]) -> None:
        import plait.ops.methods  # noqa: F401  registers plait's own

        self._table = table

    def __getitem__(self, name: str) -> Method:
        if name not in self._table:
            _load()
        return self._table[name]

    def __iter__(self) -> Iterator[str]:
        _load()
        return iter(dict(self._table))

    def __len__(self) -> int:
        _load()
        return len(self._table)


def methods() -> Mapping[str, Method]:
    """Every merge method by name: plait's own and those of installed packages (entry point `plait.methods`)."""
    return _Registered(_METHODS)


def steps() -> Mapping[str, Method]:
    """Every step after a merge, by name."""
    return _Registered(_STEPS)


def nearest(word: str, known: Any) -> str:
    """A hint such as ` (did you mean 'density'?)`, or nothing when no known name is close."""
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


_loaded = False


def _load() -> None:
    global _loaded
    if _loaded:
        return
    _loaded = True
    from importlib import metadata

    for point in metadata.entry_points(group="plait.methods"):
        try:
            point.load()
        except Exception as error:
            raise PlaitError(f"the method package {point.value!r} (entry point plait.methods) fails to import: {error}; mend or uninstall it") from error
