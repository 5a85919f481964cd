"""Sizes in bytes as text, and back."""

from __future__ import annotations

from typing import Any

MIB = 1 << 20


_UNITS = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def size(nbytes: float) -> str:
    """Bytes for people: `512 MiB`, `1.5 GiB`."""
    for unit, scale in _UNITS:
        if nbytes >= scale:
            value = nbytes / scale
            return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.1f} {unit}"
    return f"{int(nbytes)} B"


def enough(nbytes: int) -> str:
    """The same, never less than the bytes: what a budget has to be to hold them."""
    for unit, scale in _UNITS:
        if nbytes >= scale:
            steps = 1 if nbytes >= 100 * scale else 10
            value = -(-nbytes * steps // scale) / steps
            return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.1f} {unit}"
    return f"{nbytes} B"


def size_up(nbytes: int) -> str:
    """The next whole MiB, as `--memory` takes it."""
    return f"{-(-nbytes // MIB)}MiB"


def parse_size(text: Any) -> int:
    """Bytes that a text such as `4GiB`, `512MB` or `1.5g` means.

    Raises:
        ValueError: not a size.
    """
    import re

    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)\s*", str(text).lower())
    if not match:
        raise ValueError(f"{text!r} is not a size; write for example 512MiB or 4GiB")
    number, unit, binary, b = match.groups()
    power = " kmgt".index(unit) if unit else 0
    base = 1024 if binary or not b else 1000
    return int(float(number) * base**power)
