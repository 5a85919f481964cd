"""Figures and counts as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds for people: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60} min"


def flops(count: float) -> str:
    """Floating-point operations for people: `3.2 GFLOP`."""
    for unit, scale in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if count >= scale:
            value = count / scale
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{count:.0f} FLOP"


def counted(count: int, what: str, plural: str = "") -> str:
    """`1 tensor`, `2 tensors`."""
    return f"{count:,} {what if count == 1 else plural or what + 's'}"


def times(count: int) -> str:
    """How often, in a word where there is one."""
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def dimensions(shape: tuple[int, ...]) -> str:
    """`2048x5632`."""
    return "x".join(map(str, shape)) or "scalar"
