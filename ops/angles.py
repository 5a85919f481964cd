"""Angles from nothing but sums, products, quotients and square roots, which every backend computes to the same bits.

Library cosines and arc cosines differ in their last bits between NumPy, torch and compiled code. Row-wise methods need them once a row,
so they are written out here in lazy algebra, for row and small values, which are float64: within 1e-14 of the true value for angles
from 0 to pi.
"""

from __future__ import annotations

import math

from plait.ops.algebra import maximum, minimum, sqrt, where
from plait.ops.tensor import LazyTensor

_HALVINGS = 3  #: after them an angle of at most pi / 4 has a tangent below 0.0985
_TERMS = 9  #: of the arc tangent's series there: the next one is below 1e-18
_SMALL = 0.25  #: largest angle that the series of sine and cosine are given
_ORDER = 7  #: of their terms


def arccos(cosine: LazyTensor) -> LazyTensor:
    """Angle, 0 to pi, of a cosine; cosines beyond -1 or 1 count as these. 2 atan(sqrt((1 - c) / (1 + c))), by the smaller of tangent and cotangent."""
    c = minimum(maximum(cosine, -1.0), 1.0)
    far = c < 0.0
    tangent = sqrt(where(far, 1.0 + c, 1.0 - c) / where(far, 1.0 - c, 1.0 + c))
    for _ in range(_HALVINGS):
        tangent = tangent / (1.0 + sqrt(1.0 + tangent * tangent))
    square = tangent * tangent
    series = square * (1.0 / (2 * _TERMS + 1)) * (-1.0) ** _TERMS
    for n in range(_TERMS - 1, 0, -1):
        series = square * ((-1.0) ** n / (2 * n + 1) + series)
    half = (tangent + tangent * series) * 2.0**_HALVINGS
    return where(far, math.pi - 2.0 * half, 2.0 * half)


def sine_and_versine(angle: LazyTensor, factor: float = 1.0) -> tuple[LazyTensor, LazyTensor]:
    """Sine and 1 - cosine of `factor * angle`, for an angle from 0 to pi: by series for a fraction of it, which is then doubled."""
    doublings = max(0, math.ceil(math.log2(max(abs(factor) * math.pi / _SMALL, 1.0))))
    x = angle * (factor / 2.0**doublings)
    square = x * x
    sine_rest, versine = square * 0.0, square * 0.0
    for n in range(_ORDER, 0, -1):
        sine_rest = square * (-1.0 / (2 * n * (2 * n + 1))) * (1.0 + sine_rest)
        versine = square * (1.0 / ((2 * n - 1) * 2 * n)) * (1.0 - versine)
    sine = x + x * sine_rest
    for _ in range(doublings):
        sine, versine = 2.0 * sine * (1.0 - versine), 2.0 * sine * sine
    return sine, versine
