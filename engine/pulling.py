"""Inputs that a compiled kernel reads itself: the vector that tells it where they are (`ops/kernels/jit_pull.py`), and the text that reads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from plait.engine.cfunctions import c_addresses
from plait.planner.blocks import PULL_PIECE, PULL_WORDS, PULL_WORDS_EACH

if TYPE_CHECKING:
    from plait.engine.blockrun import BlockData

_PIECE, SPENT_NS, FAILED = 1, 2, 3  #: places in the vector


def aim(pull: Any, data: BlockData) -> None:
    """Say where a block's inputs are: in files, or in its arrays as a whole."""
    pread, clock = c_addresses(patient=data.patient)
    sources = data.sources or [(-1, 0)] * len(data.inputs)
    pull[:6] = pread, data.n if data.sources is None else PULL_PIECE, 0, 0, clock, time.CLOCK_MONOTONIC
    for k, ((fd, offset), array) in enumerate(zip(sources, data.inputs, strict=True)):
        first = PULL_WORDS + PULL_WORDS_EACH * k
        pull[first : first + PULL_WORDS_EACH] = fd, offset, array.itemsize


def next_piece(inputs: Sequence[str], first: str) -> list[str]:
    """Lines of a kernel that read the next piece of every input; elements `at` to `filled` of the block are there then.

    Args:
        inputs: names of the arrays, in the order of the loads.
        first: the element that the piece begins with, an expression.
    """
    failed = " or ".join(f"not pull_piece(pull, int64({k}), {name}, at, filled - at)" for k, name in enumerate(inputs))
    return [
        f"at = int64({first})",
        f"filled = at + min(pull[{_PIECE}], n - at)",
        "begun = clock(pull)",
        f"if {failed}:",
        f"    pull[{FAILED}] = 1",
        "    return",
        f"pull[{SPENT_NS}] += clock(pull) - begun",
    ]
