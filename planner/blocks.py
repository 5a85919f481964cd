"""Block boundaries and buffer sizes: what the planner predicts with and the engine allocates by.

Boundaries depend on the tensor's shape and the expression alone, never on the budget or the number of
workers, so that folds (one partial a block, added in block order) give the same bits everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plait.ops.dtypes import BY_CODE
from plait.ops.kernels.select import SCAN, SPAN_BINS
from plait.ops.op import OPS
from plait.planner.program import Node, Program, Stage

BLOCK = 1 << 20  #: elements of a block of rows
#: How many times as many a block has of an output without rows, and of what is only counted: kernels read these piece by piece, so of a
#: larger block only the output takes memory, and fewer blocks are fewer times 0.3 ms of Python. Sums, dots and kept values stay with `BLOCK`.
STORED, COUNTED = 2, 4
CHUNK = 1024  #: elements that a kernel works on between two reductions; its scratch stays in the L1 cache
COARSE = 1 << 15  #: coarse digits that an order statistic is counted by where nothing is known
#: Keys of the widest window that one is looked for in, and of one around a value that many elements share.
SPAN, NARROW = SPAN_BINS, 1 << 16
SEEN_WHOLE = 1 << 16  #: tensors of no more elements are no larger than a sample
#: Pieces and elements of each that an order statistic is foreseen by, and most elements in all.
SAMPLE_PIECES, SAMPLE_PIECE, SAMPLE_LIMIT = 16, 4096, 1 << 18
#: The pieces where computing an element takes so many operations that another pass would cost far more than a better sample.
MORE_PIECES, COSTLY_FLOPS = 64, 32
#: The same for a model-wide one: pieces of the whole model, and elements of each.
SCOPE_PIECES, SCOPE_PIECE = 512, 512
CHECKED_COLUMNS = 509  #: sums of 64-bit words that a checksum of output bytes is taken of (`plait/engine/checksum.py`)
SPARSE_LIMIT = 512  #: distinct values of one block that an order statistic remembers with their counts; more are counted again when needed
RANK_COUNTS = 3 << 11  #: counters of the radix sort behind row ranks
RANK_SPARE = 256  #: elements beyond the row's of the arrays that it is sorted in
STRIPS = 16  #: runs of blocks over which columns are summed up, each by one worker
#: Bytes of a tensor copied without decoding that go through a buffer at once, and tensors for which there is one: smaller ones are copied by the kernel.
COPY_PIECE, COPIED_THROUGH = 2 << 20, 1 << 20
PAGE = 4096
SEARCH_PIECE = 1 << 16
PULL_WORDS, PULL_WORDS_EACH = 8, 3  #: of the vector that tells such a kernel where its inputs are, and of each input in it
PULL_PIECE = 1 << 16  #: elements of each input that a compiled kernel reads at a time, and uses while a core's own cache still holds them


@dataclass(frozen=True, slots=True)
class StageBuffers:
    """Bytes that one worker needs for one stage.

    Attributes:
        inputs: of the buffer of each load, in `Stage.loads` order.
        residents: of a block of each whole result, in `Stage.residents` order; empty where none is read from a cache.
        output: of each of the two output blocks; one is written while the other is computed.
        values: of a block of values that is looked at again.
        scratch: of everything else.
    """

    inputs: tuple[int, ...]
    residents: tuple[int, ...]
    output: int
    values: int
    scratch: int

    @property
    def arena(self) -> int:
        """What is divided anew for every stage."""
        return sum(self.inputs) + sum(self.residents) + self.values + self.scratch


def block_elements(stage: Stage, numel: int) -> int:
    """Elements of one block: as many whole rows as fit in 2^20 and at least one; without rows 2^21 of an output, 2^22 of what is only counted."""
    if stage.row_length:
        return min(numel, max(1, BLOCK // stage.row_length) * stage.row_length)
    return min(numel, BLOCK * (STORED if stage.store else COUNTED if stage.counts_only else 1))


def block_count(stage: Stage, numel: int) -> int:
    """Blocks of one pass; an empty tensor has none."""
    size = block_elements(stage, numel)
    return -(-numel // size) if size else 0


def strips(program: Program, stage: Stage) -> list[range]:
    """Numbers of the blocks that are worked on one after the other: each alone, but where columns are summed up at most 16 runs of them.

    A sum of columns is as long as a row. One for each run, however many rows there are, keeps them few; the runs follow from the shape
    alone, so that they are added up in one order.
    """
    count = block_count(stage, program.numel)
    columns = any(program.nodes[i].op == "column_dot" for i in stage.folds)
    each = max(1, -(-count // STRIPS)) if columns else 1
    return [range(first, min(first + each, count)) for first in range(0, count, each)]


def sample_pieces(program: Program, stage: Stage) -> int:
    """Pieces of the sample that a stage's order statistics are foreseen by: more where a second pass would be dear."""
    flops = sum(OPS[program.nodes[i].op].flops for i in stage.compute)
    return MORE_PIECES if flops >= COSTLY_FLOPS else SAMPLE_PIECES


