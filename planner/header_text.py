"""The text of a header: strict JSON, and names out of it made safe to print."""

from __future__ import annotations

import json
from typing import Any, NoReturn

_MAX_DIGITS = 19  # of 2**63
_DIGITS_TO_ZERO = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else byte for byte in range(256))


class Malformed(ValueError):
    """Why the JSON was refused, raised out of its hooks."""


def shown(name: object, limit: int = 120) -> str:
    """A name from a file, quoted, escaped and cut so that it is safe to print."""
    text = name if isinstance(name, str) else repr(name)
    return ascii(text) if len(text) <= limit else f"{text[:limit]!a}... ({len(text)} characters)"


def printable(text: str, limit: int = 10_000) -> str:
    """Text with what a terminal would obey shown as escapes; no more of it than anybody reads."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:limit]) + ("..." if len(text) > limit else "")


def decoded(raw: bytes) -> Any:
    """The JSON value of a header.

    Raises:
        Malformed: a name comes twice, or a number is no whole number of 64 bits.
    """
    text = raw.decode("utf-8")
    # Checking every number in Python is slow: only where the text may have one too long for 64 bits, or a minus zero.
    parse_int = _integer if b"-0" in raw or b"0" * (_MAX_DIGITS + 1) in raw.translate(_DIGITS_TO_ZERO) else None
    value = json.loads(text, parse_int=parse_int, parse_float=_no_float, parse_constant=_no_float)
    # Checking every object for names that come twice is slow, too. Each pair of the text takes a colon of its own: where the value
    # holds as many pairs as the text has colons, no pair can have replaced another.
    if _pairs(value) == raw.count(b":"):
        return value
    del value
    return json.loads(text, object_pairs_hook=unique_pairs, parse_int=parse_int, parse_float=_no_float, parse_constant=_no_float)


def _pairs(value: Any) -> int:
    """Pairs of an object and of the objects that are its values."""
    return len(value) + sum([len(inner) for inner in value.values() if type(inner) is dict]) if type(value) is dict else 0


def unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused when it has a name twice."""
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Malformed(f"names {shown(twice)} twice")
    return made


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise Malformed(f"holds the number {text[:_MAX_DIGITS]}..., which overflows 64 bits")
    if text == "-0":  # equal to 0 in Python, and no whole number to other readers
        _no_float(text)
    return int(text)


def _no_float(text: str) -> NoReturn:
    raise Malformed(f"holds {shown(text)} where only whole numbers belong")
