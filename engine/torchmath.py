"""Pieces of the torch interpreter that are more than one call: the same on the CPU and on a device, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from plait.ops.kernels.philox import StreamKey
from plait.ops.kernels.reduce import LANES, add_to_lanes, combine_lanes
from plait.planner.blocks import COARSE, SPAN
from plait.planner.device_cost import FOLD_PIECE

_MULTIPLIER0, _MULTIPLIER1 = 0xD2511F53, 0xCD9E8D57
_WEYL0, _WEYL1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_MAGNITUDE = 0x7FFFFFFF
TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def random_words(key: StreamKey, start: int, count: int, device: Any) -> Any:
    """`plait.ops.kernels.philox.random_u32` as an int64 tensor: products wrap at 64 bits, and their halves are masked out."""
    first, last = start // 4, -(-(start + count) // 4)
    block = torch.arange(first, last, dtype=torch.int64, device=device)
    (k0, k1), words = key[:2], [block & _MASK, block >> 32, torch.full_like(block, key[2]), torch.full_like(block, key[3])]
    del block
    for _ in range(10):
        product = words[0] * _MULTIPLIER0
        other = words[2] * _MULTIPLIER1
        words = [_high(other, words[1], k0), other.bitwise_and_(_MASK), _high(product, words[3], k1), product.bitwise_and_(_MASK)]
        k0, k1 = (k0 + _WEYL0) & _MASK, (k1 + _WEYL1) & _MASK
    skip = start - 4 * first
    return torch.stack(words, dim=1).view(-1).narrow(0, skip, count)


def _high(product: Any, word: Any, key: int) -> Any:
    return (product >> 32).bitwise_and_(_MASK).bitwise_xor_(word).bitwise_xor_(key)


def magnitude_keys(x: Any) -> Any:
    """Bits of float32 without the sign, as int32: in the order of the magnitudes."""
    return x.contiguous().view(torch.int32) & _MAGNITUDE


def row_ranks(x: Any) -> Any:
    """Rank of every |x| within its row `[rows, columns]`, ascending and stable, int32."""
    order = torch.sort(magnitude_keys(x), dim=-1, stable=True).indices
    columns = torch.arange(x.shape[-1], dtype=torch.int32, device=x.device).expand(x.shape)
    return torch.empty(x.shape, dtype=torch.int32, device=x.device).scatter_(-1, order, columns)


def coarse_counts(keys: Any) -> Any:
    """Histogram of the coarse digits of keys, int64 `[32768]`."""
    return torch.bincount(keys.view(-1) >> 16, minlength=COARSE)


def window_counts(keys: Any, low: int, width: int) -> tuple[Any, Any]:
    """How many keys lie above a window of some width from `low` on, and how often each key of the window occurs, int64 `[131072]`."""
    places = keys.view(-1) - low
    above = (places >= width).sum()
    # elements beside the window are counted in a place of their own, so that nothing of unknown length is made
    places = torch.where((places >= 0) & (places < width), places, SPAN)
    return above, torch.bincount(places, minlength=SPAN + 1).narrow(0, 0, SPAN)


def row_sums(operands: Sequence[tuple[Any, Any]]) -> Any:
    """Sums or dot products along the rows of float32 `[rows, columns]`, by the fixed tree, several at once.

    Args:
        operands: `(a, None)` for the sums of a, `(a, b)` for the dot products of a and b.

    Returns:
        float64 `[operands, rows]`.
    """
    rows, columns = operands[0][0].shape
    device = operands[0][0].device
    some = max(1, FOLD_PIECE // max(columns, 1))
    found = []
    for r in range(0, rows, some):
        high = min(rows, r + some)
        lanes = torch.zeros((len(operands), high - r, LANES), dtype=torch.float64, device=device)
        for c in range(0, columns, FOLD_PIECE):
            span = (r, high - r, c, min(FOLD_PIECE, columns - c))
            lanes = add_to_lanes(lanes, torch.stack([_wide(a, span) if b is None else _wide(a, span) * _wide(b, span) for a, b in operands]))
        found.append(combine_lanes(lanes))
    return torch.cat(found, dim=1)


def column_dots(x: Any, y: Any) -> Any:
    """Inner products of matching columns of float32 `[rows, columns]`, float64: rows added one after the other."""
    rows, columns = x.shape
    total = torch.zeros((1, columns), dtype=torch.float64, device=x.device)
    some = max(1, FOLD_PIECE // max(columns, 1))
    for r in range(0, rows, some):
        count = min(some, rows - r)
        products = _wide(x, (r, count, 0, columns)) * _wide(y, (r, count, 0, columns))
        total = torch.cat([total, products]).cumsum(0).narrow(0, count, 1).clone()
    return total.view(-1)


def _wide(x: Any, span: tuple[int, int, int, int]) -> Any:
    first, rows, column, columns = span
    return x.narrow(0, first, rows).narrow(1, column, columns).to(torch.float64)


def as_float(x: Any) -> Any:
    """Float32 values of a tensor."""
    return x if x.dtype == torch.float32 else x.to(torch.float32)


def from_bits(raw: Any, storage: str) -> Any:
    """Float32 values of stored bits."""
    return raw if storage == "F32" else raw.view(TORCH[storage]).to(torch.float32)


def to_bits(x: Any, storage: str) -> Any:
    """Stored bits of float32 values, rounded to nearest even; 16-bit patterns as int16."""
    flat = x.reshape(-1)
    return flat if storage == "F32" else flat.to(TORCH[storage]).view(torch.int16)
