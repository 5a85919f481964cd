"""exp, tanh and log of +, *, / and bits alone, so that every backend gives the same bits: the reference of `jit_elementary`.

Library functions differ in the last bit from one version, processor or device to another, which turns what a threshold on them decides.
Each function takes arrays of torch or NumPy, given as `xp`, and does the operations of the kernels in their order. Largest errors, against
float64 (tests measure them): `exp` 1.5 and `tanh` 2 units in the last place of float32, `log` 2 of float64.
"""

from __future__ import annotations

from typing import Any

#: exp: bounds beyond which the result is infinite or zero, ln 2 in two parts, and the polynomial of (e^r - 1 - r) / r^2, highest power first.
EXP_MOST, EXP_LEAST = 89.0, -104.0
LOG2_E, LN2_HIGH, LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
EXP_TERMS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
ROUNDING = 12582912.0  #: 1.5 * 2^23: adding and taking it away rounds a float32 to a whole number
#: tanh: below this magnitude the polynomial of (tanh x - x) / x^3 in x^2, above it exp.
TANH_SMALL = 0.625
TANH_TERMS = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
#: log: bits of sqrt(1/2), ln 2 in two parts, and 1 / (2k + 1) of the series of artanh, highest power first.
SQRT_HALF_BITS = 0x3FE6A09E667F3BCD
LN2_HIGH_64, LN2_LOW_64 = 0.693147180369123816490, 1.90821492927058770002e-10
LOG_TERMS = tuple(1.0 / (2 * k + 1) for k in range(10, 0, -1))


def horner(x: Any, terms: tuple[float, ...]) -> Any:
    """A polynomial, its coefficients from the highest power down."""
    value = x * terms[0] + terms[1]
    for term in terms[2:]:
        value = value * x + term
    return value


def exp(xp: Any, x: Any) -> Any:
    """e to the x, float32."""
    x = xp.where(x > EXP_MOST, EXP_MOST, xp.where(x < EXP_LEAST, EXP_LEAST, x))
    n = (x * LOG2_E + ROUNDING) - ROUNDING
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    return _times_power_of_two(xp, (horner(r, EXP_TERMS) * (r * r) + r) + 1.0, n)


def _times_power_of_two(xp: Any, y: Any, n: Any) -> Any:
    """y * 2^n in two factors, each a normal number for every n that `exp` needs."""
    whole = n.to(xp.int32) if hasattr(n, "to") else n.astype(xp.int32)
    half = whole >> 1
    return (y * ((half + 127) << 23).view(xp.float32)) * ((whole - half + 127) << 23).view(xp.float32)


def tanh(xp: Any, x: Any) -> Any:
    """Hyperbolic tangent, float32."""
    square = x * x
    small = horner(square, TANH_TERMS) * square * x + x
    large = 1.0 - 2.0 / (exp(xp, abs(x) * 2.0) + 1.0)
    return xp.where(abs(x) < TANH_SMALL, small, xp.where(x < 0.0, -large, large))


def log(xp: Any, x: Any) -> Any:
    """Natural logarithm, float64, of normal numbers; -inf of 0, NaN of what is negative."""
    bits = x.view(xp.int64)
    exponent = (bits - SQRT_HALF_BITS) >> 52
    mantissa = (bits - (exponent << 52)).view(xp.float64)  # from sqrt(1/2) to sqrt(2)
    e = mantissa * 0.0 + exponent
    f = (mantissa - 1.0) / (mantissa + 1.0)
    value = e * LN2_HIGH_64 + ((horner(f * f, LOG_TERMS) * (f * f) * f + f) * 2.0 + e * LN2_LOW_64)
    return xp.where(x > 0.0, xp.where(x < float("inf"), value, x), xp.where(x == 0.0, -float("inf"), float("nan")))
