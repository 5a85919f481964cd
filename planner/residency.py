"""Do a component's inputs stay in memory between its passes, or are they read again? A decision by predicted time, within the budget.

Keeping them costs a read into memory that the processor's cache does not hold, reading that memory in every pass, and touching the
memory for the first time; reading again costs a copy out of the page cache, or a read of the disk where the page cache is too small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plait.planner.cost import input_bytes
from plait.planner.program import Program
from plait.planner.timing import Setting, keeping_saves, reads_from_disk

#: What a person may ask for.
CHOICES = ("auto", "keep", "reread")
#: What becomes of a program's inputs: read in one pass only; kept; read again because that is faster, there is no room, or it was asked for.
ONCE, KEPT, CHEAPER, NO_ROOM, ASKED = "once", "kept", "cheaper", "no-room", "asked"


def slab_bytes(program: Program) -> int:
    """Bytes of memory that all inputs of a component take when they stay between its passes."""
    return input_bytes(program) + 4096 * len(program.slots)


def residency(programs: Sequence[Program], counts: Mapping[int, int], wanted: str, room: int, setting: Setting) -> tuple[str, ...]:
    """For each program what becomes of its inputs.

    Args:
        programs: of the plan.
        counts: components of each program.
        wanted: one of `CHOICES`; `keep` and `auto` keep no more than there is room for.
        room: most bytes of one worker's slab.
        setting: for the predicted time.
    """
    cold = reads_from_disk(programs, counts, setting)
    found = [ONCE] * len(programs)
    gains: list[tuple[int, float, int]] = []
    for n, program in enumerate(programs):
        if not _could_keep(program):
            continue
        slab = slab_bytes(program)
        gain = counts.get(n, 0) * keeping_saves(program, setting, cold=cold) if wanted == "auto" else 0.0
        if wanted == "reread":
            found[n] = ASKED
        elif slab > room:
            found[n] = NO_ROOM if wanted == "keep" or gain > _touch_s(slab, setting) else CHEAPER
        elif wanted == "keep":
            found[n] = KEPT
        else:
            found[n] = CHEAPER
            gains.append((slab, gain, n))
    for n in _worth_keeping(gains, setting):
        found[n] = KEPT
    return tuple(found)


def _touch_s(slab: int, setting: Setting) -> float:
    """Seconds that the first touch of every worker's slab takes."""
    return slab * setting.workers / setting.rates.fault_bytes_s


def _could_keep(program: Program) -> bool:
    """Whether a program reads its inputs more than once, and not in two sweeps over the model: nothing is held from one to the next."""
    return sum(1 for stage in program.stages if stage.loads) > 1 and not any(stage.scopes for stage in program.stages)


def _worth_keeping(gains: Sequence[tuple[int, float, int]], setting: Setting) -> list[int]:
    """Programs whose inputs stay: of those up to some size the ones that gain time, the size chosen so that most is gained.

    All share slabs of the size of the largest, and the first touch of a slab takes time, too.
    """
    worth: list[int] = []
    count, most, total = 0, 0.0, 0.0
    for slab, gain, n in sorted(gains):
        if gain > 0.0:
            worth.append(n)
            total += gain
            net = total - _touch_s(slab, setting)
            if net > most:
                count, most = len(worth), net
    return worth[:count]
