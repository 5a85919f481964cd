"""Bytes that components move: read in all their passes, written, copied."""

from __future__ import annotations

from dataclasses import dataclass

from plait.planner.blocks import seen_whole
from plait.planner.cost import input_bytes, looking_bytes, output_bytes, recounts, selects, stage_read_bytes
from plait.planner.program import Program

#: Passes more, at most, where the place of an order statistic is not foreseen.
RECOUNTS = 3


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes that one component of a program moves, and how often it reads.

    Attributes:
        read: in all passes.
        extra: read at most beside them, where a sample mispredicts.
        written: of the output.
        copied: of them, without decoding.
        passes: that read.
    """

    read: int
    extra: int
    written: int
    copied: int
    passes: int


def moved_bytes(p: Program, keep_inputs: bool, foreseen: bool) -> Moved:
    """What a component of a program moves.

    Args:
        p: the program.
        keep_inputs: inputs are read once and stay in memory for all passes.
        foreseen: samples foresee thresholds.
    """
    written = output_bytes(p)
    if p.copy is not None:
        return Moved(written, 0, written, written, 1)
    if keep_inputs:
        return Moved(input_bytes(p), 0, written, 0, 1)
    reads = [stage_read_bytes(p, s) for s in p.stages]
    looks = [looking_bytes(p, s) for s in p.stages]
    again = _read_again(p)
    counting = [max(r, again) for r, s in zip(reads, p.stages, strict=True) if recounts(p, s)]
    ties, passes = sum(ties for _, ties in looks), sum(1 for s in p.stages if s.loads)
    if not foreseen:  # each threshold takes a pass more for certain, and no other
        return Moved(sum(reads) + sum(counting) + _settled_bytes(p), ties, written, 0, passes + len(counting))
    return Moved(sum(reads) + sum(sample for sample, _ in looks), ties + RECOUNTS * sum(counting), written, 0, passes)


def _settled_bytes(p: Program) -> int:
    """Bytes of small tensors whose thresholds are taken straight from their values, without a pass."""
    return sum(looking_bytes(p, s)[0] for s in p.stages if seen_whole(p, s))


def _read_again(p: Program) -> int:
    """Bytes read to make whole results once more, where a model-wide threshold over them was not foreseen."""
    over = any(s.scopes and s.residents and selects(p, s) for s in p.stages)
    return sum(stage_read_bytes(p, s) for s in p.stages) if over else 0
