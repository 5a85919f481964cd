"""What is said about a method, for the terminal and for its page: in words, as data, and as a recipe."""

from __future__ import annotations

from typing import Any

from plait.ops.method import Method, Param

BASE = {"required": "needed", "optional": "optional", "unused": "none"}
#: Names that recipes give to the experts of an example.
_EXPERTS = ("math", "code", "chat", "law")
#: The costliest kind of a method's ops decides.
_COST = (
    ("whole", "matrices", "Decomposes one matrix at a time in memory, on a GPU where there is one; everything else is streamed."),
    ("fold", "2+ passes", "Streamed: numbers over a whole tensor or model come first, so the inputs are read twice or more."),
    ("rows", "1 pass", "Streamed in blocks of whole rows; the inputs are read once."),
    ("map", "1 pass", "Streamed element by element; the inputs are read once."),
)


def cost(method: Method) -> tuple[str, str]:
    """Its class of cost in a few words, and in a sentence."""
    return next(((short, text) for kind, short, text in _COST if kind in method.kinds), ("1 pass", _COST[-1][2]))


def data(method: Method) -> str:
    """What it is given beside weights."""
    wanted = getattr(method, "statistics", ())
    return ", ".join(str(s.name) for s in wanted) or "none"


def experts(method: Method) -> str:
    """How many experts it takes."""
    least, most = method.experts
    return f"{least}" if least == most else f"{least}+" if most is None else f"{least}-{most}"


def default(p: Param) -> str:
    """A parameter's default in words."""
    if p.required:
        return "required"
    return "-" if p.default is None or p.default == () else str(p.default).lower() if isinstance(p.default, bool) else _words(p.default)


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def values(p: Param) -> str:
    """What a parameter may be."""
    if p.choices:
        return " | ".join(p.choices)
    if p.low is not None or p.high is not None:
        return f"{p.low:g} to {p.high:g}" if p.low is not None and p.high is not None else f"{p.low:g} or more" if p.low is not None else f"at most {p.high:g}"
    return {"float": "number", "int": "whole number", "bool": "true | false", "str": "word", "list": "names"}[p.type.__name__]


def as_data(method: Method) -> dict[str, Any]:
    """A method as data."""
    least, most = method.experts
    parts = method.parts
    return {
        "name": method.name,
        "family": method.family,
        "summary": method.summary,
        "idea": parts.idea,
        "formula": parts.formula,
        "differs": list(parts.differs),
        "caveats": list(parts.caveats),
        "base": method.base,
        "experts": {"least": least, "most": most},
        "data": data(method),
        "cost": cost(method)[0],
        "kinds": list(method.kinds),
        "source": method.source,
        "step": method.is_step,
        "parameters": [_param(p) for p in method.params],
        "example": example(method),
    }


def _param(p: Param) -> dict[str, Any]:
    return {
        "name": p.name,
        "python": p.keyword,
        "type": p.type.__name__,
        "default": list(p.default) if isinstance(p.default, tuple) else p.default,
        "per_expert": p.per_expert,
        "required": p.required,
        "low": p.low,
        "high": p.high,
        "choices": list(p.choices),
        "doc": p.doc,
    }


def example(method: Method) -> str:
    """A recipe that runs, where the models are."""
    given = dict(method.parts.example)
    each: dict[str, str] = {}
    merged: dict[str, str] = {}
    for p in method.params:
        if p.name in given or p.required:
            (each if p.per_expert else merged)[p.name] = given.get(p.name) or _yaml(p.default)
    count = max(method.experts[0], min(method.experts[1] or 2, 2))
    lines = ["merge_method: linear" if method.is_step else f"merge_method: {method.name}"]
    if method.base != "unused" and not method.is_step:
        lines.append("base_model: models/base")
    lines.append("models:")
    statistics = getattr(method, "statistics", ())
    for name in _EXPERTS[:count]:
        lines.append(f"  - model: models/{name}")
        lines += [f"    {s.name}: statistics/{name}{'.json' if s.kind == 'layers' else ''}" for s in statistics]
        own = {"weight": "1.0"} if method.is_step else each
        if own:
            lines.append(f"    parameters: {_flow(own)}")
    if merged and not method.is_step:
        lines.append(f"parameters: {_flow(merged)}")
    lines.append("dtype: bfloat16")
    if method.is_step:
        lines += ["steps:", f"  - method: {method.name}", "    base_model: models/base"]
        if merged:
            lines.append(f"    parameters: {_flow(merged)}")
    return "\n".join(lines) + "\n"


def _flow(pairs: dict[str, str]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in pairs.items()) + "}"


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value)