def sample_starts(stage: Stage, numel: int, pieces: int = SAMPLE_PIECES, piece: int = SAMPLE_PIECE) -> tuple[list[int], int]:
    """Where the pieces of a sample begin, and their length in elements: whole rows, evenly spaced; all of a small tensor.

    No pieces where rows are so long that a sample would not be small.
    """
    row = stage.row_length or 1
    if numel <= SEEN_WHOLE and block_elements(stage, numel) >= numel > 0:
        return [0], numel
    piece = min(block_elements(stage, numel), max(1, piece // row) * row)
    pieces = min(pieces, max(1, numel // max(piece, 1)))
    if piece * pieces > SAMPLE_LIMIT or not numel:
        return [], 0
    step = (numel - piece) // max(1, pieces - 1) // row * row
    return [k * step for k in range(pieces)], piece


def seen_whole(program: Program, stage: Stage) -> bool:
    """Whether a stage only takes order statistics of a tensor so small that its sample is all of it: then the sample decides, and no pass is run."""
    only = stage.origin is None and bool(stage.folds) and not stage.keeps and not stage.store and not stage.scopes and not stage.wholes
    small = program.numel <= SEEN_WHOLE and block_elements(stage, program.numel) >= program.numel > 0
    return only and small and all(program.nodes[i].op == "kth_magnitude" for i in stage.folds)


def checked_loads(program: Program, stage: Stage) -> tuple[int, ...]:
    """Inputs that are looked through for infinity and NaN in this stage's pass: those that no earlier pass reads."""
    seen: set[int] = set()
    for other in program.stages:
        if other == (stage.origin or stage):
            return () if seen_whole(program, stage) else tuple(i for i in stage.loads if i not in seen)
        if not seen_whole(program, other):
            seen.update(other.loads)
    return ()  # a probe looks at what others check


def compiled_on_cpu(backend: str, maps: str) -> bool:
    """Whether blocks are computed by compiled kernels on the CPU: these read inputs themselves, the others are given whole blocks."""
    return backend == "numba" and maps == "cpu"


def pulls_inputs(stage: Stage) -> bool:
    """Whether the compiled kernel of a stage reads its inputs itself, piece by piece: it does where no row must be gone over again."""
    return bool(stage.loads) and not stage.row_length


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to whole pages."""
    return -(-nbytes // PAGE) * PAGE


def stage_buffers(program: Program, stage: Stage, *, pulled: bool = False, cached: bool = False) -> StageBuffers:
    """What a worker leases to run blocks of `stage`.

    Args:
        program, stage: what is run.
        pulled: by compiled kernels on the CPU (`compiled_on_cpu`), which read inputs themselves where they can.
        cached: whole results may lie in a cache, from which their blocks are read.
    """
    size = block_elements(stage, program.numel)
    held = min(size, PULL_PIECE) if pulled and pulls_inputs(stage) else size
    # a page more each: buffers lie in their pages as the bytes do in their files
    inputs = tuple(PAGE + aligned(held * BY_CODE[str(program.nodes[i].param("storage"))].itemsize) for i in stage.loads)
    residents = tuple(PAGE + aligned(4 * size) for _ in stage.residents if cached)
    output = PAGE + aligned(size * BY_CODE[program.dtype].itemsize) if stage.store else 0
    # one piece of the values themselves, to find the last tie that is kept
    values = aligned(4 * min(size, search_elements(stage))) if any(program.nodes[i].op == "kth_magnitude" for i in stage.folds) else 0
    return StageBuffers(inputs, residents, output, values, aligned(scratch_bytes(program.nodes, stage, counts=not seen_whole(program, stage))))


def output_buffer(programs: Sequence[Program], *, pulled: bool = False) -> int:
    """Bytes of each of a worker's two output buffers: for the largest block of any stage, and for a piece of what is copied without decoding."""
    blocks = [stage_buffers(program, stage, pulled=pulled).output for program in programs for stage in program.stages]
    return max(blocks + [PAGE + COPY_PIECE for program in programs if copied_through(program)], default=0)


def copied_through(program: Program) -> bool:
    """Whether a tensor is copied without decoding and large enough to go through a worker's buffers."""
    return program.copy is not None and program.numel * BY_CODE[program.dtype].itemsize >= COPIED_THROUGH


def search_elements(stage: Stage) -> int:
    """Elements that a search for ties looks at together: whole rows, and at least one."""
    row = stage.row_length or 1
    return max(1, SEARCH_PIECE // row) * row


def marked_pieces(stage: Stage) -> int:
    """Pieces of a block that an order statistic counts apart, to find sooner the last tie that is kept."""
    return 1 if stage.row_length else -(-BLOCK * COUNTED // SEARCH_PIECE)


def scratch_bytes(nodes: Sequence[Node], stage: Stage, *, counts: bool = True) -> int:
    """Bytes of a kernel's working arrays; without `counts` those of a stage whose order statistics are taken straight from values."""
    reductions = sum(1 for i in (*stage.compute, *stage.folds) if nodes[i].kind in ("fold", "rows"))
    streams = sum(1 for i in stage.compute if nodes[i].op == "random_bits")
    ranks = sum(1 for i in stage.compute if nodes[i].op == "row_rank")
    selects = sum(1 for i in stage.folds if nodes[i].op == "kth_magnitude") if counts else 0
    scalars = sum(1 for n in nodes if n.space == "small")
    columns = sum(1 for i in stage.folds if nodes[i].op == "column_dot")
    gathered = sum(1 for i in stage.folds if nodes[i].op == "row_values")
    vectors = 8 * (columns * stage.row_length + gathered * max(1, BLOCK // max(stage.row_length, 1))) + 64 * (columns + gathered)
    chunk = (
        (2 * reductions + streams + 2) * CHUNK * 4
        + 64 * (reductions + 8)
        + 8 * (scalars + len(stage.folds))
        + 4 * (len(stage.loads) + 1)
        + 64 * (15 + 4 * ranks)
        + stage.store * CHECKED_COLUMNS * 16
        + 8 * (PULL_WORDS + PULL_WORDS_EACH * len(stage.loads))
    )
    sorting = (stage.row_length + RANK_SPARE) * 16 + RANK_COUNTS * 4 if ranks else 0
    return (
        chunk
        + vectors
        + ranks * stage.row_length * 8
        + sorting
        + selects * (COARSE * 8 + SPAN * 4 + SPAN // SCAN + SPARSE_LIMIT * 12 + marked_pieces(stage) * 4)
    )
