"""`plait.methods`: every registered method as a Python function over models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plait.models import Merged, Model, open_model
from plait.ops.errors import PlanError
from plait.ops.method import Method, nearest
from plait.ops.method import methods as registered_methods
from plait.ops.method import steps as registered_steps
from plait.planner.checkpoint import resolve_model
from plait.planner.name_file import read_names
from plait.planner.statistics import LayerFile, read_layer_file


class Catalogue:
    """Functions by method name: `plait.methods.ties(base=base, experts=[a, b], density=0.2, lam=1.0)`.

    A parameter that each model has its own value of takes a number for all or a list, one value an expert. Steps
    take the merged model first: `plait.methods.magic_wsc(merged, base=base, experts=[a, b])`.
    """

    def __getattr__(self, name: str) -> Callable[..., Model]:
        known = registered_methods()
        if name in known:
            return _function(known[name])
        steps = registered_steps()
        if name in steps:
            return _step(steps[name])
        raise AttributeError(f"no merge method called {name!r}{nearest(name, [*known, *steps])}")

    def __dir__(self) -> list[str]:
        return [*registered_methods(), *registered_steps()]


def _function(method: Method) -> Callable[..., Model]:
    def merge(*, base: Model | None = None, experts: Sequence[Model], **params: Any) -> Model:
        tensors, layers = _statistics(method, params, len(experts))
        checked = check_params(method, params, len(experts))
        return Merged(method, _base(method, base), _experts(method, experts), checked, tensors=tensors, layers=layers)

    merge.__name__, merge.__doc__ = method.name, _doc(method)
    return merge


def _step(method: Method) -> Callable[..., Model]:
    def calibrate(merged: Model, *, base: Model, experts: Sequence[Model], **params: Any) -> Model:
        return Merged(method, _base(method, base), _experts(method, experts), check_params(method, params, len(experts)), merged)

    calibrate.__name__, calibrate.__doc__ = method.name, _doc(method)
    return calibrate


def _doc(method: Method) -> str:
    lines = [method.doc, "", "Args:"]
    lines += [f"    {s.name}: one an expert. {s.doc}" for s in method.statistics]
    lines += [f"    {p.keyword}: {p.doc} Default {p.default}." for p in method.params]
    return "\n".join([*lines, "", f"Source: {method.source}."])


def _base(method: Method, base: Model | None) -> Model | None:
    if method.base == "required" and base is None:
        raise PlanError(f"{method.name} needs a base model: give base=", method=method.name)
    if method.base == "unused" and base is not None:
        raise PlanError(f"{method.name} uses no base model: leave base= out, or list it among the experts", method=method.name)
    return base


def _experts(method: Method, experts: Sequence[Model]) -> Sequence[Model]:
    least, most = method.experts
    if len(experts) < least or (most is not None and len(experts) > most):
        wanted = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
        raise PlanError(f"{method.name} takes {wanted} experts, not {len(experts)}", method=method.name)
    return experts


def _statistics(method: Method, given: dict[str, Any], experts: int) -> tuple[list[Model], list[LayerFile]]:
    """Take the statistics out of the keywords of a call: models or paths, one an expert."""
    tensors: list[Model] = []
    layers: list[LayerFile] = []
    for statistic in method.statistics:
        values = given.pop(statistic.name, None)
        if isinstance(values, (str, Path, Model)) or not isinstance(values, Sequence) or len(values) != experts:
            what = "models or paths of checkpoints" if statistic.kind == "tensors" else "paths of JSON files"
            raise PlanError(f"{method.name} needs {statistic.name}=[...]: {experts} {what}, one an expert", method=method.name, parameter=statistic.name)
        if statistic.kind == "layers":
            layers += [read_layer_file(resolve_model(str(value)), str(value)) for value in values]
        else:
            tensors += [value if isinstance(value, Model) else open_model(value) for value in values]
    return tensors, layers


def check_params(method: Method, given: dict[str, Any], experts: int) -> dict[str, Any]:
    """Parameters by keyword, defaults filled in and per-expert ones spread.

    Raises:
        PlanError: an unknown parameter or a bad value.
    """
    known = {p.keyword: p for p in method.params}
    for name in given:
        if name not in known:
            raise PlanError(f"{method.name} has no parameter {name!r}{nearest(name, known)}", method=method.name, parameter=name)
    params: dict[str, Any] = {}
    for keyword, p in known.items():
        value = given.get(keyword, p.default)
        try:
            if p.per_expert:
                values = list(value) if isinstance(value, (list, tuple)) else [value] * experts
                if len(values) != experts:
                    raise ValueError(f"{keyword} has {len(values)} values for {experts} experts")
                params[keyword] = tuple(p.check(v) for v in values)
            else:
                checked = p.check(value)
                params[keyword] = read_names(checked) if p.reads and isinstance(checked, str) else checked
        except ValueError as error:
            raise PlanError(f"{method.name}: {error}", method=method.name, parameter=keyword) from error
    return params


methods = Catalogue()
