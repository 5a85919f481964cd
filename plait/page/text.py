"""Text and data that may come from strangers' files, made safe for html, for scripts and for the eye."""

from __future__ import annotations

import html
import json
import math
from typing import Any

from plait.planner.header_text import printable
from plait.planner.sizes import size
from plait.planner.words import duration

#: How a number is shown; `assets/page.js` shows it alike.
KINDS = ("text", "bytes", "seconds", "count", "number", "percent")
_IN_SCRIPT = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def escaped(text: object) -> str:
    """Text for html, also inside a quoted attribute; what could not be seen or would turn the reading direction is shown as escapes."""
    return html.escape(printable(str(text)))


def plain(value: Any) -> Any:
    """JSON-able data in which every text is printable and a number that JSON has not, such as NaN, is None."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {printable(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def script_json(value: Any) -> str:
    """Data as JSON that may stand inside a script element, whatever it holds: nothing in it can end the element or begin a comment."""
    return json.dumps(plain(value), separators=(",", ":"), allow_nan=False).translate(_IN_SCRIPT)


def shown(value: Any, kind: str = "text") -> str:
    """A value for people, by its kind."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if kind == "bytes":
        return size(value)
    if kind == "seconds":
        return duration(value) if value >= 0.0995 or not value else f"{1000 * value:.0f} ms" if value >= 0.00095 else "<1 ms"
    if kind == "count":
        return f"{value:,}"
    if kind == "percent":
        return f"{100 * value:.1f} %"
    if kind == "number":
        return f"{value:.4g}"
    return str(value)
