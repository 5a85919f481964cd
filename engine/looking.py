"""Looking at the values that order statistics are taken of: a sample beforehand, and afterwards the last tie that is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from plait.engine.blockrun import RAW, Array, BlockData
from plait.engine.foresight import Guess, Sampled
from plait.engine.orderstat import Threshold, settled, tie_limit
from plait.engine.prepare import looked_at, probe_key
from plait.engine.worker import Worker
from plait.ops.kernels.select import keys as magnitudes
from plait.planner.blocks import SAMPLE_PIECE, SAMPLE_PIECES, sample_pieces, sample_starts, search_elements
from plait.planner.optimisations import FORESIGHT
from plait.planner.program import Stage, probe_stage, scope_of

if TYPE_CHECKING:
    from plait.engine.component import ComponentRun

#: Ops whose value depends on where in the tensor an element stands.
_PLACED = {"random_bits", "keep_top", "column", "row"}


class Looking:
    """Computes values of one component outside its passes, on the worker of the calling thread.

    Args:
        run: the component.
    """

    def __init__(self, run: ComponentRun) -> None:
        self.run, self.program = run, run.program

    def foresee(self, stage: Stage, selects: list[int]) -> dict[int, Guess]:
        """Where this tensor's thresholds lie, judged by a sample."""
        if not selects:
            return {}
        if FORESIGHT in self.run.host.plan.without:
            return dict.fromkeys(selects, Guess())
        nodes = self.program.nodes
        found = self._sample(stage, selects, sample_pieces(self.program, stage), SAMPLE_PIECE)
        guesses: dict[int, Guess] = {}
        for node, values in found.items():
            sampled = Sampled(values)  # one at a time, which is what memory is predicted for
            mine = [i for i in selects if nodes[i].inputs[0] == node]
            guesses |= {i: sampled.guess(str(nodes[i].param("rank")), nonzero=len(nodes[i].inputs) > 1) for i in mine}
        return guesses

    def settle(self, stage: Stage, selects: list[int]) -> dict[int, Array]:
        """Thresholds and tie limits of a small tensor, straight from its values."""
        found: dict[int, Array] = {}
        for i, values in zip(selects, self.sample(stage, selects, SAMPLE_PIECES), strict=True):
            node = self.program.nodes[i]
            key, limit = settled(magnitudes(values), str(node.param("rank")), str(node.param("ties")), self.run.among(i))
            found[i] = np.array([float(key), limit])
        return found

    def sample(self, stage: Stage, selects: list[int], pieces: int, piece: int = SAMPLE_PIECE) -> list[Array]:
        """Values that order statistics are taken of, on evenly spaced pieces; of a small tensor all. Ranks of one tensor share its values."""
        found = self._sample(stage, selects, pieces, piece)
        return [found[self.program.nodes[i].inputs[0]] for i in selects]

    def _sample(self, stage: Stage, selects: list[int], pieces: int, piece: int) -> dict[int, Array]:
        """The values by the node that is looked at."""
        starts, piece = sample_starts(stage, self.program.numel, pieces, piece)
        nodes = looked_at(self.program, selects)
        values = [np.empty(piece * len(starts), np.float32) for _ in nodes]
        worker, probe = self.run.host.spare_worker(), self._probe(stage, nodes)
        together = not any(self.program.nodes[i].op in _PLACED for i in probe.compute) and not probe.residents
        worker.arrange(self.program, stage)
        if not self.run.raw and not any(scope_of(self.program.nodes[i]) for i in selects):  # else nobody has counted on reading it
            self.run.host.progress(read=piece * len(starts) * sum(RAW[self.run.ref(load).dtype].itemsize for load in stage.loads))
        if together and len(starts) > 1 and all(piece * len(starts) * RAW[self.run.ref(i).dtype].itemsize <= worker.inputs[i].size for i in probe.loads):
            inputs = [self._gather(worker, i, starts, piece) for i in probe.loads]
            data = BlockData(piece * len(starts), 0, inputs, [], None, values, self.run.smalls.of_stage(probe), [], [])
            worker.runner(self.run.component.program, probe, probe_key(stage, nodes)).run(data)
            return dict(zip(nodes, values, strict=True))
        for number, first in enumerate(starts):
            self._values(worker, stage, nodes, first, [v[number * piece : (number + 1) * piece] for v in values])
        return dict(zip(nodes, values, strict=True))

    def _gather(self, worker: Worker, load: int, starts: list[int], piece: int) -> Array:
        """The pieces of one input, one behind the other."""
        ref = self.run.ref(load)
        dtype = RAW[ref.dtype]
        if load in self.run.raw:
            held = self.run.raw[load].view(dtype)
            return np.concatenate([held[first : first + piece] for first in starts])
        buffer, nbytes = worker.inputs[load], piece * dtype.itemsize
        for number, first in enumerate(starts):
            self.run.host.reader.read_into(ref.file, ref.start + first * dtype.itemsize, buffer[number * nbytes : (number + 1) * nbytes])
        gathered: Array = buffer[: len(starts) * nbytes].view(dtype)
        return gathered

    def _probe(self, stage: Stage, nodes: tuple[int, ...]) -> Stage:
        probes = self.run.host.probes
        probe = probes.get((id(stage), nodes))
        if probe is None:
            probe = probes[id(stage), nodes] = probe_stage(self.program, stage, nodes)
        return probe

    def computed(self, stage: Stage, first: int, n: int) -> Array:
        """The values of a range of the output before they are rounded to its dtype, float32."""
        worker, values = self.run.host.spare_worker(), np.empty(n, np.float32)
        piece = search_elements(stage)
        for at in range(0, n, piece):
            self._values(worker, stage, (self.program.root,), first + at, [values[at : at + piece]])
        return values

    def _values(self, worker: Worker, stage: Stage, nodes: tuple[int, ...], first: int, out: list[Array]) -> None:
        """Compute tensor nodes on a range, float32, into `out`."""
        worker.arrange(self.program, stage)
        probe = self._probe(stage, nodes)
        data = self.run.block_data(worker, probe, first, out[0].size, None, out)
        worker.runner(self.run.component.program, probe, probe_key(stage, nodes)).run(data)

    def search_ties(self, stage: Stage, i: int, threshold: Threshold, before: int) -> float:
        """Flat index from which elements equal to the threshold are no longer kept."""
        blocks = self.run.blocks(stage)
        spans = {b: (first, n) for b, first, n in blocks}
        counted = self.run.local.get(i)

        def equal_in(block: int) -> int:
            known = counted.equal_in(block, threshold) if counted is not None else None
            return self._ties(stage, i, threshold, spans[block], 0, 1 << 62)[0] if known is None else known

        def nth_in(block: int, nth: int) -> int:
            skipped, ties = counted.before_nth(block, threshold, nth) if counted is not None else (0, 0)
            return self._ties(stage, i, threshold, spans[block], skipped, nth - ties)[1]

        return tie_limit(threshold, before, blocks, equal_in, nth_in)

    def count_ties(self, stage: Stage, i: int, threshold: Threshold) -> int:
        """How many elements of the tensor equal the threshold."""
        return sum(self._ties(stage, i, threshold, (first, n), 0, 1 << 62)[0] for _, first, n in self.run.blocks(stage))

    def _ties(self, stage: Stage, i: int, threshold: Threshold, span: tuple[int, int], skipped: int, nth: int) -> tuple[int, int]:
        """Ties seen in a range behind its first `skipped` elements, up to the nth, and where in the range that one is (-1 where there are fewer)."""
        begin, count = span
        piece = search_elements(stage)
        worker, seen = self.run.host.spare_worker(), 0
        for first in range(skipped, count, piece):
            n = min(piece, count - first)
            worker.arrange(self.program, stage)
            values = worker.values[: 4 * n].view(np.float32)
            self._values(worker, stage, (self.program.nodes[i].inputs[0],), begin + first, [values])
            places = np.flatnonzero(magnitudes(values) == threshold.key)
            if seen + places.size >= nth:
                return nth, first + int(places[nth - seen - 1])
            seen += places.size
        return seen, -1
