"""Small models of every awkward shape, for hypothesis: scalars, empty tensors, odd sizes, convolutions, mixed dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from support.evaluate import stored_as

Array = npt.NDArray[Any]
Model = dict[str, Array]

SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    (1,),
    (0,),
    (0, 4),
    (3, 0),
    (7,),
    (64,),
    (131,),
    (1, 5),
    (9, 1),
    (3, 5),
    (17, 9),
    (16, 24),
    (2, 3, 5),
    (4, 3, 2, 2),
    (5, 1, 3, 3),
)
DENSITIES = (0.01, 0.1, 0.29, 0.5, 0.57, 0.9, 0.99)


@dataclass(frozen=True)
class Family:
    """A base and experts with the same tensors, as arrays ready to be stored."""

    base: Model
    experts: tuple[Model, ...]

    @property
    def names(self) -> list[str]:
        return list(self.base)

    def __repr__(self) -> str:
        shapes = {name: (t.dtype.name, t.shape) for name, t in self.base.items()}
        return f"Family({shapes}, {len(self.experts)} experts)"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        """What hypothesis shows: shapes, not thousands of numbers."""
        printer.text(repr(self))


def wide(array: Array) -> Array:
    """The float64 values of a stored array."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


@st.composite
def shapes(draw: st.DrawFn, least: int = 1, most: int = 4) -> dict[str, tuple[int, ...]]:
    """Named shapes, in an order that is not that of the names; at least one of them is neither empty nor tiny."""
    chosen = [draw(st.sampled_from([(17, 9), (16, 24), (131,), (4, 3, 2, 2)]))]
    chosen += draw(st.lists(st.sampled_from(SHAPES), min_size=least - 1, max_size=most - 1))
    keys = draw(st.permutations(range(len(chosen))))
    return {f"model.layers.{key}.mlp.up_proj.weight": shape for key, shape in zip(keys, chosen, strict=True)}


@st.composite
def families(draw: st.DrawFn, codes: Sequence[str] = ("BF16", "BF16", "BF16"), grid: int = 0, spread: bool = False) -> Family:
    """Models whose values come from a drawn seed.

    Args:
        draw: hypothesis'.
        codes: dtype of the base, then of each expert.
        grid: values are whole multiples of 1/grid up to 2, so that sums and halves are exact and ties are heavy; 0 for normal numbers.
        spread: exponents over the whole range of the dtype, with signed zeros and subnormals.
    """
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    wanted = draw(shapes())
    models = [{name: stored_as(_values(random, shape, grid, spread, code), code) for name, shape in wanted.items()} for code in codes]
    return Family(models[0], tuple(models[1:]))


def _values(random: np.random.Generator, shape: tuple[int, ...], grid: int, spread: bool, code: str) -> Array:
    if grid:
        return random.integers(-2 * grid, 2 * grid + 1, shape) / grid
    values = np.asarray(random.standard_normal(shape))
    if not spread:
        return values
    low, high = {"F32": (-149, 126), "BF16": (-133, 126), "F16": (-24, 14)}[code]
    values = np.ldexp(values / 4, random.integers(low, high, shape))
    return np.asarray(np.where(random.random(shape) < 0.1, np.copysign(0.0, values), values))
